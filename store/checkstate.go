package store

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"hash/maphash"

	"go.etcd.io/bbolt"

	"github.com/holdfast-db/holdfast/command"
)

// state checks the state file: first its pages, then history from the first
// record to the last, then where each key leads.
func (c *checker) state() {
	if !c.has(stateName) && !c.id.HasState {
		return
	}
	problems := c.stats.Problems
	db := c.openBoltToCheck(stateName, hintState)
	if db == nil {
		return
	}
	defer db.Close()
	s := &stateCheck{checker: c, seed: maphash.MakeSeed(), sum: sha256.New()}
	for _, step := range []func(*bbolt.Tx) error{s.meta, s.history, s.pointers, s.compare} {
		err := openGuarded(stateName, func() error { return db.View(step) })
		if err != nil {
			c.failed(Problem{File: stateName, Hint: hintState}, err)
			return
		}
	}
	c.stateOK = c.stats.Problems == problems && !s.empty
}

// stateCheck is the check of one state file. What it reads is only valid within a
// step.
type stateCheck struct {
	*checker
	m       meta
	local   local
	members []member
	// empty is a file with nothing to check: a crash left it without its tables, or
	// another build made it.
	empty bool
	// holes says that records or pointers were found bad, so that what is summed
	// up over all of them tells nothing more.
	holes bool
	tail  uint64 // records beyond meta

	// balance is, over all keys, the sum of their records minus the sum of the
	// records that another one follows minus the sum of what pointers lead to: 0
	// when each key leads to its last change.
	balance uint64
	seed    maphash.Seed

	records         lookupIn
	keys, dataBytes uint64

	// Of the chain of revisions; next is the position that must come.
	next, last     position
	open           openRevision
	sum            hash.Hash
	lineage        command.Lineage
	linked         bool // lineage is that of the revision before open
	changes, bytes uint64
	counted        bool // so are changes and bytes
}

// openRevision is the revision that history is in the middle of.
type openRevision struct {
	rev     uint64 // 0: none
	lineage command.Lineage
	bad     bool // not all of it could be read
}

// lookupIn finds single keys of a bucket.
type lookupIn struct{ c *bbolt.Cursor }

func (l lookupIn) get(at position) []byte {
	key := at.bytes()
	if k, v := l.c.Seek(key[:]); textOf(k) == textOf(key[:]) {
		return v
	}
	return nil
}

func (s *stateCheck) bad(table []byte, at, format string, args ...any) {
	s.holes = true
	s.add(Problem{File: stateName, Table: string(table), At: at, What: fmt.Sprintf(format, args...), Hint: hintState})
}

func revisionText(p position) string { return fmt.Sprintf("revision %d.%d", p.rev, p.k) }

func keyText(key []byte) string { return fmt.Sprintf("key %q", key) }

func (s *stateCheck) meta(tx *bbolt.Tx) error {
	b := tx.Bucket(bucketMeta)
	if b == nil {
		s.empty = true
		s.add(Problem{File: stateName, What: "is empty: it was not finished", Note: true})
		return nil
	}
	if err := openJSON("state", b.Get(recordState), &s.m); err != nil {
		return err
	}
	if err := checkFormat(s.m.Format); err != nil {
		s.empty, s.err = true, fmt.Errorf("%s: %w", s.path(stateName), err)
		return nil
	}
	for _, name := range [][]byte{bucketHistory, bucketKeys, bucketTombs} {
		if tx.Bucket(name) == nil {
			return command.ErrDamaged.With("table %s is missing", name)
		}
	}
	s.stats.RaftIndex, s.stats.Revision, s.stats.Oldest = max(s.m.RaftIndex, s.m.Applied), s.m.Revision, s.m.Oldest
	if err := openJSON("members", b.Get(recordMembers), &s.members); err != nil {
		return err
	}
	return openJSON("local", b.Get(recordLocal), &s.local)
}

// history reads all changes in order.
func (s *stateCheck) history(tx *bbolt.Tx) error {
	if s.empty {
		return nil
	}
	b := tx.Bucket(bucketHistory)
	s.records = lookupIn{b.Cursor()}
	s.next = position{rev: max(s.m.Oldest, 1)}
	s.linked, s.counted = s.m.Oldest == 0, s.m.Oldest == 0
	cursor := b.Cursor()
	for k, v := firstRecord(cursor); k != nil; k, v = cursor.Next() {
		s.stats.Records++
		at, err := positionOf(k)
		if err != nil {
			s.bad(bucketHistory, "", "%s", problemOf(err))
			continue
		}
		if !s.last.less(at) {
			s.bad(bucketHistory, revisionText(at), "it stands behind revision %d.%d", s.last.rev, s.last.k)
		}
		s.last = at
		var c change
		if err = c.decode(at, v, ""); err != nil {
			s.bad(bucketHistory, revisionText(at), "%s", problemOf(err))
		}
		switch {
		case at.rev > s.m.Revision:
			s.tail++
		case at.rev >= s.m.Oldest:
			s.link(at, v, &c, err == nil)
		}
		if err == nil {
			s.follow(&c)
		}
	}
	s.closeRevision()
	switch end := s.open.rev; {
	case s.m.Revision == 0:
	case end != s.m.Revision:
		s.bad(bucketHistory, fmt.Sprintf("revision %d", s.m.Revision), "history ends at revision %d before it, the state stands at this one", end)
	case s.linked && s.lineage != command.Lineage(s.m.Lineage):
		s.bad(bucketMeta, fmt.Sprintf("revision %d", end), "the state has another lineage than its history")
	case s.counted && (s.changes != s.m.Changes || s.bytes != s.m.ChangeBytes):
		s.bad(bucketMeta, fmt.Sprintf("revision %d", end), "history comes to %d changes of %d bytes, the state counts %d of %d",
			s.changes, s.bytes, s.m.Changes, s.m.ChangeBytes)
	}
	return nil
}

// link takes a record of the unbroken part of history, which is from the
// compaction point to where the state stands.
func (s *stateCheck) link(at position, enc []byte, c *change, ok bool) {
	starts := s.next.k > 0 && (at == position{rev: s.next.rev + 1} || at == position{rev: s.next.rev + epochLeap}) || s.next.k == 0 && at == s.next
	if !starts && at != s.next {
		s.bad(bucketHistory, revisionText(s.next), "history goes on at revision %d.%d", at.rev, at.k)
		s.open.bad = true
		s.closeRevision()
		s.open, s.linked, s.counted = openRevision{rev: at.rev, bad: true}, false, false
		starts = at.k == 0
	}
	s.next = position{at.rev, at.k + 1}
	if starts {
		s.closeRevision()
		s.begin(at.rev, c, ok)
	}
	s.changes++
	s.bytes += uint64(len(enc))
	if !ok {
		s.open.bad = true
		return
	}
	_, _ = s.sum.Write(c.body())
}

func (s *stateCheck) begin(rev uint64, c *change, ok bool) {
	s.open = openRevision{rev: rev}
	if !ok {
		s.counted = false
		return
	}
	h := c.header()
	if s.counted && (h.changes != s.changes || h.bytes != s.bytes) {
		s.bad(bucketHistory, fmt.Sprintf("revision %d", rev), "it counts %d changes of %d bytes before it, there are %d of %d",
			h.changes, h.bytes, s.changes, s.bytes)
	}
	s.open.lineage, s.changes, s.bytes, s.counted = h.lineage, h.changes, h.bytes, true
	s.sum.Reset()
	_, _ = s.sum.Write(s.lineage[:])
	_, _ = s.sum.Write(binary.BigEndian.AppendUint64(nil, rev))
}

// closeRevision compares the lineage of the open revision with what follows from
// its changes, unless the one before it is not known: there the chain begins.
func (s *stateCheck) closeRevision() {
	if s.open.rev == 0 {
		return
	}
	if s.linked && !s.open.bad {
		var sum [sha256.Size]byte
		s.sum.Sum(sum[:0])
		if command.Lineage(sum[:len(s.lineage)]) != s.open.lineage {
			s.bad(bucketHistory, fmt.Sprintf("revision %d", s.open.rev), "its lineage does not follow from its changes and the revision before")
		}
	}
	s.lineage, s.linked = s.open.lineage, !s.open.bad
}

// follow checks where a change leads back to.
func (s *stateCheck) follow(c *change) {
	s.settle(c, 1)
	if c.prev.zero() {
		return
	}
	if !c.prev.less(c.at) {
		s.bad(bucketHistory, revisionText(c.at), "it follows revision %d.%d, which is not before it", c.prev.rev, c.prev.k)
		return
	}
	enc := s.records.get(c.prev)
	if enc == nil {
		dropped := c.prev.rev < s.m.Oldest && (c.created() || c.at.rev <= s.m.Oldest)
		if !dropped {
			s.bad(bucketHistory, revisionText(c.at), "it follows revision %d.%d, which is missing", c.prev.rev, c.prev.k)
		}
		return
	}
	var p change
	if p.decode(c.prev, enc, "") != nil {
		return // reported when history got there
	}
	if p.table != c.table || p.rec.Key != c.rec.Key {
		s.bad(bucketHistory, revisionText(c.at), "it follows revision %d.%d, which is of %q, not %q", c.prev.rev, c.prev.k, p.rec.Key, c.rec.Key)
	}
	if c.at.rev <= s.m.Revision {
		s.settle(&p, -1)
	}
}

// settle adds a key's change to the balance, sign times. A change beyond meta does
// not count, as it will be taken back, and neither does a delete that is
// forgotten.
func (s *stateCheck) settle(c *change, sign int) {
	if c.table != tableKV || c.at.rev > s.m.Revision || s.forgotten(c) {
		return
	}
	s.balance += uint64(sign) * maphash.Comparable(s.seed, c.at)
}

func (s *stateCheck) forgotten(c *change) bool { return c.deleted && c.at.rev < s.m.Oldest }

// pointers reads where each key leads.
func (s *stateCheck) pointers(tx *bbolt.Tx) error {
	if s.empty {
		return nil
	}
	s.records = lookupIn{tx.Bucket(bucketHistory).Cursor()}
	for _, table := range [][]byte{bucketKeys, bucketTombs} {
		cursor := tx.Bucket(table).Cursor()
		for k, v := firstRecord(cursor); k != nil; k, v = cursor.Next() {
			c, ok := s.lead(table, k, v, string(table) == string(bucketTombs))
			if ok && c.at.rev <= s.m.Revision {
				s.count(&c)
			}
		}
	}
	return s.takenBack(tx)
}

// count takes in what a key leads to.
func (s *stateCheck) count(c *change) {
	s.settle(c, -1)
	if !c.deleted {
		s.keys++
		s.dataBytes += uint64(len(c.rec.Key) + len(c.rec.Value))
	}
}

// takenBack counts what the keys that lead beyond meta will lead to once the tail
// is taken back, as takeBack and restoreTombs do it.
func (s *stateCheck) takenBack(tx *bbolt.Tx) error {
	undo := tx.Bucket(bucketUndo)
	first := position{rev: s.m.Revision + 1}.bytes()
	cursor := tx.Bucket(bucketHistory).Cursor()
	for k, v := cursor.Seek(first[:]); k != nil; k, v = cursor.Next() {
		at, err := positionOf(k)
		var c, p change
		if err != nil || c.decode(at, v, "") != nil || c.table != tableKV || c.prev.zero() || c.prev.rev > s.m.Revision {
			continue
		}
		key := bytesOf(c.rec.Key)
		if enc := s.records.get(c.prev); enc == nil || p.decode(c.prev, enc, "") != nil {
			continue
		}
		if undo != nil {
			if kept, err := decodePointer(key, undo.Get(key)); err == nil && kept.at == c.prev {
				continue // counted below
			}
		}
		if now, ok := s.pointer(tx, key); !ok || now.rev > s.m.Revision {
			s.count(&p)
		}
	}
	if undo == nil {
		return nil
	}
	return undo.ForEach(func(key, pointer []byte) error {
		if p, err := decodePointer(key, pointer); err == nil && (p.at.rev < s.m.Oldest || p.at.rev > s.m.Revision) {
			return nil
		}
		if c, ok := s.lead(bucketUndo, key, pointer, true); ok {
			s.count(&c)
		}
		return nil
	})
}

// pointer is the position that a key leads to.
func (s *stateCheck) pointer(tx *bbolt.Tx, key []byte) (at position, ok bool) {
	for _, table := range [][]byte{bucketKeys, bucketTombs} {
		if p, err := decodePointer(key, tx.Bucket(table).Get(key)); err == nil {
			return p.at, true
		}
	}
	return at, false
}

// lead checks one pointer and returns the change it leads to.
func (s *stateCheck) lead(table, key, pointer []byte, deleted bool) (c change, ok bool) {
	p, err := decodePointer(key, pointer)
	if err != nil {
		s.bad(table, keyText(key), "the checksum of its pointer")
		return c, false
	}
	at := p.at
	enc := s.records.get(at)
	if enc == nil {
		s.bad(table, keyText(key), "it leads to revision %d.%d, which is missing", at.rev, at.k)
		return c, false
	}
	if c.decode(at, enc, "") != nil {
		return c, false // reported by history
	}
	switch {
	case c.table != tableKV || c.rec.Key != string(key):
		s.bad(table, keyText(key), "it leads to revision %d.%d, which is of %q", at.rev, at.k, c.rec.Key)
	case c.deleted != deleted:
		s.bad(table, keyText(key), "it leads to revision %d.%d, which belongs in the other table of keys", at.rev, at.k)
	case c.pointer() != p:
		s.bad(table, keyText(key), "what its pointer says of revision %d.%d is not so", at.rev, at.k)
	default:
		return c, true
	}
	return c, false
}

// compare compares what was counted with what the file says of itself.
func (s *stateCheck) compare(tx *bbolt.Tx) error {
	if s.empty {
		return nil
	}
	s.stats.Keys, s.stats.DataBytes = s.keys, s.dataBytes
	if s.tail > 0 {
		s.add(Problem{File: stateName, Table: string(bucketHistory), At: fmt.Sprintf("revision %d", s.m.Revision+1), Note: true,
			What: fmt.Sprintf("%d changes are from a write that was cut short; a start takes them back", s.tail)})
	}
	s.records = lookupIn{tx.Bucket(bucketHistory).Cursor()}
	for _, m := range s.members {
		s.row("members", position{m.Rev, m.K}, tableMember, m.ID)
	}
	if s.m.ClusterRev > 0 {
		s.row("cluster", position{s.m.ClusterRev, s.m.ClusterK}, tableCluster, "")
	}
	if s.local.Records != s.stats.Records {
		s.add(Problem{File: stateName, Table: string(bucketHistory), Hint: hintState,
			What: fmt.Sprintf("there are %d records, the file counts %d", s.stats.Records, s.local.Records)})
	}
	if s.holes {
		return nil
	}
	if s.balance != 0 {
		s.astray(tx)
	}
	if s.keys != s.m.Keys || s.dataBytes != s.m.DataBytes {
		s.bad(bucketKeys, "", "there are %d keys with %d bytes of data, the state counts %d with %d", s.keys, s.dataBytes, s.m.Keys, s.m.DataBytes)
	}
	return nil
}

func (s *stateCheck) row(what string, at position, of table, id string) {
	var c change
	if enc := s.records.get(at); enc == nil || c.decode(at, enc, "") == nil && (c.table != of || c.rec.Key != id) {
		s.bad(bucketMeta, what+" "+id, "revision %d.%d is not its last change", at.rev, at.k)
	}
}

// astray finds the keys that do not lead to their last change. With a tail in the
// file it only says that there are some.
func (s *stateCheck) astray(tx *bbolt.Tx) {
	cursor := tx.Bucket(bucketHistory).Cursor()
	for k, v := firstRecord(cursor); k != nil && s.tail == 0; k, v = cursor.Next() {
		at, err := positionOf(k)
		var c change
		if err != nil || c.decode(at, v, "") != nil || c.table != tableKV || s.forgotten(&c) {
			continue
		}
		now, ok := s.pointer(tx, bytesOf(c.rec.Key))
		switch {
		case !ok && s.records.get(c.prev) == nil: // once for each key
			s.bad(bucketKeys, keyText(bytesOf(c.rec.Key)), "it is missing, though history has changes of it from revision %d.%d on", at.rev, at.k)
		case ok && now == c.prev:
			s.bad(bucketKeys, keyText(bytesOf(c.rec.Key)), "it leads to revision %d.%d, but was changed at %d.%d", now.rev, now.k, at.rev, at.k)
		}
	}
	if !s.holes {
		s.bad(bucketKeys, "", "some keys do not lead to their last change")
	}
}
