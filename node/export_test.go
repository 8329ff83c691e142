package node

import (
	"context"
	"time"

	"github.com/hashicorp/raft"
)

// Raft lets tests do to Raft what no caller of a node can.
func (n *Node) Raft() *raft.Raft { return n.raft }

// The calls that tests spoil.
const (
	MethodTerm    = methodTerm
	MethodPropose = methodPropose
	MethodRemove  = methodRemove
	MethodPromise = methodPromise
	MethodFind    = methodFind
	MethodYield   = methodYield
)

// GiveVote and TakeVote do what autopilot would, had it decided so.
func (n *Node) GiveVote(ctx context.Context, id string) error {
	return n.pilot.Load().giveVote(ctx, id)
}
func (n *Node) TakeVote(ctx context.Context, id string) error {
	return n.pilot.Load().takeVote(ctx, id)
}

// ReportLate records a report of a member as one that came in while this node did not
// lead; Reported is whether there is one.
func (n *Node) ReportLate(id string) {
	n.reports.record(id, Report{}, equal, n.cfg.Clock.Steady()-time.Minute, 0)
}

func (n *Node) Reported(id string) bool {
	_, ok := n.reports.get(id)
	return ok
}

// Pilots reports whether this node leads, and autopilot looks after the members.
func (n *Node) Pilots() bool { return n.pilot.Load() != nil }

// Finding is what voters tell each other of a term.
type Finding = finding

// Probations are how long a disk must answer each time before it counts as well again,
// if it hangs at these moments.
func Probations(at ...time.Time) (all []time.Duration) {
	var w diskJudge
	for _, t := range at {
		w.sentence(t)
		all = append(all, w.probation)
	}
	return all
}
