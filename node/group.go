package node

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/internal/planted"
)

// group is group commit: writes that arrive while entries are on their way
// share the next entry, so that the cost of a log append, a disk sync and a
// round trip is paid once for many of them. An idle group sends a write at
// once. While entries are on their way the next one leaves when no fewer writes
// wait than are in those: sooner, it would be small, and costs every node what a
// large one does, a sync and a dozen wake-ups. Nagle's algorithm (RFC 896) does so
// with packets.
//
// Each write keeps its own command, its own revision and its own result: only
// the log entry is shared.
//
// A write is meant for one term and goes into entries of that term only. The
// entry says so too: Raft may have lost its leadership, and won another, before
// it takes the entry in.
type group struct {
	apply func(entry []byte) raft.ApplyFuture
	stamp func() (command.Stamp, time.Time)
	// admit says why a write must not be proposed now. It is asked with mu held.
	// Nil admits all.
	admit    func(w write) error
	inFlight int

	mu      sync.Mutex
	term    uint64        // guarded by mu; in which this node leads and writes are let in, or 0
	held    bool          // guarded by mu; nothing is let in for now
	doubt   bool          // guarded by mu; an entry of this term failed, and may be in the log
	pending []*proposal   // guarded by mu; in order of arrival
	bytes   int           // guarded by mu; of what is pending
	flying  [][]*proposal // guarded by mu; the entries in flight, one for each driver
	idle    chan struct{} // guarded by mu; closed when nothing is in flight
	// revoked are the writes that must not be let in in this term; guarded by mu.
	revoked map[command.ID]struct{}
}

// write is a command on its way into the log.
type write struct {
	term    uint64 // that it is meant for; 0: whichever it is
	id      command.ID
	encoded []byte // with its id
	grows   bool   // it may add to the data
	adds    bool   // it may take space on the disk
	once    string // its idempotency key, "" for none
}

// proposal is one write in the group.
type proposal struct {
	write
	done   chan struct{}
	result command.Result // written before done is closed
	err    error
}

// maxGroup bounds how many commands share an entry, so that results stay a
// small allocation and one slow command does not hold up thousands.
const maxGroup = 1024

// submit puts a write into the next entry and waits for its result.
// Errors: command.ErrNotLeader, or that of admit, it has not happened and will not;
// command.ErrOutcomeUnknown, it may have been committed. A write that returns a
// result is on a majority's disks and applied on this node.
func (g *group) submit(ctx context.Context, w write) (command.Result, error) {
	p := &proposal{write: w, done: make(chan struct{})}
	g.mu.Lock()
	if err := g.refuses(w); err != nil {
		g.mu.Unlock()
		return command.Result{}, err
	}
	g.pending = append(g.pending, p)
	g.bytes += len(w.encoded)
	if batch := g.next(); batch != nil {
		go g.drive(g.term, batch)
	}
	g.mu.Unlock()
	select {
	case <-p.done:
		return p.result, p.err
	case <-ctx.Done():
		return command.Result{}, command.ErrOutcomeUnknown.With("no answer in time")
	}
}

// refuses says why a write is not let in. Called with mu held.
func (g *group) refuses(w write) error {
	if g.term == 0 || g.held || w.term != 0 && w.term != g.term {
		return command.ErrNotLeader
	}
	if _, revoked := g.revoked[w.id]; revoked {
		return command.ErrNotLeader
	}
	if g.admit == nil {
		return nil
	}
	return g.admit(w)
}

// next removes the next entry's worth of proposals, which are in flight then, or
// returns nil when there is none or it is not to leave yet. It holds at least one
// proposal, however large. Called with mu held.
func (g *group) next() []*proposal {
	flying := 0
	for _, batch := range g.flying {
		flying += len(batch)
	}
	full := len(g.pending) >= maxGroup || g.bytes >= command.MaxEntry
	if len(g.pending) == 0 || len(g.flying) >= g.inFlight || len(g.pending) < flying && !full {
		return nil
	}
	n, size := 0, 0
	for n < len(g.pending) && n < maxGroup {
		more := len(g.pending[n].encoded)
		if n > 0 && size+more > command.MaxEntry {
			break
		}
		size += more
		n++
	}
	batch := g.pending[:n:n]
	g.pending, g.bytes = g.pending[n:], g.bytes-size
	if len(g.pending) == 0 {
		g.pending = nil
	}
	g.flying = append(g.flying, batch)
	return batch
}

// drive carries entries through Raft, one after the other, until none is to leave.
func (g *group) drive(term uint64, batch []*proposal) {
	for batch != nil {
		err := g.commit(term, batch)
		g.mu.Lock()
		if term == g.term && errors.Is(err, command.ErrOutcomeUnknown) {
			g.doubt = true
		}
		g.flying = slices.DeleteFunc(g.flying, func(b []*proposal) bool { return b[0] == batch[0] })
		term, batch = g.term, g.next()
		if len(g.flying) == 0 && g.idle != nil {
			close(g.idle)
			g.idle = nil
		}
		g.mu.Unlock()
	}
}

// commit proposes one entry and hands out its results. The error is that of the
// entry.
func (g *group) commit(term uint64, batch []*proposal) error {
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
	command.SetTerm(entry, term)

	f := g.apply(entry)
	results, err := outcome(f, len(batch))
	for i, p := range batch {
		switch {
		case err != nil:
			p.err = err
		case errors.Is(results[i].Err, command.ErrNotLeader):
			p.err = command.ErrNotLeader // the entry came into the log in another term
		default:
			p.result = results[i]
		}
		close(p.done)
	}
	return err
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
		if planted.Bug("acknowledged-when-appended") && errors.Is(err, raft.ErrLeadershipLost) {
			return slices.Repeat([]command.Result{{OK: true}}, commands), nil
		}
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

// lead lets writes in that are meant for a term in which this node leads.
func (g *group) lead(term uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refuseAll()
	g.term, g.held, g.doubt, g.revoked = term, false, false, nil
}

// end keeps writes out until this node leads again. What no entry has taken yet
// has not happened.
func (g *group) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refuseAll()
	g.term = 0
}

// shed refuses what no entry has taken yet.
func (g *group) shed() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refuseAll()
}

// refuseAll refuses what is pending. Called with mu held.
func (g *group) refuseAll() {
	for _, p := range g.pending {
		p.err = command.ErrNotLeader
		close(p.done)
	}
	g.pending, g.bytes = nil, 0
}

// drain keeps writes out and waits until nothing is pending or in flight.
func (g *group) drain(ctx context.Context) error {
	g.mu.Lock()
	g.held = true
	if len(g.flying) == 0 {
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

// unlock lets writes in again after drain, if this node still leads.
func (g *group) unlock() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held = false
}

// settle returns when a write that was meant for a term is decided, or will never
// be let in: from now on it is kept out if it has not arrived. So whoever has
// applied what this node has applied when settle returns has the write's entry, or
// there is none.
//
// Errors: command.ErrNotLeader, this node does not lead in that term, or an entry
// of it is in doubt here too.
func (g *group) settle(ctx context.Context, term uint64, id command.ID) error {
	g.mu.Lock()
	if g.term != term || term == 0 || g.doubt {
		g.mu.Unlock()
		return command.ErrNotLeader
	}
	p := g.find(id)
	if p == nil {
		if g.revoked == nil {
			g.revoked = map[command.ID]struct{}{}
		}
		g.revoked[id] = struct{}{}
	}
	g.mu.Unlock()
	if p == nil {
		return nil
	}
	select {
	case <-p.done:
		if errors.Is(p.err, command.ErrOutcomeUnknown) {
			return p.err
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// find returns the proposal with an id that is pending or in flight. Called with
// mu held.
func (g *group) find(id command.ID) *proposal {
	for _, batch := range append(slices.Clone(g.flying), g.pending) {
		for _, p := range batch {
			if p.id == id {
				return p
			}
		}
	}
	return nil
}
