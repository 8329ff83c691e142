package workload

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"sort"
	"strings"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/history"
)

// Clients of locks and of semaphores have sessions. These are their requests:
//
//	session  In Session, Out Opened
//	renew    In id, Out bool: it lives
//	destroy  In id, Out index
//	acquire  In Grab, Out Got
//	release  In Grab, Out Got
//	left     Out []string: sessions of the workload that there are, at the end
//
// Their promise: a session ends when it is destroyed, or when nobody has renewed it
// for twice its TTL, and not before its TTL is over. When it ends, all keys it holds
// are given back, or deleted, in one revision. Nobody gets one of them before the
// lock-delay is over, whoever leads meanwhile.

// Session is what is asked for.
type Session struct {
	TTL, LockDelay time.Duration
	Behavior       string
}

// leasing is what the workloads of sessions have in common: a TTL, the shortest that the
// cluster allows.
type leasing struct{ ttl time.Duration }

// Setup implements Workload.
func (w *leasing) Setup(ctx context.Context, e *Env) (err error) {
	w.ttl, err = e.shortestTTL(ctx)
	return err
}

// Opened is a session that was made, and at which index.
type Opened struct {
	ID    string
	Index uint64
}

// Grab asks for a lock, or gives it back. Both write a value that nothing else writes.
type Grab struct{ Key, Session, Value string }

// Got is what came of it. Without OK it was refused, because there is no such
// session if Gone. Lock is the LockIndex, or 0 where the answer does not tell.
type Got struct {
	OK, Gone    bool
	Index, Lock uint64
}

// lessee is one client of sessions.
type lessee struct {
	e    *Env
	r    *rand.Rand
	name string // of the workload
	id   int
	made int // values
}

// lessee is one of the clients of a workload.
func (e *Env) lessee(workload string, id int) *lessee {
	return &lessee{e: e, r: e.Rand(workload, id), name: workload, id: id}
}

// ask makes a request at any node once one has time for it. ok is false when ctx
// has ended instead.
func (c *lessee) ask(ctx context.Context, name string, in any, method, path string, body []byte, record func(*history.Pending, Answer, error)) (ok bool) {
	n, release, ok := c.e.Pick(ctx, c.r, c.e.Nodes)
	if !ok {
		return false
	}
	defer release()
	p := c.e.History.Call(history.Op{Workload: c.name, Client: c.id, Node: n.Name, Name: name, In: in})
	a, err := n.Do(ctx, method, path, body)
	record(p, a, err)
	return true
}

// value is one that nothing else writes.
func (c *lessee) value(what string) string {
	c.made++
	return fmt.Sprintf("%s %d.%d", what, c.id, c.made)
}

// open makes a session. ok is false when there is none, as far as the client knows.
func (c *lessee) open(ctx context.Context, s Session) (id string, ok bool) {
	body := fmt.Appendf(nil, `{"Name":%q,"TTL":%q,"LockDelay":%q,"Behavior":%q}`, c.name, s.TTL, s.LockDelay, s.Behavior)
	c.ask(ctx, "session", s, http.MethodPut, "/v1/session/create", body, func(p *history.Pending, a Answer, err error) {
		ended(p, a, err, func(a Answer) (any, error) {
			var made Opened
			if err := json.Unmarshal(a.Body, &made); err != nil || made.ID == "" {
				return nil, fmt.Errorf("session %.100q, %v", a.Body, err)
			}
			made.Index, err = a.Index()
			id, ok = made.ID, err == nil
			return made, err
		})
	})
	return id, ok
}

// hold opens a session and becomes its holder.
func (c *lessee) hold(ctx context.Context, s Session) (h *holder, ok bool) {
	id, ok := c.open(ctx, s)
	return &holder{lessee: c, Session: s, session: id, renewed: c.e.History.Now()}, ok
}

// renew starts the session's time anew. gone says that there is none any more.
func (c *lessee) renew(ctx context.Context, id string) (gone bool) {
	c.ask(ctx, "renew", id, http.MethodPut, "/v1/session/renew/"+id, nil, func(p *history.Pending, a Answer, err error) {
		ended(p, a, err, func(a Answer) (any, error) {
			gone = a.Status == http.StatusNotFound
			return !gone, nil
		}, http.StatusNotFound)
	})
	return gone
}

func (c *lessee) destroy(ctx context.Context, id string) {
	c.ask(ctx, "destroy", id, http.MethodPut, "/v1/session/destroy/"+id, nil, func(p *history.Pending, a Answer, err error) {
		ended(p, a, err, func(a Answer) (any, error) { return a.Index() })
	})
}

// grab takes a lock, or gives it back; name is acquire or release.
func (c *lessee) grab(ctx context.Context, name string, g Grab) (got Got) {
	c.ask(ctx, name, g, http.MethodPut, Key(g.Key)+"?"+name+"="+g.Session, []byte(g.Value), func(p *history.Pending, a Answer, err error) {
		if err == nil && a.Status == http.StatusInternalServerError && strings.HasPrefix(string(a.Body), "invalid session") {
			got.Gone = true
			p.Decided(got)
			return
		}
		ended(p, a, err, func(a Answer) (any, error) {
			got.OK = a.True()
			var err error
			got.Index, err = a.Index()
			return got, err
		})
	})
	return got
}

// holder is a client with a session.
type holder struct {
	*lessee
	Session
	session string
	renewed time.Duration
}

// keep renews the session in time, and says whether it is there.
func (h *holder) keep(ctx context.Context) bool {
	if h.e.History.Now()-h.renewed < h.TTL/3 {
		return true
	}
	h.renewed = h.e.History.Now()
	return !h.renew(ctx, h.session)
}

// holders runs n clients of a workload. Each has one session after the other, as draw
// makes them, and lives with it.
func (e *Env) holders(ctx context.Context, workload string, n int, draw func(*rand.Rand) Session, live func(*holder, context.Context)) {
	e.each(n, func(id int) {
		c := e.lessee(workload, id)
		for ctx.Err() == nil {
			if h, ok := c.hold(ctx, draw(c.r)); ok {
				live(h, ctx)
			}
			e.Pause(ctx, c.r)
		}
	})
}

// shortestTTL is the shortest TTL that the cluster allows.
func (e *Env) shortestTTL(ctx context.Context) (time.Duration, error) {
	a, err := e.persistent(ctx, http.MethodGet, "/v1/agent/self", nil)
	if err != nil {
		return 0, err
	}
	var self struct {
		Config struct{ SessionTTLMin time.Duration }
	}
	if err := json.Unmarshal(a.Body, &self); err != nil {
		return 0, fmt.Errorf("agent/self: %w", err)
	}
	if self.Config.SessionTTLMin <= 0 {
		return 0, fmt.Errorf("agent/self: SessionTTLMin %v", self.Config.SessionTTLMin)
	}
	return self.Config.SessionTTLMin, nil
}

// overtime is what a session may live beyond twice its TTL on a whole cluster, also
// when its leader changes once more.
const overtime = 15 * time.Second

// awaitExpiry waits until all sessions of a workload are over, but no longer than
// nobody's renewing them allows, and records those that are not.
func (e *Env) awaitExpiry(ctx context.Context, workload string, ttl time.Duration) error {
	p := e.History.Call(history.Op{Workload: workload, Client: teller, Node: e.Nodes[0].Name, Name: "left"})
	for {
		a, err := e.persistent(ctx, http.MethodGet, "/v1/session/list?consistent", nil)
		var all []struct{ ID, Name string }
		if err == nil {
			err = json.Unmarshal(a.Body, &all)
		}
		if err != nil {
			p.Unknown(err.Error())
			return err
		}
		left := []string{}
		for _, s := range all {
			if s.Name == workload {
				left = append(left, s.ID)
			}
		}
		if len(left) == 0 || e.History.Now()-p.Called() > 4*ttl+overtime {
			p.Decided(left)
			return nil
		}
		Rest(ctx, ttl/20)
	}
}

// lease is what the history tells of one session.
type lease struct {
	id string
	Session
	opened history.Op
	// renewed are the requests that started its time, the first made it.
	renewed []history.Op
	// destroyed is when somebody first asked for its end; never if nobody did.
	destroyed time.Duration
	// over is the index at which it ended, as the log tells by what it held; 0 if
	// the log does not.
	over uint64
}

// leases are the sessions of a history by their ids.
func leases(ops []history.Op) map[string]*lease {
	all := map[string]*lease{}
	for _, o := range ops {
		if made, ok := o.Out.(Opened); ok {
			all[made.ID] = &lease{id: made.ID, Session: o.In.(Session), opened: o, renewed: []history.Op{o}, destroyed: history.Never}
		}
	}
	for _, o := range ops {
		id, _ := o.In.(string)
		l := all[id]
		switch {
		case l == nil:
		case o.Name == "renew" && o.Out == true:
			l.renewed = append(l.renewed, o)
		case o.Name == "destroy" && o.Outcome != history.Refused:
			l.destroyed = min(l.destroyed, o.Call)
		}
	}
	return all
}

// mayEnd is the first moment at which the session may have ended, if it ended
// before a moment: a renewal that began later proves nothing.
func (l *lease) mayEnd(before time.Duration) (at time.Duration, by history.Op) {
	for _, o := range l.renewed {
		if o.Call < before && o.Call+l.TTL >= at {
			at, by = o.Call+l.TTL, o
		}
	}
	return min(at, l.destroyed), by
}

// judgeLeases holds what is known of the ends of sessions against their time to
// live. clock tells when the ends in the log were.
func judgeLeases(ops []history.Op, all map[string]*lease, clock *clockwork) (found []Anomaly) {
	// gone is told of a session that had ended by a moment.
	gone := func(id string, at time.Duration, o history.Op) {
		l := all[id]
		if l == nil || l.destroyed < at {
			return
		}
		for _, renewal := range l.renewed {
			switch {
			case renewal.Call >= at:
				found = append(found, anomaly("session came back", "it was renewed after it had ended", o, renewal))
				return
			case renewal.Call+l.TTL > at:
				found = append(found, anomaly("session ended early",
					fmt.Sprintf("its TTL is %v, but it had ended %v after it was renewed", l.TTL, at-renewal.Call), renewal, o))
				return
			}
		}
	}
	for _, o := range ops {
		switch out := o.Out.(type) {
		case bool:
			if o.Name == "renew" && !out {
				gone(o.In.(string), o.Return, o)
			}
		case Got:
			if out.Gone {
				gone(o.In.(Grab).Session, o.Return, o)
			}
		case []string:
			for _, id := range out {
				text := "nobody renews it, and it does not end"
				if l := all[id]; l != nil {
					found = append(found, anomaly("session never ends", text, l.renewed[len(l.renewed)-1], o))
				} else { // whose maker got no answer
					found = append(found, anomaly("session never ends", text, o))
				}
			}
		}
	}
	for _, o := range ops {
		if made, ok := o.Out.(Opened); ok && all[made.ID].over > 0 {
			if at, ok := clock.notAfter(all[made.ID].over); ok {
				gone(made.ID, at, o)
			}
		}
	}
	return found
}

// tenure follows the holders of locks through a log. Each key it is told of is
// taken by acquire and given back by release alone.
type tenure struct {
	leases map[string]*lease
	clock  *clockwork
	grabs  map[string]history.Op // by the value they write
	keys   map[string]*tenant
	whole  bool // the log begins with the cluster
	found  []Anomaly
}

// tenant is a key while a log is followed.
type tenant struct {
	now Entry // Key is empty when there is none
	// was says that now is what the log tells: before it began anything may have
	// been.
	was bool
	// lost is the session that lost it last by ending, delayed the first index at
	// which one with a lock-delay did.
	lost    *lease
	delayed uint64
	past    []Change
}

// newTenure prepares to follow a log.
func newTenure(ops []history.Op, all map[string]*lease, clock *clockwork, l Log) *tenure {
	t := &tenure{leases: all, clock: clock, grabs: map[string]history.Op{}, keys: map[string]*tenant{}, whole: l.whole()}
	for _, o := range ops {
		if g, ok := o.In.(Grab); ok {
			t.grabs[g.Value] = o
			if t.keys[g.Key] == nil {
				t.keys[g.Key] = &tenant{was: t.whole}
				if t.whole {
					t.keys[g.Key].delayed = math.MaxUint64
				}
			}
		}
	}
	return t
}

func (t *tenure) broken(kind, text string, c Change, ops ...history.Op) {
	t.found = append(t.found, anomaly(kind, fmt.Sprintf("%s at index %d: %s", c.KV.Key, c.Index, text), ops...))
}

// index follows the changes of one index.
func (t *tenure) index(changes []Change) {
	var over []*lease
	for _, c := range changes {
		if key := t.keys[c.KV.Key]; key != nil {
			if l := t.change(key, c); l != nil {
				over = append(over, l)
			}
		}
	}
	for _, l := range over {
		for _, key := range t.keys {
			if key.now.Session == l.id {
				t.broken("half ended", "a session that ended still holds it", Change{Index: l.over, KV: key.now}, l.opened)
			}
		}
	}
}

// change follows one change of a lock and returns the session whose end it shows.
func (t *tenure) change(key *tenant, c Change) (ended *lease) {
	before, was := key.now, key.was
	key.was, key.past = true, append(key.past, c)
	holder := t.leases[before.Session]
	if c.Op == "delete" {
		key.now = Entry{}
		switch {
		case !was:
		case before.Session == "":
			t.broken("deleted by nobody", "no client deletes it", c)
		case holder != nil:
			return t.over(key, holder, c, "delete")
		}
		return nil
	}
	key.now = c.KV
	grab, known := t.grabs[string(c.KV.Value)]
	if !known {
		t.broken("out of nothing", fmt.Sprintf("nobody wrote %q", c.KV.Value), c)
	}
	if !was {
		return nil
	}
	wrote := known && string(c.KV.Value) != string(before.Value)
	if wrote && grab.Outcome == history.Refused {
		t.broken("refused but there", fmt.Sprintf("%q was refused", c.KV.Value), c, grab)
	}
	step := uint64(0)
	switch session := c.KV.Session; {
	case before.Session == "" && session != "":
		step = 1
		t.taken(key, c)
	case before.Session != "" && session == "":
		if !wrote && holder != nil {
			ended = t.over(key, holder, c, "release")
		} else if wrote && (grab.Name != "release" || grab.In.(Grab).Session != before.Session) {
			t.broken("given back by another", fmt.Sprintf("session %s held it", before.Session), c, grab)
		}
	case before.Session != session:
		t.broken("two holders", fmt.Sprintf("session %s got it while %s held it", session, before.Session), c, t.makers(session, before.Session)...)
	}
	if c.KV.LockIndex != before.LockIndex+step {
		t.broken("lock index", fmt.Sprintf("LockIndex is %d after %d, held by %q after %q", c.KV.LockIndex, before.LockIndex, c.KV.Session, before.Session), c)
	}
	return ended
}

// makers are the requests that made sessions.
func (t *tenure) makers(ids ...string) (ops []history.Op) {
	for _, id := range ids {
		if l := t.leases[id]; l != nil {
			ops = append(ops, l.opened)
		}
	}
	return ops
}

// over notes that a session ended with a change.
func (t *tenure) over(key *tenant, l *lease, c Change, behavior string) *lease {
	if l.Behavior != behavior {
		t.broken("behaviour", fmt.Sprintf("a session of behaviour %s ended by %s", l.Behavior, behavior), c, l.opened)
	}
	if l.over != 0 && l.over != c.Index {
		t.broken("half ended", fmt.Sprintf("a session ended at index %d and again", l.over), c, l.opened)
	}
	l.over, key.lost = c.Index, l
	if l.LockDelay > 0 {
		key.delayed = min(key.delayed, c.Index)
	}
	return l
}

// taken judges that a session got a free lock.
func (t *tenure) taken(key *tenant, c Change) {
	l := t.leases[c.KV.Session]
	switch {
	case l == nil:
		t.broken("out of nothing", fmt.Sprintf("nobody made session %s", c.KV.Session), c)
		return
	case l.over != 0:
		t.broken("granted to an ended session", fmt.Sprintf("it ended at index %d", l.over), c, l.opened)
	}
	lost := key.lost
	if lost == nil || lost.LockDelay == 0 {
		return
	}
	to, ok := t.clock.notAfter(c.Index)
	from := t.clock.notBefore(lost.over)
	if at, _ := lost.mayEnd(to); at > from {
		from = at
	}
	if ok && to-from < lost.LockDelay {
		t.broken("lock delay", fmt.Sprintf("lost at index %d with a lock-delay of %v, and taken at most %v later", lost.over, lost.LockDelay, to-from), c, lost.opened, l.opened)
	}
}

// at is a lock as an index left it. ok is false when the log does not tell.
func (t *tenant) at(index uint64, whole bool) (e Entry, ok bool) {
	i := sort.Search(len(t.past), func(i int) bool { return t.past[i].Index > index })
	switch {
	case i == 0:
		return Entry{}, whole
	case t.past[i-1].Op == "delete":
		return Entry{}, true
	}
	return t.past[i-1].KV, true
}

// answers holds what clients were told of locks against the log.
func (t *tenure) answers(ops []history.Op, l Log) (found []Anomaly) {
	for _, o := range ops {
		got, ok := o.Out.(Got)
		g, grab := o.In.(Grab)
		if !ok || !grab || got.Gone || got.Index < l.From || got.Index > l.To {
			continue
		}
		key := t.keys[g.Key]
		e, known := key.at(got.Index, t.whole)
		if !known {
			continue
		}
		text := fmt.Sprintf("at index %d session %q holds %s with LockIndex %d, value %q", got.Index, e.Session, g.Key, e.LockIndex, e.Value)
		switch wrote := string(e.Value) == g.Value; {
		case got.OK && (!wrote || e.Session != map[string]string{"acquire": g.Session}[o.Name]), got.OK && got.Lock != 0 && got.Lock != e.LockIndex:
			found = append(found, anomaly("acknowledged but not so", text, o))
		case !got.OK && o.Name == "acquire" && (e.Session == g.Session || e.Session == "" && got.Index < key.delayed):
			found = append(found, anomaly("refused without cause", text, o))
		case !got.OK && o.Name == "release" && e.Session == g.Session:
			found = append(found, anomaly("refused without cause", text, o))
		}
	}
	return found
}

// judgeHolders holds what clients of sessions were told against the log, and against
// each other. It follows the log, and calls also for each change when it has followed
// the index of the change. ok is false before anybody was asked for the log.
func judgeHolders(ops []history.Op, also func(*tenure, Change)) (l Log, ok bool, found []Anomaly) {
	l, ok, found = theLog(ops)
	found = append(found, broken(ops)...)
	all := leases(ops)
	clock := newClockwork(ops, sessionIndex)
	if !ok {
		return l, false, append(found, judgeLeases(ops, all, clock)...)
	}
	t := newTenure(ops, all, clock, l)
	for changes := range l.indexes {
		t.index(changes)
		for _, c := range changes {
			also(t, c)
		}
	}
	found = append(found, t.found...)
	found = append(found, judgeLeases(ops, all, clock)...) // which knows now what has ended, and when
	return l, true, append(found, t.answers(ops, l)...)
}

// sessionIndex is the index that a request of a client of sessions was answered with.
func sessionIndex(o history.Op) (uint64, bool) {
	switch out := o.Out.(type) {
	case Opened:
		return out.Index, true
	case Got:
		return out.Index, !out.Gone
	case uint64:
		return out, true
	}
	return 0, false
}
