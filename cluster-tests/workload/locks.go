package workload

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/history"
)

// Locks is a few locks, and for each a resource that its holder writes to, fenced by
// {key, LockIndex, session}: the write is a transaction that checks the lock. Holders
// renew their sessions, or do not; give locks back, or end their sessions, or write
// on until that is refused.
//
// The promise, in the order of the list of changes: a lock has one holder; its
// LockIndex grows by one each time it goes from free to held, and not otherwise; a
// resource is never written by who does not hold the lock, nor by an older holder
// after a newer one. And that of sessions, see sessions.go.
type Locks struct{ leasing }

// NewLocks makes the workload.
func NewLocks() *Locks { return &Locks{} }

// Name implements Workload.
func (*Locks) Name() string { return "locks" }

// locksPerBehavior are the locks for sessions of one behaviour: what is deleted
// with its session begins with LockIndex 1 again.
const locksPerBehavior = 3

// Fenced is a write to the resource of a lock by its holder.
type Fenced struct {
	Lock, Session string
	// LockIndex is the token, and Modify the ModifyIndex that the lock has to have.
	LockIndex, Modify uint64
	Value             string
}

// Look is a consistent read of a lock by who was told that he got it at an index.
type Look struct {
	Key   string
	After uint64
}

func resource(lock string) string { return strings.Replace(lock, "locks/", "locks/resource/", 1) }

// Clients implements Workload.
func (w *Locks) Clients(ctx context.Context, e *Env) {
	e.holders(ctx, w.Name(), e.Clients, func(r *rand.Rand) Session {
		s := Session{TTL: w.ttl, LockDelay: []time.Duration{0, w.ttl / 3, w.ttl}[r.IntN(3)], Behavior: "release"}
		if r.IntN(3) == 0 {
			s.Behavior = "delete"
		}
		return s
	}, (*holder).live)
}

// live takes locks until the session is over, or is left to itself.
func (h *holder) live(ctx context.Context) {
	for range 1 + h.r.IntN(4) {
		lock := h.take(ctx, h.r.IntN(4) > 0)
		if lock == nil || ctx.Err() != nil {
			continue
		}
		if h.r.IntN(4) == 0 { // a second one, so that a session may end with two
			h.grab(ctx, "acquire", Grab{h.lock(), h.session, h.value("held")})
		}
		if h.r.IntN(6) == 0 {
			h.outlive(ctx, lock)
			return
		}
		for range 1 + h.r.IntN(6) {
			if !h.keep(ctx) {
				return
			}
			h.write(ctx, lock)
			h.e.Pause(ctx, h.r)
		}
		switch h.r.IntN(5) {
		case 0:
			h.destroy(ctx, h.session)
			return
		default:
			h.grab(ctx, "release", Grab{lock.Key, h.session, h.value("free")})
		}
	}
	if h.r.IntN(3) > 0 {
		h.destroy(ctx, h.session)
	}
}

// outlive writes on without renewing the session, until that is refused.
func (h *holder) outlive(ctx context.Context, lock *Entry) {
	for began := h.e.History.Now(); ctx.Err() == nil && h.e.History.Now()-began < 3*h.TTL; {
		if h.write(ctx, lock) == history.Refused {
			return
		}
		Rest(ctx, h.TTL/8)
	}
}

// lock is one of those for the session's behaviour.
func (h *holder) lock() string {
	return fmt.Sprintf("locks/%s/%d", h.Behavior, h.r.IntN(locksPerBehavior))
}

// take tries for some time to get a lock, and returns it as it holds it.
func (h *holder) take(ctx context.Context, patient bool) *Entry {
	key := h.lock()
	for began := h.e.History.Now(); h.keep(ctx) && ctx.Err() == nil; h.e.Pause(ctx, h.r) {
		g := Grab{key, h.session, h.value("held")}
		if h.r.IntN(2) == 0 {
			if lock := h.transact(ctx, g); lock != nil {
				return lock
			}
		} else if got := h.grab(ctx, "acquire", g); got.OK {
			return h.look(ctx, Look{key, got.Index}, g)
		}
		if !patient || h.e.History.Now()-began > 2*h.TTL {
			break
		}
		Rest(ctx, h.TTL/50)
	}
	return nil
}

// transact takes a lock by a transaction, which shows it.
func (h *holder) transact(ctx context.Context, g Grab) (lock *Entry) {
	body := txnBody(txnOp{Verb: "lock", Key: g.Key, Session: g.Session, Value: []byte(g.Value)})
	h.ask(ctx, "acquire", g, http.MethodPut, "/v1/txn", body, func(p *history.Pending, a Answer, err error) {
		ended(p, a, err, func(a Answer) (any, error) {
			var got Got
			var err error
			if got.Index, err = a.Index(); err != nil || a.Status == http.StatusConflict {
				got.Gone = strings.Contains(string(a.Body), "invalid session")
				return got, err
			}
			entries, err := a.results()
			if err != nil || len(entries) != 1 {
				return nil, fmt.Errorf("results %.200q, %v", a.Body, err)
			}
			lock = &entries[0]
			got.OK, got.Lock = true, lock.LockIndex
			return got, nil
		}, http.StatusConflict)
	})
	return lock
}

// look reads a lock that was acquired, for its LockIndex.
func (h *holder) look(ctx context.Context, in Look, g Grab) (lock *Entry) {
	h.ask(ctx, "look", in, http.MethodGet, Key(in.Key)+"?consistent", nil, func(p *history.Pending, a Answer, err error) {
		ended(p, a, err, func(a Answer) (any, error) {
			entries, err := a.Entries()
			if err == nil && len(entries) == 1 && entries[0].Session == g.Session && string(entries[0].Value) == g.Value {
				lock = &entries[0]
			}
			return entries, err
		}, http.StatusNotFound)
	})
	return lock
}

// write writes to the resource of a lock.
func (h *holder) write(ctx context.Context, lock *Entry) (outcome history.Outcome) {
	f := Fenced{lock.Key, h.session, lock.LockIndex, lock.ModifyIndex, h.value("write")}
	body := txnBody(
		txnOp{Verb: "check-session", Key: f.Lock, Session: f.Session},
		txnOp{Verb: "check-index", Key: f.Lock, Index: f.Modify},
		txnOp{Verb: "set", Key: resource(f.Lock), Value: []byte(f.Value)},
	)
	h.ask(ctx, "write", f, http.MethodPut, "/v1/txn", body, func(p *history.Pending, a Answer, err error) {
		outcome = ended(p, a, err, func(a Answer) (any, error) { return a.Index() })
	})
	return outcome
}

// Finish implements Workload: all sessions end, each lock can be had again.
func (w *Locks) Finish(ctx context.Context, e *Env) error {
	if err := e.awaitExpiry(ctx, w.Name(), w.ttl); err != nil {
		return err
	}
	c := e.lessee(w.Name(), teller)
	for _, behavior := range []string{"release", "delete"} {
		session, ok := c.open(ctx, Session{TTL: w.ttl, Behavior: behavior})
		if !ok {
			return fmt.Errorf("no session")
		}
		for i := range locksPerBehavior {
			key := fmt.Sprintf("locks/%s/%d", behavior, i)
			p := e.History.Call(history.Op{Workload: w.Name(), Client: teller + 1, Node: e.Nodes[0].Name, Name: "free", In: key})
			free := false
			for !free && ctx.Err() == nil && e.History.Now()-p.Called() < w.ttl+overtime {
				free = c.grab(ctx, "acquire", Grab{key, session, c.value("held")}).OK
				c.renew(ctx, session)
				if !free {
					Rest(ctx, w.ttl/20)
				}
			}
			p.Decided(free)
		}
		c.destroy(ctx, session)
	}
	return e.tellAll(ctx, w.Name())
}

// Check implements Workload.
func (w *Locks) Check(ops []history.Op) []Anomaly {
	writes := map[string]history.Op{}
	for _, o := range ops {
		if f, ok := o.In.(Fenced); ok {
			writes[f.Value] = o
		}
	}
	there := map[string]uint64{} // where the log has a write
	newest := map[string]uint64{}
	l, ok, found := judgeHolders(ops, func(t *tenure, c Change) {
		if strings.HasPrefix(c.KV.Key, "locks/resource/") {
			t.fence(c, writes, newest)
			there[string(c.KV.Value)] = c.Index
		}
	})
	if !ok {
		return found
	}
	for _, o := range ops {
		index, _ := o.Out.(uint64)
		f, fenced := o.In.(Fenced)
		if fenced && index >= l.From && there[f.Value] != index {
			found = append(found, anomaly("lost", fmt.Sprintf("the log has it at index %d", there[f.Value]), o))
		}
		look, looked := o.In.(Look)
		entries, ok := o.Out.([]Entry)
		if looked && ok && len(entries) == 1 && entries[0].ModifyIndex < look.After {
			found = append(found, anomaly("read of the past", "the lock was newer before the read began", o))
		}
		if o.Name == "free" && o.Out == false {
			found = append(found, anomaly("never free", "nobody holds the lock, and it cannot be had", o))
		}
	}
	return found
}

// fence judges a write to a resource.
func (t *tenure) fence(c Change, writes map[string]history.Op, newest map[string]uint64) {
	o, ok := writes[string(c.KV.Value)]
	if !ok {
		t.broken("out of nothing", fmt.Sprintf("nobody wrote %q", c.KV.Value), c)
		return
	}
	f := o.In.(Fenced)
	if o.Outcome == history.Refused {
		t.broken("refused but there", "the write was refused", c, o)
	}
	if key := t.keys[f.Lock]; key != nil && key.was {
		if now := key.now; now.Session != f.Session || now.LockIndex != f.LockIndex || now.ModifyIndex != f.Modify {
			t.broken("fence", fmt.Sprintf("the lock is held by %q with LockIndex %d, ModifyIndex %d", now.Session, now.LockIndex, now.ModifyIndex), c, o)
		}
	}
	if strings.HasPrefix(f.Lock, "locks/release/") {
		if f.LockIndex < newest[f.Lock] {
			t.broken("fence", fmt.Sprintf("LockIndex %d wrote before", newest[f.Lock]), c, o)
		}
		newest[f.Lock] = max(newest[f.Lock], f.LockIndex)
	}
}
