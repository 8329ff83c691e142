package workload

import (
	"archive/tar"
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/history"
)

// Restores archives the cluster and puts archives back, while clients write and
// read. Each writer has a pair of keys, which it writes together.
//
// The promise: an archive holds the state at its index; a restore takes all nodes to
// what the archive holds, in one step, at a revision above all before; what is
// acknowledged after it stays, what was written before is gone; each read is the
// state at its X-Holdfast-Applied, which goes back on no node; and who waits is
// woken. A restore replaces what others have written, so it runs alone.
type Restores struct {
	mu       sync.Mutex
	archives [][]byte // guarded by mu
	// one is held by who restores: of two at a time the judge would not know which came
	// first. Setup makes it, where the clients are: in virtual time a channel from outside
	// would hold the clock up.
	one chan struct{}
}

// NewRestores makes the workload.
func NewRestores() *Restores { return &Restores{} }

// Name implements Workload.
func (*Restores) Name() string { return "restores" }

// Alone says that a restore breaks what others are promised.
func (*Restores) Alone() bool { return true }

// quietKey is never written after Setup, so that nothing but a restore wakes who
// waits for it.
const quietKey = "restores/quiet"

// Both is a pair of keys, or what somebody wants it to be.
type Both struct {
	Pair   string
	Value  string
	Modify uint64
}

// Picture is all pairs as of one revision. Torn says how it is none.
type Picture struct {
	Applied uint64
	Pairs   map[string]Both
	Torn    string
}

// Archived is an archive: its number, and what it holds.
type Archived struct {
	Number int
	Picture
}

// Setup implements Workload.
func (w *Restores) Setup(ctx context.Context, e *Env) error {
	w.one = make(chan struct{}, 1)
	_, err := e.persistent(ctx, http.MethodPut, Key(quietKey), []byte("quiet"))
	return err
}

// Clients implements Workload: one archives and restores, the others write and read.
func (w *Restores) Clients(ctx context.Context, e *Env) {
	e.each(e.Clients+1, func(id int) {
		r := e.Rand(w.Name(), id)
		if id == e.Clients {
			w.restorer(ctx, e, r, id)
			return
		}
		e.loop(ctx, r, e.Nodes, func(n *Node, seq int) bool {
			if r.IntN(2) == 0 {
				return w.write(ctx, e, n, id, fmt.Sprintf("%d.%d", id, seq)) == history.Decided
			}
			return w.read(ctx, e, n, id, readModes[r.IntN(len(readModes))], 0) == history.Decided
		})
	})
}

func (w *Restores) restorer(ctx context.Context, e *Env, r *rand.Rand, id int) {
	for ctx.Err() == nil {
		w.save(ctx, e, e.Nodes[r.IntN(len(e.Nodes))], id, r.IntN(3) == 0)
		Rest(ctx, time.Duration(r.Int64N(int64(30*max(e.Think, 10*time.Millisecond)))))
		if n := w.saved(); n > 0 && r.IntN(2) == 0 && ctx.Err() == nil {
			w.restore(ctx, e, e.Nodes[r.IntN(len(e.Nodes))], id, max(0, n-1-r.IntN(3)))
		}
	}
}

// saved is how many archives there are.
func (w *Restores) saved() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.archives)
}

// Archivist makes archives and restores them as a client of the workload does. Whoever
// does so beside its clients does it through this, since the judge has to know of each.
type Archivist struct {
	w *Restores
	e *Env
}

// Archivist makes one.
func (w *Restores) Archivist(e *Env) *Archivist { return &Archivist{w, e} }

// Save takes an archive of a node's state as it is now.
func (a *Archivist) Save(ctx context.Context, n *Node) ([]byte, error) {
	if a.w.save(ctx, a.e, n, a.id(), false) != history.Decided {
		return nil, fmt.Errorf("%s made no archive", n.Name)
	}
	a.w.mu.Lock()
	defer a.w.mu.Unlock()
	return a.w.archives[len(a.w.archives)-1], nil
}

// Restore puts an archive that Save has returned in place, by way of a node.
func (a *Archivist) Restore(ctx context.Context, n *Node, archive []byte) error {
	a.w.mu.Lock()
	number := slices.IndexFunc(a.w.archives, func(o []byte) bool { return bytes.Equal(o, archive) })
	a.w.mu.Unlock()
	if _, ok := a.w.restore(ctx, a.e, n, a.id(), number); !ok {
		return fmt.Errorf("%s did not say that it restored", n.Name)
	}
	return nil
}

// id is the client's behind those of the workload.
func (a *Archivist) id() int { return a.e.Clients + 1 }

// halves are the keys of a pair.
func halves(pair string) [2]string {
	return [2]string{"restores/" + pair + "/a", "restores/" + pair + "/b"}
}

func (w *Restores) write(ctx context.Context, e *Env, n *Node, client int, value string) history.Outcome {
	in := Both{Pair: fmt.Sprint(client), Value: value}
	p := e.History.Call(history.Op{Workload: w.Name(), Client: client, Node: n.Name, Name: "write", In: in})
	var ops []txnOp
	for _, key := range halves(in.Pair) {
		ops = append(ops, txnOp{Verb: "set", Key: key, Value: []byte(value)})
	}
	a, err := n.txn(ctx, byDefault, ops)
	return ended(p, a, err, func(a Answer) (any, error) { return a.Index() })
}

func (w *Restores) read(ctx context.Context, e *Env, n *Node, client int, mode string, from uint64) history.Outcome {
	path := Key("restores/") + "?recurse"
	if mode != byDefault {
		path += "&" + mode
	} else if !n.Voter {
		mode = stale
	}
	if from > 0 {
		path += fmt.Sprintf("&min_index=%d", from)
	}
	p := e.History.Call(history.Op{Workload: w.Name(), Client: client, Node: n.Name, Name: "read", In: mode})
	a, err := n.Do(ctx, http.MethodGet, path, nil)
	return ended(p, a, err, func(a Answer) (any, error) {
		applied, err := a.Applied()
		if err != nil {
			return nil, err
		}
		entries, err := a.Entries()
		return picture(applied, entries), err
	}, http.StatusNotFound)
}

// picture puts the halves together.
func picture(applied uint64, entries []Entry) Picture {
	p := Picture{Applied: applied, Pairs: map[string]Both{}}
	found := map[string]int{}
	for _, e := range entries {
		pair, half, ok := strings.Cut(strings.TrimPrefix(e.Key, "restores/"), "/")
		if !ok || half != "a" && half != "b" {
			continue
		}
		here := Both{pair, string(e.Value), e.ModifyIndex}
		if other, ok := p.Pairs[pair]; ok && other != here {
			p.Torn = fmt.Sprintf("one half of pair %s is %+v, the other %+v", pair, other, here)
		}
		p.Pairs[pair] = here
		found[pair]++
	}
	for pair, n := range found {
		if n != 2 {
			p.Torn = fmt.Sprintf("pair %s has one half", pair)
		}
	}
	return p
}

// save archives a node's state.
func (w *Restores) save(ctx context.Context, e *Env, n *Node, client int, local bool) history.Outcome {
	path := "/v1/snapshot"
	if local {
		path += "?" + stale
	}
	p := e.History.Call(history.Op{Workload: w.Name(), Client: client, Node: n.Name, Name: "save", In: path})
	a, err := n.Do(ctx, http.MethodGet, path, nil)
	return ended(p, a, err, func(a Answer) (any, error) {
		index, err := a.Index()
		if err != nil {
			return nil, err
		}
		entries, revision, err := unpack(a.Body)
		if err != nil || revision != index {
			return nil, fmt.Errorf("archive with header %d of revision %d: %v", index, revision, err)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.archives = append(w.archives, a.Body)
		return Archived{len(w.archives) - 1, picture(index, entries)}, nil
	})
}

// restore puts an archive in place.
func (w *Restores) restore(ctx context.Context, e *Env, n *Node, client, number int) (index uint64, ok bool) {
	select {
	case w.one <- struct{}{}:
		defer func() { <-w.one }()
	case <-ctx.Done():
		return 0, false
	}
	w.mu.Lock()
	archive := w.archives[number]
	w.mu.Unlock()
	p := e.History.Call(history.Op{Workload: w.Name(), Client: client, Node: n.Name, Name: "restore", In: number})
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*Patience)
	defer cancel()
	a, err := n.Ask(ctx, http.MethodPut, "/v1/snapshot", archive)
	ok = ended(p, a, err, func(a Answer) (_ any, err error) {
		index, err = a.Index()
		return index, err
	}) == history.Decided
	return index, ok
}

// Finish implements Workload: a restore while somebody waits at each node, then a
// read at each, a write of each pair, and a read again.
func (w *Restores) Finish(ctx context.Context, e *Env) error {
	w.save(ctx, e, e.Nodes[0], teller, false)
	if w.saved() == 0 {
		return errors.New("no archive could be made")
	}
	var restored uint64
	began := make(chan struct{}, len(e.Nodes))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range cap(began) {
			<-began
		}
		Rest(ctx, 500*time.Millisecond) // they are about to ask
		for i, ok := 0, false; i < 20 && !ok; i++ {
			restored, ok = w.restore(ctx, e, e.Nodes[i%len(e.Nodes)], teller, w.saved()-1)
		}
	}()
	e.each(len(e.Nodes), func(i int) {
		n := e.Nodes[i]
		a, err := n.Do(ctx, http.MethodGet, Key(quietKey)+"?"+stale, nil)
		index, _ := a.Index()
		p := e.History.Call(history.Op{Workload: w.Name(), Client: teller + 1 + i, Node: n.Name, Name: "wait", In: index})
		began <- struct{}{}
		limited, cancel := context.WithTimeout(ctx, 4*overtime)
		defer cancel()
		if err == nil {
			_, err = n.Ask(limited, http.MethodGet, fmt.Sprintf("%s?%s&index=%d&wait=10m", Key(quietKey), stale, index), nil)
		}
		<-done
		p.Decided(err == nil)
	})
	if restored == 0 {
		return errors.New("the last restore was not acknowledged")
	}
	for _, n := range e.Nodes {
		w.read(ctx, e, n, teller, stale, restored)
	}
	for id := range e.Clients {
		w.write(ctx, e, e.Nodes[id%len(e.Nodes)], id, fmt.Sprintf("%d.%s", id, last))
	}
	for _, n := range e.Nodes {
		w.read(ctx, e, n, teller, consistent, 0)
	}
	return nil
}

// unpack reads the keys of an archive, and of which revision it is, as the manual of
// its format has it (store/archive.go).
func unpack(archive []byte) (entries []Entry, revision uint64, err error) {
	zip, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		return nil, 0, err
	}
	for files := tar.NewReader(zip); ; {
		file, err := files.Next()
		if err != nil {
			return nil, 0, err
		}
		if file.Name == "state.bin" {
			return unpackState(bufio.NewReader(files))
		}
	}
}

func unpackState(r *bufio.Reader) (entries []Entry, revision uint64, err error) {
	if _, err := r.Discard(len("HFSTATE\n")); err != nil {
		return nil, 0, err
	}
	for {
		kind, err := r.ReadByte()
		if err != nil {
			return nil, 0, err
		}
		size, err := binary.ReadUvarint(r)
		if err != nil {
			return nil, 0, err
		}
		body := make([]byte, size)
		if _, err := io.ReadFull(r, body); err != nil {
			return nil, 0, err
		}
		switch kind {
		case 'H':
			var header struct{ Revision uint64 }
			if err := json.Unmarshal(body, &header); err != nil {
				return nil, 0, err
			}
			revision = header.Revision
		case 'R':
			e, err := unpackEntry(body)
			if err != nil {
				return nil, 0, err
			}
			entries = append(entries, e)
		case 'E':
			return entries, revision, nil
		}
	}
}

// unpackEntry reads revision, k, created, flags and lock index, then session, key and
// value with their lengths.
func unpackEntry(body []byte) (e Entry, err error) {
	r := bytes.NewReader(body)
	var k uint64
	for _, n := range []*uint64{&e.ModifyIndex, &k, &e.CreateIndex, &e.Flags, &e.LockIndex} {
		if *n, err = binary.ReadUvarint(r); err != nil {
			return e, err
		}
	}
	var texts [3][]byte
	for i := range texts {
		size, err := binary.ReadUvarint(r)
		if err != nil {
			return e, err
		}
		texts[i] = make([]byte, size)
		if _, err := io.ReadFull(r, texts[i]); err != nil {
			return e, err
		}
	}
	e.Session, e.Key, e.Value = string(texts[0]), string(texts[1]), texts[2]
	return e, nil
}

// Check implements Workload.
func (*Restores) Check(ops []history.Op) []Anomaly {
	found := broken(ops)
	j := &restoreJudge{archives: map[int]Picture{}, writes: map[string]history.Op{}, acknowledged: map[string][]Both{}}
	var acknowledged front
	nodes := map[string]*front{}
	for _, o := range ops {
		index, decided := o.Out.(uint64)
		if decided {
			acknowledged.add(o.Return, index)
		}
		switch in := o.In.(type) {
		case Both:
			j.writes[in.Value] = o
			if !slices.Contains(j.pairs, in.Pair) {
				j.pairs = append(j.pairs, in.Pair)
			}
			if decided {
				in.Modify = index
				j.acknowledged[in.Pair] = append(j.acknowledged[in.Pair], in)
			}
		case int:
			if o.Outcome != history.Refused {
				j.restores = append(j.restores, o)
			}
		}
		if a, ok := o.Out.(Archived); ok {
			j.archives[a.Number] = a.Picture
		}
		if p, ok := o.Out.(Picture); ok {
			if nodes[o.Teller()] == nil {
				nodes[o.Teller()] = &front{}
			}
			nodes[o.Teller()].add(o.Return, p.Applied)
		}
	}
	acknowledged.settle()
	for _, all := range j.acknowledged {
		slices.SortFunc(all, func(a, b Both) int { return cmp.Compare(a.Modify, b.Modify) })
	}
	for _, f := range nodes {
		f.settle()
	}
	for _, o := range ops {
		if index, ok := o.Out.(uint64); ok {
			if before, _ := acknowledged.before(o.Call); index <= before {
				found = append(found, anomaly("revision goes back", fmt.Sprintf("index %d was acknowledged before", before), o))
			}
		}
		if o.Name == "wait" && o.Out == false {
			found = append(found, anomaly("not woken", "it waited, and a restore did not wake it", o))
		}
		p, ok := o.Out.(Picture)
		if a, archived := o.Out.(Archived); archived {
			p, ok = a.Picture, true
		}
		if !ok {
			continue
		}
		var must uint64
		switch o.In {
		case consistent, "/v1/snapshot":
			must, _ = acknowledged.before(o.Call)
		case byDefault:
			must, _ = acknowledged.before(o.Call - leaderLease)
		}
		if f := nodes[o.Teller()]; f != nil {
			if before, _ := f.before(o.Call); p.Applied < before {
				found = append(found, anomaly("node goes back", fmt.Sprintf("the node had answered with revision %d", before), o))
			}
		}
		switch {
		case p.Torn != "":
			found = append(found, anomaly("torn", p.Torn, o))
		case p.Applied < must:
			found = append(found, anomaly("read of the past", fmt.Sprintf("index %d was acknowledged before", must), o))
		default:
			found = append(found, j.picture(o, p)...)
		}
	}
	return found
}

// restoreJudge knows what was written and restored.
type restoreJudge struct {
	archives     map[int]Picture
	writes       map[string]history.Op // by value
	acknowledged map[string][]Both     // by pair, in order
	pairs        []string
	restores     []history.Op // in order, but those that were refused
}

// picture judges that all pairs are what they were at the picture's revision.
func (j *restoreJudge) picture(o history.Op, p Picture) (found []Anomaly) {
	// base is what the last restore before it put in place; others are restores since
	// then of which nobody knows whether they have happened.
	var began uint64
	var base Picture
	var others []history.Op
	for _, r := range j.restores {
		index, known := r.Out.(uint64)
		switch {
		case known && index <= p.Applied:
			began, base, others = index, j.archives[r.In.(int)], nil
		case known: // it comes later
		case r.Call < o.Return:
			others = append(others, r)
		}
	}
	for _, pair := range j.pairs {
		got, there := p.Pairs[pair]
		var newest Both // of what was acknowledged since then
		all := j.acknowledged[pair]
		if n := sort.Search(len(all), func(i int) bool { return all[i].Modify > p.Applied }); n > 0 && all[n-1].Modify > began {
			newest = all[n-1]
		}
		want := newest
		if newest.Modify == 0 {
			want = base.Pairs[pair]
		}
		writer, known := j.writes[got.Value]
		switch {
		case got == want:
			continue
		case there && !known:
			found = append(found, anomaly("out of nothing", fmt.Sprintf("nobody wrote %+v", got), o))
			continue
		case there && writer.Outcome == history.Unknown && got.Modify > max(began, newest.Modify) && got.Modify <= p.Applied:
			continue
		}
		excused := false
		for _, r := range others {
			excused = excused || got == j.archives[r.In.(int)].Pairs[pair]
		}
		if !excused {
			found = append(found, anomaly("not the state it says", fmt.Sprintf("pair %s is %+v and was %+v at revision %d, restored at %d", pair, got, want, p.Applied, began), o))
		}
	}
	return found
}
