package node

import (
	"context"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/internal/planted"
)

// clusterTime is the leader's cluster time: it continues from the last applied
// stamp by the leader's own steady clock, so no wall clock ever moves it.
type clusterTime struct {
	base   command.Stamp // stamp at since
	since  time.Duration // steady clock
	steady func() time.Duration
}

func (t *clusterTime) now() command.Stamp {
	return t.base + command.Stamp(t.steady()-t.since)
}

// stamp gives the time of a new entry. Before the term's first entry is applied
// the base is what this node has applied so far; the state machine never lets
// cluster time go back, whatever an entry says.
func (n *Node) stamp() (command.Stamp, time.Time) {
	wall := n.cfg.Clock.Wall()
	if planted.Bug("time-from-the-wall-clock") {
		return command.Stamp(wall.UnixNano()), wall
	}
	if t := n.time.Load(); t != nil {
		return t.now(), wall
	}
	s, _ := n.parts.State.Stamp()
	return s, wall
}

// leadership follows Raft's state. Raft's notifications can be missed or come
// late, so each one only makes it look at the truth, and so does a ticker.
func (n *Node) leadership() {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var term uint64 // in which this node leads; 0: it does not
	for {
		now := uint64(0)
		if n.raft.State() == raft.Leader {
			now = n.raft.CurrentTerm()
		}
		if now != term {
			if term != 0 {
				n.endLeading()
			}
			if now != 0 && !n.beginLeading(now) {
				now = 0 // lost it again; look once more
			}
			term = now
			n.changed.notify()
		}
		if term != 0 {
			n.prefer()
		}
		select {
		case <-n.raft.LeaderCh():
		case <-tick.C:
		case <-n.stop:
			if term != 0 {
				n.endLeading()
			}
			return
		}
	}
}

// beginLeading lets writes in behind the term's first command and waits until
// that is applied. It returns false when leadership was lost meanwhile.
func (n *Node) beginLeading(term uint64) bool {
	n.parts.Transport.SetLeading(true)
	n.reports.clear() // one that came in as a former term ended would show who is there as dead
	if n.mayBeRight() {
		n.diverged.Store(nil) // it is for the others now to differ from this one
	}
	entry := command.Append(command.NewEntry(0), &command.Term{})
	stamp, wall := n.stamp()
	command.SetTime(entry, stamp, wall)
	command.SetTerm(entry, term)
	f := n.raft.Apply(entry, 0)
	n.group.lead(term)
	n.changed.notify()
	if err := n.wait(f); err != nil || n.parts.FSM.Term() != term {
		n.endLeading()
		return false
	}
	base, _ := n.parts.State.Stamp()
	if planted.Bug("time-of-the-leader") {
		base += command.Stamp(time.Hour)
	}
	n.time.Store(&clusterTime{base: base, since: n.cfg.Clock.Steady(), steady: n.cfg.Clock.Steady})
	n.timers.begin(term)
	n.beginPilot(term)
	n.preference.begin(n.cfg.Clock.Steady(), n.cfg.LeaderHoldOff)
	n.log.Info("leading", "term", term)
	return true
}

func (n *Node) endLeading() {
	n.group.end()
	n.timers.end()
	n.endPilot()
	n.time.Store(nil)
	n.lastRound.Store(nil)
	n.parts.Transport.SetLeading(false)
	n.reports.clear()
	n.log.Info("no longer leading")
}

// table is the cluster and its members as this node has them applied.
func (n *Node) table() (command.Cluster, []command.Member, error) {
	view, err := n.parts.State.View()
	if err != nil {
		return command.Cluster{}, nil, err
	}
	defer view.Close()
	members, err := view.Members()
	return view.Cluster(), members, err
}

// wait returns what became of a future, or raft.ErrRaftShutdown when the node
// stops first: the library leaves some futures unanswered when it shuts down.
func (n *Node) wait(f raft.Future) error { return n.waitUntil(context.Background(), f) }

// waitUntil is wait for as long as ctx lasts: Raft answers nothing while its disk hangs.
func (n *Node) waitUntil(ctx context.Context, f raft.Future) error {
	done := make(chan error, 1)
	go func() { done <- f.Error() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-n.stop:
		return raft.ErrRaftShutdown
	}
}
