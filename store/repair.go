package store

import (
	"bytes"
	"errors"
	"maps"
	"slices"

	"go.etcd.io/bbolt"

	"github.com/holdfast-db/holdfast/command"
)

// A state of which only some ranges are damaged asks for those alone: what
// another state of the same history holds there, as of the revision at which the
// damaged file stands. Records and pointers carry checksums over where they
// belong, so what comes is what was written once.

// repairAsk is the part of a copy request that names damaged ranges of a file.
type repairAsk struct {
	// Revision and Lineage are those at which the file stands.
	Revision uint64 `json:"revision"`
	Lineage  digest `json:"lineage"`
	// Oldest is the asker's compaction point: a delete above it may be forgotten
	// by who is further, but not by the asker.
	Oldest uint64        `json:"oldest"`
	Ranges []repairRange `json:"ranges"`
}

// repairRange is from one key of a table to another, which is not part of it; nil
// is the end.
type repairRange struct {
	Table string `json:"table"`
	From  []byte `json:"from"`
	To    []byte `json:"to"`
}

func (r *repairRange) has(key []byte) bool {
	return bytes.Compare(key, r.From) >= 0 && (r.To == nil || bytes.Compare(key, r.To) < 0)
}

// repairBytes bounds what a repair brings: it is taken in in one transaction.
const repairBytes = 32 << 20

// repairRequest names what is damaged, nil when nothing is or when ranges do not
// help.
func (s *State) repairRequest() *repairAsk {
	found := s.gen.Load().file.damage.ranges()
	if len(found) == 0 {
		return nil
	}
	m := &s.durable.Load().meta
	ask := &repairAsk{Revision: m.Revision, Lineage: m.Lineage, Oldest: m.Oldest}
	for _, d := range found {
		if d.table == tableFile {
			return nil
		}
		ask.Ranges = append(ask.Ranges, repairRange{d.table, d.from, d.to})
	}
	return ask
}

// repairFits reports whether this state can answer: it keeps the revision of the
// asker's file, and has forgotten nothing that the asker may not forget yet.
func (s *State) repairFits(ask *repairAsk) bool {
	l, err := s.LineageAt(ask.Revision)
	return err == nil && l == command.Lineage(ask.Lineage) && s.OldestRevision() <= ask.Oldest
}

// repair sends what the asker's file should hold in the ranges it named.
func (c *copySender) repair(ask *repairAsk) error {
	c.out.header(&copyHeader{Kind: command.CopyRange, Format: stateFormat, Revision: ask.Revision, Lineage: ask.Lineage})
	for _, r := range ask.Ranges {
		var err error
		if r.Table == string(bucketHistory) {
			err = c.source.historyRange(&r, ask.Revision)
		} else {
			err = c.source.pointerRange(&r, ask.Revision)
		}
		if err != nil {
			return err
		}
		if c.out.bytes > repairBytes {
			return command.ErrNotReady.With("the damaged ranges hold more than a repair brings")
		}
	}
	g := c.s.gen.Load()
	c.out.json(frameState, copyState{Meta: g.meta})
	return c.out.end()
}

// historyRange hands on the changes of a range of history, up to a revision.
func (c *copySource) historyRange(r *repairRange, through uint64) error {
	from, n := positionFrom(r.From), uint64(0)
	err := c.read(func(v *View) error {
		return v.walk(from, through, func(at position, enc []byte) (bool, error) {
			key := at.bytes()
			if !r.has(key[:]) {
				return false, nil
			}
			c.page = appendChange(c.page, at, enc)
			n++
			return len(c.page) <= repairBytes, nil
		})
	})
	if err != nil || n == 0 {
		return err
	}
	return c.out.writeHistory(c.page, n)
}

// pointerRange hands on what the keys of a range led to at a revision.
func (c *copySource) pointerRange(r *repairRange, at uint64) error {
	n := uint64(0)
	err := c.read(func(v *View) error {
		if err := v.kept(at); err != nil {
			return err
		}
		add := func(key string, l located) (bool, error) {
			if !r.has(bytesOf(key)) {
				return false, nil
			}
			l, ok, err := v.asOf(key, l, at)
			if err == nil && ok {
				c.page = appendPointer(c.page, key, l.pointer())
				n++
			}
			return len(c.page) <= repairBytes, err
		}
		first := string(r.From)
		if l, ok, err := v.find(first, true); err != nil {
			return err
		} else if ok {
			if _, err := add(first, l); err != nil {
				return err
			}
		}
		return v.scan("", first, true, add)
	})
	if err != nil || n == 0 {
		return err
	}
	return c.out.writePointers(c.page, n)
}

// positionFrom is the position a bound of history stands for, which a bad page
// may have cut short.
func positionFrom(b []byte) position {
	var full [positionSize]byte
	copy(full[:], b)
	p, _ := positionOf(full[:])
	return p
}

// repairTaker gathers what a repair brings.
type repairTaker struct {
	changes map[position][]byte
	keys    map[string]repairPointer
	size    int
	// oldest: the peer has all records from this revision on, and of those below
	// it what is needed.
	oldest uint64
}

type repairPointer struct {
	encoded []byte
	deleted bool
}

func (t *repairTaker) buffer() []byte { return nil }

func (t *repairTaker) grow(page []byte) error {
	if t.size += len(page); t.size > 2*repairBytes {
		return command.ErrDamaged.With("copy: a repair of more than %d bytes", 2*repairBytes)
	}
	return nil
}

func (t *repairTaker) history(page []byte) error {
	if err := t.grow(page); err != nil {
		return err
	}
	return eachChange(page, func(at position, enc []byte) error {
		var c change
		t.changes[at] = enc
		return c.decode(at, enc, "")
	})
}

func (t *repairTaker) pointers(page []byte) error {
	if err := t.grow(page); err != nil {
		return err
	}
	return eachPointer(page, func(key, pointer []byte, deleted bool) error {
		_, err := decodePointerIn(deleted, key, pointer)
		t.keys[string(key)] = repairPointer{pointer, deleted}
		return err
	})
}

// receiveRange takes in a repair and puts it in place.
func (s *State) receiveRange(in *copyReader, h *copyHeader) (*meta, error) {
	ask := s.repairRequest()
	if ask == nil {
		return nil, command.ErrNotReady.With("there is nothing to repair")
	}
	t := &repairTaker{changes: map[position][]byte{}, keys: map[string]repairPointer{}}
	state, err := in.body(t)
	if err != nil {
		return nil, err
	}
	t.oldest = min(state.Meta.Oldest, ask.Oldest)
	s.flushing.Lock()
	defer s.flushing.Unlock()
	g, m := s.gen.Load(), &s.durable.Load().meta
	if m.Revision != h.Revision || m.Lineage != h.Lineage {
		return nil, command.ErrNotReady.With("the file has moved on from revision %d to %d; ask again", h.Revision, m.Revision)
	}
	// The list may have grown since the request: what did not come is not mended.
	ask.Ranges = slices.DeleteFunc(ask.Ranges, func(r repairRange) bool { return !t.brings(&r) })
	if err := s.onceThereIsSpace(func() error { return g.file.repair(ask, t) }); err != nil {
		return nil, err
	}
	for _, r := range ask.Ranges {
		g.file.damage.mend(&damageError{table: r.Table, from: r.From, to: r.To})
	}
	return m, nil
}

// brings reports whether something came for a range. Of one that was damaged,
// there always is something: what the damage was found in.
func (t *repairTaker) brings(r *repairRange) bool {
	if r.Table == string(bucketHistory) {
		for at := range t.changes {
			if key := at.bytes(); r.has(key[:]) {
				return true
			}
		}
		return false
	}
	for key := range t.keys {
		if r.has([]byte(key)) {
			return true
		}
	}
	return false
}

var errNotRepaired = errors.New("the peer lacks what is damaged here")

// repair puts what came in place of what the ranges hold, in one transaction. A
// damaged record that has not come is one that the peer has dropped, and goes.
func (f *stateFile) repair(ask *repairAsk, t *repairTaker) error {
	return f.update(func(tx *bbolt.Tx, l *local) error {
		for _, r := range ask.Ranges {
			var err error
			if r.Table == string(bucketHistory) {
				err = t.repairHistory(tx, &r, l)
			} else {
				err = t.repairPointers(tx, &r)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func (t *repairTaker) repairHistory(tx *bbolt.Tx, r *repairRange, l *local) error {
	history := tx.Bucket(bucketHistory)
	var bad [][]byte
	cursor := history.Cursor()
	for k, v := cursor.Seek(r.From); k != nil && r.has(k); k, v = cursor.Next() {
		if isMark(k, v) {
			continue
		}
		at, err := positionOf(k)
		if err == nil {
			if _, ok := t.changes[at]; ok {
				continue // about to be written anew
			}
			if err = checkChange(at, v); err == nil {
				continue // the peer has dropped it, here it is still sound
			}
			if at.rev >= t.oldest {
				return errNotRepaired
			}
		}
		bad = append(bad, bytes.Clone(k))
	}
	for _, k := range bad {
		if err := history.Delete(k); err != nil {
			return err
		}
		l.Records--
	}
	history.FillPercent = 1
	for _, at := range slices.SortedFunc(maps.Keys(t.changes), comparePositions) {
		key := at.bytes()
		if !r.has(key[:]) || history.Get(key[:]) == nil && !t.needed(tx, at) {
			continue
		}
		// Also one that was lost is counted in local still.
		if err := history.Put(key[:], t.changes[at]); err != nil {
			return err
		}
	}
	return nil
}

// needed reports whether a change that came belongs into the file: the peer may
// not have dropped yet what this node has.
func (t *repairTaker) needed(tx *bbolt.Tx, at position) bool {
	var c change
	if at.rev >= t.oldest || c.decode(at, t.changes[at], "") != nil || c.table != tableKV {
		return true
	}
	pointer := tx.Bucket(bucketKeys).Get(bytesOf(c.rec.Key))
	p, err := decodePointer(bytesOf(c.rec.Key), pointer)
	return err != nil || p.at == at
}

func comparePositions(a, b position) int {
	switch {
	case a.less(b):
		return -1
	case b.less(a):
		return 1
	}
	return 0
}

// repairPointers makes the keys of a range, in both tables, lead to what came for
// them.
func (t *repairTaker) repairPointers(tx *bbolt.Tx, r *repairRange) error {
	keys, tombs := tx.Bucket(bucketKeys), tx.Bucket(bucketTombs)
	for _, b := range [...]*bbolt.Bucket{keys, tombs} {
		var gone [][]byte
		cursor := b.Cursor()
		for k, v := cursor.Seek(r.From); k != nil && r.has(k); k, v = cursor.Next() {
			if !isMark(k, v) {
				gone = append(gone, bytes.Clone(k))
			}
		}
		for _, k := range gone {
			if err := b.Delete(k); err != nil {
				return err
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(t.keys)) {
		if p := t.keys[key]; r.has([]byte(key)) {
			if err := point(keys, tombs, []byte(key), p.encoded, p.deleted, false); err != nil {
				return err
			}
		}
	}
	return nil
}
