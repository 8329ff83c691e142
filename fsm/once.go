package fsm

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/store"
)

// onceDropped is how many results that are past their retention a new one drops.
const onceDropped = 4

// once carries out a command and keeps its result in the same revision, or gives
// the result that is kept. That is
//
//	hash of the request (16) | encoded result
//
// in which each value stands as the number of the operation that gave it: values
// are in the history, or in the request.
func once(b *store.Batch, c *command.Once) (command.Result, error) {
	result, ok, err := kept(b, store.SpaceOnce, c.Key)
	switch {
	case err != nil:
		return command.Result{}, err
	case ok:
		return again(b, c, result)
	}
	if err := dropExpired(b, store.SpaceOnce, onceDropped); err != nil {
		return command.Result{}, err
	}
	if b.OnceBytes() >= c.Limit {
		return command.Result{Err: command.ErrOnceFull}, nil
	}
	var res command.Result
	var givers []int
	if t, ok := c.Command.(*command.Txn); ok {
		res, givers, err = txn(b, t)
	} else {
		res, err = carryOut(b, c.Command)
	}
	if err != nil {
		return command.Result{}, err
	}
	res.Revision = b.NextRevision() // there will be one: the result is a change
	result = command.AppendResult(c.Request[:], withoutValues(res, givers))
	return res, keep(b, store.SpaceOnce, c.Key, c.Retention, result)
}

func withoutValues(res command.Result, givers []int) command.Result {
	if res.Txn == nil {
		return res
	}
	recs := make([]command.Record, len(res.Txn.Records))
	for i, rec := range res.Txn.Records {
		if len(rec.Value) > 0 { // nil or not, an empty one may be on another node
			rec.Value = binary.AppendUvarint(nil, uint64(givers[i]))
		}
		recs[i] = rec
	}
	res.Txn = &command.TxnResult{Records: recs, Errors: res.Txn.Errors}
	return res
}

// again is the result that is kept for a repeated command.
func again(b *store.Batch, c *command.Once, result []byte) (command.Result, error) {
	if [16]byte(result) != c.Request {
		return command.Result{Err: command.ErrKeyReused}, nil
	}
	res, err := command.DecodeResult(result[len(c.Request):])
	if err != nil {
		return command.Result{}, fmt.Errorf("result of idempotency key %q: %w", c.Key, err)
	}
	if res.Txn == nil {
		return res, nil
	}
	t, _ := c.Command.(*command.Txn)
	for i := range res.Txn.Records {
		rec := &res.Txn.Records[i]
		if len(rec.Value) == 0 {
			rec.Value = nil
			continue
		}
		giver, _ := binary.Uvarint(rec.Value)
		if t == nil || giver >= uint64(len(t.Ops)) {
			return command.Result{Err: command.ErrKeyReused}, nil
		}
		var ok bool
		if rec.Value, ok, err = valueGiven(b, t.Ops[:giver], rec, res.Revision); err != nil || !ok {
			return command.Result{Err: command.ErrCompacted.With("revision %d", res.Revision), Revision: res.Revision}, err
		}
	}
	return res, nil
}

// valueGiven is the value that a transaction of a revision gave with a record,
// behind these operations; ok is false when it is no longer kept.
func valueGiven(b *store.Batch, before []command.TxnOp, rec *command.Record, revision uint64) (value []byte, ok bool, err error) {
	if rec.ModifyRevision == revision {
		// The transaction had made it. It may have replaced it later on.
		for i := len(before) - 1; i >= 0; i-- {
			if op := &before[i]; op.Key == rec.Key && op.Verb.Writes() {
				return op.Value, true, nil
			}
		}
	}
	old, ok, err := b.GetAt(rec.Key, rec.ModifyRevision)
	return bytes.Clone(old.Value), ok && old.ModifyRevision == rec.ModifyRevision, err
}
