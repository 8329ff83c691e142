package clustertests

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// What makes a leader believe that it still is one while others write.
var (
	pausedLeader = scene{"leader paused for longer than its lease: when it wakes it answers nothing stale to those who wait for it", func(c *cluster, w *workload) {
		leader := c.waitLeader()
		c.pause(leader)
		c.waitLeader(without(c.voters(), leader)...)
		w.awaitWrites(200)
		waiting := w.crowd(leader)
		w.awaitWrites(50)
		c.resume(leader)
		waiting.Wait()
		w.awaitReads(leader, 20)
	}}

	leaderAndLearner = scene{"leader paused and cut off together with a learner: neither answers anything stale to those who wait", func(c *cluster, w *workload) {
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
		there.Wait()
		beside.Wait()
		w.awaitReads(e1, 20)
	}}

	leadershipHanded = scene{"leadership handed from voter to voter: no read is stale, no write fails, reads share their questions", func(c *cluster, w *workload) {
		const name = "holdfast_read_index_requests_total"
		e1 := c.node("e1")
		asked, read := c.metric(e1, name), 0
		for i := range 6 {
			target := without(c.voters(), c.waitLeader())[i%2]
			var crowds []*sync.WaitGroup
			for _, n := range c.nodes {
				crowds = append(crowds, w.crowd(n))
			}
			read += crowdSize
			c.transfer(c.nodes[i%len(c.nodes)], target)
			for _, crowd := range crowds {
				crowd.Wait()
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

// crowdSize is how many reads come at once.
const crowdSize = 24

// crowd sends many reads to one node at once, consistent ones and, to a voter, default
// ones. They are recorded when they are answered.
func (w *workload) crowd(n *node) *sync.WaitGroup {
	var wg sync.WaitGroup
	for i := range crowdSize {
		m := consistent
		if i%3 == 2 && !n.learner() {
			m = leading
		}
		key := w.hotKey(i % 3)
		wg.Go(func() { w.readAs(-1, n, op{client: 1000 + i, key: key, mode: m, crowded: i >= 6}) })
	}
	return &wg
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
func stopsOfCopies(c *cluster, w *workload) {
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
		reads.Wait()
		if i%2 == 1 {
			c.resume(leader)
		}
		w.awaitReads(e1, 30)
	}
}

// localCrowd sends many local reads to one node at once.
func (w *workload) localCrowd(n *node) *sync.WaitGroup {
	var wg sync.WaitGroup
	for i := range crowdSize {
		bound, key := time.Duration(0), w.hotKey(i%3)
		if i%3 == 0 {
			bound = 200 * time.Millisecond
		}
		wg.Go(func() { w.readAs(-1, n, op{client: 2000 + i, key: key, mode: local, bound: bound}) })
	}
	return &wg
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
	crowd.Wait()
	w.awaitReads(c.node("e1"), 30)
	w.judge()
	bounded := 0
	for _, o := range w.history.all() {
		if o.bound > 0 {
			bounded++
		}
	}
	if bounded < 100 {
		t.Errorf("%d bounded reads were answered", bounded)
	}
}
