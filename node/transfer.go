package node

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// TransferLeader hands leadership to a voter, given by id or name, or, when none
// is given, to the most complete one. It returns when the new leader is known.
// Writes that arrive meanwhile wait, and go to the new leader.
//
// Errors: command.ErrNoTarget, the member cannot lead or is not level;
// command.ErrNoLeader.
func (n *Node) TransferLeader(ctx context.Context, to string) error {
	_, err := n.atLeader(ctx, methodTransfer, []byte(to), n.answerTransfer)
	return err
}

func (n *Node) answerTransfer(ctx context.Context, to []byte) ([]byte, error) {
	if n.raft.State() != raft.Leader {
		return nil, command.ErrNotLeader
	}
	target, err := n.transferTarget(ctx, string(to))
	if err != nil {
		return nil, err
	}
	if target == n.id {
		return nil, nil // it leads already
	}
	if others, _ := n.voters(); len(others) == 0 {
		return nil, command.ErrNoTarget.With("there is no other voter")
	}
	return nil, n.handOver(ctx, target)
}

// transferTarget finds the voter meant by an id or a name; empty means any. What
// could not take over at once is refused here: Raft itself would depose the leader
// for a learner, or for a member that lacks entries.
func (n *Node) transferTarget(ctx context.Context, to string) (id string, err error) {
	if to == "" {
		return "", nil
	}
	// A new leader has heard from nobody yet.
	for deadline := time.Now().Add(2 * reportGrace); ; {
		h, err := n.judgeHealth()
		if err != nil {
			return "", err
		}
		i := slices.IndexFunc(h.Members, func(m command.MemberHealth) bool { return m.ID == to || m.Name == to })
		if i < 0 {
			return "", command.ErrNoTarget.With("id %q was not found in the Raft configuration", to)
		}
		switch m := h.Members[i]; {
		case !m.Voter:
			return "", command.ErrNoTarget.With("%s is not a voter", m.Name)
		case m.Healthy:
			return m.ID, nil
		case time.Now().After(deadline):
			return "", command.ErrNoTarget.With("%s is not healthy", m.Name)
		}
		if err := pause(ctx); err != nil {
			return "", err
		}
	}
}

// StepDown hands leadership to the most complete other voter, if this node
// leads, and returns when there is a new leader. Writes that are under way are
// finished first, and those that arrive meanwhile wait and go to the new
// leader: none fails.
func (n *Node) StepDown(ctx context.Context) error {
	if n.raft.State() != raft.Leader {
		return nil
	}
	if others, _ := n.voters(); len(others) == 0 {
		return nil // nobody to hand over to
	}
	return n.handOver(ctx, "")
}

// handOver gives leadership to a voter, "" for the most complete one, and returns
// when another leader is known. Writes under way are finished first; those that
// arrive meanwhile wait and go to the new leader: none fails.
func (n *Node) handOver(ctx context.Context, to string) error {
	transfer := n.raft.LeadershipTransfer
	if to != "" {
		transfer = func() raft.Future {
			return n.raft.LeadershipTransferToServer(raft.ServerID(to), raft.ServerAddress(to))
		}
	}
	// A transfer has one election timeout to succeed, and a busy target misses
	// it: so it is tried until ctx ends.
	for {
		err := n.group.drain(ctx)
		if err == nil {
			err = n.wait(transfer())
		}
		if err == nil || n.raft.State() != raft.Leader {
			break
		}
		n.group.unlock()
		if pause(ctx) != nil {
			return err
		}
	}
	for {
		changed := n.changed.wait()
		if id := n.leaderID(); id != "" && id != n.id {
			return nil
		}
		select {
		case <-changed:
		case <-time.After(retryInterval):
		case <-ctx.Done():
			return errors.New("leadership was handed over, but no new leader is known yet")
		}
	}
}
