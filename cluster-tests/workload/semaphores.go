package workload

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"

	"github.com/holdfast-db/holdfast/cluster-tests/history"
)

// Semaphores lets a few clients at a time into a place, as Consul's recipe does: a
// contender is a key that its session locks; the key .lock lists the holders, and
// changes by compare-and-set alone. Who wants in drops those from the list whose
// contender is gone, and adds himself if there is room.
//
// The promise, in the order of the list of changes: never are more in than the
// limit. One is in from the compare-and-set that let him in until the one by which
// he left, or until his contender is unlocked. No compare-and-set that succeeds was
// made of a list that had changed. And that of sessions, see sessions.go.
type Semaphores struct{ leasing }

// NewSemaphores makes the workload.
func NewSemaphores() *Semaphores { return &Semaphores{} }

// Name implements Workload.
func (*Semaphores) Name() string { return "semaphores" }

const (
	// semaphores is how many there are, seats how many each lets in.
	semaphores = 2
	seats      = 2
)

// Seats is the list of holders, as it was written.
type Seats struct {
	Limit   int
	Holders map[string]bool // by their sessions
	// Writer came or left with this, and Based is the ModifyIndex of the list it
	// was made of.
	Writer, Session string
	In              bool
	Based           uint64
}

// Swap is a compare-and-set of a list of holders.
type Swap struct {
	Key string
	Seats
}

// Clients implements Workload.
func (w *Semaphores) Clients(ctx context.Context, e *Env) {
	e.holders(ctx, w.Name(), max(e.Clients, seats+1), func(*rand.Rand) Session {
		return Session{TTL: w.ttl, Behavior: "delete"}
	}, (*holder).contend)
}

// contend comes in and leaves, until the session is over, or is left to itself.
func (h *holder) contend(ctx context.Context) {
	dir := fmt.Sprintf("semaphores/%d/", h.r.IntN(semaphores))
	if !h.grab(ctx, "acquire", Grab{dir + h.session, h.session, h.value("contender")}).OK {
		return
	}
	for range 1 + h.r.IntN(3) {
		if !h.swap(ctx, dir, true) {
			return
		}
		for range h.r.IntN(4) {
			h.e.Pause(ctx, h.r)
			if !h.keep(ctx) {
				return
			}
		}
		switch h.r.IntN(5) {
		case 0: // gone without a word: the others find out when the session has ended
			return
		case 1:
			h.destroy(ctx, h.session)
			return
		}
		if !h.swap(ctx, dir, false) {
			return
		}
	}
	h.destroy(ctx, h.session)
}

// swap comes in or leaves, with as many tries as it takes.
func (h *holder) swap(ctx context.Context, dir string, in bool) (done bool) {
	for ; ctx.Err() == nil && h.keep(ctx); h.e.Pause(ctx, h.r) {
		list, ok := h.list(ctx, dir)
		if !ok {
			Rest(ctx, h.TTL/50)
			continue
		}
		list.Limit, list.Writer, list.Session, list.In = seats, h.value(""), h.session, in
		delete(list.Holders, h.session)
		if in {
			if len(list.Holders) >= seats {
				Rest(ctx, h.TTL/50)
				continue
			}
			list.Holders[h.session] = true
		}
		s := Swap{dir + ".lock", list}
		body, err := json.Marshal(list)
		if err != nil {
			panic(err) // strings and numbers always marshal
		}
		h.ask(ctx, "swap", s, http.MethodPut, Key(s.Key)+fmt.Sprintf("?cas=%d", s.Based), body, func(p *history.Pending, a Answer, err error) {
			ended(p, a, err, func(a Answer) (any, error) {
				done = a.True()
				index, err := a.Index()
				return Got{OK: done, Index: index}, err
			})
		})
		if done {
			return true
		}
	}
	return false
}

// list reads the list of holders, without those whose contender is not locked.
func (h *holder) list(ctx context.Context, dir string) (s Seats, ok bool) {
	h.ask(ctx, "list", dir, http.MethodGet, Key(dir)+"?recurse&consistent", nil, func(p *history.Pending, a Answer, err error) {
		ended(p, a, err, func(a Answer) (any, error) {
			entries, err := a.Entries()
			if err != nil {
				return nil, err
			}
			s.Holders = map[string]bool{}
			alive := map[string]bool{}
			for _, e := range entries {
				alive[e.Session] = e.Session != ""
				if e.Key == dir+".lock" {
					s.Based = e.ModifyIndex
					if err := json.Unmarshal(e.Value, &s); err != nil {
						return nil, err
					}
					s.Based = e.ModifyIndex
				}
			}
			for session := range s.Holders {
				if !alive[session] {
					delete(s.Holders, session)
				}
			}
			ok = true
			return s, nil
		})
	})
	return s, ok
}

// Finish implements Workload: all sessions end, and each semaphore lets somebody in.
func (w *Semaphores) Finish(ctx context.Context, e *Env) error {
	if err := e.awaitExpiry(ctx, w.Name(), w.ttl); err != nil {
		return err
	}
	h, ok := e.lessee(w.Name(), teller).hold(ctx, Session{TTL: w.ttl, Behavior: "delete"})
	if !ok {
		return fmt.Errorf("no session")
	}
	for i := range semaphores {
		dir := fmt.Sprintf("semaphores/%d/", i)
		limited, cancel := context.WithTimeout(ctx, w.ttl+overtime)
		in := h.grab(ctx, "acquire", Grab{dir + h.session, h.session, h.value("contender")}).OK && h.swap(limited, dir, true)
		cancel()
		p := e.History.Call(history.Op{Workload: w.Name(), Client: teller + 1, Node: e.Nodes[0].Name, Name: "free", In: dir})
		p.Decided(in)
	}
	h.destroy(ctx, h.session)
	return e.tellAll(ctx, w.Name())
}

// Check implements Workload.
func (w *Semaphores) Check(ops []history.Op) []Anomaly {
	swaps := map[string]history.Op{} // by their writers
	for _, o := range ops {
		if s, ok := o.In.(Swap); ok {
			swaps[s.Writer] = o
		}
	}
	there := map[string]uint64{}         // where the log has a swap
	in := map[string]map[string]uint64{} // by semaphore: sessions, and since when
	modified := map[string]uint64{}      // of the lists
	l, ok, found := judgeHolders(ops, func(t *tenure, c Change) {
		dir, name, _ := strings.Cut(strings.TrimPrefix(c.KV.Key, "semaphores/"), "/")
		if in[dir] == nil {
			in[dir] = map[string]uint64{}
		}
		if name == ".lock" {
			t.swapped(c, dir, swaps, in[dir], modified, there)
		} else if c.Op == "delete" || c.KV.Session == "" {
			delete(in[dir], name)
		}
	})
	if !ok {
		return found
	}
	for _, o := range ops {
		if s, ok := o.In.(Swap); ok {
			if got, ok := o.Out.(Got); ok && got.Index >= l.From &&
				(got.OK && there[s.Writer] != got.Index || !got.OK && there[s.Writer] > 0) {
				found = append(found, anomaly("acknowledged but not so", fmt.Sprintf("the log has it at index %d", there[s.Writer]), o))
			}
		}
		if o.Name == "free" && o.Out == false {
			found = append(found, anomaly("never free", "nobody is in, and nobody gets in", o))
		}
	}
	return found
}

// swapped judges a new list of holders: in are those who are in, by when they came.
func (t *tenure) swapped(c Change, dir string, swaps map[string]history.Op, in, modified, there map[string]uint64) {
	var s Seats
	o, ok := history.Op{}, json.Unmarshal(c.KV.Value, &s) == nil
	if ok {
		o, ok = swaps[s.Writer]
	}
	if !ok {
		t.broken("out of nothing", fmt.Sprintf("nobody wrote %q", c.KV.Value), c)
		return
	}
	if before, known := modified[dir]; o.Outcome == history.Refused {
		t.broken("refused but there", "the compare-and-set was refused", c, o)
	} else if (known || t.whole) && s.Based != before {
		t.broken("lost update", fmt.Sprintf("it was made of the list of index %d, in place of that of %d", s.Based, before), c, o)
	}
	modified[dir], there[s.Writer] = c.Index, c.Index
	delete(in, s.Session)
	if contender := t.keys["semaphores/"+dir+"/"+s.Session]; s.In && contender != nil && contender.now.Session != "" {
		in[s.Session] = c.Index
	}
	if len(in) > seats {
		t.broken("too many", fmt.Sprintf("%d are in, since %v", len(in), in), c, o)
	}
}
