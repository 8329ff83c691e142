package workload

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/holdfast-db/holdfast/cluster-tests/history"
)

// Register is a handful of keys that clients put, compare-and-set, delete and read
// through all nodes, in all read modes. The promises:
//
//   - writes and consistent reads of a key are linearizable, and so are default reads
//     at a voter when they may be 100 ms late;
//   - revisions follow real time, and each change has its own;
//   - every read sees what the history has up to the revision it is answered at, not
//     more and not less;
//   - reads of one node never go back, also over a crash of its process;
//   - no answer is older than the staleness it names, nor than the max_stale it was
//     asked for.
type Register struct {
	slots   [6]slot
	crowded atomic.Int64 // reads of crowds so far
}

// slot is a hot key in use. It is given up for a new one after some operations, and
// whenever an outcome on it is unknown: the judge of linearizability is quick on short
// histories with few open ends.
type slot struct {
	sync.Mutex
	epoch int
	used  int
	last  uint64 // revision somebody saw last, for cas
}

const opsPerKey = 80

// NewRegister makes the workload.
func NewRegister() *Register { return &Register{} }

// Name implements Workload.
func (*Register) Name() string { return "register" }

// Setup implements Workload.
func (*Register) Setup(context.Context, *Env) error { return nil }

func hotKey(i, epoch int) string { return fmt.Sprintf("register/%d/%04d", i, epoch) }

// take returns the key of a slot and the last revision seen of it.
func (s *slot) take(i int) (key string, last uint64) {
	s.Lock()
	defer s.Unlock()
	if s.used++; s.used > opsPerKey {
		s.epoch, s.used, s.last = s.epoch+1, 0, 0
	}
	return hotKey(i, s.epoch), s.last
}

// saw notes a revision of the slot's key; abandon gives the key up.
func (s *slot) saw(i int, key string, revision uint64, abandon bool) {
	s.Lock()
	defer s.Unlock()
	if key != hotKey(i, s.epoch) {
		return
	}
	if s.last = revision; abandon {
		s.epoch, s.used, s.last = s.epoch+1, 0, 0
	}
}

// hotKey is a key in use or, with back, one of those in its place before it.
func (g *Register) hotKey(r *rand.Rand, back int) string {
	i := r.IntN(len(g.slots))
	g.slots[i].Lock()
	defer g.slots[i].Unlock()
	return hotKey(i, max(g.slots[i].epoch-back, 0))
}

// Clients implements Workload. Of three clients that write and read two ask all nodes
// and one the voters, so that work goes on while whole sites hang. Beside them one
// reads at each node what it has, unless it is too old, and one more at each learner.
func (g *Register) Clients(ctx context.Context, e *Env) {
	learners := e.Learners()
	e.each(e.Clients+len(e.Nodes)+len(learners), func(id int) {
		r := e.Rand(g.Name(), id)
		switch reader := id - e.Clients; {
		case reader >= len(e.Nodes):
			g.readLocally(ctx, e, r, id, learners[reader-len(e.Nodes)], 0)
		case reader >= 0:
			g.readLocally(ctx, e, r, id, e.Nodes[reader], 200*time.Millisecond, 700*time.Millisecond, 0)
		case id%3 == 2:
			g.mix(ctx, e, r, id, e.Voters())
		default:
			g.mix(ctx, e, r, id, e.Nodes)
		}
	})
}

// mix writes and reads.
func (g *Register) mix(ctx context.Context, e *Env, r *rand.Rand, id int, nodes []*Node) {
	e.loop(ctx, r, nodes, func(n *Node, seq int) bool {
		i := r.IntN(len(g.slots))
		key, last := g.slots[i].take(i)
		value := fmt.Sprintf("%d.%d", id, seq)
		switch dice := r.IntN(100); {
		case dice < 30:
			return g.write(ctx, e, i, id, n, "put", Write{Key: key, Value: value})
		case dice < 50:
			return g.write(ctx, e, i, id, n, "cas", Write{Key: key, Value: value, Index: last})
		case dice < 56:
			return g.write(ctx, e, i, id, n, "delete", Write{Key: key})
		default:
			read := Read{Key: key, Mode: Consistent}
			if dice >= 85 && n.Voter {
				read.Mode = Default
			}
			seen, ok := e.read(ctx, g.Name(), id, n, read)
			if ok {
				g.slots[i].saw(i, key, seen.Revision, false)
			}
			return ok
		}
	})
}

// write makes a write of a slot's key. It is false when that was not decided.
func (g *Register) write(ctx context.Context, e *Env, i, id int, n *Node, name string, w Write) bool {
	outcome, got := e.write(ctx, g.Name(), id, n, name, w)
	switch {
	case outcome == history.Unknown:
		g.slots[i].saw(i, w.Key, 0, true)
	case outcome == history.Refused:
	case name == "delete":
		g.slots[i].saw(i, w.Key, 0, false)
	case got.OK:
		g.slots[i].saw(i, w.Key, got.Revision, false)
	}
	return outcome == history.Decided
}

// readLocally reads hot keys at one node, as it has them: by a bound that a level copy
// keeps at times only, by one that it keeps unless it is behind, or by none.
func (g *Register) readLocally(ctx context.Context, e *Env, r *rand.Rand, id int, n *Node, bounds ...time.Duration) {
	for seq := 0; ctx.Err() == nil; seq++ {
		read := Read{Key: g.hotKey(r, max(seq%4-2, 0)), Mode: Stale, MaxStale: bounds[seq%len(bounds)]}
		if read.MaxStale == 0 && !n.Voter && r.IntN(2) == 0 {
			read.Mode = Copied
		}
		e.read(ctx, g.Name(), id, n, read)
		Rest(ctx, 4*time.Millisecond)
		e.Pause(ctx, r)
	}
}

// Crowd sends reads of hot keys to one node all at once, beside what the clients do.
// What it returns waits until all are answered.
func (g *Register) Crowd(ctx context.Context, e *Env, n *Node, reads ...Read) (answered func()) {
	var wg sync.WaitGroup
	for i, read := range reads {
		id := int(1000 + g.crowded.Add(1))
		read.Key, read.Crowded = g.hotKey(e.Rand(g.Name(), id), i%3), i >= 6
		wg.Go(func() { e.read(ctx, g.Name(), id, n, read) })
	}
	return wg.Wait
}

// Finish implements Workload: the last word on every key, at every node.
func (g *Register) Finish(ctx context.Context, e *Env) error {
	for i := range g.slots {
		for epoch := range g.slots[i].epoch + 1 {
			key := hotKey(i, epoch)
			e.read(ctx, g.Name(), e.Clients, e.Voters()[0], Read{Key: key, Mode: Consistent})
			for _, n := range e.Nodes {
				if _, ok := e.read(ctx, g.Name(), e.Clients, n, Read{Key: key, Mode: Stale}); !ok {
					return fmt.Errorf("%s does not say what it has of %s", n, key)
				}
			}
		}
	}
	return nil
}

// Check implements Workload.
func (*Register) Check(ops []history.Op) []Anomaly {
	all := accesses(ops)
	return slices.Concat(broken(ops), nonLinearizable(all), revisionDisorder(all), nonPrefix(all), goingBack(all),
		olderThan(all, "older than it says", func(a access) (time.Duration, bool) { return a.seen.Staleness, a.seen.StalenessKnown }),
		olderThan(all, "older than max_stale", func(a access) (time.Duration, bool) { return a.read.MaxStale, a.read.MaxStale > 0 }))
}

// register is the state of one key in the linearizability model.
type register struct {
	found bool
	value string
	// revision is of the last change; when exact is false it is only known to
	// be greater.
	revision uint64
	exact    bool
}

// at says whether the register's record stands at revision index, as cas asks:
// 0 means that there is none. A revision no client ever saw equals none.
func (r register) at(index uint64) bool {
	if index == 0 {
		return !r.found
	}
	return r.found && r.exact && r.revision == index
}

// after says whether a change may have revision n now; 0 is not known.
func (r register) after(n uint64) bool { return n == 0 || n > r.revision }

// set is the register once a write took effect with revision n, 0 unknown.
func (r register) set(found bool, value string, n uint64) register {
	if n == 0 {
		return register{found: found, value: value, revision: r.revision}
	}
	return register{found: found, value: value, revision: n, exact: true}
}

// step judges a against the register and returns what it leaves.
func (r register) step(a access) (bool, register) {
	revision := a.written.Revision
	switch a.kind {
	case readOp:
		if !a.seen.Found {
			return !r.found, r
		}
		return r.found && r.value == a.seen.Value && r.exact && r.revision == a.seen.Revision, r
	case putOp:
		return r.after(revision), r.set(true, a.write.Value, revision)
	case casOp:
		switch match := r.at(a.write.Index); {
		case a.Outcome == history.Unknown && !match:
			return true, r
		case a.Outcome == history.Decided && match != a.written.OK:
			return false, r
		case !match:
			return revision >= r.revision, r
		}
		return r.after(revision), r.set(true, a.write.Value, revision)
	case deleteOp:
		if !r.found && a.Outcome == history.Decided {
			// Nothing changed: the answer names a revision it was decided at.
			return revision >= r.revision, r
		}
		return r.after(revision), r.set(false, "", revision)
	}
	panic("unknown kind of access")
}

// registers is the model: one register with compare-and-set per key. A write
// of unknown outcome may take effect at any time after its call, also after
// everything else, which is as if it never happened.
var registers = porcupine.Model{
	Partition: func(ops []porcupine.Operation) [][]porcupine.Operation {
		keys := map[string]int{}
		var parts [][]porcupine.Operation
		for _, o := range ops {
			key := o.Input.(access).key
			i, ok := keys[key]
			if !ok {
				i = len(parts)
				keys[key], parts = i, append(parts, nil)
			}
			parts[i] = append(parts[i], o)
		}
		return parts
	},
	Init: func() any { return register{} },
	Step: func(state, input, _ any) (bool, any) {
		ok, next := state.(register).step(input.(access))
		return ok, next
	},
	DescribeOperation: func(input, _ any) string { return input.(access).String() },
}

// leaderLease is how far a default read may be behind: its answer rides on a
// leadership round that began at most that long before it.
const leaderLease = 100 * time.Millisecond

// operations turns accesses into porcupine's form.
func operations(all []access) []porcupine.Operation {
	var out []porcupine.Operation
	for _, a := range all {
		if a.Outcome == history.Refused || a.kind == readOp && (a.read.Mode.local() || a.read.Crowded) {
			continue
		}
		call := int64(a.Call)
		if a.kind == readOp && a.read.Mode == Default {
			call -= int64(leaderLease)
		}
		// What has no answer returns at history.Never: after all else.
		out = append(out, porcupine.Operation{ClientId: a.Client, Input: a, Call: call, Return: int64(a.Return)})
	}
	return out
}

// nonLinearizable looks for keys whose writes and reads have no order that fits both
// their answers and real time.
func nonLinearizable(all []access) (found []Anomaly) {
	for _, part := range registers.Partition(operations(all)) {
		if len(found) == 3 {
			break // enough, and what does not fit takes long to judge
		}
		key := part[0].Input.(access).key
		var ops []history.Op
		result := porcupine.CheckOperationsTimeout(registers, part, time.Minute)
		if result != porcupine.Ok {
			slices.SortFunc(part, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
			for _, o := range part {
				ops = append(ops, o.Input.(access).Op)
			}
		}
		switch result {
		case porcupine.Illegal:
			found = append(found, anomaly("not linearizable", "no order of these fits, "+key, ops...))
		case porcupine.Unknown:
			found = append(found, anomaly("not judged", "these take too long to judge, make the history of a key shorter, "+key, ops...))
		}
	}
	return found
}

// revisionDisorder looks for two changes with one revision, and for a
// change that began after another had been acknowledged and yet has a lower one.
func revisionDisorder(all []access) (found []Anomaly) {
	var changes []access
	made := map[uint64]access{}
	for _, a := range all {
		if !a.changed() || a.kind == deleteOp {
			continue // a delete may have found nothing to change
		}
		if other, dup := made[a.written.Revision]; dup {
			found = append(found, anomaly("revision given twice", fmt.Sprint(a.written.Revision), other.Op, a.Op))
		}
		made[a.written.Revision] = a
		changes = append(changes, a)
	}
	eachAfter(changes, changes, func(latest, a access) {
		if a.written.Revision < latest.written.Revision {
			found = append(found, anomaly("revision goes back", fmt.Sprintf("from %d to %d", latest.written.Revision, a.written.Revision), latest.Op, a.Op))
		}
	}, func(a access) time.Duration { return a.Call }, func(a access) uint64 { return a.written.Revision })
	return found
}

// eachAfter calls judge for each access of later together with that one of earlier
// that has the highest rank among those that had returned strictly before its moment.
func eachAfter(earlier, later []access, judge func(highest, a access), moment func(access) time.Duration, rank func(access) uint64) {
	earlier, later = slices.Clone(earlier), slices.Clone(later)
	slices.SortStableFunc(earlier, func(a, b access) int { return cmp.Compare(a.Return, b.Return) })
	slices.SortStableFunc(later, func(a, b access) int { return cmp.Compare(moment(a), moment(b)) })
	var highest *access
	next := 0
	for _, a := range later {
		for next < len(earlier) && earlier[next].Return < moment(a) {
			if highest == nil || rank(earlier[next]) > rank(*highest) {
				highest = &earlier[next]
			}
			next++
		}
		if highest != nil {
			judge(*highest, a)
		}
	}
}

// changesOf is what is known of the writes of one key.
type changesOf struct {
	byValue map[string]access // that happened or may have
	sure    []access          // acknowledged, by revision
	unsure  []access          // deletes of unknown outcome
}

// last is the last acknowledged change up to a revision.
func (c *changesOf) last(revision uint64) (access, bool) {
	i, found := slices.BinarySearchFunc(c.sure, revision, func(a access, r uint64) int { return cmp.Compare(a.written.Revision, r) })
	switch {
	case found:
		return c.sure[i], true
	case i == 0:
		return access{}, false
	}
	return c.sure[i-1], true
}

// changesByKey sorts the writes.
func changesByKey(all []access) map[string]*changesOf {
	keys := map[string]*changesOf{}
	for _, a := range all {
		c := keys[a.key]
		if c == nil {
			c = &changesOf{byValue: map[string]access{}}
			keys[a.key] = c
		}
		switch {
		case a.kind == readOp || a.Outcome == history.Refused:
			continue
		case a.kind == deleteOp && a.Outcome == history.Unknown:
			c.unsure = append(c.unsure, a)
		case a.kind != deleteOp && (a.Outcome == history.Unknown || a.written.OK):
			c.byValue[a.write.Value] = a
		}
		if a.changed() {
			c.sure = append(c.sure, a)
		}
	}
	for _, c := range keys {
		slices.SortStableFunc(c.sure, func(a, b access) int { return cmp.Compare(a.written.Revision, b.written.Revision) })
	}
	return keys
}

// nonPrefix holds every read against the changes of its key up to the
// revision it says it was answered at.
func nonPrefix(all []access) (found []Anomaly) {
	keys := changesByKey(all)
	report := func(kind, text string, ops ...history.Op) { found = append(found, anomaly(kind, text, ops...)) }
	for _, a := range all {
		if a.kind != readOp {
			continue
		}
		c := keys[a.key]
		last, any := c.last(a.seen.Applied)
		if !a.seen.Found {
			if any && last.kind != deleteOp && !slices.ContainsFunc(c.unsure, func(d access) bool { return d.Call < a.Return }) {
				report("no prefix", "a read lacks what its state should have", last.Op, a.Op)
			}
			continue
		}
		wrote, ok := c.byValue[a.seen.Value]
		switch {
		case !ok:
			report("out of nothing", "nobody wrote it, or that was refused", a.Op)
		case wrote.Call > a.Return:
			report("read of the future", "it was written later", a.Op, wrote.Op)
		case wrote.written.Revision != a.seen.Revision:
			report("no prefix", "a read saw a write at another revision", wrote.Op, a.Op)
		case a.seen.Revision > a.seen.Applied:
			report("no prefix", fmt.Sprintf("a read saw revision %d in a state at %d", a.seen.Revision, a.seen.Applied), a.Op)
		case any && last.written.Revision > a.seen.Revision:
			report("no prefix", "a read missed a later change within its state", last.Op, a.Op)
		}
	}
	return found
}

// goingBack looks for a read answered from an older state than an earlier
// one on the same node, also across restarts of it.
func goingBack(all []access) (found []Anomaly) {
	byNode := map[string][]access{}
	for _, a := range all {
		if a.kind == readOp {
			byNode[a.Teller()] = append(byNode[a.Teller()], a)
		}
	}
	for _, reads := range byNode {
		eachAfter(reads, reads, func(before, a access) {
			if a.seen.Applied < before.seen.Applied {
				found = append(found, anomaly("went back", fmt.Sprintf("%s from revision %d to %d", a.Node, before.seen.Applied, a.seen.Applied), before.Op, a.Op))
			}
		}, func(a access) time.Duration { return a.Call }, func(a access) uint64 { return a.seen.Applied })
	}
	return found
}

// olderThan looks for a read that lacks a change acknowledged before the moment that
// lies an age before its request. What says no such thing is not judged.
func olderThan(all []access, kind string, age func(access) (time.Duration, bool)) (found []Anomaly) {
	var changes, reads []access
	for _, a := range all {
		if a.changed() {
			changes = append(changes, a)
		} else if _, judged := age(a); a.kind == readOp && judged {
			reads = append(reads, a)
		}
	}
	eachAfter(changes, reads, func(change, a access) {
		if a.seen.Applied < change.written.Revision {
			most, _ := age(a)
			found = append(found, anomaly(kind, fmt.Sprintf("%v, but %v before it was sent revision %d had been acknowledged",
				most, a.Call-change.Return, change.written.Revision), change.Op, a.Op))
		}
	}, func(a access) time.Duration { most, _ := age(a); return a.Call - most }, func(a access) uint64 { return a.written.Revision })
	return found
}
