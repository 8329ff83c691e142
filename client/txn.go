package client

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/holdfast-db/holdfast/command"
)

// TxnOp is one operation of a transaction. Which fields count, the verb says.
type TxnOp struct {
	Verb    command.Verb
	Key     string // a prefix of VerbGetTree and VerbDeleteTree
	Value   []byte
	Flags   uint64
	Index   uint64
	Session string
}

// TxnResult is what a transaction came to.
type TxnResult struct {
	// OK: all operations were carried out. Otherwise none was, and Errors says why.
	OK bool
	// Records are what the operations gave, in order; what verbs other than the
	// reading ones give has no Value.
	Records []command.Record
	Errors  []TxnError
}

// TxnError is why one operation failed.
type TxnError struct {
	OpIndex int // from 0
	What    string
}

// wireOp is an operation as the API takes it.
type wireOp struct {
	KV struct {
		Verb    string
		Key     string
		Value   []byte `json:",omitempty"`
		Flags   uint64 `json:",omitempty"`
		Index   uint64 `json:",omitempty"`
		Session string `json:",omitempty"`
	}
}

// Txn carries out operations in order, in one step, all or none. On return what was
// written is on the disks of a majority of the voters. Operations that fail are no
// error.
func (c *Client) Txn(ctx context.Context, ops []TxnOp, opts ...WriteOption) (TxnResult, Meta, error) {
	wire, writes := make([]wireOp, len(ops)), false
	for i, op := range ops {
		kv := &wire[i].KV
		kv.Verb, kv.Key, kv.Value, kv.Flags, kv.Index, kv.Session = op.Verb.String(), op.Key, op.Value, op.Flags, op.Index, op.Session
		writes = writes || op.Verb.Writes()
	}
	body, err := json.Marshal(wire)
	if err != nil {
		return TxnResult{}, Meta{}, err
	}
	r := write(opts).request(http.MethodPut, body)
	r.path, r.kind, r.write, r.also = "/v1/txn", "application/json", writes, http.StatusConflict
	var answer struct {
		Results []struct{ KV entry }
		Errors  []TxnError
	}
	meta, err := c.ask(ctx, r, &answer)
	if err != nil {
		return TxnResult{}, meta, err
	}
	res := TxnResult{OK: len(answer.Errors) == 0, Errors: answer.Errors}
	for _, e := range answer.Results {
		res.Records = append(res.Records, e.KV.record())
	}
	return res, meta, nil
}
