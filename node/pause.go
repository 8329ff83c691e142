package node

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// A learner can be paused: it takes nothing from the leader any more, neither
// entries nor copies, and goes on serving what it has. The transport answers the
// leader so, which holds what it has for this member, without failures that Raft
// would count and log. Being paused is part of the node's identity, so it outlasts
// restarts.

// pausing is whether this node is paused.
type pausing struct {
	on atomic.Bool

	mu  sync.Mutex
	ctx context.Context // guarded by mu; ends with the node and when it is paused
	end context.CancelFunc
}

// Paused reports whether this copy is paused. A voter never is, nor a spare: the cluster
// needs it, or may at any moment.
func (n *Node) Paused() bool { return n.pausing.on.Load() && n.mayPause() == nil }

// mayPause is why this node cannot be paused, nil when it can.
func (n *Node) mayPause() error {
	if n.cfg.Self.Role != command.RoleLearner {
		return command.ErrNotLearner.With("%s was started as a %s", n.cfg.Self.Name, n.cfg.Self.Role)
	}
	if n.raft == nil {
		return nil // as the node starts: a learner does not vote
	}
	if n.hasVote() {
		return command.ErrNotLearner.With("%s votes", n.cfg.Self.Name)
	}
	return nil
}

// initPause takes up what was when the process ended.
func (n *Node) initPause() {
	p := &n.pausing
	p.ctx, p.end = context.WithCancel(n.ctx)
	if n.mayPause() == nil && n.parts.Identity.Paused() {
		p.on.Store(true)
		p.end()
		n.log.Warn("this copy is paused; it takes nothing from the leader until it is resumed")
	}
}

// Pause stops the syncing of this copy, copies under way included, durably. To pause
// a copy that is paused changes nothing. Errors: command.ErrNotLearner.
func (n *Node) Pause(context.Context) error {
	return n.setPaused(true)
}

// Resume starts the syncing again; the leader goes on at once. Errors:
// command.ErrNotLearner.
func (n *Node) Resume(ctx context.Context) error {
	if err := n.setPaused(false); err != nil {
		return err
	}
	n.knock(ctx)
	return nil
}

func (n *Node) setPaused(paused bool) error {
	if err := n.mayPause(); err != nil {
		return err
	}
	p := &n.pausing
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := n.parts.Identity.SetPaused(paused); err != nil {
		return fmt.Errorf("record that the copy is paused, or is not: %w", err)
	}
	if p.on.Swap(paused) == paused {
		return nil
	}
	p.end()
	if paused {
		n.log.Info("this copy is paused")
	} else {
		p.ctx, p.end = context.WithCancel(n.ctx)
		n.log.Info("this copy is resumed")
	}
	n.changed.notify() // who waits for the leader learns that there is nothing to wait for
	return nil
}

// syncing gives a context that ends with the node and when it is paused;
// command.ErrPaused when it is.
func (n *Node) syncing() (context.Context, error) {
	p := &n.pausing
	p.mu.Lock()
	defer p.mu.Unlock()
	if n.Paused() {
		return nil, command.ErrPaused
	}
	return p.ctx, nil
}

// knockLimit bounds how long the voters are waited for. The leader asks once a second by
// itself.
const knockLimit = time.Second

// knock shows the voters that this node is there: one of them leads, or says why it is
// refused.
func (n *Node) knock(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, knockLimit)
	defer cancel()
	others, _ := n.voters()
	var all sync.WaitGroup
	for _, id := range others {
		all.Go(func() {
			if err := n.parts.Transport.Knock(ctx, id); err != nil {
				n.log.Debug("a voter was not told that this node is there", "id", id, "error", err)
			}
		})
	}
	all.Wait()
}
