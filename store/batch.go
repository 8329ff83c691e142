package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// Batch collects what committed entries change. Nothing of it is visible to
// views before Publish, all of it is after.
//
// There is one batch at a time, used by one goroutine. It ends with Publish,
// with Discard, or with the first error one of its methods returns: then it has
// discarded itself, and only Discard may follow.
type Batch struct {
	s *State
	overlay
	base     *generation
	meta     meta
	members  []member
	own      int       // where this batch begins in top.history
	revision []*change // changes of the revision being made
	kv       bool      // among them is one of a user's key
	other    bool      // among them is one of a member or the cluster
	sessions bool      // among them is one of a session
	rolled   hash.Hash
	pool     []change
	done     bool
	err      error

	// The key that was looked up last: a decision reads a key, then sets it.
	seen      string
	seenAt    located
	seenFound bool
	seenValid bool
}

// Begin starts a batch on the newest state. It waits for the batch before it to
// end, and for a SwapCopy under way. An applier that skips entries the state
// already holds must ask the batch's Applied, not the State's, since a swap may
// come in between.
func (s *State) Begin() *Batch {
	s.applying.Lock()
	g := s.gen.Load()
	b := &Batch{
		s: s, base: g, meta: g.meta, members: g.members,
		own: len(g.active.history), rolled: s.rolled,
	}
	b.overlay = overlay{
		top: g.active.fork(), under: g.frozen, oldest: g.meta.Oldest,
		open: s.beginTx,
	}
	return b
}

// Discard drops the batch. After Publish it does nothing, so that it can be
// deferred.
func (b *Batch) Discard() {
	if b.done {
		return
	}
	b.done = true
	b.overlay.close()
	b.s.applying.Unlock()
}

func (b *Batch) fail(err error) error {
	if err != nil {
		b.err = err
		b.Discard()
	}
	return err
}

// Applied is the Raft index of the last entry in the batch or before it.
func (b *Batch) Applied() uint64 { return b.meta.Applied }

// Revision is the store's counter after the last Step.
func (b *Batch) Revision() uint64 { return b.meta.Revision }

// NextRevision is the revision the next Step closes if anything changes.
func (b *Batch) NextRevision() uint64 { return b.meta.Revision + 1 }

// Get returns the record of a key as the batch leaves it so far. The record's
// value is valid until the batch ends.
func (b *Batch) Get(key string) (rec command.Record, ok bool, err error) {
	l, ok, err := b.look(key)
	if err != nil || !ok || l.deleted {
		return command.Record{}, false, b.fail(err)
	}
	rec, err = b.peek(key, l)
	return rec, err == nil, b.fail(err)
}

// Modified returns the revision of the last change of a key as the batch leaves
// it so far. It reads no record.
func (b *Batch) Modified(key string) (rev uint64, ok bool, err error) {
	l, ok, err := b.look(key)
	if err != nil || !ok || l.deleted {
		return 0, false, b.fail(err)
	}
	return l.at.rev, true, nil
}

// Holder returns the session that holds the lock of a key, as the batch leaves it
// so far; empty when none does. It reads no record of a key that was never locked.
func (b *Batch) Holder(key string) (session string, ok bool, err error) {
	l, ok, err := b.look(key)
	if err != nil || !ok || l.deleted {
		return "", false, b.fail(err)
	}
	if l.change == nil && !l.filed.held {
		return "", true, nil
	}
	rec, err := b.peek(key, l)
	return rec.Session, err == nil, b.fail(err)
}

// look finds the key's last change, including its delete.
func (b *Batch) look(key string) (located, bool, error) {
	if b.err != nil {
		return located{}, false, b.err
	}
	if b.seenValid && b.seen == key {
		return b.seenAt, b.seenFound, nil
	}
	l, ok, err := b.find(key, true)
	if err == nil {
		b.seen, b.seenAt, b.seenFound, b.seenValid = key, l, ok, true
	}
	return l, ok, err
}

// Scan calls fn for each record under prefix, in ascending byte order, until fn
// returns false. The batch must not be changed meanwhile. Values are valid
// until the batch ends.
func (b *Batch) Scan(prefix string, fn func(command.Record) bool) error {
	if b.err != nil {
		return b.err
	}
	return b.fail(b.scanRecords(prefix, behindSystem(prefix, ""), fn))
}

// ScanKeys is Scan without reading values.
func (b *Batch) ScanKeys(prefix string, fn func(key string) bool) error {
	if b.err != nil {
		return b.err
	}
	return b.fail(b.scan(prefix, behindSystem(prefix, ""), false, func(key string, _ located) (bool, error) {
		return fn(strings.Clone(key)), nil
	}))
}

// Set gives a key a value and flags, unless it has both already. Lock and session
// stay: locks are advisory, and LockIndex must not go down while the key exists.
// The value is copied. The key's record is read from the file only when its
// pointer does not tell enough.
func (b *Batch) Set(key string, value []byte, flags uint64) error {
	l, ok, err := b.look(key)
	if err != nil {
		return b.fail(err)
	}
	rec := command.Record{Key: key}
	switch {
	case !ok || l.deleted:
		rec.CreateRevision = b.NextRevision()
	case l.change == nil && !l.filed.held && l.filed.differs(value, flags):
		rec.CreateRevision = l.filed.created
	default:
		if rec, err = b.peek(key, l); err != nil {
			return b.fail(err)
		}
		if rec.Flags == flags && bytes.Equal(rec.Value, value) {
			return nil
		}
	}
	rec.Value, rec.Flags = value, flags
	b.Put(rec)
	return b.err
}

// Put sets a key to rec, except for ModifyRevision, which becomes NextRevision.
// The value is copied. A key that is empty or longer than the file format
// allows fails the batch: such a command must be refused before.
func (b *Batch) Put(rec command.Record) {
	if b.unfit(rec.Key) {
		return
	}
	l, ok, err := b.look(rec.Key)
	if err != nil {
		_ = b.fail(err)
		return
	}
	if !ok || l.deleted {
		b.meta.count(rec.Key, 1, len(rec.Key)+len(rec.Value))
	} else {
		b.meta.count(rec.Key, 0, len(rec.Value)-int(l.valueSize()))
	}
	rec.ModifyRevision = b.NextRevision()
	b.change(change{prev: l.at, table: tableKV, rec: rec})
}

// Delete removes a key. Removing an absent one changes nothing.
func (b *Batch) Delete(key string) {
	if b.unfit(key) {
		return
	}
	l, ok, err := b.look(key)
	if err != nil {
		_ = b.fail(err)
		return
	}
	if !ok || l.deleted {
		return
	}
	b.meta.count(key, -1, -len(key)-int(l.valueSize()))
	if !isSystem(key) {
		b.meta.LastDelete = b.NextRevision()
	}
	b.change(change{prev: l.at, table: tableKV, deleted: true, rec: command.Record{Key: key, ModifyRevision: b.NextRevision()}})
}

// count notes that there are so many more keys and bytes of data.
func (m *meta) count(key string, keys, bytes int) {
	m.Keys += uint64(keys)
	m.DataBytes += uint64(bytes)
	if isSystem(key) {
		m.SystemKeys += uint64(keys)
		m.SystemBytes += uint64(bytes)
	}
	if strings.HasPrefix(key, SpaceOnce) {
		m.OnceBytes += uint64(bytes)
	}
}

// OnceBytes is the size of all records under SpaceOnce.
func (b *Batch) OnceBytes() uint64 { return b.meta.OnceBytes }

// Stamp is the cluster time of the entry, and Wall its wall time.
func (b *Batch) Stamp() (command.Stamp, time.Time) {
	return b.meta.Stamp, time.Unix(0, b.meta.Wall)
}

// longestKey is what bbolt takes; command.MaxKey is far below it.
const longestKey = 32 << 10

func (b *Batch) unfit(key string) bool {
	if b.err == nil && (key == "" || len(key) >= longestKey) {
		_ = b.fail(command.ErrInvalidCommand.With("key of %d bytes cannot be stored", len(key)))
	}
	return b.err != nil
}

// SetMember adds a member or replaces the one with its ID.
func (b *Batch) SetMember(m command.Member) {
	if b.err != nil {
		return
	}
	i, ok := memberRow(b.members, m.ID)
	var prev position
	rows := slices.Clone(b.members)
	if ok {
		prev = position{rows[i].Rev, rows[i].K}
	} else {
		rows = slices.Insert(rows, i, member{})
	}
	c := b.change(change{prev: prev, table: tableMember, rec: command.Record{
		Key: m.ID, Value: mustJSON(m), ModifyRevision: b.NextRevision(),
	}})
	rows[i] = member{Member: m, Rev: c.at.rev, K: c.at.k}
	b.members = rows
}

// RemoveMember removes a member. Removing an absent one changes nothing.
func (b *Batch) RemoveMember(id string) {
	i, ok := memberRow(b.members, id)
	if !ok || b.err != nil {
		return
	}
	prev := position{b.members[i].Rev, b.members[i].K}
	b.change(change{prev: prev, table: tableMember, deleted: true, rec: command.Record{Key: id, ModifyRevision: b.NextRevision()}})
	b.members = slices.Delete(slices.Clone(b.members), i, i+1)
}

// SetCluster sets the cluster's identity.
func (b *Batch) SetCluster(c command.Cluster) {
	if b.err != nil {
		return
	}
	ch := b.change(change{prev: position{b.meta.ClusterRev, b.meta.ClusterK}, table: tableCluster, rec: command.Record{
		Value: mustJSON(c), ModifyRevision: b.NextRevision(),
	}})
	b.meta.Cluster, b.meta.ClusterRev, b.meta.ClusterK = c, ch.at.rev, ch.at.k
}

func mustJSON(v any) []byte {
	j, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain structs always marshal
	}
	return j
}

// Member returns one member.
func (b *Batch) Member(id string) (command.Member, bool) {
	if i, ok := memberRow(b.members, id); ok {
		return b.members[i].Member, true
	}
	return command.Member{}, false
}

// Members lists all members, ordered by ID.
func (b *Batch) Members() []command.Member { return memberList(b.members) }

// Cluster is the cluster's identity; the zero value before Init.
func (b *Batch) Cluster() command.Cluster { return b.meta.Cluster }

// change makes c the next change of the revision being made.
func (b *Batch) change(c change) *change {
	c.at = position{b.NextRevision(), uint32(len(b.revision))}
	if len(b.pool) == 0 {
		b.pool = make([]change, 64)
	}
	p := &b.pool[0]
	b.pool = b.pool[1:]
	*p = c
	a := &b.s.arena
	a.keep(p.encode(a.reserve(p.encodedBound()), header{
		stamp: b.meta.Stamp, wall: b.meta.Wall, changes: b.meta.Changes, bytes: b.meta.ChangeBytes,
	}))
	b.top.add(p)
	b.revision = append(b.revision, p)
	if c.table == tableKV {
		b.kv = b.kv || !isSystem(c.rec.Key)
		b.sessions = b.sessions || strings.HasPrefix(c.rec.Key, SpaceSessions)
		b.seen, b.seenAt, b.seenFound, b.seenValid = c.rec.Key, inMemory(p), true, true
	} else {
		b.other = true
	}
	return p
}

// Step closes a revision: if anything changed since the last Step, the revision
// goes up by one and the lineage is extended by the changes,
//
//	L(r) = first 16 bytes of SHA-256( L(r-1) | r | bodies of its changes, in order )
//
// It returns the revision now, which is the one at which the command before was
// decided.
func (b *Batch) Step() uint64 {
	if len(b.revision) == 0 || b.err != nil {
		return b.meta.Revision
	}
	m := &b.meta
	m.Revision++
	m.Changes += uint64(len(b.revision))
	for _, c := range b.revision {
		m.ChangeBytes += uint64(len(c.enc))
	}
	if b.kv {
		m.KVRevision = m.Revision
	}
	if b.other {
		m.MembersRevision = m.Revision
	}
	if b.sessions {
		m.SessionsRevision = m.Revision
	}
	m.Lineage = extendLineage(b.rolled, m.Lineage, m.Revision, b.revision)
	for _, c := range b.revision {
		c.seal(command.Lineage(m.Lineage))
	}
	b.revision, b.kv, b.other, b.sessions = b.revision[:0], false, false, false
	return m.Revision
}

func extendLineage(h hash.Hash, l digest, rev uint64, changes []*change) digest {
	h.Reset()
	var r [8]byte
	binary.BigEndian.PutUint64(r[:], rev)
	_, _ = h.Write(l[:])
	_, _ = h.Write(r[:])
	for _, c := range changes {
		_, _ = h.Write(c.body())
	}
	var sum [sha256.Size]byte
	h.Sum(sum[:0])
	copy(l[:], sum[:])
	return l
}

// Entry begins a command entry: the state stands for index from now on, cluster
// time is stamp, and what the entry's commands change was made then. The second
// hash takes in what steps no revision,
//
//	A(i) = first 16 bytes of SHA-256( A(i-1) | index | stamp | wall )
//
// An index that is not above Applied fails the batch.
func (b *Batch) Entry(index, term uint64, stamp command.Stamp, wall time.Time) {
	m := &b.meta
	if !b.advance(index, term) {
		return
	}
	m.Stamp, m.Wall = stamp, wall.UnixNano()
	m.rollHash(index, uint64(stamp), uint64(m.Wall))
}

func (m *meta) rollHash(numbers ...uint64) {
	in := make([]byte, 0, len(m.Hash)+3*8)
	in = append(in, m.Hash[:]...)
	for _, n := range numbers {
		in = binary.BigEndian.AppendUint64(in, n)
	}
	sum := sha256.Sum256(in)
	copy(m.Hash[:], sum[:])
}

// Compact raises the compaction point to a revision, if that is above it: views
// of the state answer for no revision below. The second hash takes it in. A
// revision beyond the newest counts as that.
//
// From here on a delete below the point is as if the key had never been, for
// whatever is decided next; the records that become superfluous are dropped
// from the file later, bit by bit.
func (b *Batch) Compact(rev uint64) {
	m := &b.meta
	rev = min(rev, m.Revision)
	if b.err != nil || rev <= m.Oldest {
		return
	}
	m.Oldest, b.overlay.oldest = rev, rev
	b.seenValid = false
	m.Buried = m.LastDelete
	if m.LastDelete >= rev {
		m.Buried = rev - 1
	}
	m.rollHash(rev)
}

// Configuration notes that the entry at index carried a Raft configuration. An
// index that is not above Applied fails the batch.
func (b *Batch) Configuration(index, term uint64, c raft.Configuration) {
	if b.advance(index, term) {
		b.meta.ConfIndex, b.meta.Conf = index, raft.EncodeConfiguration(c)
	}
}

// advance moves the batch to the entry at index. To apply an entry twice would
// make this replica differ from the others, so it is refused.
func (b *Batch) advance(index, term uint64) bool {
	if b.err == nil && index <= b.meta.Applied {
		_ = b.fail(fmt.Errorf("entry %d is in the state already, which is at %d", index, b.meta.Applied))
	}
	if b.err != nil {
		return false
	}
	b.meta.Applied, b.meta.AppliedTerm = index, term
	return true
}

// Publish makes the batch visible to views, in one step, and wakes who waits
// for its index or revision. Before that, the commit marker has been handed to
// the operating system: after a crash of the process the node knows that it
// must apply this far again before it answers. On return nothing is durable by
// itself yet; Flush, or the log and the marker, see to that.
//
// Publish waits while more than twice the buffer's bound is in memory. An error means
// that the store has failed for good and nothing was made visible.
func (b *Batch) Publish() error {
	if b.err != nil {
		return b.err
	}
	if b.done {
		return command.ErrStopping.With("batch has ended")
	}
	if len(b.revision) > 0 {
		panic("store: Publish with a revision still open")
	}
	b.overlay.close()
	s := b.s
	if err := s.Err(); err != nil {
		return b.fail(err)
	}
	if b.meta.Applied == b.base.meta.Applied && len(b.top.history) == b.own {
		b.Discard() // every entry was in the state already
		return nil
	}
	if b.meta.Applied != b.base.meta.Applied {
		if err := s.marked(s.marker.setIndex(b.meta.Applied)); err != nil {
			return b.fail(err)
		}
	}
	if err := s.publish(b); err != nil {
		return b.fail(err)
	}
	b.Discard()
	return s.holdBack()
}
