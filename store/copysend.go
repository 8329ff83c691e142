package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

const (
	copyPage = 256 << 10 // bytes read under one view
	// copyPageTime bounds a page whose records come from a slow disk: no view
	// lives much longer.
	copyPageTime = 20 * time.Millisecond
	// copyRounds bounds how often a sender goes after what was written meanwhile,
	// and copyRoundTime is a round that is short enough to be the last.
	copyRounds    = 8
	copyRoundTime = time.Second
	// copyLease is how long records are kept for a copy that broke off, so that it
	// can be taken up again.
	copyLease = 30 * time.Second

	// deltaWeight is how much more it costs to put a byte into a file in use than
	// to build a new one from it; deltaFree is the size in bytes of a delta that is
	// never worth a full copy.
	deltaWeight = 3
	deltaFree   = 1 << 20

	// usualKey stands for the size of a key where that is not worth a look.
	usualKey = 32
)

// WriteCopy answers the request of another state (CopyRequest) with what that
// state lacks. The answer is one of
//
//   - a repair of the ranges that are damaged there, when this state still has
//     them as they were;
//   - a delta, when the history after the asker's revision is kept and is much
//     less than everything: that history;
//   - a full copy otherwise, and for an empty request; or the rest of one.
//
// A writer that has a method CopyKind(kind string) is told which before anything is
// written.
//
// A LeapRequest is answered with a delta or with command.ErrNotReady.
//
// A copy is at least as new as the call. It may take any time: w is never waited
// for while a view is open. What is applied meanwhile is sent in further rounds
// as long as they get shorter, so that the copy is nearly current when it ends.
// Until then no superfluous record is dropped from the file.
//
// Errors: command.ErrNotReady when the asker is ahead of this state,
// command.ErrWrongCluster, command.ErrDamaged when what is to be sent is.
func (s *State) WriteCopy(ctx context.Context, request []byte, w io.Writer) error {
	var req copyRequest
	if len(request) > 0 {
		if err := json.Unmarshal(request, &req); err != nil {
			return fmt.Errorf("write copy: decode request: %w", err)
		}
	}
	if err := s.writeCopy(newCopyWriter(ctx, w), &req); err != nil {
		return fmt.Errorf("write copy: %w", err)
	}
	return nil
}

func (s *State) writeCopy(out *copyWriter, req *copyRequest) (err error) {
	compaction, release := s.holdCompaction()
	send := &copySender{s: s, out: out, compaction: compaction}
	defer func() {
		if err != nil && send.records() > 0 {
			time.AfterFunc(copyLease, release)
		} else {
			release()
		}
	}()
	g := s.gen.Load()
	send.source = copySource{out: out, view: s.view, origin: g.file.origin}
	m := &g.meta
	switch {
	case req.Format > stateFormat:
		return fmt.Errorf("the asker's state format %d is newer than this build knows; use a newer holdfast", req.Format)
	case req.Cluster != "" && m.Cluster.ID != "" && req.Cluster != m.Cluster.ID:
		return command.ErrWrongCluster.With("the request is of %q, this state of %q", req.Cluster, m.Cluster.ID)
	case !req.Full && (req.Revision > m.Revision || req.Applied > m.Applied):
		return command.ErrNotReady.With("this node is at revision %d and index %d, the asker at %d and %d",
			m.Revision, m.Applied, req.Revision, req.Applied)
	}
	if r := req.Resume; r != nil {
		if ok, err := s.mayResume(r, m, compaction); err != nil {
			return err
		} else if ok {
			return send.full(r)
		}
	}
	if req.Repair != nil && !req.Full {
		if s.repairFits(req.Repair) {
			return send.repair(req.Repair)
		}
		return send.full(nil)
	}
	if ok, err := s.deltaFits(req); err != nil {
		return err
	} else if ok {
		return send.delta(req)
	}
	if req.Most > 0 {
		return command.ErrNotReady.With("there is no delta of the size that is asked for")
	}
	return send.full(nil)
}

// deltaFits reports whether the asker's state is a prefix of this one, and the
// history after it is kept and worth sending.
func (s *State) deltaFits(req *copyRequest) (bool, error) {
	v, err := s.view()
	if err != nil {
		return false, err
	}
	defer v.Close()
	m := &v.gen.meta
	if req.Full || req.Cluster == "" || req.Revision == 0 || req.Revision < m.Oldest || m.given(req.Revision) != nil {
		return false, nil
	}
	at, err := v.header(req.Revision)
	if err != nil || at.lineage != command.Lineage(req.Lineage) {
		return false, err
	}
	if req.Revision == m.Revision {
		return req.Least == 0, nil
	}
	first, err := v.header(m.next(req.Revision))
	if err != nil {
		return false, err
	}
	oldest, err := v.header(max(m.Oldest, 1))
	if err != nil {
		return false, err
	}
	// Below the oldest revision only live keys have records.
	if req.Most > 0 {
		size := int64(m.ChangeBytes-first.bytes) + int64(m.Changes-first.changes)*(changeOverhead+usualKey)
		return size >= req.Least && size <= req.Most, nil
	}
	delta, full := m.ChangeBytes-first.bytes, m.ChangeBytes-oldest.bytes+min(m.DataBytes, oldest.bytes)
	return delta <= deltaFree || delta*deltaWeight <= full, nil
}

// mayResume reports whether this state can go on with a full copy that broke off,
// which may have come from another one.
func (s *State) mayResume(r *copyResume, m *meta, compaction local) (bool, error) {
	switch {
	case r.Anchor < m.Oldest, r.Anchor > m.Revision, r.Reach > m.Revision:
		return false, nil // this state does not know the anchor any more, or yet
	case m.Oldest < r.Dropped:
		return false, nil // what was taken lacks records this state would promise
	case r.Stage == buildHistory && r.next().less(compaction.next()) && r.Compaction.next().less(compaction.next()):
		// Of a key that was deleted, the delete may have been dropped here before
		// it was sent, and what it had deleted would stay there for ever.
		return false, nil
	case r.Anchor == 0:
		return true, nil
	}
	l, err := s.LineageAt(r.Anchor)
	return err == nil && l == command.Lineage(r.Lineage), err
}

// next is the position at which dropping goes on.
func (l *local) next() position { return position{l.NextRev, l.NextK} }

func (r *copyResume) next() position { return position{r.NextRev, r.NextK} }

// copySender sends one copy.
type copySender struct {
	s          *State
	out        *copyWriter
	source     copySource
	compaction local
}

func (c *copySender) records() uint64 { return c.out.records + c.out.keys }

func (c *copySender) delta(req *copyRequest) error {
	c.out.header(&copyHeader{Kind: command.CopyDelta, Format: stateFormat, Revision: req.Revision, Lineage: req.Lineage})
	return c.rounds(position{rev: req.Revision + 1})
}

// full sends everything, or what a copy that broke off lacks.
func (c *copySender) full(r *copyResume) error {
	h := &copyHeader{Kind: command.CopyFull, Format: stateFormat, Compaction: c.compaction}
	from, key, stage := position{}, "", buildHistory
	if r != nil {
		h.Revision, h.Lineage, h.Resumed = r.Anchor, r.Lineage, true
		from, key, stage = r.next(), string(r.Key), r.Stage
	} else {
		m := &c.s.gen.Load().meta
		h.Revision, h.Lineage = m.Revision, m.Lineage
	}
	c.out.header(h)
	if stage == buildHistory {
		if err := c.source.history(from, h.Revision); err != nil {
			return err
		}
	}
	if stage != buildRounds {
		if err := c.source.pointers(key); err != nil {
			return err
		}
		from = position{rev: h.Revision + 1}
	}
	return c.rounds(from)
}

// rounds sends the history from a position on, what was written meanwhile, and in
// the end what is not history.
func (c *copySender) rounds(from position) error {
	for round, before := 1, uint64(0); ; round++ {
		g := c.s.gen.Load()
		sent, start := c.out.records, time.Now()
		if err := c.source.history(from, g.meta.Revision); err != nil {
			return err
		}
		sent = c.out.records - sent
		if time.Since(start) < copyRoundTime || round == copyRounds || round > 1 && sent > before/2 {
			c.out.json(frameState, copyState{Meta: g.meta, Members: g.members})
			return c.out.end()
		}
		from, before = position{rev: g.meta.Revision + 1}, sent
	}
}

// copySource reads a state page by page, each under a view of its own.
type copySource struct {
	view   func() (*View, error)
	origin uint64
	out    pageWriter
	page   []byte
}

// pageWriter takes the pages of a copy: a stream, or a builder in this process.
// When it returns it needs the page no longer.
type pageWriter interface {
	writeHistory(page []byte, records uint64) error
	writePointers(page []byte, keys uint64) error
}

// read runs fn under a view.
func (c *copySource) read(fn func(v *View) error) error {
	v, err := c.view()
	if err != nil {
		return err
	}
	defer v.Close()
	if v.gen.file.origin != c.origin {
		return errors.New("the state was replaced meanwhile")
	}
	c.page = c.page[:0]
	return fn(v)
}

// enough reports whether a page is large enough, or took long enough, after n
// records.
func (c *copySource) enough(n uint64, began time.Time) bool {
	return len(c.page) >= copyPage || n%64 == 0 && time.Since(began) > copyPageTime
}

// history hands on the history from a position on and up to a revision.
func (c *copySource) history(from position, through uint64) error {
	for {
		n := uint64(0)
		if err := c.read(func(v *View) error {
			began := time.Now()
			return v.walk(from, through, func(at position, enc []byte) (bool, error) {
				c.page = appendChange(c.page, at, enc)
				from = position{at.rev, at.k + 1}
				n++
				return !c.enough(n, began), nil
			})
		}); err != nil || n == 0 {
			return err
		}
		if err := c.out.writeHistory(c.page, n); err != nil {
			return err
		}
	}
}

// pointers hands on what the keys after one lead to, deleted ones among them.
func (c *copySource) pointers(after string) error {
	for {
		n := uint64(0)
		if err := c.read(func(v *View) error {
			began, last := time.Now(), 0
			err := v.scan("", after, true, func(key string, l located) (bool, error) {
				c.page = appendPointer(c.page, key, l.pointer())
				last = len(c.page) - len(key)
				n++
				return !c.enough(n, began), nil
			})
			if n > 0 {
				after = string(c.page[last:])
			}
			return err
		}); err != nil || n == 0 {
			return err
		}
		if err := c.out.writePointers(c.page, n); err != nil {
			return err
		}
	}
}
