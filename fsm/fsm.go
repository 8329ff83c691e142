package fsm

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/store"
)

// FSM applies committed entries to a store. It implements raft.BatchingFSM.
//
// Raft calls Apply, ApplyBatch, Snapshot and Restore from one goroutine; Term
// may be called from any.
type FSM struct {
	state *store.State
	// fail is told the first error of the store, once.
	fail func(error)
	// failed is that error. From then on nothing is applied: the state stays
	// at the last entry it holds completely, and readers may go on with it.
	failed error
	term   atomic.Uint64
	observer
}

// New returns the state machine over state. fail is called once, with the
// first error of the store, from the goroutine that applies; it must not block.
// The node is expected to leave the cluster then: its state can no longer
// follow the log.
func New(state *store.State, fail func(error)) *FSM {
	return &FSM{state: state, fail: fail}
}

// Term is the Raft term of the last Term command applied since the process
// started, 0 before the first. A leader whose current term equals it has
// applied everything that earlier leaders committed.
func (f *FSM) Term() uint64 { return f.term.Load() }

// Apply applies one entry; see ApplyBatch.
func (f *FSM) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch applies committed entries and makes them visible to readers in one
// step. Each response is a []command.Result with one result per command of the
// entry, nil for a configuration and for an entry the state already holds
// (Raft hands over again what follows the durable state after a restart), or
// an error when the store failed.
//
// On return the batch is visible and will be applied again after a crash of
// the process; it is durable in the log, not necessarily in the state file.
//
// Of an entry that was proposed for another term than it stands in, nothing is
// carried out: the results of its commands are command.ErrNotLeader, on every
// node.
//
// When a record that a decision needs is damaged, every response is
// command.ErrDamaged and nothing was applied, but for what is up to a restore: the
// caller has the record mended and calls again with the same entries, before any
// other.
//
// It panics on an entry it cannot decode: a replica that skipped it would
// diverge from the others.
func (f *FSM) ApplyBatch(logs []*raft.Log) []any {
	responses := make([]any, len(logs))
	err := f.failed
	if err == nil {
		err = f.apply(logs, responses)
		if err != nil && (!errors.Is(err, command.ErrDamaged) || f.state.Err() != nil) {
			f.failed = err
			f.fail(err)
		}
	}
	if err != nil {
		for i := range responses {
			responses[i] = err
		}
	}
	return responses
}

func (f *FSM) apply(logs []*raft.Log, responses []any) error {
	b := f.state.Begin()
	defer func() { b.Discard() }()
	defer f.forget()
	term := f.term.Load()
	stamp, _ := f.state.Stamp()
	for i, l := range logs {
		if l.Index <= b.Applied() {
			f.saw(l, nil, nil)
			continue
		}
		switch l.Type {
		case raft.LogConfiguration:
			b.Configuration(l.Index, l.Term, raft.DecodeConfiguration(l.Data))
		case raft.LogCommand:
			entry, err := command.DecodeEntry(l.Data)
			if err != nil {
				panic(fmt.Sprintf("fsm: entry %d of term %d: %v", l.Index, l.Term, err))
			}
			// Cluster time never goes back: a new leader's first entries may be
			// stamped before it has applied its predecessor's last.
			stamp = max(stamp, entry.Stamp)
			b.Entry(l.Index, l.Term, stamp, entry.Wall)
			results := make([]command.Result, len(entry.Commands))
			responses[i] = results
			f.saw(l, &entry, results)
			if entry.Term != 0 && entry.Term != l.Term {
				void(results)
				continue
			}
			restores := false
			for k, c := range entry.Commands {
				switch c.(type) {
				case *command.Term:
					term = l.Term
				case *command.Restore:
					restores = true
				}
				if results[k], err = decide(b, c); err != nil {
					return fmt.Errorf("apply entry %d: %w", l.Index, err)
				}
			}
			if !restores {
				continue
			}
			switch replaced, err := restore(b, entry.Commands, results); {
			case err != nil:
				return fmt.Errorf("apply entry %d: %w", l.Index, err)
			case replaced:
				f.published(term)
				b = f.state.Begin()
			}
		}
	}
	if err := b.Publish(); err != nil {
		return fmt.Errorf("publish state: %w", err)
	}
	f.published(term)
	return nil
}

// published notes that all entries so far are visible.
func (f *FSM) published(term uint64) {
	f.term.Store(term)
	f.tell()
}

// Snapshot returns at once: the state file is the snapshot. Raft's snapshot
// store makes it durable up to the wanted index when the snapshot is closed.
func (f *FSM) Snapshot() (raft.FSMSnapshot, error) {
	if f.failed != nil {
		return nil, f.failed
	}
	return snapshot{}, nil
}

type snapshot struct{}

func (snapshot) Persist(raft.SnapshotSink) error { return nil }
func (snapshot) Release()                        {}

// Restore puts the copy that was staged beforehand in place of the state. The
// reader carries only a descriptor; the data came over the store's own stream.
// On return the new state is durable and visible; on error the old one is
// untouched.
func (f *FSM) Restore(r io.ReadCloser) error {
	if _, err := io.Copy(io.Discard, r); err != nil {
		return fmt.Errorf("read snapshot descriptor: %w", err)
	}
	return f.state.SwapCopy(false)
}
