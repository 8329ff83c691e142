package node

import (
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
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
			n.promote()
			n.followHealth()
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
	if n.mayBeRight() {
		n.diverged.Store(nil) // it is for the others now to differ from this one
	}
	entry := command.Append(command.NewEntry(0), &command.Term{})
	stamp, wall := n.stamp()
	command.SetTime(entry, stamp, wall)
	command.SetTerm(entry, term)
	f := n.raft.Apply(entry, 0)
	n.group.lead(term)
	if err := n.wait(f); err != nil || n.parts.FSM.Term() != term {
		n.endLeading()
		return false
	}
	base, _ := n.parts.State.Stamp()
	n.time.Store(&clusterTime{base: base, since: n.cfg.Clock.Steady(), steady: n.cfg.Clock.Steady})
	n.timers.begin(term)
	n.log.Info("leading", "term", term)
	return true
}

func (n *Node) endLeading() {
	n.group.end()
	n.timers.end()
	n.time.Store(nil)
	n.lastRound.Store(nil)
	n.parts.Transport.SetLeading(false)
	n.reports.clear()
	n.health.clear()
	n.levelled.clear()
	n.log.Info("no longer leading")
}

// promote makes voters of the home-site members that asked to be and have
// caught up. Nothing else in Holdfast makes a voter after the cluster was
// formed, and it never looks at a member of another site.
func (n *Node) promote() {
	select {
	case n.joining <- struct{}{}: // nobody changes the members meanwhile
		defer func() { <-n.joining }()
	default:
		return
	}
	// Raft's own future has no index.
	_, index := n.parts.State.Configuration()
	servers := n.raft.GetConfiguration().Configuration().Servers
	cluster, members, err := n.table()
	if err != nil {
		return
	}
	eligible := make(map[string]bool, len(members))
	for _, m := range members {
		eligible[m.ID] = m.Role == command.RoleVoter && m.Site == cluster.HomeSite
	}
	for _, s := range servers {
		id := string(s.ID)
		if s.Suffrage == raft.Voter || !eligible[id] {
			continue
		}
		pilot, err := n.autopilot()
		if err != nil {
			return
		}
		level, now := n.level(id), n.cfg.Clock.Wall()
		if since := n.levelled.since(id, level, now); !level || now.Sub(since) < pilot.ServerStabilizationTime {
			continue
		}
		n.log.Info("member has caught up and becomes a voter", "id", s.ID)
		// With the configuration's index, so that a change made meanwhile wins.
		if err := n.wait(n.raft.AddVoter(s.ID, s.Address, index, n.cfg.Wait)); err != nil {
			n.log.Warn("member could not be made a voter", "id", s.ID, "error", err)
		}
		return // one change at a time
	}
}

// levelEntries is how many entries a member may lack and still be called level.
const levelEntries = 128

// level reports whether a member said, recently, that it holds nearly all of
// the log.
func (n *Node) level(id string) bool {
	r, ok := n.reports.get(id)
	return ok && n.cfg.Clock.Steady()-r.at < 2*time.Second && r.LastIndex+levelEntries >= n.raft.LastIndex()
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
func (n *Node) wait(f raft.Future) error {
	done := make(chan error, 1)
	go func() { done <- f.Error() }()
	select {
	case err := <-done:
		return err
	case <-n.stop:
		return raft.ErrRaftShutdown
	}
}
