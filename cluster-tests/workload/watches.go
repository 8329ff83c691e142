package workload

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/history"
)

// Watches reads keys and prefixes by blocking queries, at every node and in every
// mode, each with the index of the answer before, at the same node or at another one,
// while few writers change little.
//
// The promise: an answer is the state at its X-Holdfast-Applied, and its index that
// of the last change of what was read, neither older nor newer. What a node answers
// never goes back. A consistent answer has all that was acknowledged before the
// request, one in the default mode all but the last 100 ms. Who waits is woken: an
// answer does not speak of a moment long after the node had what was waited for. And
// when all is over, everybody sees the last value soon.
type Watches struct{}

// NewWatches makes the workload.
func NewWatches() *Watches { return &Watches{} }

// Name implements Workload.
func (*Watches) Name() string { return "watches" }

const (
	watchDirs, watchKeys = 2, 3 // in each
	// watchersPerNode begin at each node.
	watchersPerNode = 2
	// awakening is how long a node may take to answer who waits, while it answers
	// others. It leaves room for a machine that does much else.
	awakening = 3 * time.Second
)

// Wait is a read that waits for an index above Index. Mode is the one that counts:
// on a learner the default is stale.
type Wait struct {
	Target string // a key, or a prefix if it ends with a slash
	Mode   string
	Index  uint64
	For    time.Duration
}

// Woken is the answer to a Wait.
type Woken struct {
	Index, Applied uint64
	Entries        []Entry
}

func watchKey(dir, key int) string { return fmt.Sprintf("watches/%d/%d", dir, key) }

// Setup implements Workload.
func (*Watches) Setup(context.Context, *Env) error { return nil }

// Clients implements Workload.
func (w *Watches) Clients(ctx context.Context, e *Env) {
	writers := max(1, e.Clients/2)
	e.each(writers+watchersPerNode*len(e.Nodes), func(id int) {
		if id < writers {
			w.write(ctx, e, id)
		} else {
			w.watch(ctx, e, id, e.Nodes[(id-writers)%len(e.Nodes)])
		}
	})
}

func (w *Watches) write(ctx context.Context, e *Env, id int) {
	r := e.Rand(w.Name(), id)
	for i := 0; ; i++ {
		n, release, ok := e.Pick(ctx, r, e.Nodes)
		if !ok {
			return
		}
		edit := Edit{Target: watchKey(r.IntN(watchDirs), r.IntN(watchKeys)), Value: fmt.Sprintf("%d.%d", id, i)}
		switch r.IntN(12) {
		case 0:
			edit = Edit{Target: fmt.Sprintf("watches/%d/", r.IntN(watchDirs)), Delete: true}
		case 1, 2:
			edit.Value, edit.Delete = "", true
		}
		e.edit(ctx, n, w.Name(), id, edit)
		release()
		// So rarely that who waits does wait, and is not woken by the next change
		// when this one was missed.
		Rest(ctx, time.Duration(r.Int64N(int64(40*max(e.Think, 10*time.Millisecond)))))
	}
}

// watch follows one thing after the other.
func (w *Watches) watch(ctx context.Context, e *Env, id int, n *Node) {
	r := e.Rand(w.Name(), id)
	for ctx.Err() == nil {
		target := watchKey(r.IntN(watchDirs), r.IntN(watchKeys+1)) // the last one is never written
		if r.IntN(2) == 0 {
			target = fmt.Sprintf("watches/%d/", r.IntN(watchDirs))
		}
		mode := readModes[r.IntN(len(readModes))]
		if r.IntN(3) == 0 {
			mode = stale
		}
		var known uint64
		for range 1 + r.IntN(20) {
			in := Wait{Target: target, Mode: mode, Index: known, For: time.Duration(1+r.IntN(15)) * time.Second}
			seen, ok := w.wait(ctx, e, n, id, in)
			if ctx.Err() != nil {
				return
			}
			if known = seen.Index; !ok || r.IntN(6) == 0 {
				n = e.Nodes[r.IntN(len(e.Nodes))]
				known = in.Index
			}
			if !ok {
				Rest(ctx, time.Duration(20+r.IntN(100))*time.Millisecond)
			}
		}
	}
}

// wait makes one blocking query.
func (w *Watches) wait(ctx context.Context, e *Env, n *Node, client int, in Wait) (seen Woken, ok bool) {
	path := Key(in.Target) + fmt.Sprintf("?index=%d&wait=%v", in.Index, in.For)
	if strings.HasSuffix(in.Target, "/") {
		path += "&recurse"
	}
	if in.Mode != byDefault {
		path += "&" + in.Mode
	} else if !n.Voter {
		in.Mode = stale
	}
	p := e.History.Call(history.Op{Workload: w.Name(), Client: client, Node: n.Name, Name: "wait", In: in})
	ctx, cancel := context.WithTimeout(ctx, in.For+in.For/16+Patience)
	defer cancel()
	a, err := n.Ask(ctx, http.MethodGet, path, nil)
	ok = ended(p, a, err, func(a Answer) (_ any, err error) {
		if seen.Index, err = a.Index(); err != nil {
			return nil, err
		}
		if seen.Applied, err = a.Applied(); err != nil {
			return nil, err
		}
		seen.Entries, err = a.Entries()
		return seen, err
	}, http.StatusNotFound) == history.Decided
	return seen, ok
}

// Finish implements Workload: at each node somebody waits for everything, it is
// written a last time, and everybody sees that.
func (w *Watches) Finish(ctx context.Context, e *Env) error {
	var targets []string
	for d := range watchDirs {
		targets = append(targets, fmt.Sprintf("watches/%d/", d))
		for k := range watchKeys {
			targets = append(targets, watchKey(d, k))
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 4*overtime)
	defer cancel()
	began := make(chan struct{}, len(e.Nodes)*len(targets))
	var err error
	written := make(chan struct{})
	go func() {
		defer close(written)
		for range cap(began) {
			<-began
		}
		for d := range watchDirs {
			for k := range watchKeys {
				err = cmp.Or(err, e.editUntilDone(ctx, w.Name(), Edit{Target: watchKey(d, k), Value: last}))
			}
		}
	}()
	e.each(len(e.Nodes)*len(targets), func(i int) {
		n, target := e.Nodes[i%len(e.Nodes)], targets[i/len(e.Nodes)]
		mode := readModes[i%len(readModes)]
		p := e.History.Call(history.Op{Workload: w.Name(), Client: teller + 1 + i, Node: n.Name, Name: "last", In: target})
		seen, _ := w.wait(ctx, e, n, teller+1+i, Wait{Target: target, Mode: mode})
		began <- struct{}{}
		sawAll := func() bool {
			want := 1
			if strings.HasSuffix(target, "/") {
				want = watchKeys
			}
			return len(seen.Entries) == want && !slices.ContainsFunc(seen.Entries, func(e Entry) bool { return string(e.Value) != last })
		}
		for !sawAll() && ctx.Err() == nil {
			next, ok := w.wait(ctx, e, n, teller+1+i, Wait{Target: target, Mode: mode, Index: seen.Index, For: 5 * time.Minute})
			if ok {
				seen = next
			} else {
				Rest(ctx, 100*time.Millisecond)
			}
		}
		p.Decided(sawAll())
	})
	if <-written; err != nil {
		return err
	}
	return e.tellAll(context.WithoutCancel(ctx), w.Name())
}

// Check implements Workload.
func (w *Watches) Check(ops []history.Op) []Anomaly {
	past, found := judgeWriters(ops)
	if past == nil {
		return found
	}
	answering := map[string]*serving{}
	var acknowledged front
	for _, o := range ops {
		if index, ok := o.Out.(uint64); ok {
			acknowledged.add(o.Return, index)
		}
		if seen, ok := o.Out.(Woken); ok {
			if answering[o.Teller()] == nil {
				answering[o.Teller()] = &serving{}
			}
			answering[o.Teller()].add(o, seen.Applied)
		}
	}
	acknowledged.settle()
	for _, s := range answering {
		s.settle()
	}
	// Puts alone make the index that they are answered with: a delete of nothing is
	// answered with what was last.
	clock := newClockwork(ops, func(o history.Op) (uint64, bool) {
		i, ok := o.Out.(uint64)
		edits, _ := o.In.([]Edit)
		return i, ok && slices.ContainsFunc(edits, func(e Edit) bool { return !e.Delete })
	})
	for _, o := range ops {
		if o.Name == "last" && o.Out == false {
			found = append(found, anomaly("never woken", "all was written a last time, and who waited for it did not see that", o))
		}
		seen, ok := o.Out.(Woken)
		if !ok {
			continue
		}
		in := o.In.(Wait)
		if before, than := answering[o.Teller()].answered.before(o.Call); before > seen.Applied {
			found = append(found, anomaly("node goes back", fmt.Sprintf("the node had answered with revision %d by %v", before, than), o))
		}
		var must uint64
		switch in.Mode {
		case consistent:
			must, _ = acknowledged.before(o.Call)
		case byDefault:
			must, _ = acknowledged.before(o.Call - leaderLease)
		}
		if seen.Applied < must {
			found = append(found, anomaly("read of the past", fmt.Sprintf("index %d was acknowledged before", must), o))
		}
		if seen.Applied < past.From || seen.Applied > past.To {
			continue
		}
		if what := past.wrong(in.Target, seen); what != "" {
			found = append(found, anomaly("not the state it says", what, o))
		}
		// Answers long after the fact, of what needs no leader.
		if wake := past.next(in.Target, in.Index); in.Mode == stale && in.Index > 0 && wake > 0 && wake <= seen.Applied {
			at := max(answering[o.Teller()].answered.first(wake), o.Call)
			proof := answering[o.Teller()].firstAnswerTo(at + awakening)
			if looked := clock.notBefore(seen.Applied + 1); proof < math.MaxInt64 && looked > proof+time.Second {
				found = append(found, anomaly("missed wake-up", fmt.Sprintf("the node had index %d at %v, and looked after %v", wake, at, looked), o))
			}
		}
	}
	return found
}

// wrong says what is wrong with an answer, by the log; empty when nothing is.
func (p *past) wrong(target string, seen Woken) string {
	index, what := p.differs(target, seen.Applied, seen.Entries)
	// Of what never was, or of a key that is no more, the index may be that of all keys.
	none := index == 0 || len(seen.Entries) == 0 && !strings.HasSuffix(target, "/")
	switch {
	case what != "":
		return what
	case seen.Index < index, seen.Index > seen.Applied, seen.Index > index && p.whole() && !none:
		return fmt.Sprintf("its last change was at %d", index)
	}
	return ""
}
