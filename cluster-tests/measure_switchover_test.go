package clustertests

import (
	"context"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/workload"
)

// measureSwitchovers is how many leaders hand over.
const measureSwitchovers = 30

// TestMeasureSwitchover prints how long requests are held back while leadership is
// handed over on purpose: make bench-switchover.
func TestMeasureSwitchover(t *testing.T) {
	measured(t, "make bench-switchover")
	r := &report{t: t}
	defer r.print()
	c := startCluster(t, append(slices.Clone(voters), threeSites[3]))
	e1 := c.node("e1")
	p := c.patients(c.nodes...)
	type place struct {
		where  string
		errand errand
	}
	held := map[place][]time.Duration{}
	var calls []time.Duration
	for i := range measureSwitchovers {
		leader := c.waitLeader()
		follow := without(c.voters(), leader)
		target, third := follow[i%2], follow[1-i%2]
		p.awaitAnswers(c, 50)
		from := time.Now()
		for _, o := range p.all { // what the load alone costs in a time as long
			if o.errand < waitsForWrites {
				at := place{"anywhere, without a transfer", o.errand}
				held[at] = append(held[at], o.gap(from.Add(-20*time.Millisecond), from.Add(-10*time.Millisecond)))
			}
		}
		c.transfer(c.nodes[i%len(c.nodes)], target)
		to := time.Now()
		calls = append(calls, to.Sub(from))
		p.awaitAnswers(c, 20)
		for where, n := range map[string]*node{"the old leader": leader, "the new leader": target, "the third voter": third, "a learner": e1} {
			for _, o := range p.at(n) {
				if o.errand < waitsForWrites {
					at := place{where, o.errand}
					held[at] = append(held[at], o.gap(from, to))
				}
			}
		}
	}
	p.stop()
	r.columns("at", "request", "median", "p90", "worst")
	for _, where := range []string{"the old leader", "the new leader", "the third voter", "a learner", "anywhere, without a transfer"} {
		for e := writes; e < waitsForWrites; e++ {
			all := slices.Sorted(slices.Values(held[place{where, e}]))
			r.row(where, e, median(all), all[len(all)*9/10], all[len(all)-1])
		}
	}
	slices.Sort(calls)
	r.row("whoever is asked", "the transfer itself", median(calls), calls[len(calls)*9/10], calls[len(calls)-1])
}

// transfer has the leader hand over to a voter, asked at some node, and demands that
// the voter leads when that has answered.
func (c *cluster) transfer(through, to *node) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), workload.Patience)
	defer cancel()
	status, body, _, err := call(ctx, through, http.MethodPost, "/v1/operator/raft/transfer-leader?id="+to.name, nil)
	if err != nil || status != http.StatusOK {
		c.t.Fatalf("transfer to %s, asked at %s: %d %s %v", to, through, status, body, err)
	}
}
