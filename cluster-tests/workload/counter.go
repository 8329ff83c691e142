package workload

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
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
type Counter struct {
	began uint64 // revision before the first write

	mu   sync.Mutex
	open map[int]CounterWrite // guarded by mu; by client, what is not decided yet
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

// CounterChange is an element of Op.Out of "changes": one change of a key.
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
		c.began, err = a.Applied()
	}
	return err
}

const (
	counted     = 2 // keys that are counted up
	overwritten = 2 // keys that are overwritten
	// remembered is how many decided writes of a client may be repeated.
	remembered = 40
)

// Clients implements Workload.
func (c *Counter) Clients(ctx context.Context, e *Env) {
	e.each(max(2, e.Clients/2), func(id int) {
		r := e.Rand(c.Name(), id)
		var done []CounterWrite
		for seq := 0; ; seq++ {
			n, release, ok := e.Pick(ctx, r, e.Nodes)
			if !ok {
				return
			}
			w, again := c.undecided(id)
			switch {
			case again:
			case len(done) > 0 && r.IntN(4) == 0:
				w = done[r.IntN(len(done))]
			default:
				w, ok = c.next(ctx, n, r, fmt.Sprintf("%d.%d", id, seq))
			}
			if ok && c.try(ctx, e, id, n, w) {
				done = append(done, w)
				done = done[max(0, len(done)-remembered):]
			} else {
				Rest(ctx, 5*time.Millisecond)
			}
			release()
			e.Pause(ctx, r)
		}
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
	// What all nodes list up to is the same: nobody writes here any more.
	a, err := e.Voters()[0].Do(ctx, http.MethodGet, Key("counter/none")+"?consistent", nil)
	if err != nil {
		return err
	}
	until, err := a.Applied()
	if err != nil {
		return err
	}
	for i, n := range e.Nodes {
		p := e.History.Call(history.Op{Workload: c.Name(), Client: e.Clients + i, Node: n.Name, Name: "changes"})
		changes, err := n.changes(ctx, "counter/", c.began, until)
		if err != nil {
			p.Refused(err.Error()) // as after a restore: what is known no longer cannot be judged
			continue
		}
		p.Decided(changes)
	}
	return nil
}

// changes lists what was put under a prefix from one revision to another.
func (n *Node) changes(ctx context.Context, prefix string, from, to uint64) ([]CounterChange, error) {
	all := []CounterChange{}
	for from <= to {
		a, err := n.Do(ctx, http.MethodGet, fmt.Sprintf("/v1/changes/%s?stale&from=%d&to=%d&min_index=%d", prefix, from, to, to), nil)
		if err != nil {
			return nil, err
		}
		var page []struct {
			Op string
			KV Entry
		}
		if a.Status != http.StatusOK {
			return nil, fmt.Errorf("%d %.200s", a.Status, a.Body)
		}
		if err := json.Unmarshal(a.Body, &page); err != nil {
			return nil, err
		}
		for _, ch := range page {
			if ch.Op == "put" {
				all = append(all, CounterChange{ch.KV.Key, string(ch.KV.Value), ch.KV.ModifyIndex})
			}
		}
		next, err := a.number("X-Holdfast-Next")
		if err != nil {
			return nil, err
		}
		if next <= from {
			return nil, fmt.Errorf("changes from %d go on at %d", from, next)
		}
		from = next
	}
	return all, nil
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
	for _, o := range ops {
		changes, ok := o.Out.([]CounterChange)
		if !ok {
			continue
		}
		o.Out = fmt.Sprintf("%d changes", len(changes))
		happened := map[string]CounterChange{} // by value
		last := map[string]uint64{}            // by key
		for _, ch := range changes {
			w := writes[ch.Value]
			before, again := happened[ch.Value]
			switch {
			case w == nil || w.Key != ch.Key:
				report("out of nothing", fmt.Sprintf("nobody wrote %+v", ch), o)
			case again:
				report("happened twice", fmt.Sprintf("at %d and at %d", before.Revision, ch.Revision), w.op, o)
			case w.decided && !w.OK:
				report("refused but there", fmt.Sprintf("it happened at %d", ch.Revision), w.op, o)
			case w.decided && w.Revision != ch.Revision:
				report("another answer", fmt.Sprintf("it happened at %d", ch.Revision), w.op, o)
			case w.CAS && w.Index != last[ch.Key]:
				report("lost update", fmt.Sprintf("it demanded revision %d, there was %d", w.Index, last[ch.Key]), w.op, o)
			}
			happened[ch.Value], last[ch.Key] = ch, ch.Revision
		}
		for _, w := range inOrder {
			if _, there := happened[w.Value]; w.decided && w.OK && !there {
				report("lost", "it was acknowledged and did not happen", w.op, o)
			}
		}
	}
	return found
}
