package clustertests

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/history"
	"github.com/holdfast-db/holdfast/cluster-tests/workload"
)

// What makes a leader believe that it still is one while others write.
var (
	pausedLeader = scene{"leader paused for longer than its lease: when it wakes it answers nothing stale to those who wait for it", frozenLeader((*cluster).pause, 200)}

	leaderAndLearner = scene{"leader paused and cut off together with a learner: neither answers anything stale to those who wait", func(c *cluster, w *traffic) {
		// The learner answers the leader's heartbeats, which the library takes for the
		// answer of a voter when it is asked to verify who leads.
		leader, e1 := c.waitLeader(), c.node("e1")
		c.split(leader, e1)
		c.pause(leader)
		c.waitLeader(without(c.voters(), leader)...)
		w.awaitWrites(200)
		there, beside := w.crowd(leader), w.crowd(e1)
		w.awaitWrites(50)
		// It wakes to a cut that still stands, and is asked at once.
		c.resume(leader)
		w.awaitWrites(200)
		c.heal()
		there()
		beside()
		w.awaitReads(e1, 20)
	}}

	leadershipHanded = scene{"leadership handed from voter to voter: no read is stale, no write fails, reads share their questions", func(c *cluster, w *traffic) {
		const name = "holdfast_read_index_requests_total"
		e1 := c.node("e1")
		asked, read := c.metric(e1, name), 0
		for i := range 6 {
			target := without(c.voters(), c.waitLeader())[i%2]
			var crowds []func()
			for _, n := range c.nodes {
				crowds = append(crowds, w.crowd(n))
			}
			read += crowdSize
			c.transfer(c.nodes[i%len(c.nodes)], target)
			for _, answered := range crowds {
				answered()
			}
		}
		asked = c.metric(e1, name) - asked
		c.t.Logf("%d reads and more at e1 took %.0f questions to the leader", read, asked)
		w.mu.Lock()
		defer w.mu.Unlock()
		for n, lost := range w.lost {
			c.t.Errorf("%d writes at %s failed, the first with: %s", len(lost), n, lost[0])
		}
	}}
)

// frozenLeader freezes the leader for so long that another takes its place and some
// writes are acknowledged, and has it asked before it wakes.
func frozenLeader(freeze func(*cluster, *node), writes int64) func(*cluster, *traffic) {
	return func(c *cluster, w *traffic) {
		leader := c.waitLeader()
		freeze(c, leader)
		c.waitLeader(without(c.voters(), leader)...)
		w.awaitWrites(writes)
		answered := w.crowd(leader)
		w.awaitWrites(writes / 4)
		c.resume(leader)
		answered()
		w.awaitReads(leader, 20)
	}
}

// crowdSize is how many reads come at once.
const crowdSize = 24

// crowd sends many reads to one node at once, consistent ones and, to a voter, default
// ones. What it returns waits until all are answered.
func (t *traffic) crowd(n *node) (answered func()) {
	reads := make([]workload.Read, crowdSize)
	for i := range reads {
		reads[i].Mode = workload.Consistent
		if i%3 == 2 && !n.learner() {
			reads[i].Mode = workload.Default
		}
	}
	return t.register.Crowd(context.Background(), t.env, t.node(n), reads...)
}

func TestNoConsistentReadIsStaleWhoeverBelievesToLead(t *testing.T) {
	for _, s := range []scene{leaderAndLearner, leadershipHanded} {
		t.Run(s.promise, func(t *testing.T) {
			c := startCluster(t, threeSites)
			w := c.load()
			defer w.stop()
			w.awaitWrites(100)
			s.disturb(c, w)
			w.judge()
		})
	}
}

// stopsOfCopies pauses a copy, and the leader that it asks, while questions are on
// their way.
func stopsOfCopies(c *cluster, w *traffic) {
	e1 := c.node("e1")
	var over atomic.Bool
	var asking sync.WaitGroup
	defer func() { over.Store(true); asking.Wait() }()
	for range 4 {
		asking.Go(func() {
			for !over.Load() {
				_, _ = read(e1, "none", "consistent")
			}
		})
	}
	for i := range 4 {
		leader := c.waitLeader()
		c.pause(e1)
		if i%2 == 1 {
			c.pause(leader)
		}
		time.Sleep(time.Duration(300+300*i) * time.Millisecond) // of their lives, not of the test's
		w.awaitWrites(30)
		reads := w.localCrowd(e1)
		c.resume(e1)
		reads()
		if i%2 == 1 {
			c.resume(leader)
		}
		w.awaitReads(e1, 30)
	}
}

// localCrowd sends many local reads to one node at once, some of them bounded.
func (t *traffic) localCrowd(n *node) (answered func()) {
	reads := make([]workload.Read, crowdSize)
	for i := range reads {
		reads[i].Mode = workload.Stale
		if i%3 == 0 {
			reads[i].MaxStale = 200 * time.Millisecond
		}
	}
	return t.register.Crowd(context.Background(), t.env, t.node(n), reads...)
}

// What copies say of their age is judged wherever there is load; here they are stopped,
// cut off and asked for bounded answers on purpose.
func TestNoCopyIsOlderThanItSaysOrIsAskedToBe(t *testing.T) {
	c := startCluster(t, threeSites)
	w := c.load()
	defer w.stop()
	w.awaitWrites(100)
	stopsOfCopies(c, w)
	c.cutOff("east")
	w.awaitWrites(100)
	crowd := w.localCrowd(c.node("e1"))
	c.heal()
	crowd()
	w.awaitReads(c.node("e1"), 30)
	w.judge()
	bounded := 0
	for _, o := range w.env.History.Ops(w.register.Name()) {
		if read, ok := o.In.(workload.Read); ok && read.MaxStale > 0 && o.Outcome == history.Decided {
			bounded++
		}
	}
	if bounded < 100 {
		t.Errorf("%d bounded reads were answered", bounded)
	}
}
