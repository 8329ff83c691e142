package http

import (
	"encoding/base64"
	"errors"
	nethttp "net/http"
	"strconv"
	"time"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/internal/planted"
)

const (
	// maxTxnOps is how many operations a transaction may have; Vault probes for it.
	maxTxnOps = 128
	// maxTxnBody is the largest body of a transaction in bytes.
	maxTxnBody = 512 << 10
)

// txnElement is one element of a transaction as clients send it. Field names are
// matched whatever their case.
type txnElement struct {
	KV *struct {
		Verb, Key string
		Value     *string // base64
		Flags     uint64
		Index     uint64
		Session   string
		Namespace string
		Partition string
	}
	Node, Service, Check given
}

// given is whether a member of an object was there and not null.
type given bool

func (g *given) UnmarshalJSON(b []byte) error {
	*g = string(b) != "null"
	return nil
}

// txn is a transaction while it is answered.
type txn struct {
	x   *exchange
	ops []command.TxnOp
	// places are those of the operations in the request, which may have empty
	// elements between them.
	places []int
	writes bool
	// errors are why it fails.
	errors []command.TxnError

	// The state of a read: how much was given, since when.
	count int
	began time.Time
}

// putTxn is PUT /v1/txn.
func (s *Server) putTxn(x *exchange) {
	body, err := x.body(maxTxnBody, txnTooLarge)
	t := txn{x: x}
	if err == nil {
		err = t.decode(body)
	}
	switch {
	case err != nil:
		x.fail(err)
	case len(t.errors) > 0:
		t.refuse()
	case t.writes:
		t.write()
	default:
		t.read()
	}
}

func txnTooLarge(sizes string) error {
	return tooLarge("Transaction is too large ("+sizes+")", "split it, or write large values one by one")
}

// decode reads the operations. What is wrong with the request is an error; what is
// wrong with a single operation goes to the transaction's own.
func (t *txn) decode(body []byte) error {
	var elements []txnElement
	if err := decodeStrictly(body, &elements); err != nil {
		return badRequest("Failed to parse body: " + err.Error())
	}
	if len(elements) > maxTxnOps {
		return tooLarge("Transaction contains too many operations ("+strconv.Itoa(len(elements))+" > "+strconv.Itoa(maxTxnOps)+")", "split it")
	}
	for i := range elements {
		if err := t.add(i, &elements[i]); err != nil {
			return err
		}
	}
	return nil
}

// add takes the operation at a place of the request.
func (t *txn) add(place int, e *txnElement) error {
	reject := func(what string) { t.errors = append(t.errors, command.TxnError{Op: place, What: what}) }
	if e.Node || e.Service || e.Check {
		reject("unknown operation type")
		return nil
	}
	kv := e.KV
	if kv == nil {
		return nil
	}
	if !defaultScope(kv.Namespace) {
		return foreignScope("Namespace", kv.Namespace)
	}
	if !defaultScope(kv.Partition) {
		return foreignScope("Partition", kv.Partition)
	}
	if err := checkKey(kv.Key); err != nil {
		return err
	}
	op := command.TxnOp{Key: kv.Key, Flags: kv.Flags, Index: kv.Index, Session: kv.Session}
	if kv.Value != nil {
		var err error
		if op.Value, err = base64.StdEncoding.DecodeString(*kv.Value); err != nil {
			return badRequest("Failed to parse body: value of operation " + strconv.Itoa(place) + ": " + err.Error())
		}
		if limit := t.x.s.cfg.MaxValue; int64(len(op.Value)) > limit {
			return valueTooLarge(kv.Key, sizesOf(int64(len(op.Value)), limit))
		}
	}
	var known bool
	switch op.Verb, known = command.VerbNamed(kv.Verb); {
	case !known:
		reject("unknown KV operation: " + kv.Verb)
	case kv.Key == "" && op.Verb != command.VerbDeleteTree:
		reject("Must provide key")
	}
	t.ops, t.places = append(t.ops, op), append(t.places, place)
	t.writes = t.writes || op.Verb.Writes()
	return nil
}

// write has a transaction with writes decided.
func (t *txn) write() {
	x := t.x
	c, err := x.idempotent(&command.Txn{Ops: t.ops})
	var res command.Result
	if err == nil {
		res, err = x.propose(c)
	}
	switch {
	case err != nil:
		x.fail(err)
		return
	case res.Txn == nil:
		x.fail(command.ErrInvalidCommand.With("transaction without a result"))
		return
	case len(res.Txn.Errors) > 0:
		for _, e := range res.Txn.Errors {
			t.errors = append(t.errors, command.TxnError{Op: t.places[e.Op], What: e.What})
		}
		t.refuse()
		return
	}
	t.begin()
	for i := range res.Txn.Records {
		t.give(&res.Txn.Records[i])
	}
	t.end()
}

// read evaluates a transaction without writes, which needs no log.
func (t *txn) read() {
	x := t.x
	opts, err := x.readOptions()
	if err != nil {
		x.fail(err)
		return
	}
	info, err := x.s.node.Read(x.r.Context(), opts, t.evaluate)
	if err != nil {
		x.failRead(&info, err)
		return
	}
	x.readHeaders(&info, 0)
	if len(t.errors) > 0 {
		t.refuse()
		return
	}
	t.end()
}

func (t *txn) evaluate(v command.View) error {
	t.begin()
	t.errors = nil
	for i := range t.ops {
		do := func(v command.View) error { return t.do(i, v) }
		var err error
		if planted.Bug("view-per-operation") {
			time.Sleep(20 * time.Millisecond) // an operation that takes long
			_, err = t.x.s.node.Read(t.x.r.Context(), command.ReadOptions{Mode: command.ReadStale}, do)
		} else {
			err = do(v)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// do evaluates an operation.
func (t *txn) do(i int, v command.View) error {
	if t.ops[i].Verb == command.VerbGetTree {
		return t.giveTree(v, t.ops[i].Key)
	}
	one := command.Txn{Ops: t.ops[i : i+1]}
	res, err := one.Read(v)
	if err != nil {
		return err
	}
	for _, e := range res.Errors {
		t.errors = append(t.errors, command.TxnError{Op: t.places[i], What: e.What})
	}
	for k := range res.Records {
		t.give(&res.Records[k])
	}
	return nil
}

// giveTree adds all records under a prefix. There may be many, so they are written as
// they are found, within the bounds of a listing.
func (t *txn) giveTree(v command.View, prefix string) error {
	var stop error
	err := v.Scan(prefix, "", func(r command.Record) bool {
		t.give(&r)
		stop = t.x.mayGoOn(t.count, t.began)
		return stop == nil
	})
	return errors.Join(stop, err)
}

// begin starts the reply of a transaction that succeeds.
func (t *txn) begin() {
	t.x.resetReply()
	t.x.out = append(t.x.out, `{"Results":[`...)
	t.count, t.began = 0, time.Now()
}

// give adds a record to the reply.
func (t *txn) give(r *command.Record) {
	x := t.x
	x.spill()
	if t.count > 0 {
		x.out = append(x.out, ',')
	}
	x.out = append(x.out, `{"KV":`...)
	x.out = appendEntry(x.out, r)
	x.out = append(x.out, '}')
	t.count++
}

func (t *txn) end() {
	t.x.out = append(t.x.out, `],"Errors":null}`...)
	t.x.replyJSON(nethttp.StatusOK)
}

// refuse tells why the transaction failed.
func (t *txn) refuse() {
	x := t.x
	x.resetReply()
	x.out = append(x.out, `{"Results":null,"Errors":[`...)
	for i, e := range t.errors {
		if i > 0 {
			x.out = append(x.out, ',')
		}
		x.out = append(x.out, `{"OpIndex":`...)
		x.out = appendUint(x.out, uint64(e.Op))
		x.out = append(x.out, `,"What":`...)
		x.out = appendString(x.out, e.What)
		x.out = append(x.out, '}')
	}
	x.out = append(x.out, "]}"...)
	x.replyJSON(nethttp.StatusConflict)
}
