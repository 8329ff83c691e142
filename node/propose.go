package node

import (
	"context"
	"errors"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// Propose carries out a write, on whichever node leads, and returns its result.
// It waits for a leader for as long as Config.Wait. When it returns a result,
// the write is on a majority's disks.
//
// Errors: command.ErrNoLeader, no leader was found and nothing happened;
// command.ErrDataFull, the leader takes no puts; command.ErrOutcomeUnknown, the leader or the way to it was lost while the
// write was under way, and it may have happened. Propose never repeats such a
// write: the second could undo what another client wrote in between.
func (n *Node) Propose(ctx context.Context, c command.Command) (command.Result, error) {
	if err := command.Validate(c); err != nil {
		return command.Result{}, err
	}
	encoded := command.Append(nil, c)
	var res command.Result
	err := n.withLeader(ctx, func(ctx context.Context, leader string) (err error) {
		if leader == n.id {
			res, err = n.group.submit(ctx, encoded)
			return err
		}
		answer, err := n.parts.Transport.Call(ctx, leader, methodPropose, encoded)
		if err == nil {
			if res, err = command.DecodeResult(answer); err != nil {
				return command.ErrOutcomeUnknown.With("%v", err)
			}
		}
		if errors.Is(err, command.ErrPeer) {
			return command.ErrOutcomeUnknown.With("%v", err)
		}
		return err
	})
	return res, err
}

// admitWrite says why this leader must not propose a command now: its contents
// are wrong, so what it would answer is, or the data is full. The second is a
// limit of the leader, whichever node the write came by: two nodes with different
// ones must not decide one entry differently, so it is judged before there is an
// entry. Above it every put is refused, whatever it would replace.
func (n *Node) admitWrite(encoded []byte) error {
	if n.Diverged() != 0 {
		return command.ErrNotLeader.With("%v", n.wrong())
	}
	if n.cfg.MaxData == 0 || len(encoded) == 0 {
		return nil
	}
	switch command.Kind(encoded[0]) {
	case command.KindPut, command.KindPutMany:
		if size := n.parts.State.DataBytes(); size >= n.cfg.MaxData {
			return command.ErrDataFull.With("%d of %d bytes", size, n.cfg.MaxData)
		}
	}
	return nil
}

// withLeader runs do against the leader, and again when it turns out that
// nothing was done because there is another one, or none yet. It gives up after
// Config.Wait.
func (n *Node) withLeader(ctx context.Context, do func(ctx context.Context, leader string) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, n.cfg.Wait, command.ErrNoLeader)
	defer cancel()
	var last error
	for {
		changed := n.changed.wait()
		if leader := n.leaderID(); leader != "" {
			last = do(ctx, leader)
			if last == nil || !tryElsewhere(last) {
				return last
			}
		}
		select {
		case <-changed:
		case <-time.After(retryInterval):
		case <-ctx.Done():
			if errors.Is(context.Cause(ctx), command.ErrNoLeader) {
				if last != nil && !errors.Is(last, command.ErrNotLeader) {
					return command.ErrNoLeader.With("%v", last)
				}
				return command.ErrNoLeader
			}
			return ctx.Err()
		case <-n.stop:
			return command.ErrStopping
		}
	}
}

// retryInterval is how often a waiting request looks for the leader without
// being told of a change.
const retryInterval = 25 * time.Millisecond

// tryElsewhere reports whether an error means that nothing was done and that
// another try, perhaps with another leader, may do it.
func tryElsewhere(err error) bool {
	var coded *command.Error
	if !errors.As(err, &coded) {
		// Of the transport, which names every request that left: this one did
		// not, for want of a connection or an address.
		return !errors.Is(err, context.Canceled)
	}
	for _, again := range []error{command.ErrNotLeader, command.ErrNoLeader, command.ErrStopping} {
		if errors.Is(err, again) {
			return true
		}
	}
	return false
}

// leaderID is the Raft id of the leader as this node knows it, "" without one.
func (n *Node) leaderID() string {
	_, id := n.raft.LeaderWithID()
	return string(id)
}
