package node

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// own is what a node knows of the writes its callers wait for. Each has an id in
// its log entry, so the node finds out from its own state machine what became of
// a write whose answer was lost:
//
//   - an entry with the id was applied: the write happened, and its result is
//     known;
//   - an entry of a later term was applied, and none with the id before it: the
//     write never happens. Its entry would be carried out in the one term only
//     that it was meant for, and the log has no more of that;
//   - the leader it was meant for says that it is decided or kept out for good
//     (group.settle), and this node has applied what the leader had, without
//     finding it: it never happens either;
//   - a copy was put in place of entries that may have held it: nobody knows.
//
// Nothing of this is replicated, or kept over a restart: with the process go those
// who wait.
type own struct {
	run   uint64
	seq   atomic.Uint64
	moved signal // when more is known

	mu     sync.Mutex
	writes map[uint64]*ownWrite // guarded by mu; under way, by number
	index  uint64               // guarded by mu; of the last entry seen
	term   uint64               // guarded by mu; the highest of those entries
}

// ownWrite is one write under way. All but id is guarded by own.mu.
type ownWrite struct {
	id      command.ID
	term    uint64 // of the leader it is meant for
	after   uint64 // its entry comes behind this one
	by      uint64 // when positive: if its entry is not among those up to here, there is none
	fate    fate
	result  command.Result
	doubted bool               // nobody waits for the leader's answer any more
	cancel  context.CancelFunc // ends the call that carries it or asks for it
}

// fate is what is known of a write.
type fate uint8

const (
	fateOpen   fate = iota // nothing yet
	fateDone               // it happened
	fateLost               // it will never happen
	fateHidden             // nothing, for ever
)

func newOwn() *own { return &own{run: rand.Uint64(), writes: map[uint64]*ownWrite{}} }

// begin gives out the next id.
func (o *own) begin() *ownWrite {
	return &ownWrite{id: command.ID{Run: o.run, Seq: o.seq.Add(1)}}
}

// meant notes that a write is about to be handed to the leader of a term, by a
// call that cancel ends, while the state holds the entries up to applied. It is
// false when that term has passed: then the write must not be handed over.
func (o *own) meant(w *ownWrite, term, applied uint64, cancel context.CancelFunc) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if term < o.term {
		return false
	}
	*w = ownWrite{id: w.id, term: term, after: applied, cancel: cancel}
	o.writes[w.id.Seq] = w
	return true
}

// end forgets a write.
func (o *own) end(w *ownWrite) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.writes, w.id.Seq)
}

// look says what is known of a write whose outcome is in doubt.
func (o *own) look(w *ownWrite) (fate, command.Result) {
	o.mu.Lock()
	defer o.mu.Unlock()
	w.doubted = true
	if w.fate == fateOpen && w.by > 0 && max(o.index, w.after) >= w.by {
		w.fate = fateLost
	}
	return w.fate, w.result
}

// asks notes the call that asks for a write in doubt. It ends when something is
// known.
func (o *own) asks(w *ownWrite, cancel context.CancelFunc) {
	o.mu.Lock()
	defer o.mu.Unlock()
	w.cancel = cancel
	if w.fate != fateOpen {
		cancel()
	}
}

// decidedBy notes that a write's entry is among those up to index, if there is one.
func (o *own) decidedBy(w *ownWrite, index uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	w.by = index
}

// waits reports whether any write is under way.
func (o *own) waits() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.writes) > 0
}

// seen is the index of the last entry that was seen.
func (o *own) seen() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.index
}

// observe is told of every entry of commands that is applied; see fsm.Observe.
func (o *own) observe(index, term uint64, e *command.Entry, results []command.Result) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case e == nil:
		o.hide(index)
	case e.Term == 0 || e.Term == term:
		for k, id := range e.IDs {
			if id.Run != o.run {
				continue
			}
			if w := o.writes[id.Seq]; w != nil && w.fate == fateOpen {
				o.settle(w, fateDone)
				w.result = results[k]
			}
		}
	}
	if term > o.term {
		o.term = term
		for _, w := range o.writes {
			if w.term < term {
				w.doubted = true // its leader is gone, and may never answer
				o.settle(w, fateLost)
			}
		}
	}
	o.index = max(o.index, index)
	o.moved.notify()
}

// settle sets what is known of a write, unless that is known already.
func (o *own) settle(w *ownWrite, f fate) {
	if w.fate == fateOpen {
		w.fate = f
	}
	if w.doubted && w.cancel != nil {
		w.cancel()
	}
}

// jumped notes that the state came to hold the entries up to index without having
// applied each.
func (o *own) jumped(index uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.hide(index)
	o.moved.notify()
}

func (o *own) hide(index uint64) {
	for _, w := range o.writes {
		if w.after < index {
			o.settle(w, fateHidden)
		}
	}
}

// applied is told of every entry that the state machine applies.
func (n *Node) applied(index, term uint64, e *command.Entry, results []command.Result) {
	n.own.observe(index, term, e, results)
	n.timers.observe(term, e, results)
}

// learn finds out what became of a write that was handed to a leader and not
// answered. Errors: command.ErrNotLeader, it never happens; why, which is a
// command.ErrOutcomeUnknown, when that cannot be told, or not before ctx ends.
func (n *Node) learn(ctx context.Context, w *ownWrite, leader string, why error) (command.Result, error) {
	for pause := retryInterval; ; pause = min(2*pause, maxAskPause) {
		moved := n.own.moved.wait()
		switch fate, result := n.own.look(w); fate {
		case fateDone:
			return result, nil
		case fateLost:
			return command.Result{}, command.ErrNotLeader.With("%v", why)
		case fateHidden:
			return command.Result{}, why
		}
		if n.Failure() != nil {
			return command.Result{}, why // nothing is applied here any more
		}
		select {
		case <-moved:
		case <-time.After(pause):
			if leader != n.id && leader == n.leaderID() {
				n.ask(ctx, w, leader)
			}
		case <-ctx.Done():
			return command.Result{}, why
		case <-n.stop:
			return command.Result{}, why
		}
	}
}

// maxAskPause is the longest time between two questions for one write.
const maxAskPause = 200 * time.Millisecond

// ask asks the leader that a write was handed to whether it is decided.
func (n *Node) ask(ctx context.Context, w *ownWrite, leader string) {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.RoundTimeout)
	defer cancel()
	n.own.asks(w, cancel)
	var req []byte
	for _, v := range []uint64{w.term, w.id.Run, w.id.Seq} {
		req = binary.BigEndian.AppendUint64(req, v)
	}
	answer, err := n.parts.Transport.Call(ctx, leader, methodDecided, req)
	if err == nil && len(answer) == 8 {
		n.own.decidedBy(w, binary.BigEndian.Uint64(answer))
	}
}

// answerDecided sees to it that a write is decided that was meant for this leader,
// and says behind which index its entry is not to be looked for.
func (n *Node) answerDecided(ctx context.Context, req []byte) ([]byte, error) {
	if len(req) != 24 {
		return nil, command.ErrInvalidCommand.With("question of %d bytes", len(req))
	}
	u := binary.BigEndian.Uint64
	if err := n.group.settle(ctx, u(req), command.ID{Run: u(req[8:]), Seq: u(req[16:])}); err != nil {
		return nil, err
	}
	return binary.BigEndian.AppendUint64(nil, n.own.seen()), nil
}
