package workload

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
)

// txnOp is one operation of PUT /v1/txn.
type txnOp struct {
	Verb, Key string
	Value     []byte `json:",omitempty"`
	Session   string `json:",omitempty"`
	Index     uint64 `json:",omitempty"`
}

// txnBody is the body of PUT /v1/txn.
func txnBody(ops ...txnOp) []byte {
	type element struct{ KV txnOp }
	elements := make([]element, len(ops))
	for i, op := range ops {
		elements[i].KV = op
	}
	body, err := json.Marshal(elements)
	if err != nil {
		panic(err) // strings, bytes and numbers always marshal
	}
	return body
}

// txn sends a transaction. mode is how it reads if it writes nothing: one of
// readModes.
func (n *Node) txn(ctx context.Context, mode string, ops []txnOp) (Answer, error) {
	path := "/v1/txn"
	if mode != byDefault {
		path += "?" + mode
	}
	return n.Do(ctx, http.MethodPut, path, txnBody(ops...))
}

// Modes of a read. What names none is answered by a voter as the leader saw it up
// to 100 ms ago, and by a learner from its own copy.
const (
	byDefault  = ""
	consistent = "consistent"
	stale      = "stale"
)

var readModes = []string{byDefault, consistent, stale}

// results are what the operations of a transaction gave.
func (a Answer) results() ([]Entry, error) {
	var reply struct {
		Results []struct{ KV *Entry }
		Errors  []struct{ What string }
	}
	if err := json.Unmarshal(a.Body, &reply); err != nil {
		return nil, fmt.Errorf("body %.100q: %w", a.Body, err)
	}
	if len(reply.Errors) > 0 {
		return nil, fmt.Errorf("status %d with errors: %.200q", a.Status, a.Body)
	}
	entries := make([]Entry, len(reply.Results))
	for i, r := range reply.Results {
		if r.KV == nil {
			return nil, fmt.Errorf("result %d is no entry: %.200q", i, a.Body)
		}
		entries[i] = *r.KV
	}
	return entries, nil
}
