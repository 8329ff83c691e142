package command

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// A log entry is
//
//	version (1 byte) | term (8) | stamp (8) | wall (8) | commands
//
// and each command
//
//	kind (1 byte) | length of body (uvarint) | body
//
// or, when it has an ID, the same with kind | 0x80 and the ID's run (8) and number
// (uvarint) behind the kind.
//
// Integers are big endian or uvarint; strings and byte slices are a uvarint
// length and the bytes. Bodies of rare commands are JSON.
const (
	entryVersion = 2 // no older one was ever released
	entryHeader  = 1 + 8 + 8 + 8
	kindHasID    = 0x80
)

// Stamp is a moment of cluster time in nanoseconds. Cluster time starts at 0
// with the cluster, is set by leaders from a steady clock and continues over
// leader changes from the last applied stamp, so it never goes back and no
// wall clock can move it.
type Stamp int64

// Entry is the data of one Raft log entry: writes that share it, and when it
// was proposed.
type Entry struct {
	// Term is the Raft term it was proposed for. In a log entry of another term
	// nothing of it is carried out: so a write that was meant for one leader
	// cannot happen under a later one, after its sender took it for lost. 0 is
	// any term.
	Term  uint64
	Stamp Stamp
	// Wall is the proposer's wall clock, for display only.
	Wall     time.Time
	Commands []Command
	// IDs are those of the commands.
	IDs []ID
}

// NewEntry returns the header of an entry, to which Append adds commands.
func NewEntry(size int) []byte {
	b := make([]byte, entryHeader, entryHeader+size)
	b[0] = entryVersion
	return b
}

// SetTerm writes the term an encoded entry is proposed for.
func SetTerm(entry []byte, term uint64) { binary.BigEndian.PutUint64(entry[1:], term) }

// SetTime writes stamp and wall clock into an encoded entry.
func SetTime(entry []byte, stamp Stamp, wall time.Time) {
	binary.BigEndian.PutUint64(entry[9:], uint64(stamp))
	binary.BigEndian.PutUint64(entry[17:], uint64(wall.UnixNano()))
}

// Append adds an encoded command to an entry, or to an empty slice to get the
// command's own encoding (as a forwarded write travels).
func Append(entry []byte, c Command) []byte {
	entry = append(entry, byte(c.Kind()))
	body := c.append(nil)
	entry = binary.AppendUvarint(entry, uint64(len(body)))
	return append(entry, body...)
}

// AppendWithID is Append for a command that has an ID.
func AppendWithID(entry []byte, id ID, c Command) []byte {
	body := c.append(nil)
	entry = slices.Grow(entry, 1+8+2*binary.MaxVarintLen64+len(body))
	entry = append(entry, byte(c.Kind())|kindHasID)
	entry = binary.BigEndian.AppendUint64(entry, id.Run)
	entry = binary.AppendUvarint(entry, id.Seq)
	entry = binary.AppendUvarint(entry, uint64(len(body)))
	return append(entry, body...)
}

// AppendEncoded adds a command that is encoded already.
func AppendEncoded(entry, encoded []byte) []byte { return append(entry, encoded...) }

// DecodeEntry is the inverse of NewEntry and Append. Values and keys share
// memory with b.
func DecodeEntry(b []byte) (Entry, error) {
	if len(b) < entryHeader {
		return Entry{}, fmt.Errorf("entry of %d bytes is shorter than its header", len(b))
	}
	if b[0] != entryVersion {
		return Entry{}, fmt.Errorf("entry version %d is not known to this build", b[0])
	}
	e := Entry{
		Term:  binary.BigEndian.Uint64(b[1:]),
		Stamp: Stamp(binary.BigEndian.Uint64(b[9:])),
		Wall:  time.Unix(0, int64(binary.BigEndian.Uint64(b[17:]))),
	}
	b = b[entryHeader:]
	for len(b) > 0 {
		id, c, rest, err := DecodeWithID(b)
		if err != nil {
			return Entry{}, fmt.Errorf("command %d: %w", len(e.Commands), err)
		}
		e.Commands, e.IDs = append(e.Commands, c), append(e.IDs, id)
		b = rest
	}
	return e, nil
}

// DecodeWithID reads the first command of b and returns what follows it. The ID is
// zero when the command has none.
func DecodeWithID(b []byte) (id ID, c Command, rest []byte, err error) {
	if len(b) > 0 && b[0]&kindHasID != 0 {
		if len(b) < 1+8 {
			return ID{}, nil, nil, fmt.Errorf("cut off in an id")
		}
		r := reader{b: b[1+8:]}
		id = ID{Run: binary.BigEndian.Uint64(b[1:]), Seq: r.uint()}
		if r.err != nil {
			return ID{}, nil, nil, r.err
		}
		c, rest, err = decode(Kind(b[0]&^kindHasID), r.b)
		return id, c, rest, err
	}
	c, rest, err = Decode(b)
	return ID{}, c, rest, err
}

// KindOf is the kind of an encoded command, with or without an ID; 0 when there is
// none.
func KindOf(encoded []byte) Kind {
	if len(encoded) == 0 {
		return 0
	}
	return Kind(encoded[0] &^ kindHasID)
}

// Decode reads the first command of b, which has no ID, and returns what follows it.
func Decode(b []byte) (c Command, rest []byte, err error) {
	r := reader{b: b}
	kind := Kind(r.byte())
	if r.err != nil {
		return nil, nil, r.err
	}
	return decode(kind, r.b)
}

// decode reads a command of a kind from what follows kind and ID.
func decode(kind Kind, b []byte) (c Command, rest []byte, err error) {
	r := reader{b: b}
	body := reader{b: r.bytes()}
	if r.err != nil {
		return nil, nil, r.err
	}
	switch kind {
	case KindTerm:
		c = &Term{}
	case KindInit:
		v := &Init{}
		body.json(v)
		c = v
	case KindMemberSet:
		v := &MemberSet{}
		body.json(&v.Member)
		c = v
	case KindMemberRemove:
		v := &MemberRemove{Barred: body.byte() == 1}
		v.ID = body.rest()
		c = v
	case KindPut:
		v := &Put{Mode: PutMode(body.byte()), Flags: body.uint()}
		switch v.Mode {
		case PutAlways:
		case PutCAS:
			v.Index = body.uint()
		case PutAcquire, PutRelease:
			v.Session = body.string()
		default:
			return nil, nil, fmt.Errorf("put mode %d is not known to this build", v.Mode)
		}
		v.Key, v.Value = body.string(), body.bytes()
		c = v
	case KindDelete:
		v := &Delete{CAS: body.byte() == 1, Index: body.uint()}
		v.Key = body.rest()
		c = v
	case KindDeleteTree:
		c = &DeleteTree{Prefix: body.rest()}
	case KindPutMany:
		n := body.uint()
		if n > uint64(len(body.b)) {
			return nil, nil, fmt.Errorf("put-many claims %d pairs in %d bytes", n, len(body.b))
		}
		v := &PutMany{KVs: make([]KV, 0, n)}
		for range n {
			v.KVs = append(v.KVs, KV{Flags: body.uint(), Key: body.string(), Value: body.bytes()})
		}
		c = v
	case KindCompact:
		c = &Compact{Revision: body.uint()}
	case KindSessionCreate:
		v := &SessionCreate{}
		body.json(&v.Session)
		c = v
	case KindSessionDestroy:
		c = &SessionDestroy{ID: body.rest()}
	case KindTxn:
		if c, err = decodeTxn(&body); err != nil {
			return nil, nil, err
		}
	case KindOnce:
		if c, err = decodeOnce(&body); err != nil {
			return nil, nil, err
		}
	case KindSetting:
		c = &SettingPut{CAS: body.byte() == 1, Index: body.uint(), Name: body.string(), Value: body.bytes()}
	case KindStage:
		c = &Stage{Piece: body.uint(), ID: body.string(), Data: body.bytes()}
	case KindRestore:
		v := &Restore{Pieces: body.uint(), ID: body.string()}
		if sum := body.bytes(); len(sum) == len(v.SHA256) {
			copy(v.SHA256[:], sum)
		} else {
			body.fail("a checksum")
		}
		c = v
	default:
		return nil, nil, fmt.Errorf("command kind %d is not known to this build", kind)
	}
	if body.err != nil {
		return nil, nil, fmt.Errorf("command kind %d: %w", kind, body.err)
	}
	if len(body.b) > 0 {
		return nil, nil, fmt.Errorf("command kind %d: %d bytes too many", kind, len(body.b))
	}
	return c, r.b, nil
}

func (*Term) append(b []byte) []byte           { return b }
func (c *Init) append(b []byte) []byte         { return appendJSON(b, c) }
func (c *MemberSet) append(b []byte) []byte    { return appendJSON(b, &c.Member) }
func (c *MemberRemove) append(b []byte) []byte { return append(appendBool(b, c.Barred), c.ID...) }

func (c *Put) append(b []byte) []byte {
	b = append(b, byte(c.Mode))
	b = binary.AppendUvarint(b, c.Flags)
	switch c.Mode {
	case PutCAS:
		b = binary.AppendUvarint(b, c.Index)
	case PutAcquire, PutRelease:
		b = appendBytes(b, c.Session)
	}
	b = appendBytes(b, c.Key)
	return appendBytes(b, c.Value)
}

func (c *Delete) append(b []byte) []byte {
	b = appendBool(b, c.CAS)
	b = binary.AppendUvarint(b, c.Index)
	return append(b, c.Key...)
}

func (c *DeleteTree) append(b []byte) []byte { return append(b, c.Prefix...) }

func (c *PutMany) append(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(c.KVs)))
	for _, kv := range c.KVs {
		b = binary.AppendUvarint(b, kv.Flags)
		b = appendBytes(b, kv.Key)
		b = appendBytes(b, kv.Value)
	}
	return b
}

func (c *Compact) append(b []byte) []byte { return binary.AppendUvarint(b, c.Revision) }

func (c *SettingPut) append(b []byte) []byte {
	b = appendBool(b, c.CAS)
	b = binary.AppendUvarint(b, c.Index)
	b = appendBytes(b, c.Name)
	return appendBytes(b, c.Value)
}

func (c *Stage) append(b []byte) []byte {
	b = binary.AppendUvarint(b, c.Piece)
	b = appendBytes(b, c.ID)
	return appendBytes(b, c.Data)
}

func (c *Restore) append(b []byte) []byte {
	b = binary.AppendUvarint(b, c.Pieces)
	b = appendBytes(b, c.ID)
	return appendBytes(b, c.SHA256[:])
}

// What the first byte of an encoded result says.
const (
	resultOK  = 1 << 0
	resultTxn = 1 << 1
	resultErr = 1 << 2
)

// AppendResult encodes a result for the node that forwarded the command.
func AppendResult(b []byte, r Result) []byte {
	has := byte(0)
	if r.OK {
		has |= resultOK
	}
	if r.Txn != nil {
		has |= resultTxn
	}
	if r.Err != nil {
		has |= resultErr
	}
	b = append(b, has)
	b = binary.AppendUvarint(b, r.Revision)
	if r.Txn != nil {
		b = r.Txn.append(b)
	}
	if r.Err != nil {
		b = append(b, EncodeError(r.Err)...)
	}
	return b
}

// DecodeResult is the inverse of AppendResult. Values share memory with b.
func DecodeResult(b []byte) (Result, error) {
	r := reader{b: b}
	has := r.byte()
	res := Result{OK: has&resultOK != 0, Revision: r.uint()}
	if has&resultTxn != 0 {
		res.Txn = r.txnResult()
	}
	if r.err != nil {
		return Result{}, fmt.Errorf("decode result: %w", r.err)
	}
	if has&resultErr != 0 {
		res.Err = DecodeError(r.b)
	}
	return res, nil
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

func appendBytes[T string | []byte](b []byte, v T) []byte {
	b = binary.AppendUvarint(b, uint64(len(v)))
	return append(b, v...)
}

func appendJSON(b []byte, v any) []byte {
	j, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain structs of strings and numbers always marshal
	}
	return append(b, j...)
}

// reader takes values off the front of b. After the first error it returns
// zero values, so a decoder checks err once, at its end.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("cut off in %s", what)
	}
	r.b = nil
}

func (r *reader) byte() byte {
	if len(r.b) < 1 {
		r.fail("a byte")
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail("a number")
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) bytes() []byte {
	n := r.uint()
	if r.err != nil || n > uint64(len(r.b)) {
		r.fail("a string")
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) string() string { return string(r.bytes()) }

func (r *reader) rest() string {
	v := string(r.b)
	r.b = nil
	return v
}

func (r *reader) json(v any) {
	if err := json.Unmarshal(r.b, v); err != nil {
		r.fail("JSON (" + err.Error() + ")")
		return
	}
	r.b = nil
}
