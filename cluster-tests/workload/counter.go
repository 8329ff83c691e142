package workload

import (
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/history"
)

// Counter is writes that happen once: some keys are counted up by compare-and-set, and
// others are overwritten, all with an Idempotency-Key, by plain writes and by
// transactions. What has no answer is sent again to another node until it has one;
// what has one is sent again later, to see that it is the same. The promises: each
// write happens once, at the revision that every answer to it names, or never if they
// say false; and no increment overwrites another.
//
// The last word is the list of changes, which shows each write as often as it happened.
// Clients follow it while they write, since a cluster may keep little of it.
type Counter struct {
	mu     sync.Mutex
	listed uint64               // guarded by mu; the revision from which on nobody has listed the changes
	open   map[int]CounterWrite // guarded by mu; by client, what is not decided yet
}

// CounterWrite is Op.In of "write", each try of it.
type CounterWrite struct {
	// ID is the idempotency key.
	ID, Key, Value string
	// CAS says that it happens only if the key's record is of revision Index.
	CAS   bool
	Index uint64
	// Txn says that it is a transaction.
	Txn bool
}

// CounterChanges is Op.Out of "changes": all puts of the keys from one revision to
// another, in order.
type CounterChanges struct {
	From, To uint64
	Puts     []CounterChange
}

// CounterChange is one change of a key.
type CounterChange struct {
	Key, Value string
	Revision   uint64
}

// NewCounter makes the workload.
func NewCounter() *Counter { return &Counter{open: map[int]CounterWrite{}} }

// Name implements Workload.
func (*Counter) Name() string { return "counter" }

// Setup implements Workload: it finds out where the changes begin.
func (c *Counter) Setup(ctx context.Context, e *Env) error {
	a, err := e.Voters()[0].Do(ctx, http.MethodGet, Key("counter/none")+"?consistent", nil)
	if err == nil {
		c.listed, err = a.Applied()
	}
	return err
}

const (
	counted     = 2 // keys that are counted up
	overwritten = 2 // keys that are overwritten
	// remembered is how many decided writes of a client may be repeated.
	remembered = 40
	// following is how many requests of a client come to one list of changes.
	following = 20
)

// Clients implements Workload.
func (c *Counter) Clients(ctx context.Context, e *Env) {
	e.each(max(2, e.Clients/2), func(id int) {
		r := e.Rand(c.Name(), id)
		var done []CounterWrite
		e.loop(ctx, r, e.Nodes, func(n *Node, seq int) bool {
			if r.IntN(following) == 0 {
				c.follow(ctx, e, id, n)
			}
			w, ok := c.undecided(id)
			switch {
			case ok:
			case len(done) > 0 && r.IntN(4) == 0:
				w, ok = done[r.IntN(len(done))], true
			default:
				w, ok = c.next(ctx, n, r, fmt.Sprintf("%d.%d", id, seq))
			}
			if !ok || !c.try(ctx, e, id, n, w) {
				return false
			}
			done = append(done, w)
			done = done[max(0, len(done)-remembered):]
			return true
		})
	})
}

// next is a new write. It is false when what it would follow could not be read.
func (*Counter) next(ctx context.Context, n *Node, r *rand.Rand, id string) (CounterWrite, bool) {
	w := CounterWrite{ID: "counter " + id, Value: id, Txn: r.IntN(3) == 0}
	if r.IntN(3) == 0 {
		w.Key = fmt.Sprint("counter/overwritten/", r.IntN(overwritten))
		return w, true
	}
	w.Key, w.CAS = fmt.Sprint("counter/counted/", r.IntN(counted)), true
	a, err := n.Do(ctx, http.MethodGet, Key(w.Key), nil)
	if err != nil {
		return w, false
	}
	entries, err := a.Entries()
	if err != nil {
		return w, false
	}
	for _, e := range entries {
		w.Index = e.ModifyIndex
	}
	return w, true
}

func (c *Counter) undecided(client int) (CounterWrite, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w, ok := c.open[client]
	return w, ok
}

// request is the write as it is sent, the same each time.
func (w CounterWrite) request() (path string, body []byte) {
	if !w.Txn {
		if path = Key(w.Key); w.CAS {
			path += fmt.Sprintf("?cas=%d", w.Index)
		}
		return path, []byte(w.Value)
	}
	verb := "set"
	if w.CAS {
		verb = "cas"
	}
	return "/v1/txn", fmt.Appendf(nil, `[{"KV":{"Verb":%q,"Key":%q,"Value":%q,"Index":%d}}]`,
		verb, w.Key, base64.StdEncoding.EncodeToString([]byte(w.Value)), w.Index)
}

// try sends a write, and says whether it is decided.
func (c *Counter) try(ctx context.Context, e *Env, client int, n *Node, w CounterWrite) bool {
	p := e.History.Call(history.Op{Workload: c.Name(), Client: client, Node: n.Name, Name: "write", In: w})
	path, body := w.request()
	a, err := n.Do(ctx, http.MethodPut, path, body, "Idempotency-Key", w.ID)
	got, err := w.decided(a, err)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err != nil:
		// Also when the last connection could not be made: net/http sends a request
		// with an Idempotency-Key again by itself.
		p.Unknown(err.Error())
		c.open[client] = w
		return false
	case a.Status == http.StatusTooManyRequests:
		p.Refused("too many are remembered")
		return false
	}
	p.Decided(got)
	delete(c.open, client)
	return true
}

// decided is what is recorded of an answer. The error says that there is none.
func (w CounterWrite) decided(a Answer, err error) (any, error) {
	switch {
	case err != nil:
		return nil, err
	case a.Status >= 500:
		return nil, fmt.Errorf("%d %.200s", a.Status, a.Body)
	case a.Status == http.StatusTooManyRequests:
		return nil, nil
	case a.Status != http.StatusOK && (!w.Txn || a.Status != http.StatusConflict):
		return Broken{fmt.Sprintf("%d %.200s", a.Status, a.Body)}, nil
	}
	got := Written{OK: a.Status == http.StatusOK && (w.Txn || a.True())}
	if got.Revision, err = a.Index(); err != nil {
		return Broken{err.Error()}, nil
	}
	if !w.CAS && !got.OK {
		return Broken{fmt.Sprintf("a plain put answered %d %.100s", a.Status, a.Body)}, nil
	}
	return got, nil
}

// Finish implements Workload: all that is not decided is sent until it is, and each
// node lists what has happened.
func (c *Counter) Finish(ctx context.Context, e *Env) error {
	for _, client := range slices.Sorted(maps.Keys(c.open)) {
		for i := 0; ; i++ {
			w, ok := c.undecided(client)
			if !ok || c.try(ctx, e, client, e.Nodes[i%len(e.Nodes)], w) {
				break
			}
			if i == 50 || ctx.Err() != nil {
				return fmt.Errorf("%+v is not decided", w)
			}
			Rest(ctx, 100*time.Millisecond)
		}
	}
	// All nodes list up to the same: nobody writes here any more.
	a, err := e.Voters()[0].Do(ctx, http.MethodGet, Key("counter/none")+"?consistent", nil)
	if err != nil {
		return err
	}
	until, err := a.Applied()
	if err != nil {
		return err
	}
	for i, n := range e.Nodes {
		if _, err := c.list(ctx, e, e.Clients+i, n, 1, until); err != nil {
			return err
		}
	}
	return nil
}

// follow lists what nobody has listed yet, as far as a node has it.
func (c *Counter) follow(ctx context.Context, e *Env, client int, n *Node) {
	c.mu.Lock()
	from := c.listed
	c.mu.Unlock()
	next, err := c.list(ctx, e, client, n, from, 0)
	if err == nil {
		c.mu.Lock()
		c.listed = max(c.listed, next)
		c.mu.Unlock()
	}
}

// list lists changes at a node, up to what it has if to is 0, from the oldest on that
// it still knows. It returns the revision with which a list is to go on.
func (c *Counter) list(ctx context.Context, e *Env, client int, n *Node, from, to uint64) (next uint64, err error) {
	p := e.History.Call(history.Op{Workload: c.Name(), Client: client, Node: n.Name, Name: "changes", In: from})
	got := CounterChanges{From: from}
	more := stale
	if to > 0 {
		more += fmt.Sprintf("&to=%d&min_index=%d", to, to)
	}
	for next = from; to == 0 || next <= to; {
		page, err := n.changes(ctx, "counter/", next, more)
		if err != nil {
			p.Refused(err.Error())
			return 0, err
		}
		if page.Oldest > 0 {
			got.From, got.Puts, next = page.Oldest, nil, page.Oldest
			continue
		}
		for _, ch := range page.Changes {
			if ch.Op == "put" {
				got.Puts = append(got.Puts, CounterChange{ch.KV.Key, string(ch.KV.Value), ch.KV.ModifyIndex})
			}
		}
		before := next
		if next = page.Next; next < before || to > 0 && next == before {
			err = fmt.Errorf("changes from %d go on at %d", before, next)
			p.Decided(Broken{err.Error()})
			return 0, err
		}
		if next == before {
			break
		}
	}
	got.To = max(next, 1) - 1
	p.Decided(got)
	return next, nil
}

// Check implements Workload.
func (*Counter) Check(ops []history.Op) []Anomaly {
	found := broken(ops)
	report := func(kind, text string, ops ...history.Op) { found = append(found, anomaly(kind, text, ops...)) }
	// write is one write with the first answer to it.
	type write struct {
		CounterWrite
		Written
		op      history.Op // with the answer, or else the first try
		decided bool
	}
	writes := map[string]*write{} // by value
	for _, o := range ops {
		in, ok := o.In.(CounterWrite)
		if !ok {
			continue
		}
		w := writes[in.Value]
		if w == nil {
			w = &write{CounterWrite: in, op: o}
			writes[in.Value] = w
		}
		switch got, ok := o.Out.(Written); {
		case ok && !w.decided:
			w.Written, w.op, w.decided = got, o, true
		case ok && got != w.Written:
			report("another answer", "two answers to one write", w.op, o)
		}
	}
	inOrder := slices.SortedFunc(maps.Values(writes), func(a, b *write) int { return cmp.Compare(a.op.ID, b.op.ID) })
	happened := map[string]CounterChange{} // by value
	for _, o := range ops {
		changes, ok := o.Out.(CounterChanges)
		if !ok {
			continue
		}
		o.Out = fmt.Sprintf("%d changes from %d to %d", len(changes.Puts), changes.From, changes.To)
		here := map[string]bool{}   // by value
		last := map[string]uint64{} // by key
		for _, ch := range changes.Puts {
			w := writes[ch.Value]
			before, known := last[ch.Key]
			first, again := happened[ch.Value]
			switch {
			case w == nil || w.Key != ch.Key:
				report("out of nothing", fmt.Sprintf("nobody wrote %+v", ch), o)
			case again && first != ch:
				report("happened twice", fmt.Sprintf("at %d and at %d", first.Revision, ch.Revision), w.op, o)
			case w.decided && !w.OK:
				report("refused but there", fmt.Sprintf("it happened at %d", ch.Revision), w.op, o)
			case w.decided && w.Revision != ch.Revision:
				report("another answer", fmt.Sprintf("it happened at %d", ch.Revision), w.op, o)
			case w.CAS && (known && w.Index != before || !known && w.Index >= changes.From):
				// Where the list does not show what was there before, that was older than the list.
				report("lost update", fmt.Sprintf("it demanded revision %d, there was %d", w.Index, before), w.op, o)
			}
			happened[ch.Value], last[ch.Key], here[ch.Value] = ch, ch.Revision, true
		}
		for _, w := range inOrder {
			if w.decided && w.OK && changes.From <= w.Revision && w.Revision <= changes.To && !here[w.Value] {
				report("lost", "it was acknowledged and did not happen", w.op, o)
			}
		}
	}
	return found
}
