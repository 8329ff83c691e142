package store

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"unsafe"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/internal/planted"
)

// stateFormat is the version of everything in the state file. A build refuses a
// newer one. Builds before the first release wrote formats 1 and 2: without times
// in the records, and with pointers that held a position only.
const stateFormat = 3

// position names one change: the k-th of a revision. The zero position means
// "no change"; revisions start at 1.
type position struct {
	rev uint64
	k   uint32
}

const positionSize = 8 + 4

func (p position) less(o position) bool {
	return p.rev < o.rev || p.rev == o.rev && p.k < o.k
}

func (p position) zero() bool { return p.rev == 0 }

// bytes is p as a key of the history bucket: big endian, so that byte order is
// the order of changes.
func (p position) bytes() (b [positionSize]byte) {
	binary.BigEndian.PutUint64(b[:], p.rev)
	binary.BigEndian.PutUint32(b[8:], p.k)
	return b
}

func positionOf(b []byte) (position, error) {
	if len(b) != positionSize {
		return position{}, command.ErrDamaged.With("history key of %d bytes", len(b))
	}
	return position{rev: binary.BigEndian.Uint64(b), k: binary.BigEndian.Uint32(b[8:])}, nil
}

// table says which part of the state a change belongs to. Numbers are part of
// the file format.
type table byte

const (
	tableKV      table = 0
	tableMember  table = 1
	tableCluster table = 2
)

const (
	opSet    = 1
	opDelete = 2
)

// change is one complete record of history: what a key became, and where its
// change before that is found. It is immutable once its revision is closed.
type change struct {
	at, prev position
	table    table
	deleted  bool
	bodyAt   uint8 // where the body starts in enc
	// rec is the record after the change; of a deleted key, only Key is set.
	// rec.Value shares memory with enc.
	rec command.Record
	// enc is the change as it is stored under its position:
	//
	//	CRC-32C of position and all that follows (4) | header, when k is 0 | body
	//
	// The header is
	//
	//	lineage (16) | stamp | wall | changes | bytes
	//
	// and the body is
	//
	//	table<<4|op (1) | prev.rev | prev.k | key
	//	[ created | flags | lock index | session | value ]   unless deleted
	//
	// Numbers are uvarints, strings a uvarint length and their bytes.
	enc []byte
}

// header says of a revision when it was made and how much there was before it,
// so that a moment, a count or a size is found by a binary search.
type header struct {
	lineage command.Lineage
	stamp   command.Stamp
	wall    int64  // Unix nanoseconds
	changes uint64 // made before this revision, ever
	bytes   uint64 // of their encodings
}

// created reports whether the key did not exist before the change's revision.
func (c *change) created() bool {
	return !c.deleted && c.rec.CreateRevision == c.at.rev && c.prev.rev < c.at.rev
}

// body is what lineage is computed over.
func (c *change) body() []byte { return c.enc[c.bodyAt:] }

// lineage is the lineage of the change's revision; valid when k is 0.
func (c *change) lineage() (l command.Lineage) {
	copy(l[:], c.enc[4:])
	return l
}

// header is the header of the change's revision; valid when k is 0.
func (c *change) header() (h header) {
	f := fields{b: c.enc[4:]}
	h.decode(&f)
	return h
}

func (h *header) decode(f *fields) {
	copy(h.lineage[:], f.take(len(h.lineage)))
	h.stamp, h.wall = command.Stamp(f.number()), int64(f.number())
	h.changes, h.bytes = f.number(), f.number()
}

func (h *header) append(b []byte) []byte {
	b = append(b, h.lineage[:]...)
	b = binary.AppendUvarint(b, uint64(h.stamp))
	b = binary.AppendUvarint(b, uint64(h.wall))
	b = binary.AppendUvarint(b, h.changes)
	return binary.AppendUvarint(b, h.bytes)
}

// encodedBound is at least the size of c's encoding.
func (c *change) encodedBound() int {
	return 4 + len(command.Lineage{}) + 1 + 12*binary.MaxVarintLen64 +
		len(c.rec.Key) + len(c.rec.Session) + len(c.rec.Value)
}

// encode appends c's encoding to b, with room for lineage and checksum, which
// seal fills in, and makes c.enc and c.rec.Value share b. The header counts when
// k is 0.
func (c *change) encode(b []byte, h header) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0)
	if c.at.k == 0 {
		b = h.append(b)
	}
	c.bodyAt = uint8(len(b) - start)
	op := byte(opSet)
	if c.deleted {
		op = opDelete
	}
	b = append(b, byte(c.table)<<4|op)
	b = binary.AppendUvarint(b, c.prev.rev)
	b = binary.AppendUvarint(b, uint64(c.prev.k))
	b = appendText(b, c.rec.Key)
	if !c.deleted {
		b = binary.AppendUvarint(b, c.rec.CreateRevision)
		b = binary.AppendUvarint(b, c.rec.Flags)
		b = binary.AppendUvarint(b, c.rec.LockIndex)
		b = appendText(b, c.rec.Session)
		b = appendText(b, c.rec.Value)
		n := len(c.rec.Value)
		c.rec.Value = b[len(b)-n : len(b) : len(b)]
	}
	c.enc = b[start:len(b):len(b)]
	return b
}

// seal writes the lineage (when k is 0) and the checksum into the encoding.
func (c *change) seal(l command.Lineage) {
	if c.at.k == 0 {
		copy(c.enc[4:], l[:])
	}
	binary.BigEndian.PutUint32(c.enc, changeSum(c.at, c.enc[4:]))
}

// decode makes c the change stored as enc at the position. c shares memory
// with enc. When key is not empty the change must be one of that key, and no
// copy of the key is made. Anything that does not fit is ErrDamaged.
func (c *change) decode(at position, enc []byte, key string) error {
	if err := checkChange(at, enc); err != nil {
		return err
	}
	f := fields{b: enc[4:]}
	if at.k == 0 {
		var h header
		h.decode(&f)
	}
	bodyAt := uint8(len(enc) - len(f.b))
	kind := f.byte()
	*c = change{at: at, table: table(kind >> 4), enc: enc, bodyAt: bodyAt}
	c.deleted = kind&0xf == opDelete
	c.prev = position{rev: f.number(), k: uint32(f.number())}
	name := f.text()
	if key != "" && string(name) == key {
		c.rec.Key = key
	} else {
		c.rec.Key = string(name)
	}
	c.rec.ModifyRevision = at.rev
	if !c.deleted {
		c.rec.CreateRevision = f.number()
		c.rec.Flags = f.number()
		c.rec.LockIndex = f.number()
		c.rec.Session = string(f.text())
		c.rec.Value = f.text()
	}
	switch {
	case f.bad || len(f.b) > 0:
		return command.ErrDamaged.With("fields of revision %d.%d", at.rev, at.k)
	case kind&0xf != opSet && kind&0xf != opDelete || c.table > tableCluster:
		return command.ErrDamaged.With("kind %#x of revision %d.%d is not known", kind, at.rev, at.k)
	case key != "" && c.rec.Key != key:
		return command.ErrDamaged.With("revision %d.%d belongs to key %q, not %q", at.rev, at.k, c.rec.Key, key)
	}
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checkChange verifies the checksum of a change's encoding.
func checkChange(at position, enc []byte) error {
	if len(enc) <= 4 || binary.BigEndian.Uint32(enc) != changeSum(at, enc[4:]) && !planted.Bug("unchecked-record") {
		return command.ErrDamaged.With("checksum of revision %d.%d", at.rev, at.k)
	}
	return nil
}

// changeSum covers the position, so that a record found under another one is
// as bad as a flipped bit.
func changeSum(at position, b []byte) uint32 {
	// By hand: what is handed to package crc32 is allocated.
	sum := ^uint32(0)
	for _, v := range at.bytes() {
		sum = castagnoli[byte(sum)^v] ^ sum>>8
	}
	return crc32.Update(^sum, castagnoli, b)
}

// A pointer is what the keys and tombs buckets hold for a key: the position of
// its last change, and of that what is needed to decide on the next, so that a
// value can be overwritten without being read. It follows from the change alone.
//
// It is stored as
//
//	rev | k | [ rev - created | flags | size<<1 + held | sum (4) ] | checksum (4)
//
// without the middle when the key is deleted. Numbers are uvarints; the checksum
// is the CRC-32C of all before it and of the key.
type pointer struct {
	at      position
	deleted bool
	// Of a key that is there, as its record says:
	created uint64
	flags   uint64
	size    uint64 // of the value
	sum     uint32 // CRC-32C of the value
	held    bool   // there is a session or a lock index, which only the record holds
}

// pointer is the pointer to c.
func (c *change) pointer() pointer {
	if c.deleted {
		return pointer{at: c.at, deleted: true}
	}
	return pointer{
		at: c.at, created: c.rec.CreateRevision, flags: c.rec.Flags,
		size: uint64(len(c.rec.Value)), sum: crc32.Checksum(c.rec.Value, castagnoli),
		held: c.rec.LockIndex != 0 || c.rec.Session != "",
	}
}

// lead is a key and where it leads to.
type lead struct {
	key string
	pointer
}

// differs reports that a value or its flags are certainly not those of the key.
func (p *pointer) differs(value []byte, flags uint64) bool {
	return p.flags != flags || p.size != uint64(len(value)) || p.sum != crc32.Checksum(value, castagnoli)
}

// longestPointer is at least the size of an encoded pointer.
const longestPointer = 5*binary.MaxVarintLen64 + 2*4

// encodePointer appends the pointer to c to dst.
func encodePointer(dst []byte, c *change) []byte {
	p := c.pointer()
	return p.append(dst, bytesOf(c.rec.Key))
}

func (p *pointer) append(dst, key []byte) []byte {
	start := len(dst)
	dst = binary.AppendUvarint(dst, p.at.rev)
	dst = binary.AppendUvarint(dst, uint64(p.at.k))
	if !p.deleted {
		dst = binary.AppendUvarint(dst, p.at.rev-p.created)
		dst = binary.AppendUvarint(dst, p.flags)
		size := p.size << 1
		if p.held {
			size++
		}
		dst = binary.AppendUvarint(dst, size)
		dst = binary.BigEndian.AppendUint32(dst, p.sum)
	}
	return binary.BigEndian.AppendUint32(dst, pointerSum(key, dst[start:]))
}

// decodePointer reads the pointer of a key.
func decodePointer(key, b []byte) (p pointer, err error) {
	n := len(b) - 4
	if n < 0 || binary.BigEndian.Uint32(b[n:]) != pointerSum(key, b[:n]) {
		return pointer{}, command.ErrDamaged.With("pointer of key %q", key)
	}
	f := fields{b: b[:n]}
	p.at = position{rev: f.number(), k: uint32(f.number())}
	if p.deleted = len(f.b) == 0; !p.deleted {
		p.created = p.at.rev - f.number()
		p.flags = f.number()
		size := f.number()
		p.size, p.held = size>>1, size&1 == 1
		if sum := f.take(4); sum != nil {
			p.sum = binary.BigEndian.Uint32(sum)
		}
	}
	if f.bad || len(f.b) > 0 {
		return pointer{}, command.ErrDamaged.With("fields of the pointer of key %q", key)
	}
	return p, nil
}

// decodePointerIn is decodePointer for the table of deleted keys or the other.
func decodePointerIn(deleted bool, key, b []byte) (pointer, error) {
	p, err := decodePointer(key, b)
	if err == nil && p.deleted != deleted {
		err = command.ErrDamaged.With("pointer of key %q belongs in the other table", key)
	}
	return p, err
}

func pointerSum(key, b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b, castagnoli), castagnoli, key)
}

// meta is all of the state that is neither a key nor history. It is written in
// the same transaction as the changes it counts.
type meta struct {
	Format int `json:"format"`
	// Applied and AppliedTerm are of the last entry in the state.
	Applied     uint64 `json:"applied"`
	AppliedTerm uint64 `json:"applied_term"`
	// RaftIndex >= Applied: entries between the two are known to change
	// nothing (barriers), so the state stands for RaftIndex as well.
	RaftIndex uint64 `json:"raft_index"`
	RaftTerm  uint64 `json:"raft_term"`
	// Conf is the last Raft configuration at or below RaftIndex, encoded.
	ConfIndex uint64 `json:"conf_index"`
	Conf      []byte `json:"conf"`

	Revision        uint64 `json:"revision"`
	KVRevision      uint64 `json:"kv_revision"`
	MembersRevision uint64 `json:"members_revision"`
	// SessionsRevision is the last revision at which a session began or ended.
	SessionsRevision uint64 `json:"sessions_revision"`
	// LastDelete is the last revision at which a user's key was deleted.
	LastDelete uint64 `json:"last_delete"`
	// Oldest is the compaction point: the oldest revision whose state can still
	// be read. Buried bounds the revisions of the deletes it has made forget.
	Oldest uint64 `json:"oldest"`
	Buried uint64 `json:"buried"`
	// Restored is the last time an archive took the place of the state.
	Restored restored `json:"restored"`
	Lineage  digest   `json:"lineage"`
	// Hash rolls over what steps no revision: index, cluster time and wall
	// time of each command entry, and the compaction point. Compare it at equal
	// Applied.
	Hash  digest        `json:"hash"`
	Stamp command.Stamp `json:"stamp"`
	Wall  int64         `json:"wall"` // Unix nanoseconds

	Keys uint64 `json:"keys"`
	// DataBytes is the size of all keys and their values.
	DataBytes uint64 `json:"data_bytes"`
	// SystemKeys and SystemBytes are those among them that are not of users, and
	// OnceBytes what SpaceOnce takes of these.
	SystemKeys  uint64 `json:"system_keys"`
	SystemBytes uint64 `json:"system_bytes"`
	OnceBytes   uint64 `json:"once_bytes"`
	// Changes and ChangeBytes count all changes ever made, and their encodings.
	Changes     uint64 `json:"changes"`
	ChangeBytes uint64 `json:"change_bytes"`

	Cluster    command.Cluster `json:"cluster"`
	ClusterRev uint64          `json:"cluster_rev"`
	ClusterK   uint32          `json:"cluster_k"`
	// Forks are where the epochs behind the first began, in order.
	Forks []command.Fork `json:"forks,omitempty"`
}

// local is what is true of one state file and not of the state in it: two files
// that hold the same state may differ here.
type local struct {
	// Records is how many changes the file's history holds.
	Records uint64 `json:"records"`
	// Target is the compaction point that superfluous records are dropped for,
	// and NextRev and NextK the position at which that goes on; it is done when
	// that lies behind Target.
	Target  uint64 `json:"target"`
	NextRev uint64 `json:"next_rev"`
	NextK   uint32 `json:"next_k"`
}

// member is one row of the members table and the position of its last change.
type member struct {
	command.Member
	Rev uint64 `json:"rev"`
	K   uint32 `json:"k"`
}

// digest is a command.Lineage that is readable in JSON.
type digest command.Lineage

// MarshalText implements encoding.TextMarshaler.
func (d digest) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, d[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *digest) UnmarshalText(b []byte) error {
	if len(b) != 2*len(d) {
		return fmt.Errorf("digest of %d characters", len(b))
	}
	_, err := hex.Decode(d[:], b)
	return err
}

// sealJSON encodes v with a checksum in front.
func sealJSON(v any) []byte {
	j, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain structs always marshal
	}
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(j)), crc32.Checksum(j, castagnoli))
	return append(b, j...)
}

// openJSON is the inverse of sealJSON; what names the record in errors.
func openJSON(what string, b []byte, v any) error {
	if len(b) < 4 || binary.BigEndian.Uint32(b) != crc32.Checksum(b[4:], castagnoli) {
		return command.ErrDamaged.With("checksum of the %s record", what)
	}
	if err := json.Unmarshal(b[4:], v); err != nil {
		return command.ErrDamaged.With("%s record: %v", what, err)
	}
	return nil
}

func appendText[T string | []byte](b []byte, v T) []byte {
	b = binary.AppendUvarint(b, uint64(len(v)))
	return append(b, v...)
}

// fields takes values off the front of b. Once bad, it yields zero values.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) byte() byte {
	if len(f.b) == 0 {
		f.bad = true
		return 0
	}
	v := f.b[0]
	f.b = f.b[1:]
	return v
}

func (f *fields) number() uint64 {
	v, n := binary.Uvarint(f.b)
	if n <= 0 {
		f.bad, f.b = true, nil
		return 0
	}
	f.b = f.b[n:]
	return v
}

func (f *fields) text() []byte {
	n := f.number()
	if n > uint64(len(f.b)) {
		f.bad, f.b = true, nil
		return nil
	}
	return f.take(int(n))
}

func (f *fields) take(n int) []byte {
	if n > len(f.b) {
		f.bad, f.b = true, nil
		return nil
	}
	v := f.b[:n:n]
	f.b = f.b[n:]
	return v
}

// bytesOf is key as bytes, to look something up with; never to be modified.
func bytesOf(key string) []byte { return unsafe.Slice(unsafe.StringData(key), len(key)) }

// textOf is b as a string that lives only as long as b does.
func textOf(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
