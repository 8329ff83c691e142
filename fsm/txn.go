package fsm

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/internal/planted"
	"github.com/holdfast-db/holdfast/store"
)

// txn carries out a transaction. givers has, for each record of its result, the
// number of the operation that gave it.
func txn(b *store.Batch, c *command.Txn) (res command.Result, givers []int, err error) {
	d := newDraft(b)
	res.Txn, err = c.Run(func(i int, op *command.TxnOp) ([]command.Record, string, error) {
		recs, what, err := d.do(op)
		if what == "" {
			givers = append(givers, slices.Repeat([]int{i}, len(recs))...)
		}
		return recs, what, err
	})
	if err != nil || len(res.Txn.Errors) > 0 {
		return res, nil, err
	}
	res.OK = true
	return res, givers, d.apply()
}

// draft is the state as the operations of a transaction have left it so far. The
// batch knows of them only once they are applied.
type draft struct {
	b    *store.Batch
	keys map[string]*command.Record // what they have changed; nil when deleted
}

func newDraft(b *store.Batch) *draft { return &draft{b: b, keys: map[string]*command.Record{}} }

// Get implements command.TxnReader. Values are valid until the batch ends.
func (d *draft) Get(key string) (rec command.Record, ok bool, err error) {
	switch rec, changed := d.keys[key]; {
	case !changed:
		return d.b.Get(key)
	case rec == nil:
		return command.Record{}, false, nil
	default:
		return *rec, true, nil
	}
}

// Scan implements command.TxnReader. Values are valid until the batch ends.
func (d *draft) Scan(prefix string, fn func(command.Record) bool) error {
	var own []string
	for key, rec := range d.keys {
		if rec != nil && strings.HasPrefix(key, prefix) {
			own = append(own, key)
		}
	}
	slices.Sort(own)
	more := true
	ownBelow := func(key string) {
		for ; more && len(own) > 0 && own[0] < key; own = own[1:] {
			more = fn(*d.keys[own[0]])
		}
	}
	err := d.b.Scan(prefix, func(rec command.Record) bool {
		ownBelow(rec.Key)
		if _, changed := d.keys[rec.Key]; !changed {
			more = more && fn(rec)
		}
		return more
	})
	if err == nil && len(own) > 0 {
		ownBelow(own[len(own)-1] + "\x00")
	}
	return err
}

// do carries out an operation: what it gives, or why it fails. The records do not
// share memory with the batch.
func (d *draft) do(op *command.TxnOp) (recs []command.Record, what string, err error) {
	switch {
	case op.Verb == command.VerbDeleteTree:
		return nil, "", d.deleteTree(op.Key)
	case op.Session == "" && (op.Verb == command.VerbLock || op.Verb == command.VerbUnlock):
		return nil, "missing session", nil
	case op.Verb == command.VerbLock:
		if ok, err := hasSession(d.b, op.Session); err != nil || !ok {
			return nil, fmt.Sprintf("invalid session %q", op.Session), err
		}
	case !op.Verb.Writes():
		recs, what, err = op.Read(d)
		for i := range recs {
			recs[i].Value = bytes.Clone(recs[i].Value)
		}
		return recs, what, err
	}
	return d.write(op)
}

// write carries out an operation that writes one key, except that it does not ask
// for the session of a lock.
func (d *draft) write(op *command.TxnOp) (recs []command.Record, what string, err error) {
	old, exists, err := d.Get(op.Key)
	if err != nil {
		return nil, "", err
	}
	if what = op.Check(&old, exists); what != "" && !planted.Bug("judged-before-the-log") {
		return nil, what, nil
	}
	if op.Verb == command.VerbDelete || op.Verb == command.VerbDeleteCAS {
		if exists {
			d.keys[op.Key] = nil
		}
		return nil, "", nil
	}
	rec, changed := written(d.b, &old, exists, op.Key, op.Value, op.Flags)
	switch {
	case op.Verb == command.VerbLock && rec.Session == "":
		if no, err := delayed(d.b, op.Key); err != nil || no {
			return nil, fmt.Sprintf("failed to lock key %q due to lock delay", op.Key), err
		}
		rec.Session, changed = op.Session, true
		if !planted.Bug("token-not-stepped") || rec.LockIndex == 0 {
			rec.LockIndex++
		}
	case op.Verb == command.VerbUnlock:
		rec.Session, changed = "", true
	}
	if changed {
		rec.ModifyRevision = d.b.NextRevision()
		drafted := rec
		d.keys[op.Key] = &drafted
	}
	rec.Value = nil
	return []command.Record{rec}, "", nil
}

// written is the record that a key has after a write, and whether it is another
// than before. Lock and session stay: locks are advisory, and LockIndex must not
// go down while the key exists.
func written(b *store.Batch, old *command.Record, exists bool, key string, value []byte, flags uint64) (rec command.Record, changed bool) {
	if exists && old.Flags == flags && bytes.Equal(old.Value, value) {
		return *old, false
	}
	if exists {
		rec = *old
	} else {
		rec = command.Record{Key: key, CreateRevision: b.NextRevision()}
	}
	rec.Value, rec.Flags = value, flags
	return rec, true
}

func (d *draft) deleteTree(prefix string) error {
	for key := range d.keys {
		if strings.HasPrefix(key, prefix) {
			d.keys[key] = nil
		}
	}
	return d.b.ScanKeys(prefix, func(key string) bool {
		d.keys[key] = nil
		return true
	})
}

// apply puts what came of the operations into the batch, one change for each key
// that is another than before. A key that was deleted and made anew is two: its
// history has both.
func (d *draft) apply() error {
	for _, key := range slices.Sorted(maps.Keys(d.keys)) {
		old, exists, err := d.b.Get(key)
		if err != nil {
			return err
		}
		rec := d.keys[key]
		if exists && (rec == nil || rec.CreateRevision != old.CreateRevision) {
			if err := erase(d.b, key); err != nil {
				return err
			}
			old.Session = ""
		}
		if rec == nil {
			continue
		}
		if err := putLocked(d.b, old.Session, rec); err != nil {
			return err
		}
		if planted.Bug("transaction-in-steps") {
			d.b.Step()
		}
	}
	return nil
}
