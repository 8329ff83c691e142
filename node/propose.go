package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/internal/planted"
)

// Propose carries out a write, on whichever node leads, exactly once, and returns
// its result. It waits for a leader and for the outcome for as long as Config.Wait.
// When it returns a result, the write is on a majority's disks.
//
// A write whose answer was lost with the leader, or on the way to it, is handed
// over again when it is certain that it has not happened and will not (own): a
// second one could undo what another client wrote in between.
//
// Errors: command.ErrNoLeader, no leader was found and nothing happened;
// command.ErrDataFull, the leader takes no puts; command.ErrOutcomeUnknown, the
// leader or the way to it was lost while the write was under way, and what became
// of it was not learnt in time.
func (n *Node) Propose(ctx context.Context, c command.Command) (command.Result, error) {
	if err := command.Validate(c); err != nil {
		return command.Result{}, err
	}
	if p, ok := c.(*command.Put); ok && p.Mode == command.PutCAS && planted.Bug("cas-before-the-log") {
		if view, err := n.parts.State.View(); err == nil {
			rec, err := view.Get(p.Key)
			view.Close()
			if command.Unchanged(p.Index, rec.ModifyRevision, err == nil) {
				c = &command.Put{Key: p.Key, Value: p.Value, Flags: p.Flags}
			}
		}
	}
	var (
		own *ownWrite
		w   = write{grows: grows(c), adds: adds(c), once: onceKey(c)}
		res command.Result
	)
	defer func() {
		if own != nil {
			n.own.end(own)
		}
	}()
	err := n.withLeader(ctx, func(ctx context.Context, leader string) (err error) {
		if own == nil {
			own = n.own.begin()
			w.id, w.encoded = own.id, command.AppendWithID(nil, own.id, c)
		}
		w.term = n.leaderTerm()
		res, err = n.hand(ctx, own, w, leader)
		if !errors.Is(err, command.ErrOutcomeUnknown) {
			return err
		}
		if res, err = n.learn(ctx, own, leader, err); errors.Is(err, command.ErrNotLeader) {
			// It never happens under this id. Another try gets another one, since a
			// leader may have been told to keep this one out.
			n.own.end(own)
			own = nil
		}
		return err
	})
	return res, err
}

// hand hands a write to the leader and waits for its answer.
func (n *Node) hand(ctx context.Context, own *ownWrite, w write, leader string) (command.Result, error) {
	applied, _ := n.parts.State.Applied()
	if leader == n.id {
		if !n.own.meant(own, w.term, applied, nil) {
			return command.Result{}, command.ErrNotLeader
		}
		return n.group.submit(ctx, w)
	}
	short, cancel := context.WithCancel(ctx)
	defer cancel()
	if !n.own.meant(own, w.term, applied, cancel) {
		return command.Result{}, command.ErrNotLeader
	}
	req := binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(w.encoded)), w.term)
	answer, err := n.parts.Transport.Call(short, leader, methodPropose, append(req, w.encoded...))
	var res command.Result
	if err == nil {
		if res, err = command.DecodeResult(answer); err == nil {
			return res, nil
		}
		return res, command.ErrOutcomeUnknown.With("%v", err)
	}
	switch {
	case errors.Is(err, command.ErrOutcomeUnknown):
	case errors.Is(err, command.ErrPeer):
		err = command.ErrOutcomeUnknown.With("%v", err)
	case errors.Is(err, context.Canceled) && ctx.Err() == nil:
		err = command.ErrNotLeader // the leader was gone before the call left
	}
	return res, err
}

// answerPropose serves methodPropose on the leader.
func (n *Node) answerPropose(ctx context.Context, req []byte) ([]byte, error) {
	if len(req) < 8 {
		return nil, command.ErrInvalidCommand.With("proposal of %d bytes", len(req))
	}
	w := write{term: binary.BigEndian.Uint64(req), encoded: req[8:]}
	// Looked at before it can reach the log: what cannot be applied would stop every
	// replica, at every start.
	id, c, rest, err := command.DecodeWithID(w.encoded)
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("%d bytes too many", len(rest))
	}
	if err != nil {
		return nil, command.ErrInvalidCommand.With("%v", err)
	}
	if err := command.Validate(c); err != nil {
		return nil, err
	}
	w.id, w.grows, w.adds, w.once = id, grows(c), adds(c), onceKey(c)
	res, err := n.group.submit(ctx, w)
	if err != nil {
		return nil, err
	}
	return command.AppendResult(nil, res), nil
}

// grows reports whether a command may add to the data. What is staged for a restore
// does not count: that replaces the data, and may be the remedy.
func grows(c command.Command) bool {
	switch c := c.(type) {
	case *command.Put, *command.PutMany:
		return true
	case *command.Txn:
		return slices.ContainsFunc(c.Ops, func(op command.TxnOp) bool { return op.Verb.Puts() })
	case *command.Once:
		return grows(c.Command)
	}
	return false
}

// adds reports whether a command may take much more space on disk than it gives back
// in time: what grows the data, and what is staged for a restore.
func adds(c command.Command) bool {
	s, ok := c.(*command.Stage)
	return ok && len(s.Data) > 0 || grows(c)
}

// onceKey is the idempotency key of a command; empty when it has none.
func onceKey(c command.Command) string {
	if once, ok := c.(*command.Once); ok {
		return once.Key
	}
	return ""
}

// remembers reports whether a write with that idempotency key has happened already:
// to repeat it adds nothing, and its sender is owed the result.
func (n *Node) remembers(onceKey string) bool {
	if onceKey == "" {
		return false
	}
	view, err := n.parts.State.View()
	if err != nil {
		return false
	}
	defer view.Close()
	known, err := view.Remembers(onceKey)
	return err == nil && known
}

// admitWrite says why this leader must not propose a write now: another site has
// become home; its contents are wrong, so what it would answer is; its disk hangs or
// is full; or the data is full. The last is a
// limit of the leader, whichever node the write came by: two nodes with different
// ones must not decide one entry differently, so it is judged before there is an
// entry. Above it every write that puts is refused, whatever it would replace.
func (n *Node) admitWrite(w write) error {
	if err := n.parted(); err != nil {
		return err
	}
	if n.Diverged() != 0 {
		return command.ErrNotLeader.With("%v", n.wrong())
	}
	if err := n.diskRefuses(w); err != nil {
		return err
	}
	if n.cfg.MaxData == 0 || !w.grows {
		return nil
	}
	if size := n.parts.State.DataBytes(); size >= n.cfg.MaxData && !n.remembers(w.once) {
		return command.ErrDataFull.With("%d of %d bytes", size, n.cfg.MaxData)
	}
	return nil
}

// withLeader runs do against the leader, and again when it turns out that
// nothing was done because there is another one, or none yet. It gives up after
// Config.Wait, and at once while this copy is paused.
func (n *Node) withLeader(ctx context.Context, do func(ctx context.Context, leader string) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, n.cfg.Wait, command.ErrNoLeader)
	defer cancel()
	var last error
	for {
		changed := n.changed.wait()
		if err := n.parted(); err != nil {
			return err
		}
		if n.Paused() {
			return command.ErrPaused
		}
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

// atLeader runs do on the leader: here, or there as a call. Nothing happened when
// it fails with an error that tryElsewhere accepts.
func (n *Node) atLeader(ctx context.Context, method uint8, req []byte, do func(context.Context, []byte) ([]byte, error)) (answer []byte, err error) {
	err = n.withLeader(ctx, func(ctx context.Context, leader string) error {
		answer, err = n.callOn(ctx, leader, method, req, do)
		return err
	})
	return answer, err
}

// callOn runs do on a node: here, or there as a call.
func (n *Node) callOn(ctx context.Context, id string, method uint8, req []byte, do func(context.Context, []byte) ([]byte, error)) ([]byte, error) {
	if id == n.id {
		return do(ctx, req)
	}
	return n.parts.Transport.Call(ctx, id, method, req)
}

// retryInterval is how often a waiting request looks for the leader without
// being told of a change.
const retryInterval = 25 * time.Millisecond

// pause waits for retryInterval, or until ctx ends, whose error it returns.
func pause(ctx context.Context) error {
	select {
	case <-time.After(retryInterval):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

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

// askAgain makes a lost answer one that withLeader asks for again. It is for requests
// that may be made twice.
func askAgain(err error) error {
	if errors.Is(err, command.ErrOutcomeUnknown) || errors.Is(err, command.ErrPeer) {
		return command.ErrNotLeader.With("%v", err)
	}
	return err
}

// leaderID is the Raft id of the leader as this node knows it, "" without one. While
// its disk is down its Raft cannot tell, and others do.
func (n *Node) leaderID() string {
	if f := n.disk.follows.Load(); f != nil {
		return f.id
	}
	return n.raftLeader()
}

// raftLeader is the leader as Raft knows it.
func (n *Node) raftLeader() string {
	_, id := n.raft.LeaderWithID()
	return string(id)
}

// leaderTerm is the term in which leaderID leads.
func (n *Node) leaderTerm() uint64 {
	if s := n.disk.follows.Load(); s != nil {
		return s.term
	}
	return n.raft.CurrentTerm()
}
