package workload

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/holdfast-db/holdfast/cluster-tests/history"
)

// LongFork is clients that write different keys at the same time, each key once and
// without a condition, through different nodes, and others that read them at different
// nodes. The promise: what a node has is a prefix of one order of all writes. So of two
// reads, wherever they were made, one sees all that the other sees: never has one the
// first write without the second, and another the second without the first.
type LongFork struct {
	mu      sync.Mutex
	written int // keys handed out
}

const (
	// forkKeys is how many keys make a group, which is read at once.
	forkKeys = 4
	// forkGroups is how many groups readers look at: those in use.
	forkGroups = 3
)

// NewLongFork makes the workload.
func NewLongFork() *LongFork { return &LongFork{} }

// Name implements Workload.
func (*LongFork) Name() string { return "longfork" }

// Setup implements Workload.
func (*LongFork) Setup(context.Context, *Env) error { return nil }

// ForkKey is In of a write.
type ForkKey struct {
	Group int `json:"group"`
	Key   int `json:"key"`
}

func (k ForkKey) String() string { return forkGroup(k.Group) + fmt.Sprint(k.Key) }

// forkGroup is the prefix of a group's keys.
func forkGroup(group int) string { return fmt.Sprintf("longfork/%06d/", group) }

// forkRead is In of a read: of a group by a way of bankWays, or of one key.
type forkRead struct {
	Group int    `json:"group"`
	Way   string `json:"way"`
	Mode  string `json:"mode,omitempty"`
	// Key is the one that is read by byKey.
	Key int `json:"key,omitempty"`
}

// byKey is GET of one key.
const byKey = "key"

var forkWays = []string{byGets, byTree, byListing, byKey}

// Sight is Out of a read: which keys were there, with their revisions, in the state of
// a revision.
type Sight struct {
	Revision uint64         `json:"revision"`
	Keys     map[int]uint64 `json:"keys,omitempty"`
}

// Clients implements Workload: every other client writes.
func (w *LongFork) Clients(ctx context.Context, e *Env) {
	e.each(max(e.Clients, 2), func(id int) {
		r := e.Rand(w.Name(), id)
		e.loop(ctx, r, e.Nodes, func(n *Node, _ int) bool {
			if id%2 == 0 {
				return w.write(ctx, e, n, id) == history.Decided
			}
			group := w.group() - r.IntN(forkGroups)
			way := forkWays[r.IntN(len(forkWays))]
			return w.read(ctx, e, n, id, forkRead{max(group, 0), way, readModes[r.IntN(len(readModes))], r.IntN(forkKeys)}) == history.Decided
		})
	})
}

// group is the one whose keys are handed out now.
func (w *LongFork) group() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.written / forkKeys
}

// next hands out a key.
func (w *LongFork) next() ForkKey {
	w.mu.Lock()
	defer w.mu.Unlock()
	k := ForkKey{w.written / forkKeys, w.written % forkKeys}
	w.written++
	return k
}

func (w *LongFork) write(ctx context.Context, e *Env, n *Node, client int) history.Outcome {
	k := w.next()
	p := e.History.Call(history.Op{Workload: w.Name(), Client: client, Node: n.Name, Name: "write", In: k})
	a, err := n.Do(ctx, http.MethodPut, Key(k.String()), []byte("1"))
	return ended(p, a, err, func(a Answer) (any, error) {
		if !a.True() {
			return nil, fmt.Errorf("a plain put answered %.100q", a.Body)
		}
		return a.Index()
	})
}

func (w *LongFork) read(ctx context.Context, e *Env, n *Node, client int, how forkRead) history.Outcome {
	if how.Way != byKey {
		how.Key = 0
	}
	p := e.History.Call(history.Op{Workload: w.Name(), Client: client, Node: n.Name, Name: "read", In: how})
	prefix := forkGroup(how.Group)
	var a Answer
	var err error
	entries := Answer.Entries
	switch how.Way {
	case byGets:
		var ops []txnOp
		for key := range forkKeys {
			ops = append(ops, txnOp{Verb: "get-or-empty", Key: ForkKey{how.Group, key}.String()})
		}
		a, err = n.txn(ctx, how.Mode, ops)
		entries = Answer.results
	case byTree:
		a, err = n.txn(ctx, how.Mode, []txnOp{{Verb: "get-tree", Key: prefix}})
		entries = Answer.results
	case byListing:
		a, err = n.Do(ctx, http.MethodGet, Key(prefix)+"?recurse&"+how.Mode, nil)
	case byKey:
		a, err = n.Do(ctx, http.MethodGet, Key(ForkKey{how.Group, how.Key}.String())+"?"+how.Mode, nil)
	}
	return ended(p, a, err, func(a Answer) (any, error) {
		found, err := entries(a)
		if err != nil {
			return nil, err
		}
		out := Sight{Keys: map[int]uint64{}}
		for _, entry := range found {
			var key int
			if _, err := fmt.Sscanf(strings.TrimPrefix(entry.Key, prefix), "%d", &key); err != nil {
				return nil, fmt.Errorf("key %q is not of group %d", entry.Key, how.Group)
			}
			if entry.CreateIndex > 0 {
				out.Keys[key] = entry.CreateIndex
			}
		}
		out.Revision, err = a.Applied()
		return out, err
	}, http.StatusNotFound)
}

// Finish implements Workload: a read of the last groups at each node.
func (w *LongFork) Finish(ctx context.Context, e *Env) error {
	for i, n := range e.Nodes {
		for back := range forkGroups {
			err := lastRead(ctx, n, func() history.Outcome {
				return w.read(ctx, e, n, e.Clients+i, forkRead{Group: max(w.group()-back, 0), Way: byGets, Mode: consistent})
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// Check implements Workload.
func (*LongFork) Check(ops []history.Op) []Anomaly {
	found := broken(ops)
	groups := map[int]*forkJudge{}
	of := func(group int) *forkJudge {
		if groups[group] == nil {
			groups[group] = &forkJudge{writes: map[int]history.Op{}, revisions: map[int]uint64{}, saw: map[int]history.Op{}}
		}
		return groups[group]
	}
	var all []dated
	for _, o := range ops {
		switch in := o.In.(type) {
		case ForkKey:
			of(in.Group).writes[in.Key] = o
			if revision, ok := o.Out.(uint64); ok {
				of(in.Group).revisions[in.Key] = revision
				of(in.Group).saw[in.Key] = o
				all = append(all, dated{o, revision, true})
			}
		case forkRead:
			if out, ok := o.Out.(Sight); ok {
				of(in.Group).reads = append(of(in.Group).reads, o)
				all = append(all, dated{o, out.Revision, in.Mode == consistent})
			}
		}
	}
	for _, group := range slices.Sorted(maps.Keys(groups)) {
		j := groups[group]
		j.judge()
		found = append(found, j.found...)
	}
	return append(found, readsOfThePast(all)...)
}

// forkJudge judges what was written and seen of one group.
type forkJudge struct {
	found  []Anomaly
	writes map[int]history.Op
	reads  []history.Op
	// revisions are those of the keys, as they were told to, or seen by, who is in saw.
	revisions map[int]uint64
	saw       map[int]history.Op
}

func (j *forkJudge) anomaly(kind, text string, ops ...history.Op) {
	j.found = append(j.found, anomaly(kind, text, ops...))
}

func (j *forkJudge) judge() {
	for _, o := range j.reads {
		out := o.Out.(Sight)
		for _, key := range slices.Sorted(maps.Keys(out.Keys)) {
			at := out.Keys[key]
			write, ok := j.writes[key]
			switch {
			case !ok:
				j.anomaly("out of nothing", fmt.Sprintf("nobody wrote key %d", key), o)
			case write.Outcome == history.Refused:
				j.anomaly("refused but there", fmt.Sprintf("key %d", key), write, o)
			case o.Before(write):
				j.anomaly("read of the future", fmt.Sprintf("key %d", key), write, o)
			}
			if before, ok := j.revisions[key]; !ok {
				j.revisions[key], j.saw[key] = at, o
			} else if before != at {
				j.anomaly("two revisions of one write", fmt.Sprintf("key %d at %d and at %d", key, before, at), j.saw[key], o)
			}
		}
	}
	// Of each read, by the revisions: what it saw is exactly what there was at its own.
	var whole []history.Op
	for _, o := range j.reads {
		in, out := o.In.(forkRead), o.Out.(Sight)
		keys := []int{in.Key}
		if in.Way != byKey {
			whole, keys = append(whole, o), slices.Sorted(maps.Keys(j.revisions))
		}
		for _, key := range keys {
			at, known := j.revisions[key]
			if _, seen := out.Keys[key]; known && seen != (at <= out.Revision) {
				j.anomaly("state of another revision", fmt.Sprintf("key %d is of %d; seen in a state of %d: %v", key, at, out.Revision, seen), j.saw[key], o)
			}
		}
	}
	// Without the revisions: ordered by how much they saw, each has all that the one
	// before it has.
	slices.SortStableFunc(whole, func(a, b history.Op) int {
		return cmp.Compare(len(a.Out.(Sight).Keys), len(b.Out.(Sight).Keys))
	})
	for i := 1; i < len(whole); i++ {
		less, more := whole[i-1].Out.(Sight).Keys, whole[i].Out.(Sight).Keys
		for _, key := range slices.Sorted(maps.Keys(less)) {
			if _, ok := more[key]; !ok {
				j.anomaly("long fork", fmt.Sprintf("one saw key %d and not all that the other saw, which did not see it", key), whole[i-1], whole[i])
				break
			}
		}
	}
	// In real time: a consistent read has all that somebody had seen before it began.
	seen := map[int]history.Op{} // the first that knew of a key
	know := func(key int, o history.Op) {
		if before, ok := seen[key]; !ok || o.Return < before.Return {
			seen[key] = o
		}
	}
	for key, write := range j.writes {
		if write.Outcome == history.Decided {
			know(key, write)
		}
	}
	for _, o := range j.reads {
		for key := range o.Out.(Sight).Keys {
			know(key, o)
		}
	}
	for _, o := range j.reads {
		in, out := o.In.(forkRead), o.Out.(Sight)
		if in.Mode != consistent {
			continue
		}
		for _, key := range slices.Sorted(maps.Keys(seen)) {
			if _, ok := out.Keys[key]; !ok && (in.Way != byKey || in.Key == key) && seen[key].Before(o) {
				j.anomaly("stale", fmt.Sprintf("a consistent read misses key %d", key), seen[key], o)
			}
		}
	}
}
