package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

const (
	healPause    = time.Second // before the second try, doubled for each further one
	healMaxPause = 30 * time.Second
	// rangeTries is how often a copy of what is damaged is tried before a full one.
	rangeTries = 3
	// healHandOver bounds how long a leader that must replace its contents tries to
	// hand over.
	healHandOver = 5 * time.Second
)

// healing replaces contents that are damaged or differ from the leader's by those
// of another member.
func (n *Node) healing() {
	pause := healPause
	again := time.After(0) // what was found before Start
	failed := 0
	for {
		found, sick := n.parts.State.DamageFound(), (<-chan struct{})(n.sick)
		if again != nil {
			found, sick = nil, nil // what they tell waits for its turn
		}
		select {
		case <-found:
		case <-sick:
		case <-again:
		case <-n.stop:
			return
		}
		again = nil
		if err := n.heal(n.ctx, failed >= rangeTries); err != nil {
			failed++
			n.log.Warn("contents are not repaired yet", "error", err, "again-in", pause)
			again, pause = time.After(pause), min(2*pause, healMaxPause)
		} else {
			failed, pause = 0, healPause
		}
	}
}

// heal does what there is to do. With full it replaces damaged contents as a
// whole.
func (n *Node) heal(ctx context.Context, full bool) error {
	switch d := n.diverged.Load(); {
	case d != nil:
		return n.healDivergence(ctx, d)
	case n.outvoted():
		n.log.Error("contents differ from those of most voters: handing over")
		return n.stepAside(ctx)
	case len(n.parts.State.Damaged()) > 0:
		return n.healDamage(ctx, full)
	}
	return nil
}

// healDivergence replaces this node's contents by the leader's, once it is settled
// whose are right.
func (n *Node) healDivergence(ctx context.Context, d *divergence) error {
	if n.raft.State() == raft.Leader {
		err := n.stepAside(ctx)
		if err == nil && n.raft.State() == raft.Leader {
			n.diverged.CompareAndSwap(d, nil) // the only voter there is: its contents are the cluster's
		}
		return err
	}
	leader := n.leaderID()
	if leader == "" {
		return command.ErrNoLeader
	}
	if !d.located {
		if err := n.findFirst(ctx, d, leader); err != nil {
			n.log.Warn("it cannot be told where the contents began to differ", "error", err)
		}
		d.located = true
		if !d.settled.Load() {
			n.log.Warn("contents differ from the leader's, and the voters have not decided whose are right", "from-revision", d.first.Load())
		}
	}
	if !d.settled.Load() {
		return nil // the next probe brings a verdict
	}
	n.log.Warn("replacing contents that differ from the leader's", "from-revision", d.first.Load(), "leader", leader)
	if err := n.replaceState(ctx, leader); err != nil {
		return err
	}
	n.diverged.CompareAndSwap(d, nil)
	return nil
}

// healDamage takes what is damaged from other members, or everything when that
// does not help.
func (n *Node) healDamage(ctx context.Context, full bool) error {
	var problem error = errors.New("there is no other member")
	for _, from := range n.sources() {
		if full {
			break
		}
		if problem = n.healRanges(ctx, from); problem == nil {
			if len(n.parts.State.Damaged()) == 0 {
				return nil
			}
			full = true
		}
	}
	if !full {
		return problem
	}
	// The contents of a leader are exchanged only when nobody else can lead.
	if err := n.stepAside(ctx); err != nil {
		return err
	}
	n.log.Warn("replacing contents that are damaged")
	for _, from := range n.sources() {
		if problem = n.replaceState(ctx, from); problem == nil {
			return nil
		}
	}
	return problem
}

// healRanges takes what is damaged from a member.
func (n *Node) healRanges(ctx context.Context, from string) error {
	defer n.holdLog()()
	n.copying.Lock()
	defer n.copying.Unlock()
	c, err := n.takeCopy(ctx, false, n.member(from))
	if err != nil || c.Kind != command.CopyFull {
		return err
	}
	// The member found everything to be the better answer.
	if err := n.stepAside(ctx); err != nil {
		return err
	}
	return n.exchange()
}

// stepAside hands leadership over, if this node leads and another voter can.
func (n *Node) stepAside(ctx context.Context) error {
	if n.raft.State() != raft.Leader {
		return nil
	}
	bounded, cancel := context.WithTimeout(ctx, healHandOver)
	defer cancel()
	if err := n.StepDown(bounded); err != nil {
		return fmt.Errorf("hand leadership over: %w", err)
	}
	return nil
}

// sources lists the other members in the order in which they are asked for
// contents: the leader, voters, the others.
func (n *Node) sources() []string {
	leader := n.leaderID()
	rank := func(s raft.Server) int {
		switch {
		case string(s.ID) == leader:
			return 0
		case s.Suffrage == raft.Voter:
			return 1
		}
		return 2
	}
	servers := slices.Clone(n.raft.GetConfiguration().Configuration().Servers)
	slices.SortStableFunc(servers, func(a, b raft.Server) int { return rank(a) - rank(b) })
	var ids []string
	for _, s := range servers {
		if string(s.ID) != n.id {
			ids = append(ids, string(s.ID))
		}
	}
	return ids
}
