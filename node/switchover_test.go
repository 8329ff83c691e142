package node_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/node"
)

// Who finds the new leader before it has applied its term's first command waits
// there: to be sent back would cost it the interval at which it looks again.
func TestARequestThatReachesALeaderWhichHasJustWonWaitsThere(t *testing.T) {
	c, gates := gatedCluster(t, 0)
	c.healthy(c.leader())
	leader, f := c.leader(), c.followers()
	target, third := f[0], f[1]
	gates[target.name].close()
	if err := leader.n.Load().TransferLeader(c.bounded(), target.name); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new leader's state machine is held up", gates[target.name].holds)
	eventually(t, third.name+" knows the new leader", func() bool { return third.n.Load().Status().Leader == target.name })
	before := third.n.Load().Counts().IndexRequests
	const reads = 100
	ended := make(chan error, reads+1)
	ctx := c.bounded()
	for range reads {
		go func() { _, err := third.n.Load().AskIndex(ctx, false); ended <- err }()
	}
	go func() { _, err := third.put("k", "v"); ended <- err }()
	select {
	case err := <-ended:
		t.Errorf("answered before the term's first command was applied: %v", err)
	case <-time.After(400 * time.Millisecond):
	}
	gates[target.name].open()
	for range reads + 1 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	// The first has asked at once, and all others share the next question.
	if asked := third.n.Load().Counts().IndexRequests - before; asked > 2 {
		t.Errorf("the leader was asked %d times for %d reads", asked, reads)
	}
}

// diverted is a transport of which TimeoutNow may be lost, or led to another voter.
type diverted struct {
	node.Transport
	divert func(to raft.ServerID) (raft.ServerID, error)
}

func (d diverted) TimeoutNow(id raft.ServerID, _ raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	id, err := d.divert(id)
	if err != nil {
		return err
	}
	return d.Transport.TimeoutNow(id, raft.ServerAddress(id), args, resp)
}

// divertedCluster is three voters whose requests to take over go through divert. Their
// priorities differ, but nothing follows from that by itself.
func divertedCluster(t *testing.T, divert func(c *cluster, to raft.ServerID) (raft.ServerID, error)) *cluster {
	c := &cluster{t: t, members: map[string]*member{}}
	for i, m := range c.firstVoters() {
		m.cfg.LeaderPriority, m.cfg.LeaderHoldOff = i, time.Hour
		m.wrapTransport = func(tr node.Transport) node.Transport {
			return diverted{tr, func(to raft.ServerID) (raft.ServerID, error) { return divert(c, to) }}
		}
	}
	for _, m := range c.members {
		m.start()
	}
	for _, m := range c.members {
		m.waitJoined()
	}
	return c
}

// whileWriting demands that no write through any member fails while do runs.
func (c *cluster) whileWriting(do func()) {
	c.t.Helper()
	ctx, cancel := context.WithCancel(c.t.Context())
	var wg sync.WaitGroup
	for name, m := range c.members {
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := m.put("writing/"+name, "v"+time.Now().String()); err != nil {
					c.t.Errorf("write at %s: %v", name, err)
					return
				}
			}
		})
	}
	do()
	cancel()
	wg.Wait()
}

func TestATransferThatWasNotTakenIsRepeatedAndNoWriteFails(t *testing.T) {
	var lost atomic.Int32
	c := divertedCluster(t, func(_ *cluster, to raft.ServerID) (raft.ServerID, error) {
		if lost.Add(1) <= 3 {
			return to, errors.New("declined")
		}
		return to, nil
	})
	leader := c.leader()
	c.healthy(leader)
	target := c.followers()[0]
	c.whileWriting(func() {
		if err := leader.n.Load().TransferLeader(c.bounded(), target.name); err != nil {
			t.Error(err)
		}
	})
	if now := c.leader(); now != target || lost.Load() < 4 {
		t.Errorf("%s leads after %d tries, not %s", now.name, lost.Load(), target.name)
	}
}

// Another voter may win the election that a transfer began.
func TestATransferEndsWithTheVoterThatWasNamedThoughAnotherWonFirst(t *testing.T) {
	var diverting atomic.Pointer[member]
	c := divertedCluster(t, func(_ *cluster, to raft.ServerID) (raft.ServerID, error) {
		if m := diverting.Swap(nil); m != nil {
			return raft.ServerID(m.id.ID), nil
		}
		return to, nil
	})
	leader := c.leader()
	c.healthy(leader)
	f := c.followers()
	diverting.Store(f[1])
	began := leader.n.Load().Status().Term
	if err := leader.n.Load().TransferLeader(c.bounded(), f[0].name); err != nil {
		t.Fatal(err)
	}
	if now := c.leader(); now != f[0] || diverting.Load() != nil {
		t.Errorf("%s leads, not %s", now.name, f[0].name)
	}
	if now := c.leader().n.Load().Status().Term; now < began+2 {
		t.Errorf("term %d became %d: the other did not win", began, now)
	}
}

func TestATransferToAVoterThatNeverTakesOverFailsAndTheLeaderGoesOn(t *testing.T) {
	var refused atomic.Pointer[member]
	c := divertedCluster(t, func(_ *cluster, to raft.ServerID) (raft.ServerID, error) {
		if m := refused.Load(); m != nil && to == raft.ServerID(m.id.ID) {
			return to, errors.New("this voter is not to lead")
		}
		return to, nil
	})
	leader := c.leader()
	c.healthy(leader)
	refused.Store(slices.MaxFunc(c.followers(), func(a, b *member) int { return a.cfg.LeaderPriority - b.cfg.LeaderPriority }))
	c.whileWriting(func() {
		err := leader.n.Load().TransferLeader(c.bounded(), refused.Load().name)
		if !errors.Is(err, command.ErrNoTarget) || !strings.Contains(err.Error(), "did not take over") {
			t.Error(err)
		}
	})
	if now := c.leader(); now != leader {
		t.Errorf("%s leads", now.name)
	}
	// Who is free to choose passes it over.
	c.healthy(leader)
	if err := leader.n.Load().StepDown(c.bounded()); err != nil {
		t.Error(err)
	}
	if now := c.leader(); now == leader || now == refused.Load() {
		t.Errorf("%s leads", now.name)
	}
}

func TestTransfersAskedForAtOnceAllEndWell(t *testing.T) {
	c := newCluster(t, nil)
	c.healthy(c.leader())
	c.whileWriting(func() {
		var wg sync.WaitGroup
		for _, m := range c.members {
			wg.Go(func() {
				if err := m.n.Load().TransferLeader(c.bounded(), ""); err != nil {
					t.Errorf("asked at %s: %v", m.name, err)
				}
			})
		}
		wg.Wait()
	})
	c.leader()
}

// holdOff is that of the clusters below.
const holdOff = 400 * time.Millisecond

// ranked is a cluster whose voters have those priorities.
func ranked(t *testing.T, priorities map[string]int) *cluster {
	return newCluster(t, func(cfg *node.Config) {
		cfg.LeaderPriority, cfg.LeaderHoldOff = priorities[cfg.Self.Name], holdOff
	})
}

func TestTheVoterOfTheHighestPriorityLeadsWheneverItHasBeenWellForLongEnough(t *testing.T) {
	c := ranked(t, map[string]int{"n2": 5, "n3": 50})
	n3 := c.members["n3"]
	leads := func(name string) func() bool { return func() bool { return c.leader().name == name } }
	c.whileWriting(func() { eventually(t, "n3 leads", leads("n3")) })
	n3.stop()
	eventually(t, "n2 leads, which comes next", leads("n2"))
	back := time.Now()
	n3.start()
	eventually(t, "n3 leads again", leads("n3"))
	if waited := time.Since(back); waited < holdOff {
		t.Errorf("n3 was given leadership after %v", waited)
	}
	// It stays there.
	term := n3.n.Load().Status().Term
	time.Sleep(3 * holdOff)
	if now := c.leader(); now != n3 || n3.n.Load().Status().Term != term {
		t.Errorf("%s leads in term %d, after n3 in term %d", now.name, n3.n.Load().Status().Term, term)
	}
}

// A node that stops may still have requests to finish for longer than the hold-off.
func TestAPreferredVoterThatIsAboutToStopIsNotMadeLeaderAgain(t *testing.T) {
	c := ranked(t, map[string]int{"n3": 50})
	n3 := c.members["n3"]
	eventually(t, "n3 leads", func() bool { return c.leader() == n3 })
	c.healthy(n3)
	if err := n3.n.Load().Leave(c.bounded()); err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(5 * holdOff); time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
		if n3.n.Load().Raft().State() == raft.Leader {
			t.Fatal("n3 leads again")
		}
	}
	c.whileWriting(func() { c.leader() })
}

func TestVotersOfEqualPriorityLeaveLeadershipWhereItIs(t *testing.T) {
	c := ranked(t, map[string]int{"n1": 7, "n2": 7, "n3": 7})
	leader := c.leader()
	c.healthy(leader)
	term := leader.n.Load().Status().Term
	time.Sleep(3 * holdOff)
	if now := c.leader(); now != leader || now.n.Load().Status().Term != term {
		t.Errorf("%s leads", now.name)
	}
}
