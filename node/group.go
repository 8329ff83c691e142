package node

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// group is group commit: writes that arrive while entries are on their way
// share the next entry, so that the cost of a log append, a disk sync and a
// round trip is paid once for many of them. An idle group sends a write at
// once; it never waits for company.
//
// Each write keeps its own command, its own revision and its own result: only
// the log entry is shared.
type group struct {
	apply func(entry []byte) raft.ApplyFuture
	stamp func() (command.Stamp, time.Time)
	// admit says why a command must not be proposed now. It is asked with mu held.
	// Nil admits all.
	admit    func(encoded []byte) error
	inFlight int

	mu      sync.Mutex
	open    bool          // guarded by mu; false: submit refuses
	pending []*proposal   // guarded by mu; in order of arrival
	drivers int           // guarded by mu; entries in flight, <= inFlight
	idle    chan struct{} // guarded by mu; closed when drivers falls to 0 while shut
}

// proposal is one write on its way.
type proposal struct {
	encoded []byte
	done    chan struct{}
	result  command.Result // written before done is closed
	err     error
}

// maxGroup bounds how many commands share an entry, so that results stay a
// small allocation and one slow command does not hold up thousands.
const maxGroup = 1024

// submit puts an encoded command into the next entry and waits for its result.
// Errors: command.ErrNotLeader, or that of admit, nothing was proposed;
// command.ErrOutcomeUnknown, it may have been committed. A write that returns a result is on a majority's
// disks and applied on this node.
func (g *group) submit(ctx context.Context, encoded []byte) (command.Result, error) {
	p := &proposal{encoded: encoded, done: make(chan struct{})}
	g.mu.Lock()
	if !g.open {
		g.mu.Unlock()
		return command.Result{}, command.ErrNotLeader
	}
	if g.admit != nil {
		if err := g.admit(encoded); err != nil {
			g.mu.Unlock()
			return command.Result{}, err
		}
	}
	g.pending = append(g.pending, p)
	if g.drivers < g.inFlight {
		g.drivers++
		go g.drive(g.take())
	}
	g.mu.Unlock()
	select {
	case <-p.done:
		return p.result, p.err
	case <-ctx.Done():
		return command.Result{}, command.ErrOutcomeUnknown.With("no answer in time")
	}
}

// take removes the next entry's worth of proposals. It holds at least one,
// however large, if any is pending. Called with mu held.
func (g *group) take() []*proposal {
	n, size := 0, 0
	for n < len(g.pending) && n < maxGroup {
		size += len(g.pending[n].encoded)
		if n > 0 && size > command.MaxEntry {
			break
		}
		n++
	}
	batch := g.pending[:n:n]
	g.pending = g.pending[n:]
	if len(g.pending) == 0 {
		g.pending = nil
	}
	return batch
}

// drive carries entries through Raft, one after the other, until nothing is
// pending.
func (g *group) drive(batch []*proposal) {
	for len(batch) > 0 {
		g.commit(batch)
		g.mu.Lock()
		batch = g.take()
		if len(batch) == 0 {
			g.drivers--
			if g.drivers == 0 && g.idle != nil {
				close(g.idle)
				g.idle = nil
			}
		}
		g.mu.Unlock()
	}
}

// commit proposes one entry and hands out its results.
func (g *group) commit(batch []*proposal) {
	size := 0
	for _, p := range batch {
		size += len(p.encoded)
	}
	entry := command.NewEntry(size)
	for _, p := range batch {
		entry = command.AppendEncoded(entry, p.encoded)
	}
	stamp, wall := g.stamp()
	command.SetTime(entry, stamp, wall)

	f := g.apply(entry)
	results, err := outcome(f, len(batch))
	for i, p := range batch {
		if err != nil {
			p.err = err
		} else {
			p.result = results[i]
		}
		close(p.done)
	}
}

// outcome waits for an entry and says what became of it.
func outcome(f raft.ApplyFuture, commands int) ([]command.Result, error) {
	switch err := f.Error(); {
	case err == nil:
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return nil, command.ErrNotLeader // refused before it reached the log
	default:
		// ErrLeadershipLost, a shutdown or a failed append: the entry may be in
		// the log of a majority all the same.
		return nil, command.ErrOutcomeUnknown.With("%v", err)
	}
	switch r := f.Response().(type) {
	case []command.Result:
		if len(r) == commands {
			return r, nil
		}
		return nil, command.ErrOutcomeUnknown.With("entry of %d commands has %d results", commands, len(r))
	case error:
		return nil, command.ErrOutcomeUnknown.With("committed, but this node failed to apply it: %v", r)
	default:
		return nil, command.ErrOutcomeUnknown.With("committed, but without a result")
	}
}

// unlock lets writes in.
func (g *group) unlock() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = true
}

// lock keeps writes out from now on; what is pending still goes.
func (g *group) lock() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = false
}

// drain locks the group and waits until nothing is pending or in flight.
func (g *group) drain(ctx context.Context) error {
	g.mu.Lock()
	g.open = false
	if g.drivers == 0 {
		g.mu.Unlock()
		return nil
	}
	if g.idle == nil {
		g.idle = make(chan struct{})
	}
	idle := g.idle
	g.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
