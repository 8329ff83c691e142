package store

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"slices"

	"go.etcd.io/bbolt"

	"github.com/holdfast-db/holdfast/command"
)

// A delta is taken in in two steps. What arrives is spooled to a file beside the
// state and verified there, with the lineage computed anew revision by revision:
// however slow the sender is, the state is not touched and nobody waits. Once it
// is complete it is laid over the state file (see keep), or put into it when it is
// too large for that, in transactions of bounded size. Only for that, which takes as
// long as the disk does, does applying wait; reads go on from the state before, as
// the pointers of the file lead back to it.

// deltaKeys is how many keys of a delta are gathered before they are led to their
// changes. Each takes some 200 bytes and its name.
const deltaKeys = 128 << 10

// spool is a delta coming in.
type spool struct {
	file *os.File
	w    *bufio.Writer
	size int64 // of the pages in file and w
	// layered is what its changes would take in memory, roughly. While that is not
	// more than room they are held in memory, and nothing is in the file.
	layered, room int64
	held          *holder
	from          revisionMark
	// through is the last revision that is known to be complete, which ends at
	// sized.
	through revisionMark
	sized   int64
	spare   []byte

	// The revision coming in. Its lineage as its first record says is open.lineage.
	open revisionMark
	next position
	sum  hash.Hash
}

// revisionMark is a revision and its lineage.
type revisionMark struct {
	rev     uint64
	lineage digest
}

// holder gathers the changes of a delta in a layer, beside what verifies them.
type holder struct {
	layer *layer
	in    chan []change
	done  chan struct{}
}

// holdPages is how many pages of changes may wait for the holder.
const holdPages = 8

func newHolder() *holder {
	h := &holder{layer: newLayer(), in: make(chan []change, holdPages), done: make(chan struct{})}
	go func() {
		defer close(h.done)
		for page := range h.in {
			for i := range page {
				h.layer.add(&page[i])
			}
		}
	}()
	return h
}

// end waits for all that was gathered. Nothing more comes.
func (h *holder) end() *layer {
	close(h.in)
	<-h.done
	return h.layer
}

func newSpool(path string, from revisionMark, room int64) (*spool, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	sp := spoolTo(f, from)
	sp.file, sp.room = f, room
	if room > 0 {
		sp.held = newHolder()
	}
	return sp, nil
}

// spoolTo is a spool that verifies what comes and hands it on.
func spoolTo(w io.Writer, from revisionMark) *spool {
	return &spool{
		w: bufio.NewWriterSize(w, copyPage), from: from, through: from, open: from,
		next: position{rev: from.rev + 1}, sum: sha256.New(),
	}
}

func (sp *spool) buffer() []byte { return sp.spare }

// close ends the use of a spool.
func (sp *spool) close() {
	if sp.held != nil {
		sp.held.end()
		sp.held = nil
	}
	_ = sp.file.Close()
}

// spill puts what is held in memory into the file.
func (sp *spool) spill() error {
	if sp.held == nil {
		return nil
	}
	l := sp.held.end()
	sp.held = nil
	var head []byte
	for _, c := range l.history {
		head = appendChange(head[:0], c.at, c.enc)
		if _, err := sp.w.Write(head); err != nil {
			return err
		}
	}
	return nil
}

// history takes in a page: it must go on where the one before ended, and each
// revision must have the lineage that follows from its changes.
func (sp *spool) history(page []byte) error {
	at := sp.size
	var held []change
	if sp.held != nil {
		held = make([]change, 0, countChanges(page))
	}
	err := eachChange(page, func(p position, enc []byte) error {
		var c change
		if err := c.decode(p, enc, ""); err != nil {
			return err
		}
		switch {
		case p.k == 0 && p.rev > sp.open.rev:
			if err := sp.closeRevision(at); err != nil {
				return err
			}
			sp.open = revisionMark{p.rev, digest(c.lineage())}
			sp.sum.Reset()
			_, _ = sp.sum.Write(sp.through.lineage[:])
			_, _ = sp.sum.Write(binary.BigEndian.AppendUint64(nil, p.rev))
		case p != sp.next:
			return command.ErrDamaged.With("copy: revision %d.%d where %d.%d belongs", p.rev, p.k, sp.next.rev, sp.next.k)
		}
		_, _ = sp.sum.Write(c.body())
		sp.next = position{p.rev, p.k + 1}
		at += int64(changeHead + len(enc))
		sp.layered += int64(len(enc)+len(c.rec.Key)) + changeOverhead
		if held != nil {
			held = append(held, c)
		}
		return nil
	})
	if err != nil {
		return err
	}
	sp.size += int64(len(page))
	if sp.held != nil {
		sp.held.in <- held // the page is theirs
		if sp.layered <= sp.room {
			return nil
		}
		return sp.spill()
	}
	sp.spare = page
	_, err = sp.w.Write(page)
	return err
}

func (sp *spool) pointers([]byte) error { return command.ErrDamaged.With("copy: pointers in a delta") }

// closeRevision verifies the revision that came in last; it ends at size.
func (sp *spool) closeRevision(size int64) error {
	if sp.open.rev == sp.through.rev {
		return nil // there is none yet
	}
	var sum [sha256.Size]byte
	sp.sum.Sum(sum[:0])
	if sp.open.lineage != digest(sum[:len(digest{})]) {
		return command.ErrDiverged.With("revision %d does not follow from what this node has", sp.open.rev)
	}
	sp.through, sp.sized = sp.open, size
	return nil
}

// cut forgets what came after the last complete revision, so that the spool can go
// on from there.
func (sp *spool) cut() error {
	_ = sp.closeRevision(sp.size) // its lineage tells whether all of it came
	if err := sp.spill(); err != nil {
		return err
	}
	if err := sp.w.Flush(); err != nil {
		return err
	}
	if err := sp.file.Truncate(sp.sized); err != nil {
		return err
	}
	if _, err := sp.file.Seek(sp.sized, io.SeekStart); err != nil {
		return err
	}
	sp.size, sp.open, sp.next = sp.sized, sp.through, position{rev: sp.through.rev + 1}
	return nil
}

// complete verifies the whole against the state it leads to.
func (sp *spool) complete(m *meta) error {
	if err := checkFormat(m.Format); err != nil {
		return err
	}
	if err := sp.closeRevision(sp.size); err != nil {
		return err
	}
	if sp.through != (revisionMark{m.Revision, m.Lineage}) {
		return command.ErrDamaged.With("copy: it leads to revision %d, its state is of %d", sp.through.rev, m.Revision)
	}
	return sp.w.Flush()
}

// each calls fn for each change of the spool, which is complete, in order. A
// change and what it holds stay valid.
func (sp *spool) each(fn func(c *change) error) error {
	if err := sp.spill(); err != nil {
		return err
	}
	if err := sp.w.Flush(); err != nil {
		return err
	}
	if _, err := sp.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	r := bufio.NewReaderSize(sp.file, copyPage)
	var memory arena
	var head [changeHead]byte
	for {
		if _, err := io.ReadFull(r, head[:]); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		at, err := positionOf(head[:positionSize])
		if err != nil {
			return err
		}
		n := int(binary.BigEndian.Uint32(head[positionSize:]))
		enc := memory.reserve(n)[:n]
		if _, err := io.ReadFull(r, enc); err != nil {
			return err
		}
		memory.keep(enc)
		c := &change{}
		if err := c.decode(at, enc, ""); err != nil {
			return err
		}
		if err := fn(c); err != nil {
			return err
		}
	}
}

// after calls fn for each change of the spool beyond own, which the spool must
// know.
func (sp *spool) after(own revisionMark, fn func(c *change) error) error {
	known := own == sp.from
	err := sp.each(func(c *change) error {
		switch {
		case c.at.rev > own.rev && !known:
			return errUnknownRevision(own)
		case c.at.rev > own.rev:
			return fn(c)
		case c.at == position{rev: own.rev}: // the state has come this far by itself
			known = digest(c.lineage()) == own.lineage
		}
		return nil
	})
	if err == nil && !known {
		err = errUnknownRevision(own)
	}
	return err
}

// layer returns the changes of the spool beyond own in a layer.
func (sp *spool) layer(own revisionMark) (*layer, error) {
	if sp.held != nil && own == sp.from {
		l := sp.held.end()
		sp.held = nil
		return l, nil
	}
	l := newLayer()
	return l, sp.after(own, func(c *change) error { l.add(c); return nil })
}

// keepable is how much a delta may take in memory to be laid over the file.
func (s *State) keepable() int64 { return 3 * s.cfg.BufferBytes }

// receiveDelta spools a delta and puts it in place.
func (s *State) receiveDelta(in *copyReader, h *copyHeader) (*meta, error) {
	sp, err := s.takeSpool(revisionMark{h.Revision, h.Lineage})
	if err != nil {
		return nil, err
	}
	state, err := in.body(sp)
	if err != nil && err == in.broken && sp.cut() == nil {
		s.copies.mu.Lock()
		s.copies.spool = sp
		s.copies.mu.Unlock()
		return nil, err
	}
	if err == nil {
		if err = sp.complete(&state.Meta); err == nil {
			err = s.applyDelta(in.ctx, sp, state)
		}
	}
	sp.close()
	s.dropIncoming()
	if err != nil {
		return nil, err
	}
	return &state.Meta, nil
}

// takeSpool returns the spool that a delta goes on with, or a new one. Whatever
// else was coming in is dropped.
func (s *State) takeSpool(from revisionMark) (*spool, error) {
	s.copies.mu.Lock()
	sp := s.copies.spool
	s.copies.spool = nil
	s.copies.mu.Unlock()
	if sp != nil {
		if sp.through == from {
			return sp, nil
		}
		sp.close()
	}
	s.dropIncoming()
	folder := filepath.Join(s.cfg.Dir, incomingName)
	if err := os.Mkdir(folder, 0o700); err != nil {
		return nil, err
	}
	return newSpool(filepath.Join(folder, "delta"), from, s.keepable())
}

// applyDelta makes the state what a spool leads to.
func (s *State) applyDelta(ctx context.Context, sp *spool, state *copyState) (err error) {
	s.applying.Lock()
	defer s.applying.Unlock()
	if err := s.lockFlushed(ctx); err != nil {
		return err
	}
	defer s.flushing.Unlock()
	g := s.gen.Load()
	m, now := state.Meta, &g.meta
	own := revisionMark{now.Revision, now.Lineage}
	switch {
	case m.Cluster.ID != now.Cluster.ID:
		return command.ErrWrongCluster.With("the copy is of %q, this state of %q", m.Cluster.ID, now.Cluster.ID)
	case own.rev < sp.from.rev, own.rev == sp.from.rev && own != sp.from, m.Applied <= now.Applied && m.Revision > now.Revision:
		return command.ErrDiverged.With("the copy leads from revision %d to %d and index %d, this state is at %d and %d",
			sp.from.rev, m.Revision, m.Applied, now.Revision, now.Applied)
	case m.Applied < now.Applied, m.Applied == now.Applied && m.RaftIndex <= now.RaftIndex:
		return nil // the state has come as far by itself
	}
	m.raise(now.RaftIndex, now.RaftTerm, now.Conf, now.ConfIndex)

	layer, small := newLayer(), sp.layered <= s.keepable()
	if small {
		if layer, err = sp.layer(own); err != nil {
			return err
		}
		layer.members, layer.delta = true, layer.bytes
		if err := s.keep(ctx, own, layer, copyState{m, state.Members}); err != nil {
			return err
		}
	} else if err := s.putDelta(g, sp, own, state, &m); err != nil {
		return err
	}
	if err := s.marked(s.marker.setIndex(m.Applied)); err != nil {
		return err
	}
	s.mu.Lock()
	old := s.gen.Load()
	n := &generation{seq: old.seq + 1, active: layer, meta: m, members: state.Members, file: g.file}
	raised := n.meta.raise(old.meta.RaftIndex, old.meta.RaftTerm, old.meta.Conf, old.meta.ConfIndex)
	switch {
	case small:
		s.copies.kept.Store(&durableState{seq: n.seq, meta: m})
	case raised: // by a snapshot, meanwhile: that is to be flushed
		s.durable.Store(&durableState{seq: old.seq, meta: m})
	default:
		s.durable.Store(&durableState{seq: n.seq, meta: m})
	}
	s.gen.Store(n)
	s.announce()
	s.mu.Unlock()
	s.applied.advance(n.meta.Applied)
	s.revised.advance(n.meta.Revision)
	s.watches.wakeAll() // few deltas come, so what each changed is not told apart
	s.nudge()
	return nil
}

// putDelta puts a delta into the state file, or leaves the file as it was.
func (s *State) putDelta(g *generation, sp *spool, own revisionMark, state *copyState, m *meta) error {
	// Of a key that was deleted, and made anew once its delete was forgotten, the
	// way back does not lead over the delete, which Buried makes up for.
	now := &g.meta
	s.setAhead(true, max(now.Buried, min(m.Buried, now.Revision)))
	err := s.writeDelta(g.file, sp, own, state, m)
	if err != nil && s.Err() == nil && !s.isClosed() { // else the next start takes it back
		if terr := guarded(func() error { return g.file.takeBack(*now) }); terr != nil {
			return s.failWith(fmt.Errorf("take back a delta: %w", terr))
		}
		s.setAhead(false, now.Buried)
	}
	return err
}

// lockFlushed takes the flushing lock at a moment at which nothing is left to be
// flushed. Needs applying.
func (s *State) lockFlushed(ctx context.Context) error {
	for {
		if err := s.Flush(ctx); err != nil {
			return err
		}
		s.flushing.Lock()
		if err := s.Err(); err != nil { // found meanwhile, in a file that is not to be written any more
			s.flushing.Unlock()
			return err
		}
		if g := s.gen.Load(); g.seq == s.durable.Load().seq && g.frozen == nil {
			return nil
		}
		s.flushing.Unlock() // a snapshot raised the index it stands for
	}
}

// setAhead says whether the file is ahead of what is visible.
func (s *State) setAhead(ahead bool, buried uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := *s.gen.Load()
	n.ahead, n.meta.Buried = ahead, buried
	s.gen.Store(&n)
}

// writeDelta puts the changes after own into the file, and then the meta they lead
// to. On an error the file may be ahead.
func (s *State) writeDelta(file *stateFile, sp *spool, own revisionMark, state *copyState, m *meta) error {
	write := func(fn func() error) error {
		if s.isClosed() {
			return command.ErrStopping
		}
		err := s.onceThereIsSpace(fn)
		if err != nil && !errors.Is(err, command.ErrDamaged) && !errors.Is(err, command.ErrStopping) {
			err = s.failWith(fmt.Errorf("apply delta: %w", err))
		}
		return err
	}
	// Keys are led to their changes in the order of the keys, for as many as there
	// is memory for: neighbours share a page.
	var piece []*change
	newest := make(map[string]pointer)
	size := 0
	putHistory := func() error {
		err := write(func() error { return file.extend(piece, false, func(*change) bool { return false }) })
		for _, c := range piece {
			if c.table == tableKV {
				newest[c.rec.Key] = c.pointer()
			}
		}
		piece, size = nil, 0
		return err
	}
	putKeys := func() error {
		all := make([]lead, 0, len(newest))
		for key, p := range newest {
			all = append(all, lead{key, p})
		}
		clear(newest)
		sortByKey(all)
		for some := range slices.Chunk(all, flushChanges) {
			if err := write(func() error {
				return file.update(func(tx *bbolt.Tx, _ *local) error { return putPointers(tx, some, false) })
			}); err != nil {
				return err
			}
		}
		return nil
	}
	if err := sp.after(own, func(c *change) error {
		piece = append(piece, c)
		if size += len(c.enc); size < flushBytes && len(piece) < flushChanges {
			return nil
		}
		if err := putHistory(); err != nil || len(newest) < deltaKeys {
			return err
		}
		return putKeys()
	}); err != nil {
		return err
	}
	if err := putHistory(); err != nil {
		return err
	}
	if err := putKeys(); err != nil {
		return err
	}
	return write(func() error {
		return file.update(func(tx *bbolt.Tx, _ *local) error { return putHead(tx, *m, state.Members, true) })
	})
}

func errUnknownRevision(own revisionMark) error {
	return command.ErrDiverged.With("this state's revision %d is not that of the copy", own.rev)
}
