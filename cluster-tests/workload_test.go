package clustertests

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// workload is a set of clients that write and read through all nodes, and the
// record of what they did and saw.
//
// There are two kinds of client. The mixed ones put, compare-and-set, delete
// and read a few hot keys; what they see goes to the judges. The journal ones
// each append to a journal of their own, one key after the other, so that at
// the end it can be counted what was acknowledged and what is there, and so
// that a reader can see whether a copy holds a prefix.
type workload struct {
	c       *cluster
	history *history

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	slots [6]slot

	acknowledged atomic.Int64 // writes
	refusals     atomic.Int64 // writes refused, or of unknown outcome
	localReads   atomic.Int64

	mu       sync.Mutex
	problems []string             // answers that break the API
	journals map[int]map[int]bool // journal -> number -> acknowledged
	served   map[string]int       // reads answered by node
	lost     map[string][]string  // node -> writes that were not decided
	avoid    map[*node]bool       // nodes clients leave alone
	asked    map[*node]int        // clients that wait for a node now
}

// slot is a hot key in use. It is given up for a new one after some
// operations, and whenever an outcome on it is unknown: the judge of
// linearizability is quick on short histories with few open ends.
type slot struct {
	sync.Mutex
	epoch int
	used  int
	last  uint64 // revision somebody saw last, for cas
}

const opsPerKey = 80

// load starts the clients.
func (c *cluster) load() *workload {
	w := &workload{c: c, history: newHistory(), journals: map[int]map[int]bool{}, served: map[string]int{},
		lost: map[string][]string{}, avoid: map[*node]bool{}, asked: map[*node]int{}}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	clients := 0
	client := func(run func(id int)) {
		clients++
		id := clients
		w.wg.Go(func() { run(id) })
	}
	for range 4 {
		client(func(id int) { w.mixed(id, c.nodes) })
	}
	for range 2 { // so that work goes on while whole sites hang
		client(func(id int) { w.mixed(id, c.voters()) })
	}
	for range 2 {
		client(func(id int) { w.journal(id, c.voters()) })
	}
	for _, n := range c.learners() {
		client(func(id int) { w.localReader(id, n) })
		client(func(id int) { w.journalReader(n) })
	}
	for _, n := range c.nodes {
		client(func(id int) { w.boundedReader(id, n) })
	}
	return w
}

// atOnce is how many clients ask one node at the same time, so that a node that
// hangs holds up few of them and the others go on.
const atOnce = 2

// pick chooses a node to ask; release gives it back. It returns nil when there
// is none at the moment.
func (w *workload) pick(nodes []*node) *node {
	w.mu.Lock()
	defer w.mu.Unlock()
	nodes = slices.DeleteFunc(slices.Clone(nodes), func(n *node) bool { return w.avoid[n] || w.asked[n] >= atOnce })
	if len(nodes) == 0 {
		return nil
	}
	n := nodes[rand.IntN(len(nodes))]
	w.asked[n]++
	return n
}

func (w *workload) release(n *node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked[n]--
}

// problem notes an answer that breaks the API.
func (w *workload) problem(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.problems = append(w.problems, fmt.Sprintf(format, args...))
}

// rest keeps a client from asking a node that is down over and over.
func (w *workload) rest(d time.Duration) {
	select {
	case <-w.ctx.Done():
	case <-time.After(d):
	}
}

// take returns the key of a slot and the last revision seen of it.
func (s *slot) take(i int) (key string, last uint64) {
	s.Lock()
	defer s.Unlock()
	if s.used++; s.used > opsPerKey {
		s.epoch, s.used, s.last = s.epoch+1, 0, 0
	}
	return fmt.Sprintf("hot/%d/%04d", i, s.epoch), s.last
}

// saw notes a revision of the slot's key; abandon gives the key up.
func (s *slot) saw(i int, key string, revision uint64, abandon bool) {
	s.Lock()
	defer s.Unlock()
	if key != fmt.Sprintf("hot/%d/%04d", i, s.epoch) {
		return
	}
	if s.last = revision; abandon {
		s.epoch, s.used, s.last = s.epoch+1, 0, 0
	}
}

// mixed is a client of the hot keys.
func (w *workload) mixed(id int, nodes []*node) {
	for seq := 0; w.ctx.Err() == nil; seq++ {
		n := w.pick(nodes)
		if n == nil {
			w.rest(5 * time.Millisecond)
			continue
		}
		i := rand.IntN(len(w.slots))
		key, last := w.slots[i].take(i)
		value := fmt.Sprintf("%d.%d", id, seq)
		o := op{client: id, node: n.name, key: key, value: value}
		switch dice := rand.IntN(100); {
		case dice < 30:
			w.write(i, n, o, func() written { return put(n, key, value, "") })
		case dice < 50:
			o.kind, o.index = casOp, last
			w.write(i, n, o, func() written { return put(n, key, value, fmt.Sprintf("cas=%d", last)) })
		case dice < 56:
			o.kind, o.value = deleteOp, ""
			w.write(i, n, o, func() written { return remove(n, key, "") })
		case dice < 85 || n.learner():
			w.read(i, id, n, key, consistent)
		default:
			w.read(i, id, n, key, leading)
		}
		w.release(n)
	}
}

// write makes one write and records it.
func (w *workload) write(i int, n *node, o op, do func() written) {
	o.call = w.history.now()
	got := do()
	o.ret = w.history.now()
	o.outcome, o.ok, o.revision = got.outcome, got.ok, got.revision
	if got.outcome == decided && got.err != nil {
		w.problem("%v: %v", o, got.err)
	}
	if o.kind == putOp && got.outcome == decided && !got.ok {
		w.problem("%v: a plain put answered false", o)
	}
	w.history.add(o)
	w.count(n, got)
	switch {
	case got.outcome == unknown:
		w.slots[i].saw(i, o.key, 0, true)
	case got.outcome == refused:
		w.rest(5 * time.Millisecond)
	case o.kind == deleteOp:
		w.slots[i].saw(i, o.key, 0, false)
	case got.ok:
		w.slots[i].saw(i, o.key, got.revision, false)
	}
}

// count keeps the tallies of writes.
func (w *workload) count(n *node, got written) {
	if got.outcome == decided {
		w.acknowledged.Add(1)
		return
	}
	w.refusals.Add(1)
	if got.outcome == refused && got.status != 0 {
		w.problem("%s refused a write with %d: %s", n, got.status, got.text)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lost[n.name] = append(w.lost[n.name], fmt.Sprintf("status %d %q %v", got.status, got.text, got.err))
}

// read makes one read and records it when it was answered.
func (w *workload) read(i, id int, n *node, key string, m mode) {
	w.readAs(i, n, op{client: id, key: key, mode: m})
}

// readAs is read of an op that says who reads what and how.
func (w *workload) readAs(i int, n *node, o op) {
	key, m := o.key, o.mode
	query := map[mode]string{consistent: "consistent", leading: "", local: "stale"}[m]
	switch {
	case o.bound > 0:
		query = fmt.Sprintf("max_stale=%v", o.bound)
	case m == local && n.learner() && rand.IntN(2) == 0:
		query = "" // what a learner does when no mode is named
	}
	o.kind, o.call = readOp, w.history.now()
	a, err := read(n, key, query)
	o.ret = w.history.now()
	var broken *answerError
	if errors.As(err, &broken) {
		w.problem("%s read of %s at %s: %v", m, key, n, err)
	}
	if o.bound > 0 && a.status == http.StatusOK && (!a.stalenessKnown || a.staleness > o.bound+time.Millisecond) {
		w.problem("a read of %s at %s that was to be at most %v old says that it is %v (known: %v)", key, n, o.bound, a.staleness, a.stalenessKnown)
	}
	if err != nil || a.status != http.StatusOK && a.status != http.StatusNotFound {
		w.rest(5 * time.Millisecond)
		return
	}
	if a.node != n.name {
		w.problem("%s read of %s at %s was answered by %q", m, key, n, a.node)
	}
	o.node, o.applied, o.staleness, o.stalenessKnown = a.node, a.applied, a.staleness, a.stalenessKnown
	if len(a.entries) > 0 {
		e := a.entries[0]
		o.found, o.value, o.revision = true, string(e.Value), e.ModifyIndex
		if e.Key != key || len(a.entries) != 1 || e.CreateIndex == 0 || e.CreateIndex > e.ModifyIndex {
			w.problem("read of %s at %s answered %+v", key, n, a.entries)
		}
	}
	w.history.add(o)
	w.mu.Lock()
	w.served[n.name]++
	w.mu.Unlock()
	if m == local {
		w.localReads.Add(1)
	} else if i >= 0 {
		w.slots[i].saw(i, key, o.revision, false)
	}
}

// localReader reads hot keys at one node, as it has them.
func (w *workload) localReader(id int, n *node) {
	for seq := 0; w.ctx.Err() == nil; seq++ {
		w.read(-1, id, n, w.hotKey(max(seq%4-2, 0)), local)
		w.rest(3 * time.Millisecond)
	}
}

// hotKey is a key in use or, with back, one of those in its place before it.
func (w *workload) hotKey(back int) string {
	i := rand.IntN(len(w.slots))
	w.slots[i].Lock()
	defer w.slots[i].Unlock()
	return fmt.Sprintf("hot/%d/%04d", i, max(w.slots[i].epoch-back, 0))
}

// boundedReader reads hot keys at one node, as it has them unless that is too old: by
// a bound that a level copy keeps at times only, by one that it keeps unless it is
// behind, and by none.
func (w *workload) boundedReader(id int, n *node) {
	bounds := [...]time.Duration{200 * time.Millisecond, 700 * time.Millisecond, 0}
	for seq := 0; w.ctx.Err() == nil; seq++ {
		w.readAs(-1, n, op{client: id, key: w.hotKey(max(seq%4-2, 0)), mode: local, bound: bounds[seq%len(bounds)]})
		w.rest(5 * time.Millisecond)
	}
}

// journalKey is an entry of a client's journal; keys sort as they were written.
func journalKey(id, seq int) string { return fmt.Sprintf("journal/%02d/%06d", id, seq) }

// journal appends to a journal of its own. It goes on to the next entry only
// when one is acknowledged, and repeats one until it is: so whoever sees an
// entry must see all before it.
func (w *workload) journal(id int, nodes []*node) {
	w.mu.Lock()
	w.journals[id] = map[int]bool{}
	w.mu.Unlock()
	for seq := 1; w.ctx.Err() == nil; {
		n := w.pick(nodes)
		if n == nil {
			w.rest(5 * time.Millisecond)
			continue
		}
		got := put(n, journalKey(id, seq), fmt.Sprint(seq), "")
		w.release(n)
		w.count(n, got)
		if got.outcome != decided {
			w.rest(5 * time.Millisecond)
			continue
		}
		w.mu.Lock()
		w.journals[id][seq] = true
		w.mu.Unlock()
		seq++
		w.rest(2 * time.Millisecond)
	}
}

// journalReader demands that each journal, as a node has it, is without a gap
// and never gets shorter.
func (w *workload) journalReader(n *node) {
	longest := map[string]uint64{}
	for w.ctx.Err() == nil {
		keys, _, err := keysUnder(n, "journal/", "stale")
		if err != nil {
			w.rest(20 * time.Millisecond)
			continue
		}
		if err := checkJournals(keys, longest); err != nil {
			w.problem("%s: %v", n, err)
		}
		w.rest(30 * time.Millisecond)
	}
}

// checkJournals looks at keys, in order, for gaps in a journal and for
// journals shorter than longest, which it brings up to date.
func checkJournals(keys []string, longest map[string]uint64) error {
	length := map[string]uint64{}
	for _, key := range keys {
		var id string
		var seq uint64
		if _, err := fmt.Sscanf(key, "journal/%2s/%06d", &id, &seq); err != nil {
			return fmt.Errorf("key %q is no journal entry", key)
		}
		if seq != length[id]+1 {
			return fmt.Errorf("journal %s has entry %d after %d: not a prefix of what was written", id, seq, length[id])
		}
		length[id] = seq
	}
	for id, n := range longest {
		if length[id] < n {
			return fmt.Errorf("journal %s went back from %d entries to %d", id, n, length[id])
		}
	}
	maps.Copy(longest, length)
	return nil
}

// awaitWrites waits until that many more writes are acknowledged.
func (w *workload) awaitWrites(more int64) {
	w.c.t.Helper()
	target := w.acknowledged.Load() + more
	w.c.wait(30*time.Second, fmt.Sprintf("%d more writes are acknowledged", more), func() bool { return w.acknowledged.Load() >= target })
}

// awaitReads waits until a node has answered that many more reads.
func (w *workload) awaitReads(n *node, more int) {
	w.c.t.Helper()
	count := func() int {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.served[n.name]
	}
	target := count() + more
	w.c.wait(30*time.Second, fmt.Sprintf("%d more reads are answered by %s", more, n), func() bool { return count() >= target })
}

// stop ends the clients and waits for them.
func (w *workload) stop() {
	w.cancel()
	w.wg.Wait()
}

// judge stops the clients, brings the cluster back to full strength and holds
// everything against what the clients saw: the judgements, and that every
// acknowledged journal entry is at every node.
func (w *workload) judge() {
	t := w.c.t
	t.Helper()
	w.stop()
	w.c.inspect()
	for i := range w.slots { // the last word on every key, at every node
		for epoch := range w.slots[i].epoch + 1 {
			key := fmt.Sprintf("hot/%d/%04d", i, epoch)
			w.read(-1, 0, w.c.voters()[0], key, consistent)
			for _, n := range w.c.nodes {
				w.read(-1, 0, n, key, local)
			}
		}
	}
	for _, p := range w.problems[:min(len(w.problems), 10)] {
		t.Error(p)
	}
	ops := w.history.all()
	for _, j := range judgements {
		if err := j.find(ops); err != nil {
			t.Errorf("broken: %s\n%v", j.promise, err)
		}
	}
	for _, n := range w.c.nodes {
		there := map[string]bool{}
		keys, _, err := keysUnder(n, "journal/", "stale")
		if err == nil {
			err = checkJournals(keys, map[string]uint64{})
		}
		if err != nil {
			t.Errorf("journals at %s: %v", n, err)
			continue
		}
		for _, key := range keys {
			there[key] = true
		}
		for _, id := range slices.Sorted(maps.Keys(w.journals)) {
			for seq := range w.journals[id] {
				if !there[journalKey(id, seq)] {
					t.Errorf("LOST: %s was acknowledged and is not at %s", journalKey(id, seq), n)
				}
			}
		}
	}
	t.Logf("%d operations judged, %d writes acknowledged, %d refused or unknown, %d local reads",
		len(ops), w.acknowledged.Load(), w.refusals.Load(), w.localReads.Load())
}
