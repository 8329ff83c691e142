package command

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Verb is what one operation of a transaction does. The numbers are part of the
// log format.
type Verb uint8

// The verbs.
const (
	VerbSet Verb = 1 + iota
	VerbCAS
	VerbLock
	VerbUnlock
	VerbGet
	VerbGetOrEmpty
	VerbGetTree
	VerbCheckIndex
	VerbCheckSession
	VerbCheckNotExists
	VerbDelete
	VerbDeleteCAS
	VerbDeleteTree
	verbEnd
)

var verbNames = [verbEnd]string{
	VerbSet: "set", VerbCAS: "cas", VerbLock: "lock", VerbUnlock: "unlock",
	VerbGet: "get", VerbGetOrEmpty: "get-or-empty", VerbGetTree: "get-tree",
	VerbCheckIndex: "check-index", VerbCheckSession: "check-session", VerbCheckNotExists: "check-not-exists",
	VerbDelete: "delete", VerbDeleteCAS: "delete-cas", VerbDeleteTree: "delete-tree",
}

// String is the verb as the HTTP API spells it.
func (v Verb) String() string {
	if v == 0 || v >= verbEnd {
		return fmt.Sprintf("verb %d", uint8(v))
	}
	return verbNames[v]
}

// VerbNamed is the inverse of String; ok is false for a name that is none.
func VerbNamed(name string) (v Verb, ok bool) {
	for v := Verb(1); v < verbEnd; v++ {
		if verbNames[v] == name {
			return v, true
		}
	}
	return 0, false
}

// VerbNames lists all names that VerbNamed knows.
func VerbNames() []string { return slices.Clone(verbNames[1:]) }

// Writes reports whether the verb may change something, so that it has to go
// through the log.
func (v Verb) Writes() bool {
	return v.Puts() || v == VerbDelete || v == VerbDeleteCAS || v == VerbDeleteTree
}

// Puts reports whether the verb may put a record.
func (v Verb) Puts() bool {
	return v == VerbSet || v == VerbCAS || v == VerbLock || v == VerbUnlock
}

// Gets reports whether what the verb gives has a value.
func (v Verb) Gets() bool { return v == VerbGet || v == VerbGetOrEmpty || v == VerbGetTree }

// TxnOp is one operation of a transaction. Which fields count, the verb says.
type TxnOp struct {
	Verb    Verb
	Key     string // a prefix of VerbGetTree and VerbDeleteTree
	Value   []byte
	Flags   uint64
	Index   uint64
	Session string
}

// Txn carries out operations in order, each seeing those before, in one step:
// all of them or, when one fails, none.
type Txn struct{ Ops []TxnOp }

// Kind implements Command.
func (*Txn) Kind() Kind { return KindTxn }

// TxnResult is what a transaction came to.
type TxnResult struct {
	// Records are what the operations gave, in order; empty when one failed. Only
	// what the get verbs give has a Value.
	Records []Record
	// Errors has all operations that failed.
	Errors []TxnError
}

// TxnError is why one operation of a transaction failed.
type TxnError struct {
	Op   int // from 0
	What string
}

// Unchanged is the condition of check-and-set: the record is at the index, or, for
// index 0, there is none.
func Unchanged(index, modified uint64, exists bool) bool {
	if !exists {
		return index == 0
	}
	return index != 0 && modified == index
}

// Check says why an operation fails on the record its key leads to; empty when
// it does not. exists is false when there is none. What the rest of the state
// decides, the existence of a session and a lock-delay, is not judged here.
func (op *TxnOp) Check(rec *Record, exists bool) string {
	missing := func() string { return fmt.Sprintf("key %q doesn't exist", op.Key) }
	switch op.Verb {
	case VerbCAS:
		if !Unchanged(op.Index, rec.ModifyRevision, exists) {
			return fmt.Sprintf("failed to set key %q, index is stale", op.Key)
		}
	case VerbLock:
		if exists && rec.Session != "" && rec.Session != op.Session {
			return fmt.Sprintf("failed to lock key %q, lock is already held", op.Key)
		}
	case VerbUnlock:
		if !exists || rec.Session == "" || rec.Session != op.Session {
			return fmt.Sprintf("failed to unlock key %q, lock isn't held, or is held by another session", op.Key)
		}
	case VerbGet:
		if !exists {
			return missing()
		}
	case VerbCheckIndex:
		if !exists {
			return missing()
		}
		if rec.ModifyRevision != op.Index {
			return fmt.Sprintf("failed index check for key %q, current modify index %d != %d", op.Key, rec.ModifyRevision, op.Index)
		}
	case VerbCheckSession:
		if !exists {
			return missing()
		}
		if rec.Session != op.Session {
			return fmt.Sprintf("failed session check for key %q, current session %q != %q", op.Key, rec.Session, op.Session)
		}
	case VerbCheckNotExists:
		if exists {
			return fmt.Sprintf("key %q exists", op.Key)
		}
	case VerbDeleteCAS:
		if exists && !Unchanged(op.Index, rec.ModifyRevision, exists) {
			return fmt.Sprintf("failed to delete key %q, index is stale", op.Key)
		}
	}
	return ""
}

// Run carries out the operations in order by means of do, which says what an
// operation gives or why it fails. One behind a failing one is still judged. The
// error is the first that do returns.
func (c *Txn) Run(do func(i int, op *TxnOp) (recs []Record, what string, err error)) (*TxnResult, error) {
	t := &TxnResult{}
	for i := range c.Ops {
		recs, what, err := do(i, &c.Ops[i])
		switch {
		case err != nil:
			return nil, err
		case what != "":
			t.Errors = append(t.Errors, TxnError{Op: i, What: what})
		default:
			t.Records = append(t.Records, recs...)
		}
	}
	if t.Errors != nil {
		t.Records = nil
	}
	return t, nil
}

// Read carries out a transaction that writes nothing on a view. Errors are those
// of the view.
func (c *Txn) Read(v View) (*TxnResult, error) {
	return c.Run(func(_ int, op *TxnOp) ([]Record, string, error) { return op.Read(viewReader{v}) })
}

// TxnReader is what the operations of a transaction read: the state, as the
// operations before have left it.
type TxnReader interface {
	// Get returns the record of a key; ok is false when there is none.
	Get(key string) (rec Record, ok bool, err error)
	// Scan calls fn for each record whose key starts with prefix, in ascending byte
	// order, until fn returns false.
	Scan(prefix string, fn func(Record) bool) error
}

type viewReader struct{ v View }

func (r viewReader) Get(key string) (rec Record, ok bool, err error) {
	rec, err = r.v.Get(key)
	if errors.Is(err, ErrKeyNotFound) {
		return Record{}, false, nil
	}
	return rec, err == nil, err
}

func (r viewReader) Scan(prefix string, fn func(Record) bool) error {
	return r.v.Scan(prefix, "", fn)
}

// Read carries out an operation that writes nothing: it returns the records that
// the operation gives, or why it fails.
func (op *TxnOp) Read(from TxnReader) (recs []Record, what string, err error) {
	if op.Verb == VerbGetTree {
		err = from.Scan(op.Key, func(rec Record) bool {
			recs = append(recs, rec)
			return true
		})
		return recs, "", err
	}
	rec, exists, err := from.Get(op.Key)
	if err != nil {
		return nil, "", err
	}
	if what = op.Check(&rec, exists); what != "" || op.Verb == VerbCheckNotExists {
		return nil, what, nil
	}
	switch {
	case !exists:
		rec = Record{Key: op.Key, Flags: op.Flags} // get-or-empty
	case !op.Verb.Gets():
		rec.Value = nil
	}
	return []Record{rec}, "", nil
}

func (c *Txn) append(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(c.Ops)))
	for i := range c.Ops {
		op := &c.Ops[i]
		b = append(b, byte(op.Verb))
		b = binary.AppendUvarint(b, op.Flags)
		b = binary.AppendUvarint(b, op.Index)
		b = appendBytes(b, op.Session)
		b = appendBytes(b, op.Key)
		b = appendBytes(b, op.Value)
	}
	return b
}

func decodeTxn(body *reader) (*Txn, error) {
	n := body.uint()
	if n > uint64(len(body.b)) {
		return nil, fmt.Errorf("transaction claims %d operations in %d bytes", n, len(body.b))
	}
	c := &Txn{Ops: make([]TxnOp, 0, n)}
	for range n {
		op := TxnOp{Verb: Verb(body.byte()), Flags: body.uint(), Index: body.uint(), Session: body.string(), Key: body.string(), Value: body.bytes()}
		if body.err == nil && (op.Verb == 0 || op.Verb >= verbEnd) {
			return nil, fmt.Errorf("transaction verb %d is not known to this build", op.Verb)
		}
		c.Ops = append(c.Ops, op)
	}
	return c, nil
}

// The result of a transaction as it travels behind the other fields of Result.
func (t *TxnResult) append(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(t.Records)))
	for i := range t.Records {
		r := &t.Records[i]
		b = appendBytes(b, r.Key)
		for _, n := range [...]uint64{r.Flags, r.LockIndex, r.CreateRevision, r.ModifyRevision} {
			b = binary.AppendUvarint(b, n)
		}
		b = appendBytes(b, r.Session)
		b = appendBytes(b, r.Value)
	}
	b = binary.AppendUvarint(b, uint64(len(t.Errors)))
	for _, e := range t.Errors {
		b = binary.AppendUvarint(b, uint64(e.Op))
		b = appendBytes(b, e.What)
	}
	return b
}

func (r *reader) txnResult() *TxnResult {
	t := &TxnResult{}
	for n := r.uint(); n > 0 && r.err == nil; n-- {
		rec := Record{Key: r.string(), Flags: r.uint(), LockIndex: r.uint(), CreateRevision: r.uint(), ModifyRevision: r.uint(), Session: r.string(), Value: r.bytes()}
		t.Records = append(t.Records, rec)
	}
	for n := r.uint(); n > 0 && r.err == nil; n-- {
		t.Errors = append(t.Errors, TxnError{Op: int(r.uint()), What: r.string()})
	}
	return t
}
