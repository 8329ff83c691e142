package clustertests

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/fault"
	"github.com/holdfast-db/holdfast/cluster-tests/workload"
	"github.com/holdfast-db/holdfast/internal/fakeclock"
)

// withClocks gives each node a clock of its own, as on a host of its own.
func withClocks(c *cluster) { c.clocks = true }

// withClocksIfPossible does it where it can be done.
func withClocksIfPossible(c *cluster) { c.clocks = fakeclock.Possible() == nil }

// suspend puts a node's host to sleep: the process stops, and so does what Go measures
// time by, until resume.
func (c *cluster) suspend(n *node) { c.t.Helper(); c.must(n.suspend()) }

func (n *node) suspend() error {
	if err := n.pause(); err != nil {
		return err
	}
	n.mu.Lock()
	process := n.proc
	n.mu.Unlock()
	return n.clock.Sleep(process)
}

var _ fault.Clocks = (*cluster)(nil)

// OwnClocks implements fault.Clocks.
func (c *cluster) OwnClocks() bool { return c.clocks }

// Jump implements fault.Clocks.
func (c *cluster) Jump(_ context.Context, by time.Duration, names ...string) error {
	for _, n := range c.named(names...) {
		n.clock.Jump(by)
	}
	return nil
}

// Strobe implements fault.Clocks.
func (c *cluster) Strobe(_ context.Context, swing, period time.Duration, names ...string) error {
	for _, n := range c.named(names...) {
		n.clock.Strobe(swing, period)
	}
	return nil
}

// Skew implements fault.Clocks.
func (c *cluster) Skew(_ context.Context, gain float64, names ...string) error {
	for _, n := range c.named(names...) {
		n.clock.Skew(gain)
	}
	return nil
}

// SetRight implements fault.Clocks.
func (c *cluster) SetRight(_ context.Context, names ...string) error {
	for _, n := range c.named(names...) {
		n.clock.Right()
	}
	return nil
}

// Suspend implements fault.Clocks.
func (c *cluster) Suspend(_ context.Context, names ...string) error {
	return c.frozen(true, names, (*node).suspend)
}

// Longer than everything that is kept for a time, by default.
const jump = 2 * time.Hour

// leaderClock makes the leader's wall clock wrong, in all the ways there are.
func leaderClock(c *cluster, w *traffic) {
	clock := c.waitLeader().clock
	clock.Jump(jump)
	c.serves(w)
	clock.Jump(-2 * jump)
	c.serves(w)
	clock.Strobe(jump, 5*time.Millisecond)
	c.serves(w)
	clock.Right()
}

// otherClocks does it with the wall clocks of a copy, and then has all voters' differ by
// minutes and run at speeds of their own.
func otherClocks(c *cluster, w *traffic) {
	clock, voters := c.node("e1").clock, c.voters()
	clock.Jump(jump)
	c.serves(w)
	clock.Jump(-2 * jump)
	c.serves(w)
	clock.Strobe(-jump, 3*time.Millisecond)
	for i, d := range []time.Duration{0, 3 * time.Minute, -3 * time.Minute} {
		voters[i].clock.Jump(d)
		voters[i].clock.Skew([]float64{1, -0.5, 0}[i])
	}
	c.serves(w)
	for _, n := range c.nodes {
		n.clock.Right()
	}
}

// serves waits until every node has served clients for a while.
func (c *cluster) serves(w *traffic) {
	c.t.Helper()
	for range map[bool]int{false: 1, true: 50}[*longFlag] {
		w.awaitWrites(50)
		for _, n := range c.nodes {
			w.awaitReads(n, 10)
		}
	}
}

// suspendedLeader puts the host of the leader to sleep for as long.
var suspendedLeader = frozenLeader((*cluster).suspend, 100)

// suspendedLearner suspends a copy, which others ask as it wakes.
func suspendedLearner(c *cluster, w *traffic) {
	e1 := c.node("e1")
	for range 3 {
		w.awaitReads(e1, 20)
		c.suspend(e1)
		w.awaitWrites(60)
		answered := w.localCrowd(e1)
		c.resume(e1)
		answered()
	}
}

// Wall clocks may jump and run as they like, and hosts may sleep: nobody is elected for a
// clock, no read is older than it says, and what is kept for a time is kept for just
// that time.
func TestWallClocksDecideNothing(t *testing.T) {
	c := startCluster(t, threeSites, withClocks,
		withFlags("--session-ttl-min", "1s", "--history-changes", "1"),
		// A busy machine must not make an election either.
		withFlags("--raft-multiplier", "5", "--slow-disk-limit", "10s", "--disk-stall-limit", "10s"))
	leader := c.waitLeader()
	term, first := leader.term(t), put(leader, "first", "x", "")
	if !first.ok {
		t.Fatalf("%+v", first)
	}
	w := c.load(workload.NewCounter(), workload.NewLocks())
	defer w.stop()
	w.awaitWrites(100)
	leaderClock(c, w)
	otherClocks(c, w)
	if now := c.waitLeader(); now != leader || now.term(t) != term {
		t.Errorf("%s led in term %s, now %s in term %s: a clock has made an election", leader, term, now, now.term(t))
	}
	for _, n := range c.nodes {
		if a, err := read(n, "first", fmt.Sprintf("stale&rev=%d", first.revision)); err != nil || a.status != http.StatusOK {
			t.Errorf("%s has forgotten what is some seconds old: %+v, %v", n, a, err)
		}
	}
	suspendedLeader(c, w)
	suspendedLearner(c, w)
	w.judge()
}
