package clustertests

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// judgement is a promise and the function that finds where a history breaks
// it; nil when it does not.
type judgement struct {
	promise string
	find    func([]op) error
}

// judgements are all that is asked of a recorded history.
var judgements = []judgement{
	{"consistent reads and writes are linearizable, default reads but for 100 ms", findNonLinearizable},
	{"revisions follow real time, each change has its own", findRevisionDisorder},
	{"every read sees a prefix of the committed history", findNonPrefix},
	{"reads of one node never go back", findGoingBack},
	{"the staleness said is never lower than the age", findUnderstatedAge},
	{"a read is never older than the bound it was given", findBeyondBound},
}

// learnRevisions returns ops with the revisions of writes of unknown outcome
// filled in where some read saw their value.
func learnRevisions(ops []op) []op {
	seen := map[string]uint64{}
	for _, o := range ops {
		if o.kind == readOp && o.found {
			seen[o.key+"\x00"+o.value] = o.revision
		}
	}
	ops = slices.Clone(ops)
	for i, o := range ops {
		if o.outcome == unknown && (o.kind == putOp || o.kind == casOp) {
			ops[i].revision = seen[o.key+"\x00"+o.value]
		}
	}
	return ops
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

// write is the register once a write took effect with revision n, 0 unknown.
func (r register) write(found bool, value string, n uint64) register {
	if n == 0 {
		return register{found: found, value: value, revision: r.revision}
	}
	return register{found: found, value: value, revision: n, exact: true}
}

// step judges o against the register and returns what it leaves.
func (r register) step(o op) (bool, register) {
	switch o.kind {
	case readOp:
		if !o.found {
			return !r.found, r
		}
		return r.found && r.value == o.value && r.exact && r.revision == o.revision, r
	case putOp:
		return r.after(o.revision), r.write(true, o.value, o.revision)
	case casOp:
		switch match := r.at(o.index); {
		case o.outcome == unknown && !match:
			return true, r
		case o.outcome == decided && match != o.ok:
			return false, r
		case !match:
			return o.revision >= r.revision, r
		}
		return r.after(o.revision), r.write(true, o.value, o.revision)
	case deleteOp:
		if !r.found && o.outcome == decided {
			// Nothing changed: the answer names a revision it was decided at.
			return o.revision >= r.revision, r
		}
		return r.after(o.revision), r.write(false, "", o.revision)
	}
	panic("unknown kind of op")
}

// registers is the model: one register with compare-and-set per key. A write
// of unknown outcome may take effect at any time after its call, also after
// everything else, which is as if it never happened.
var registers = porcupine.Model{
	Partition: func(ops []porcupine.Operation) [][]porcupine.Operation {
		keys := map[string]int{}
		var parts [][]porcupine.Operation
		for _, o := range ops {
			key := o.Input.(op).key
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
		ok, next := state.(register).step(input.(op))
		return ok, next
	},
	DescribeOperation: func(input, _ any) string { return input.(op).String() },
}

// leaderLease is how far a default read may be behind: its answer rides on a
// leadership round that began at most that long before it.
const leaderLease = 100 * time.Millisecond

// operations turns a history into porcupine's form.
func operations(ops []op) []porcupine.Operation {
	var out []porcupine.Operation
	for _, o := range learnRevisions(ops) {
		if o.outcome == refused || o.kind == readOp && (o.mode == local || o.crowded) {
			continue
		}
		call, ret := int64(o.call), int64(o.ret)
		if o.kind == readOp && o.mode == leading {
			call -= int64(leaderLease)
		}
		if o.outcome == unknown {
			ret = math.MaxInt64
		}
		out = append(out, porcupine.Operation{ClientId: o.client, Input: o, Call: call, Return: ret})
	}
	return out
}

// findNonLinearizable looks for a key whose writes and reads have no order
// that fits both their answers and real time.
func findNonLinearizable(ops []op) error {
	history := operations(ops)
	for _, part := range registers.Partition(history) {
		switch porcupine.CheckOperationsTimeout(registers, part, time.Minute) {
		case porcupine.Illegal:
			key := part[0].Input.(op).key
			text := fmt.Sprintf("key %s is not linearizable; its operations by call:", key)
			slices.SortFunc(part, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
			for _, o := range part {
				text += "\n  " + o.Input.(op).String()
			}
			return fmt.Errorf("%s", text)
		case porcupine.Unknown:
			return fmt.Errorf("key %s with %d operations could not be judged in time: make the history of a key shorter", part[0].Input.(op).key, len(part))
		}
	}
	return nil
}

// findRevisionDisorder looks for two changes with one revision, and for a
// change that began after another had been acknowledged and yet has a lower one.
func findRevisionDisorder(ops []op) error {
	var changes []op
	made := map[uint64]op{}
	for _, o := range ops {
		if !o.changed() || o.kind == deleteOp {
			continue // a delete may have found nothing to change
		}
		if other, dup := made[o.revision]; dup {
			return fmt.Errorf("two changes have revision %d:\n  %v\n  %v", o.revision, other, o)
		}
		made[o.revision] = o
		changes = append(changes, o)
	}
	return eachAfter(changes, changes, func(latest, o op) error {
		if o.revision <= latest.revision {
			return fmt.Errorf("revision goes back in real time:\n  %v\n  %v", latest, o)
		}
		return nil
	}, func(o op) (time.Duration, uint64) { return o.call, o.revision })
}

// eachAfter calls judge for each op of later together with that one of earlier
// that has the highest number among those that had returned strictly before a
// moment. number gives an op's moment, as one of later, and its number, as one of earlier.
func eachAfter(earlier, later []op, judge func(highest, o op) error, number func(op) (moment time.Duration, n uint64)) error {
	earlier, later = slices.Clone(earlier), slices.Clone(later)
	moment := func(o op) time.Duration { m, _ := number(o); return m }
	rank := func(o op) uint64 { _, n := number(o); return n }
	slices.SortFunc(earlier, func(a, b op) int { return cmp.Compare(a.ret, b.ret) })
	slices.SortFunc(later, func(a, b op) int { return cmp.Compare(moment(a), moment(b)) })
	var highest *op
	next := 0
	for _, o := range later {
		for next < len(earlier) && earlier[next].ret < moment(o) {
			if highest == nil || rank(earlier[next]) > rank(*highest) {
				highest = &earlier[next]
			}
			next++
		}
		if highest == nil {
			continue
		}
		if err := judge(*highest, o); err != nil {
			return err
		}
	}
	return nil
}

// findNonPrefix holds every read against the changes of its key up to the
// revision it says it was answered at.
func findNonPrefix(ops []op) error {
	ops = learnRevisions(ops)
	type key struct {
		byValue  map[string]op
		changes  []op // acknowledged, by revision
		unsure   []op // deletes of unknown outcome
		sureLast func(applied uint64) (op, bool)
	}
	keys := map[string]*key{}
	for _, o := range ops {
		k := keys[o.key]
		if k == nil {
			k = &key{byValue: map[string]op{}}
			keys[o.key] = k
		}
		switch {
		case o.kind == readOp || o.outcome == refused:
			continue
		case o.kind == deleteOp && o.outcome == unknown:
			k.unsure = append(k.unsure, o)
		case o.kind != deleteOp && (o.outcome == unknown || o.ok):
			k.byValue[o.value] = o
		}
		if o.changed() {
			k.changes = append(k.changes, o)
		}
	}
	for _, k := range keys {
		slices.SortFunc(k.changes, func(a, b op) int { return cmp.Compare(a.revision, b.revision) })
		k.sureLast = func(applied uint64) (op, bool) {
			i, found := slices.BinarySearchFunc(k.changes, applied, func(o op, r uint64) int { return cmp.Compare(o.revision, r) })
			if found {
				return k.changes[i], true
			}
			if i == 0 {
				return op{}, false
			}
			return k.changes[i-1], true
		}
	}
	for _, o := range ops {
		if o.kind != readOp {
			continue
		}
		k := keys[o.key]
		last, any := k.sureLast(o.applied)
		if !o.found {
			if any && last.kind != deleteOp && !slices.ContainsFunc(k.unsure, func(d op) bool { return d.call < o.ret }) {
				return fmt.Errorf("a read lacks what it should have seen:\n  %v\n  %v", last, o)
			}
			continue
		}
		wrote, ok := k.byValue[o.value]
		switch {
		case !ok:
			return fmt.Errorf("a read saw a value nobody wrote, or whose write was refused:\n  %v", o)
		case wrote.call > o.ret:
			return fmt.Errorf("a read saw a value before it was written:\n  %v\n  %v", o, wrote)
		case wrote.revision != o.revision:
			return fmt.Errorf("a read saw a write at another revision:\n  %v\n  %v", wrote, o)
		case o.revision > o.applied:
			return fmt.Errorf("a read saw revision %d in a state at %d:\n  %v", o.revision, o.applied, o)
		case any && last.revision > o.revision:
			return fmt.Errorf("a read missed a later change within its state:\n  %v\n  %v", last, o)
		}
	}
	return nil
}

// findGoingBack looks for a read answered from an older state than an earlier
// one on the same node, also across restarts of it.
func findGoingBack(ops []op) error {
	byNode := map[string][]op{}
	for _, o := range ops {
		if o.kind == readOp {
			byNode[o.node] = append(byNode[o.node], o)
		}
	}
	for _, reads := range byNode {
		err := eachAfter(reads, reads, func(before, o op) error {
			if o.applied < before.applied {
				return fmt.Errorf("%s went back from revision %d to %d:\n  %v\n  %v", o.node, before.applied, o.applied, before, o)
			}
			return nil
		}, func(o op) (time.Duration, uint64) { return o.call, o.applied })
		if err != nil {
			return err
		}
	}
	return nil
}

// findUnderstatedAge looks for a read that lacks a change acknowledged longer
// before its request than the staleness it named.
func findUnderstatedAge(ops []op) error {
	return findOlder(ops, "it says", func(o op) (time.Duration, bool) { return o.staleness, o.stalenessKnown })
}

// findBeyondBound looks for a read that lacks a change acknowledged longer before its
// request than the max_stale it named.
func findBeyondBound(ops []op) error {
	return findOlder(ops, "it was to be", func(o op) (time.Duration, bool) { return o.bound, o.bound > 0 })
}

// findOlder looks for a read that lacks a change acknowledged before the moment that
// lies an age before its request. What says no such thing is not judged.
func findOlder(ops []op, than string, age func(op) (time.Duration, bool)) error {
	var changes, reads []op
	for _, o := range ops {
		if o.changed() {
			changes = append(changes, o)
		} else if _, judged := age(o); o.kind == readOp && judged {
			reads = append(reads, o)
		}
	}
	return eachAfter(changes, reads, func(change, o op) error {
		if o.applied < change.revision {
			most, _ := age(o)
			return fmt.Errorf("a read is older than %s: %v, but %v before it was sent revision %d had been acknowledged:\n  %v\n  %v",
				than, most, o.call-change.ret, change.revision, change, o)
		}
		return nil
	}, func(o op) (time.Duration, uint64) {
		most, _ := age(o)
		return o.call - most, o.revision // moment of a read, revision of a change
	})
}
