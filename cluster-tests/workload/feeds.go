package workload

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/history"
)

// Feeds follows what changes under some prefixes: by lists of changes, each from
// where the one before ended, and by streams, each resumed with the last event's id,
// at another node now and then and whenever one dies.
//
// The promise: a follower gets each change exactly once, in order, whatever nodes he
// asked; the changes are those that were acknowledged, all of them, each at its
// index, and what was before is named; the id of a change is the same at all nodes; a
// list that a stream begins with is the state at one index. Who is told that history
// does not go back so far was indeed left behind by it, and begins again.
type Feeds struct{ followers []*follower }

// NewFeeds makes the workload.
func NewFeeds() *Feeds { return &Feeds{} }

// Name implements Workload.
func (*Feeds) Name() string { return "feeds" }

const feedDirs, feedKeys = 3, 8 // in each

// Follow asks for changes. Of a stream, After is the Last-Event-ID, and Init asks
// for what there is, if there is no After; of a list, From is the first index.
type Follow struct {
	Prefix, After string
	Init          bool
	From          uint64
}

// Event is one of a stream. ID is what a client would resume with after it; Name is
// empty when it is nothing but an id.
type Event struct {
	ID, Name string
	Change
	// Oldest is how far history goes back, where that is the news.
	Oldest uint64
}

// Stretch is what came of a stream until it ended, or was left.
type Stretch struct{ Events []Event }

// follower follows one prefix, by a stream or by lists.
type follower struct {
	id     int
	r      *rand.Rand
	in     Follow
	stream bool
	// over says that it saw the last change.
	over bool
}

// Setup implements Workload.
func (*Feeds) Setup(context.Context, *Env) error { return nil }

// Clients implements Workload.
func (w *Feeds) Clients(ctx context.Context, e *Env) {
	writers, followers := max(1, e.Clients/2), max(4, e.Clients)
	for i := range followers {
		id := writers + i
		f := &follower{id: id, r: e.Rand(w.Name(), id), stream: i%4 != 0, in: Follow{Prefix: "feeds/", From: 1}}
		if i%2 == 1 {
			f.in.Prefix = fmt.Sprintf("feeds/%d/", i%feedDirs)
		}
		if f.stream {
			f.in.Init, f.in.From = i%3 == 0, 0
			if !f.in.Init {
				f.in.After = "0" // behind nothing: all there ever was
			}
		}
		w.followers = append(w.followers, f)
	}
	e.each(writers+followers, func(id int) {
		if id < writers {
			w.write(ctx, e, id)
			return
		}
		f := w.followers[id-writers]
		for ctx.Err() == nil {
			if !f.follow(ctx, e, e.Nodes[f.r.IntN(len(e.Nodes))]) {
				Rest(ctx, time.Duration(20+f.r.IntN(100))*time.Millisecond)
			}
		}
	})
}

func (w *Feeds) write(ctx context.Context, e *Env, id int) {
	r := e.Rand(w.Name(), id)
	for i := 0; ; i++ {
		n, release, ok := e.Pick(ctx, r, e.Nodes)
		if !ok {
			return
		}
		value := fmt.Sprintf("%d.%d", id, i)
		key := func() string { return fmt.Sprintf("feeds/%d/%d", r.IntN(feedDirs), r.IntN(feedKeys)) }
		edits := []Edit{{Target: key(), Value: value}}
		switch r.IntN(12) {
		case 0:
			edits[0] = Edit{Target: fmt.Sprintf("feeds/%d/", r.IntN(feedDirs)), Delete: true}
		case 1, 2:
			edits[0] = Edit{Target: key(), Delete: true}
		case 3, 4, 5, 6:
			targets := map[string]bool{edits[0].Target: true}
			for range 1 + r.IntN(4) {
				edit := Edit{Target: key(), Value: value}
				if targets[edit.Target] {
					continue
				}
				targets[edit.Target] = true
				if edit.Delete = r.IntN(4) == 0; edit.Delete {
					edit.Value = ""
				}
				edits = append(edits, edit)
			}
		}
		e.edit(ctx, n, w.Name(), id, edits...)
		release()
		e.Pause(ctx, r)
		e.Pause(ctx, r)
	}
}

// follow goes on at a node for a while. ok is false when it did not answer.
func (f *follower) follow(ctx context.Context, e *Env, n *Node) (ok bool) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(200+f.r.IntN(4000))*time.Millisecond)
	defer cancel()
	if f.stream {
		return f.read(ctx, e, n)
	}
	for ok = true; ok && ctx.Err() == nil && !f.over; {
		ok = f.list(ctx, e, n)
	}
	return ok
}

// list asks for the next list of changes.
func (f *follower) list(ctx context.Context, e *Env, n *Node) (ok bool) {
	p := e.History.Call(history.Op{Workload: "feeds", Client: f.id, Node: n.Name, Name: "list", In: f.in})
	more := fmt.Sprintf("limit=%d&wait=%dms", 1+f.r.IntN(60), f.r.IntN(1500))
	a, err := n.Do(ctx, http.MethodGet, changesPath(f.in.Prefix, f.in.From, more), nil)
	return ended(p, a, err, func(a Answer) (any, error) {
		page, err := a.page()
		if err != nil {
			return nil, err
		}
		f.in.From = cmp.Or(page.Oldest, page.Next)
		for _, c := range page.Changes {
			f.saw(c)
		}
		return page, nil
	}, http.StatusGone) == history.Decided
}

// saw notes the last change.
func (f *follower) saw(c Change) {
	f.over = f.over || string(c.KV.Value) == last && (f.in.Prefix != "feeds/" || c.KV.Key == lastFed(feedDirs-1))
}

// lastFed is the key that is written last under a prefix.
func lastFed(dir int) string { return fmt.Sprintf("feeds/%d/last", dir) }

// read follows the stream until ctx ends, or it does.
func (f *follower) read(ctx context.Context, e *Env, n *Node) (ok bool) {
	p := e.History.Call(history.Op{Workload: "feeds", Client: f.id, Node: n.Name, Name: "stream", In: f.in})
	path := n.URL + "/v1/changes/" + f.in.Prefix + "?stream"
	if f.in.Init {
		path += "&init"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, path, nil)
	if err != nil {
		p.Refused(err.Error())
		return false
	}
	if f.in.After != "" {
		req.Header.Set("Last-Event-ID", f.in.After)
	}
	res, err := n.Client.Do(req)
	if err != nil {
		p.Refused(err.Error())
		return false
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		if res.StatusCode < 500 {
			p.Decided(Broken{fmt.Sprintf("a stream answered with status %d", res.StatusCode)})
		} else {
			p.Refused(res.Status)
		}
		return false
	}
	var got Stretch
	var event Event
	var data string
	named := false // the event so far has an id
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, 4<<20)
	for some := 1 + f.r.IntN(300); some > 0 && !f.over && lines.Scan(); {
		if lines.Text() != "" {
			field, value, _ := strings.Cut(lines.Text(), ":")
			value = strings.TrimPrefix(value, " ")
			switch field {
			case "id":
				event.ID, named = value, true
			case "event":
				event.Name = value
			case "data":
				data = value
			}
			continue
		}
		if data != "" {
			if err := json.Unmarshal([]byte(data), &event); err != nil {
				p.Decided(Broken{fmt.Sprintf("event %.200q: %v", data, err)})
				return false
			}
			some--
		}
		if named {
			f.in.After = event.ID
		}
		if event.Name == "compacted" {
			f.in.Init = true
		}
		if named || data != "" {
			got.Events = append(got.Events, event)
			f.saw(event.Change)
		}
		event, data, named = Event{}, "", false
	}
	p.Decided(got)
	return true
}

// Finish implements Workload: a last change under each prefix, which all followers
// are to come to.
func (w *Feeds) Finish(ctx context.Context, e *Env) error {
	for d := range feedDirs {
		if err := e.editUntilDone(ctx, w.Name(), Edit{Target: lastFed(d), Value: last}); err != nil {
			return err
		}
	}
	limited, cancel := context.WithTimeout(ctx, 4*overtime)
	defer cancel()
	e.each(len(w.followers), func(i int) {
		f := w.followers[i]
		for j := i; limited.Err() == nil && !f.over; j++ {
			if !f.follow(limited, e, e.Nodes[j%len(e.Nodes)]) {
				Rest(limited, 100*time.Millisecond)
			}
		}
		p := e.History.Call(history.Op{Workload: w.Name(), Client: f.id, Node: e.Nodes[0].Name, Name: "last", In: f.in.Prefix})
		p.Decided(f.over)
	})
	return e.tellAll(ctx, w.Name())
}

// Check implements Workload.
func (w *Feeds) Check(ops []history.Op) []Anomaly {
	past, found := judgeWriters(ops)
	if past == nil {
		return found
	}
	if past.whole() {
		found = append(found, past.predecessors()...)
	}
	j := &feedJudge{past: past, ids: map[string]string{}, under: map[string][]Change{}, followers: map[int]*followed{}}
	for _, o := range ops {
		if o.Name == "last" && o.Out == false {
			found = append(found, anomaly("never came", "the last change was acknowledged, and a follower did not get it", o))
		}
		if in, ok := o.In.(Follow); ok && o.Outcome == history.Decided {
			if kind, text := j.judge(o, in); kind != "" {
				j.followers[o.Client].lost = true // all that follows would be wrong, too
				found = append(found, anomaly(kind, text, short(o)))
			}
		}
	}
	return found
}

// short is a request without what it brought.
func short(o history.Op) history.Op {
	switch out := o.Out.(type) {
	case Stretch:
		o.Out = fmt.Sprintf("%d events", len(out.Events))
	case Page:
		o.Out = fmt.Sprintf("%d changes, next %d", len(out.Changes), out.Next)
	}
	return o
}

// feedJudge holds what followers got against the log.
type feedJudge struct {
	past      *past
	ids       map[string]string // of a change, the id it had
	under     map[string][]Change
	followers map[int]*followed
}

// followed is where one follower is.
type followed struct {
	placed, lost bool
	rest         []Change // of the log under his prefix, what he has not got yet
	index        uint64   // all before it he has got
	k            int      // of the last change of that index that he got; -1 if he got all
	listed       []Entry  // of a list that has not ended yet
	listedAt     string
}

// changes are those of the log under a prefix, from an index on.
func (j *feedJudge) changes(prefix string, from uint64) []Change {
	all, ok := j.under[prefix]
	if !ok {
		for _, c := range j.past.Changes {
			if strings.HasPrefix(c.KV.Key, prefix) {
				all = append(all, c)
			}
		}
		j.under[prefix] = all
	}
	return all[sort.Search(len(all), func(i int) bool { return all[i].Index >= from }):]
}

// place puts a follower behind all changes before an index.
func (j *feedJudge) place(f *followed, prefix string, from uint64) {
	f.placed, f.rest, f.index, f.k = true, j.changes(prefix, from), from-1, -1
}

// judge follows one request of a follower and says what is wrong with its answer.
func (j *feedJudge) judge(o history.Op, in Follow) (kind, text string) {
	f := j.followers[o.Client]
	if f == nil {
		f = &followed{}
		j.followers[o.Client] = f
	}
	if f.lost {
		return "", ""
	}
	switch out := o.Out.(type) {
	case Page:
		return j.page(f, in, out)
	case Stretch:
		if in.After == "" {
			*f = followed{}
		} else if in.After == "0" {
			j.place(f, in.Prefix, 1)
		}
		for i, e := range out.Events {
			if kind, text := j.event(f, in, e); kind != "" {
				return kind, fmt.Sprintf("event %d of %d: %s", i, len(out.Events), text)
			}
		}
	}
	return "", ""
}

func (j *feedJudge) page(f *followed, in Follow, p Page) (kind, text string) {
	if !f.placed {
		j.place(f, in.Prefix, in.From)
	}
	if p.Oldest > 0 {
		if p.Oldest <= in.From || p.Oldest > j.past.From {
			return "compacted without cause", fmt.Sprintf("history goes back to %d", j.past.From)
		}
		j.place(f, in.Prefix, p.Oldest)
		return "", ""
	}
	for _, c := range p.Changes {
		if kind, text := j.next(f, in.Prefix, c); kind != "" {
			return kind, text
		}
		if c.Index >= p.Next {
			return "gap", fmt.Sprintf("the list goes to index %d, and on at %d", c.Index, p.Next)
		}
	}
	return j.gotAll(f, p.Next-1, -1)
}

// gotAll judges that a follower is told that he has all up to an index, or up to
// change k of it; k is -1 for all of the index.
func (j *feedJudge) gotAll(f *followed, index uint64, k int) (kind, text string) {
	switch {
	case len(f.rest) > 0 && (f.rest[0].Index < index || f.rest[0].Index == index && k < 0):
		return "gap", fmt.Sprintf("%+v was left out before %d.%d", f.rest[0], index, k)
	case index < f.index, index == f.index && k >= 0 && k < f.k:
		return "going back", fmt.Sprintf("%d.%d after %d.%d", index, k, f.index, f.k)
	}
	f.index, f.k = index, k
	return "", ""
}

// event judges one event of a stream.
func (j *feedJudge) event(f *followed, in Follow, e Event) (kind, text string) {
	id, key, listing := strings.Cut(e.ID, "@")
	id, k, inside := strings.Cut(id, ".")
	index, err := strconv.ParseUint(id, 10, 64)
	switch {
	case e.Name == "compacted":
		needed := f.index
		if f.k < 0 {
			needed++
		}
		if f.placed && (e.Oldest <= needed || e.Oldest > j.past.From) {
			return "compacted without cause", fmt.Sprintf("index %d was needed, and history goes back to %d", needed, j.past.From)
		}
		*f = followed{}
		return "", ""
	case err != nil:
		return "broken answer", fmt.Sprintf("id %q", e.ID)
	case e.Name == "" && !inside:
		return j.gotAll(f, index, -1)
	case listing:
		if key, err = url.QueryUnescape(key); err != nil || key != e.KV.Key || f.listedAt != "" && f.listedAt != id {
			return "broken answer", fmt.Sprintf("id %q of %s, after a list as of %q", e.ID, e.KV.Key, f.listedAt)
		}
		f.listed, f.listedAt = append(f.listed, e.KV), id
		return "", ""
	case e.Name == "sync":
		if f.listedAt != "" && f.listedAt != id || e.Index != index {
			return "broken answer", fmt.Sprintf("sync of %d with id %q, after a list as of %q", e.Index, e.ID, f.listedAt)
		}
		if index >= j.past.From {
			if _, what := j.past.differs(in.Prefix, index, f.listed); what != "" {
				return "not the state it says", what
			}
		}
		j.place(f, in.Prefix, index+1)
		f.listed, f.listedAt = nil, ""
		return "", ""
	}
	place, err := strconv.Atoi(k)
	switch {
	case err == nil && e.Name == "":
		return j.gotAll(f, index, place)
	case !inside || err != nil || index != e.Index:
		return "broken answer", fmt.Sprintf("id %q of %+v", e.ID, e.Change)
	case !f.placed:
		return "broken answer", fmt.Sprintf("%+v comes before the list has ended", e.Change)
	case index == f.index && (f.k < 0 || place <= f.k):
		return "going back", fmt.Sprintf("id %q after %d.%d", e.ID, f.index, f.k)
	}
	name := fmt.Sprintf("%d %s", index, e.KV.Key)
	if other, ok := j.ids[name]; ok && other != e.ID {
		return "ids differ", fmt.Sprintf("%+v is %q, and elsewhere %q", e.Change, e.ID, other)
	}
	j.ids[name] = e.ID
	kind, text = j.next(f, in.Prefix, e.Change)
	f.k = place
	return kind, text
}

// next judges that a change is the one that follows.
func (j *feedJudge) next(f *followed, prefix string, c Change) (kind, text string) {
	switch {
	case c.Index < j.past.From:
		return "", "" // of which the log tells nothing
	case len(f.rest) > 0 && j.same(c, f.rest[0]):
		f.rest, f.index = f.rest[1:], c.Index
		return "", ""
	}
	later := j.changes(prefix, c.Index)
	for i := 0; i < len(later) && later[i].Index == c.Index; i++ {
		switch {
		case !j.same(c, later[i]):
		case len(later)-i < len(f.rest): // it stands further behind than what is next
			return "gap", fmt.Sprintf("%+v came, %+v did not", c, f.rest[0])
		default:
			return "repeated", fmt.Sprintf("%+v came again", c)
		}
	}
	return "not what happened", fmt.Sprintf("%+v", c)
}

// same says whether a change is that of the log. Of the oldest index that is kept it is
// not told what was before, nor what follows from that.
func (j *feedJudge) same(c, logged Change) bool {
	if logged.Index == j.past.From && j.past.From > 1 && (c.Op == "delete") == (logged.Op == "delete") {
		c.Op, c.Prev = logged.Op, logged.Prev
	}
	return c.Index == logged.Index && c.Op == logged.Op && c.KV.equal(logged.KV) && c.Prev == logged.Prev
}

// predecessors judges what each change names as the one before.
func (p *past) predecessors() (found []Anomaly) {
	for _, key := range p.names {
		var before uint64
		for _, c := range p.keys[key] {
			if c.Prev.ModifyIndex != before {
				found = append(found, Anomaly{Kind: "wrong predecessor", Text: fmt.Sprintf("%+v, but the key's change before was at %d", c, before)})
			}
			if before = c.Index; c.Op == "delete" {
				before = 0
			}
		}
	}
	return found
}
