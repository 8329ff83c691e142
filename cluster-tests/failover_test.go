package clustertests

import (
	"flag"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

var longFlag = flag.Bool("long", false, "let scenes that show that nothing happens go on for minutes, and others run on both log stores")

// bearable is the longest time without an acknowledged write that no fault of the
// leader may exceed here: far above what it takes on a machine of its own.
const bearable = 2 * time.Second

func TestALeaderThatIsKilledOrSilentIsReplacedSoon(t *testing.T) {
	s := &ownSystem{startCluster(t, voters)}
	for _, how := range []string{"killed", "paused", "killed", "paused"} {
		gap, failed := leaderGoes(t, s, how)
		t.Logf("leader %s: %v without an acknowledged write", how, gap.Round(time.Millisecond))
		if gap > bearable || failed > 0 {
			t.Errorf("leader %s: %v without an acknowledged write, and %d writes failed", how, gap, failed)
		}
	}
}

// The new process takes the leader's port before anybody has seen that it was free,
// or after: either way its predecessor leads no more.
func TestALeaderThatIsRestartedAtOnceIsReplacedSoon(t *testing.T) {
	s := &ownSystem{startCluster(t, voters)}
	for range 2 {
		leader := s.nodes[s.leader()]
		var others []int
		for i, n := range s.nodes {
			if n != leader {
				others = append(others, i)
			}
		}
		load := startLoad(s, others)
		load.await(t, 50)
		at := time.Now()
		s.kill(leader)
		s.start(leader)
		load.awaitAfter(t, at, 100)
		acks, _ := load.end()
		if gap := longestGap(acks, at); gap > bearable {
			t.Errorf("%v without an acknowledged write", gap)
		}
		s.waitReady(leader)
	}
}

// longestGap is the longest time between two acknowledgements from just before a
// moment on.
func longestGap(acks []time.Time, at time.Time) (gap time.Duration) {
	slices.SortFunc(acks, time.Time.Compare)
	for i, ack := range acks[1:] {
		if ack.After(at) {
			gap = max(gap, ack.Sub(acks[i]))
		}
	}
	return gap
}

// terms is the highest term that a node is in.
func (c *cluster) terms(nodes ...*node) (term int) {
	c.t.Helper()
	for _, n := range nodes {
		term = max(term, int(c.metric(n, "holdfast_raft_term")))
	}
	return term
}

// noElection does something to the cluster, and fails the test when an election is
// held within the time given, which is longer with -long.
func (c *cluster) noElection(why string, short, long time.Duration, do func()) {
	c.t.Helper()
	leader, term := c.waitLeader(), c.terms(c.voters()...)
	do()
	if *longFlag {
		short = long
	}
	began := time.Now()
	for time.Since(began) < short {
		time.Sleep(200 * time.Millisecond)
		if now := c.terms(leader); now != term {
			c.t.Fatalf("%s: after %v the term went from %d to %d", why, time.Since(began).Round(time.Millisecond), term, now)
		}
	}
	if now := c.terms(c.voters()...); now != term || c.waitLeader() != leader {
		c.t.Errorf("%s: the term went from %d to %d, %s led", why, term, now, leader)
	}
}

// Everything on this machine at once: the nodes, their clients, and programs that want
// the processors for themselves.
func TestABusyMachineElectsNobody(t *testing.T) {
	c := startCluster(t, threeSites)
	var over atomic.Bool
	load := make(chan error)
	c.noElection("the machine is busy", 4*time.Second, 10*time.Minute, func() {
		go func() {
			var err error
			for !over.Load() && err == nil {
				_, err = drive(time.Second, 64, c.nodes, func(connection, i int) []byte {
					return putRequest(measureKey(connection*7919+i), make([]byte, measureValue))
				})
			}
			load <- err
		}()
	})
	over.Store(true)
	if err := <-load; err != nil {
		t.Error(err)
	}
}
