package clustertests

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/client"
	"github.com/holdfast-db/holdfast/cluster-tests/workload"
)

// longestHeld is more than a request may be held back by a change of leader that
// was meant. It is some milliseconds on an idle machine.
const longestHeld = time.Second

// judgeHeld demands that no request that was not to wait took longer than that.
func (p *patients) judgeHeld(from, to time.Time) {
	p.t.Helper()
	var most time.Duration
	for _, o := range p.all {
		if o.errand >= waitsForWrites {
			continue
		}
		took := o.longest(from, to)
		if most = max(most, took); took > longestHeld {
			p.t.Errorf("one of the %s at %s took %v", o.errand, o.node, took)
		}
	}
	p.t.Logf("the slowest request took %v", most.Round(time.Millisecond))
}

func TestNoRequestFailsWhileLeadershipGoesFromVoterToVoter(t *testing.T) {
	c := startCluster(t, append(slices.Clone(voters), threeSites[3]))
	p := c.patients(c.nodes...)
	p.awaitAnswers(c, 10)
	from := time.Now()
	for i := range 6 {
		target := without(c.voters(), c.waitLeader())[i%2]
		c.transfer(c.nodes[i%len(c.nodes)], target)
		if s, ok := target.status(); !ok || s.Mode != "leader" {
			t.Errorf("%s was to lead and is %q", target, s.Mode)
		}
		p.awaitAnswers(c, 5)
	}
	p.judgeHeld(from, time.Now())
	p.stop()
}

// waitHealthy waits until the leader calls all members healthy, as a node is told.
func (c *cluster) waitHealthy(asked *node) {
	c.t.Helper()
	c.wait(30*time.Second, "all members are healthy", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), workload.Patience)
		defer cancel()
		status, _, err := get(ctx, asked, "/v1/operator/autopilot/health")
		return err == nil && status == http.StatusOK
	})
}

// Whoever asks the other nodes notices nothing when one after the other is started
// anew, and who asks the one that stops gets the answers it waits for.
func TestNoRequestFailsWhileAllNodesAreRestartedOneAfterTheOther(t *testing.T) {
	c := startCluster(t, append(slices.Clone(voters), threeSites[3]))
	p := c.patients(c.nodes...)
	api := clientOf(t, c.nodes...)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var wg sync.WaitGroup
	var slowest atomic.Int64
	wg.Go(func() { // a client that knows all nodes and is told of no restart
		for i := 0; ctx.Err() == nil; i++ {
			began := time.Now()
			if _, _, err := api.Put(context.Background(), "rolling", fmt.Appendf(nil, "%d", i), client.Once()); err != nil {
				t.Errorf("the client that knows all nodes: %v", err)
			}
			if _, _, err := api.Get(context.Background(), "rolling", client.Consistent()); err != nil {
				t.Errorf("the client that knows all nodes: %v", err)
			}
			slowest.Store(max(slowest.Load(), int64(time.Since(began))))
		}
	})
	from := time.Now()
	for left := c.nodes; len(left) > 0; {
		p.awaitAnswers(c, 20)
		n := left[0]
		if leader := c.waitLeader(); slices.Contains(left, leader) {
			n = leader // the harder way
		}
		left = without(left, n)
		p.leave(n)
		c.stop(n)
		c.start(n)
		c.waitReady(n)
		c.waitHealthy(n)
		p.comeBack(n)
	}
	p.judgeHeld(from, time.Now())
	p.stop()
	cancel()
	wg.Wait()
	if took := time.Duration(slowest.Load()); took > 2*longestHeld {
		t.Errorf("a write and a read of the client that knows all nodes took %v", took)
	}
}
