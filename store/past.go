package store

import (
	"strings"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// This file reads the past: the state as it was at a revision, and the changes
// that led from one to another. Feeds, watches and the history of a key are all
// made of these.

// GetAt is Get in the state as it was at a revision: command.ErrCompacted when
// it is no longer kept, command.ErrRevisionNotReached when it is not there yet.
func (v *View) GetAt(key string, rev uint64) (command.Record, error) {
	if err := v.kept(rev); err != nil {
		return command.Record{}, err
	}
	l, ok, err := v.find(key, true)
	if err != nil {
		return command.Record{}, err
	}
	if ok {
		l, ok, err = v.asOf(key, l, rev)
	}
	if err != nil {
		return command.Record{}, err
	}
	if !ok || l.deleted {
		return command.Record{}, command.ErrKeyNotFound
	}
	return v.record(key, l, nil)
}

// GetAt is the record of a key as it was at a revision, or at the compaction point
// when that is later; ok is false when there was none. The record's value is valid
// until the batch ends.
func (b *Batch) GetAt(key string, rev uint64) (rec command.Record, ok bool, err error) {
	l, ok, err := b.look(key)
	if err == nil && ok {
		l, ok, err = b.asOf(key, l, max(rev, b.oldest))
	}
	if err != nil || !ok || l.deleted {
		return command.Record{}, false, b.fail(err)
	}
	rec, err = b.peek(key, l)
	return rec, err == nil, b.fail(err)
}

func (v *View) kept(rev uint64) error {
	switch {
	case rev > v.gen.meta.Revision:
		return command.ErrRevisionNotReached.With("revision %d, this node has %d", rev, v.gen.meta.Revision)
	case rev < v.gen.meta.Oldest:
		return command.ErrCompacted.With("revision %d, the oldest kept is %d", rev, v.gen.meta.Oldest)
	}
	return v.gen.meta.given(rev)
}

// ScanAt is Scan in the state as it was at a revision; errors as of GetAt.
func (v *View) ScanAt(prefix, after string, rev uint64, fn func(command.Record) bool) error {
	if err := v.kept(rev); err != nil {
		return err
	}
	var values arena
	return v.scan(prefix, behindSystem(prefix, after), true, func(key string, l located) (bool, error) {
		key = strings.Clone(key)
		l, ok, err := v.asOf(key, l, rev)
		if err != nil || !ok || l.deleted {
			return true, err
		}
		rec, err := v.record(key, l, &values)
		return err == nil && fn(rec), err
	})
}

// KVRevisionAt is KVRevision as it was at a revision, as far as it is kept: 0
// when all keys are older than the compaction point and gone. Errors as of
// GetAt.
func (v *View) KVRevisionAt(rev uint64) (uint64, error) {
	if err := v.kept(rev); err != nil {
		return 0, err
	}
	if rev >= v.gen.meta.KVRevision {
		return v.gen.meta.KVRevision, nil
	}
	var last uint64
	err := v.walkBack(position{rev + 1, 0}, func(c *change) bool {
		if c.user() {
			last = c.at.rev
		}
		return last == 0
	})
	return max(last, v.gen.meta.Buried), err
}

// PrefixRevisionAt is PrefixRevision as it was at a revision. Errors as of GetAt.
func (v *View) PrefixRevisionAt(prefix string, rev uint64) (uint64, error) {
	if err := v.kept(rev); err != nil {
		return 0, err
	}
	newest, err := v.KVRevisionAt(rev)
	if prefix == "" || err != nil {
		return newest, err
	}
	var last uint64
	err = v.scan(prefix, "", true, func(key string, l located) (bool, error) {
		l, ok, err := v.asOf(key, l, rev)
		if ok {
			last = max(last, l.at.rev)
		}
		return last < newest, err
	})
	if last == 0 {
		return newest, err
	}
	return max(last, v.gen.meta.Buried), err
}

// ChangesAfter calls fn for each change of a key under the prefix, from behind a
// position to the last of revision to, in order, until fn returns false. Behind all
// changes of a revision is the position with the largest K. A to beyond the view's
// revision ends there. It walks all changes in between, whatever the prefix. Values
// are valid until the view is closed.
//
// Errors: command.ErrCompacted when not all of them are kept, that is when the first
// is below the compaction point, or an archive took the place of the state there.
func (v *View) ChangesAfter(prefix string, after command.Position, to uint64, fn func(command.Change) bool) error {
	from := position{after.Revision, after.K + 1}
	if after.IsEnd() || after.Revision == 0 {
		from = position{rev: after.Revision + 1}
	}
	if to = min(to, v.gen.meta.Revision); from.rev > to {
		return nil
	}
	if from.rev < v.gen.meta.Oldest {
		return v.kept(from.rev)
	}
	if err := v.gen.meta.given(after.Revision); err != nil {
		return err
	}
	if from.rev == v.gen.meta.Restored.Revision {
		return command.ErrCompacted.With("an archive was restored at revision %d, and what that changed is not kept", from.rev)
	}
	var wall int64
	if from.k > 0 {
		h, err := v.header(from.rev)
		if err != nil {
			return err
		}
		wall = h.wall
	}
	return v.walk(from, to, func(at position, enc []byte) (bool, error) {
		var c change
		if err := c.decode(at, enc, ""); err != nil {
			return false, err
		}
		if at.k == 0 {
			wall = c.header().wall
		}
		if !c.user() || !strings.HasPrefix(c.rec.Key, prefix) {
			return true, nil
		}
		return fn(c.public(wall)), nil
	})
}

// KeyHistory calls fn for each kept change of a key, newest first, until fn
// returns false. The last one is that which held at OldestRevision, unless the
// key did not exist then. Values are valid until the view is closed.
func (v *View) KeyHistory(key string, fn func(command.Change) bool) error {
	l, ok, err := v.find(key, true)
	if err != nil || !ok {
		return err
	}
	for at := l.at; ; {
		var c change
		if err := v.load(at, key, &c); err != nil {
			return err
		}
		wall, err := v.wallOf(&c)
		if err != nil {
			return err
		}
		if c.at.rev <= v.gen.meta.Oldest || c.prev.rev < v.gen.meta.Oldest && c.created() {
			c.prev = position{}
		}
		if !fn(c.public(wall)) || c.prev.zero() {
			return nil
		}
		if !c.prev.less(at) {
			return command.ErrDamaged.With("revision %d.%d follows a later one", at.rev, at.k)
		}
		at = c.prev
	}
}

// ChangeAt returns one change: that of a Change's At or Prev. Its value is valid
// until the view is closed. Errors: command.ErrCompacted.
func (v *View) ChangeAt(at command.Position) (command.Change, error) {
	var c change
	p := position{at.Revision, at.K}
	if p.rev < v.gen.meta.Oldest {
		switch ok, err := v.lookup(p, "", &c); {
		case err != nil:
			return command.Change{}, err
		case !ok:
			return command.Change{}, command.ErrCompacted.With("revision %d, the oldest kept is %d", p.rev, v.gen.meta.Oldest)
		}
	} else if err := v.load(p, "", &c); err != nil {
		return command.Change{}, err
	}
	wall, err := v.wallOf(&c)
	if err != nil {
		return command.Change{}, err
	}
	return c.public(wall), nil
}

// wallOf is the wall time of a change's revision, 0 when the record that holds
// it has been dropped.
func (v *View) wallOf(c *change) (int64, error) {
	if c.at.k == 0 {
		return c.header().wall, nil
	}
	if c.at.rev < v.gen.meta.Oldest {
		return 0, nil
	}
	h, err := v.header(c.at.rev)
	return h.wall, err
}

func (c *change) public(wall int64) command.Change {
	p := command.Change{
		At: command.Position{Revision: c.at.rev, K: c.at.k}, Prev: command.Position{Revision: c.prev.rev, K: c.prev.k},
		Deleted: c.deleted, Record: c.rec,
	}
	if wall != 0 {
		p.Wall = time.Unix(0, wall)
	}
	return p
}

// header is the header of a revision, which must be one that is kept.
func (o *overlay) header(rev uint64) (header, error) {
	var c change
	if err := o.load(position{rev: rev}, "", &c); err != nil {
		return header{}, err
	}
	return c.header(), nil
}

// walkBack calls fn for each change before a position, newest first, until it
// returns false.
func (o *overlay) walkBack(before position, fn func(c *change) bool) error {
	for _, l := range [...]*layer{o.top, o.under} {
		if l == nil {
			continue
		}
		for i := l.from(before) - 1; i >= 0; i-- {
			if before = l.history[i].at; !fn(l.history[i]) {
				return nil
			}
		}
	}
	t, err := o.tx()
	if err != nil {
		return err
	}
	cursor, err := t.cursor(bucketHistory)
	if err != nil {
		return err
	}
	c := fileCursor{c: cursor}
	key := before.bytes()
	for err = c.seekBefore(key[:]); err == nil && c.k != nil; err = c.prev() {
		at, err := positionOf(c.k)
		if err != nil {
			return t.noted(damagedAt(bucketHistory, c.k, err))
		}
		var ch change
		if err := ch.decode(at, c.v, ""); err != nil {
			return t.noted(damagedChange(at, err))
		}
		if !fn(&ch) {
			return nil
		}
	}
	return t.noted(damagedFile(err))
}

// LineageAt is the lineage at a revision. Errors: command.ErrCompacted,
// command.ErrRevisionNotReached, command.ErrDamaged.
func (s *State) LineageAt(rev uint64) (command.Lineage, error) {
	v, err := s.view()
	if err != nil {
		return command.Lineage{}, err
	}
	defer v.Close()
	switch {
	case rev == v.Revision():
		return v.Lineage(), nil
	case rev == 0 && v.OldestRevision() == 0:
		return command.Lineage{}, nil
	}
	if err := v.kept(rev); err != nil {
		return command.Lineage{}, err
	}
	h, err := v.header(rev)
	return h.lineage, err
}

// OldestRevision is the compaction point: the oldest revision that can be read.
func (s *State) OldestRevision() uint64 { return s.gen.Load().meta.Oldest }

// DataBytes is the size of all keys of users and their values.
func (s *State) DataBytes() uint64 {
	m := &s.gen.Load().meta
	return m.DataBytes - m.SystemBytes
}

// HistoryStart is where the compaction point would be if no more history were
// kept than a retention asks for, judged by the cluster time of the last entry.
// It is never below the present point.
func (s *State) HistoryStart(keep command.Retention) (uint64, error) {
	v, err := s.view()
	if err != nil {
		return 0, err
	}
	defer v.Close()
	m := &v.gen.meta
	// first is the first revision from oldest on whose header fits; every one
	// after it does, too. The state before it is the oldest that is needed.
	first := func(fits func(h header) bool) uint64 {
		low, high := max(m.Oldest, 1), m.Revision+1
		for low < high && err == nil {
			var h header
			mid := low + (high-low)/2
			if h, err = v.header(m.next(mid - 1)); fits(h) {
				high = mid
			} else {
				low = mid + 1
			}
		}
		return low
	}
	start := min(
		first(func(h header) bool { return m.Stamp-h.stamp < command.Stamp(keep.Age) }),
		first(func(h header) bool { return m.Changes-h.changes <= keep.Changes }),
	)
	start = max(start, first(func(h header) bool { return m.ChangeBytes-h.bytes <= keep.Bytes }))
	return max(start-1, m.Oldest), err
}
