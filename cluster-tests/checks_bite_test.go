package clustertests

import (
	"slices"
	"strings"
	"testing"
	"time"
)

const ms = time.Millisecond

// The words histories are made of. Times are in milliseconds; every op is by
// its own client, so any two may overlap.

func wrote(key, value string, call, ret time.Duration, revision uint64) op {
	return op{node: "n1", kind: putOp, key: key, value: value, call: call * ms, ret: ret * ms, ok: true, revision: revision}
}

func maybeWrote(key, value string, call, ret time.Duration) op {
	return op{node: "n1", kind: putOp, key: key, value: value, call: call * ms, ret: ret * ms, outcome: unknown}
}

func swapped(key, value string, index uint64, call, ret time.Duration, ok bool, revision uint64) op {
	return op{node: "n1", kind: casOp, key: key, value: value, index: index, call: call * ms, ret: ret * ms, ok: ok, revision: revision}
}

func deleted(key string, call, ret time.Duration, revision uint64) op {
	return op{node: "n1", kind: deleteOp, key: key, call: call * ms, ret: ret * ms, ok: true, revision: revision}
}

// saw is a read at node that found value at revision in a state at applied.
func saw(node string, m mode, key, value string, revision, applied uint64, call, ret time.Duration) op {
	return op{node: node, kind: readOp, mode: m, key: key, value: value, found: value != "", revision: revision, applied: applied, call: call * ms, ret: ret * ms}
}

// aged adds the staleness the answer named.
func aged(o op, staleness time.Duration) op {
	o.staleness, o.stalenessKnown = staleness*ms, true
	return o
}

// within adds the bound that the read was given.
func within(o op, bound time.Duration) op {
	o.bound = bound * ms
	return o
}

func refusedOp(o op) op {
	o.outcome, o.ok, o.revision = refused, false, 0
	return o
}

func unsure(o op) op {
	o.outcome, o.ok, o.revision = unknown, false, 0
	return o
}

func TestJudgesCondemnPlantedFaultsAndNothingElse(t *testing.T) {
	const (
		linear   = "linearizable"
		order    = "revisions follow"
		prefix   = "prefix"
		noReturn = "never go back"
		age      = "staleness"
		bound    = "the bound"
	)
	for _, c := range []struct {
		name string
		ops  []op
		// condemns are the judgements (by part of their promise) that must find
		// a fault; all others must find none.
		condemns []string
	}{
		{"nothing", nil, nil},
		{"writes and what is read after them", []op{
			wrote("k", "a", 0, 10, 5), aged(saw("n2", consistent, "k", "a", 5, 5, 20, 30), 0),
			wrote("k", "b", 40, 50, 6), aged(saw("e1", consistent, "k", "b", 6, 6, 60, 70), 0),
		}, nil},
		{"a read beside a write sees either", []op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 60, 6),
			saw("n1", consistent, "k", "b", 6, 6, 30, 40), saw("n2", consistent, "k", "a", 5, 5, 21, 29),
		}, nil},
		{"a stale consistent read", []op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 30, 6),
			saw("n2", consistent, "k", "a", 5, 5, 40, 50),
		}, []string{linear}},
		{"a stale consistent read that also claims to be fresh", []op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 30, 6),
			aged(saw("n2", consistent, "k", "a", 5, 5, 40, 50), 0),
		}, []string{linear, age}},
		{"a default read within the lease", []op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 30, 6),
			saw("n1", leading, "k", "a", 5, 5, 100, 105),
		}, nil},
		{"a default read beyond the lease", []op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 30, 6),
			saw("n1", leading, "k", "a", 5, 5, 140, 150),
		}, []string{linear}},
		{"a lost write", []op{
			wrote("k", "a", 0, 10, 5), saw("n2", consistent, "k", "", 0, 5, 20, 30),
		}, []string{linear, prefix}},
		{"a lost write under a later one", []op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 30, 6), saw("n2", consistent, "k", "a", 5, 6, 40, 50),
		}, []string{linear, prefix}},
		{"a lost write whose revision was given again", []op{
			wrote("k", "a", 0, 10, 5), wrote("j", "b", 20, 30, 5),
		}, []string{order}},
		{"a write of unknown outcome that happened", []op{
			maybeWrote("k", "a", 0, 10), saw("n2", consistent, "k", "a", 5, 5, 20, 30),
		}, nil},
		{"a write of unknown outcome that never happened", []op{
			wrote("k", "a", 0, 10, 5), maybeWrote("k", "b", 20, 30), saw("n2", consistent, "k", "a", 5, 5, 40, 50),
		}, nil},
		{"a write of unknown outcome that happened late", []op{
			wrote("k", "a", 0, 10, 5), maybeWrote("k", "b", 20, 30), saw("n2", consistent, "k", "a", 5, 5, 40, 50),
			saw("n2", consistent, "k", "b", 6, 6, 60, 70),
		}, nil},
		{"a write of unknown outcome that came and went", []op{
			wrote("k", "a", 0, 10, 5), maybeWrote("k", "b", 20, 30), saw("n1", consistent, "k", "b", 6, 6, 40, 50),
			saw("n2", consistent, "k", "a", 5, 7, 60, 70),
		}, []string{linear}},
		{"a write that happened twice", []op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 30, 6), saw("n1", consistent, "k", "a", 7, 7, 40, 50),
		}, []string{linear, prefix}},
		{"a refused write that happened", []op{
			refusedOp(wrote("k", "a", 0, 10, 0)), saw("n1", consistent, "k", "a", 5, 5, 20, 30),
		}, []string{linear, prefix}},
		{"a value from nowhere", []op{
			saw("n1", local, "k", "ghost", 5, 5, 20, 30),
		}, []string{prefix}},
		{"a read of the future", []op{
			saw("n1", local, "k", "a", 5, 5, 0, 10), wrote("k", "a", 20, 30, 5),
		}, []string{prefix}},
		{"cas that won and cas that lost", []op{
			wrote("k", "a", 0, 10, 5), swapped("k", "b", 5, 20, 30, true, 6), swapped("k", "c", 5, 40, 50, false, 6),
			swapped("k", "d", 0, 60, 70, false, 6),
		}, nil},
		{"two winners of one cas", []op{
			wrote("k", "a", 0, 10, 5), swapped("k", "b", 5, 20, 40, true, 6), swapped("k", "c", 5, 20, 40, true, 7),
		}, []string{linear}},
		{"a cas that lost without cause", []op{
			wrote("k", "a", 0, 10, 5), swapped("k", "b", 5, 20, 30, false, 5),
		}, []string{linear}},
		{"create-if-absent twice", []op{
			swapped("k", "a", 0, 0, 10, true, 5), swapped("k", "b", 0, 20, 30, true, 6),
		}, []string{linear}},
		{"create-if-absent after a delete", []op{
			swapped("k", "a", 0, 0, 10, true, 5), deleted("k", 20, 30, 6), swapped("k", "b", 0, 40, 50, true, 7),
		}, nil},
		{"a cas of unknown outcome that won", []op{
			wrote("k", "a", 0, 10, 5), unsure(swapped("k", "b", 5, 20, 30, true, 6)), saw("n1", consistent, "k", "b", 6, 6, 40, 50),
			swapped("k", "c", 6, 60, 70, true, 7),
		}, nil},
		{"a cas of unknown outcome that won against the wrong revision", []op{
			wrote("k", "a", 0, 10, 5), unsure(swapped("k", "b", 4, 20, 30, true, 6)), saw("n1", consistent, "k", "b", 6, 6, 40, 50),
		}, []string{linear}},
		{"a delete that did not last", []op{
			wrote("k", "a", 0, 10, 5), deleted("k", 20, 30, 6), saw("n1", consistent, "k", "a", 5, 6, 40, 50),
		}, []string{linear, prefix}},
		{"a delete of nothing", []op{
			wrote("j", "x", 0, 5, 5), deleted("k", 20, 30, 5), saw("n1", consistent, "k", "", 0, 5, 40, 50),
		}, nil},
		{"a delete of unknown outcome that happened", []op{
			wrote("k", "a", 0, 10, 5), unsure(deleted("k", 20, 30, 0)), saw("n1", consistent, "k", "", 0, 6, 40, 50),
		}, nil},
		{"a copy that lags", []op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 30, 6), wrote("j", "c", 40, 50, 7),
			aged(saw("e1", local, "k", "a", 5, 5, 60, 65), 41), aged(saw("e1", local, "k", "b", 6, 6, 70, 75), 21),
			aged(saw("e1", local, "j", "", 0, 6, 80, 85), 31),
		}, nil},
		{"a copy with a hole in its prefix", []op{
			wrote("k", "a", 0, 10, 5), wrote("j", "b", 20, 30, 6),
			saw("e1", local, "k", "", 0, 6, 40, 50),
		}, []string{prefix}},
		{"a record newer than the state it stands in", []op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 30, 6), saw("e1", local, "k", "b", 6, 5, 40, 50),
		}, []string{prefix}},
		{"a copy that goes back", []op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 30, 6),
			saw("e1", local, "k", "b", 6, 6, 40, 50), saw("e1", local, "k", "a", 5, 5, 60, 70),
		}, []string{noReturn}},
		{"two copies of which one lags", []op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 30, 6),
			saw("e1", local, "k", "b", 6, 6, 40, 50), saw("w1", local, "k", "a", 5, 5, 60, 70),
		}, nil},
		{"reads of one copy that overlap", []op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 30, 6),
			saw("e1", local, "k", "b", 6, 6, 40, 60), saw("e1", local, "k", "a", 5, 5, 50, 70),
		}, nil},
		{"a staleness that is said too low", []op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 30, 6),
			aged(saw("e1", local, "k", "a", 5, 5, 100, 110), 69),
		}, []string{age}},
		{"a staleness that just covers it", []op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 30, 6),
			aged(saw("e1", local, "k", "a", 5, 5, 100, 110), 70),
		}, nil},
		{"a staleness that is not known says nothing", []op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 30, 6), saw("e1", local, "k", "a", 5, 5, 1000, 1010),
		}, nil},
		{"a bounded read that is older than its bound", []op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 30, 6),
			within(aged(saw("e1", local, "k", "a", 5, 5, 100, 110), 80), 69),
		}, []string{bound}},
		{"a bounded read that just keeps its bound", []op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 30, 6),
			within(aged(saw("e1", local, "k", "a", 5, 5, 100, 110), 80), 70),
		}, nil},
		{"a revision that goes back in real time", []op{
			wrote("k", "a", 0, 10, 6), wrote("j", "b", 20, 30, 5),
		}, []string{order}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, j := range judgements {
				err := j.find(c.ops)
				wanted := slices.ContainsFunc(c.condemns, func(part string) bool { return strings.Contains(j.promise, part) })
				switch {
				case wanted && err == nil:
					t.Errorf("%q: the fault was not found", j.promise)
				case !wanted && err != nil:
					t.Errorf("%q: condemned without cause: %v", j.promise, err)
				}
			}
		})
	}
}

func TestJudgesAreQuickOnLongHistories(t *testing.T) {
	// Eight clients, each behind the other by one op, one key for each eighty
	// ops and a write of unknown outcome on every key: what a scene records.
	var ops []op
	for i := range 40_000 {
		key := "k" + string(rune('a'+i/80%26)) + string(rune('a'+i/80/26%26))
		at := time.Duration(i)
		switch i % 4 {
		case 0:
			ops = append(ops, wrote(key, "v"+time.Duration(i).String(), at, at+8, uint64(i+1)))
		case 1, 2:
			w := ops[i-i%4]
			ops = append(ops, saw("n1", consistent, key, w.value, w.revision, w.revision, at+8, at+12))
		case 3:
			o := ops[i-3]
			if i%80 == 3 {
				o.outcome, o.ok, o.revision = unknown, false, 0
				o.value += "?"
			} else {
				o = aged(saw("e1", local, key, o.value, o.revision, o.revision, at+8, at+12), 100)
			}
			ops = append(ops, o)
		}
	}
	start := time.Now()
	for _, j := range judgements {
		if err := j.find(ops); err != nil {
			t.Errorf("%s: %v", j.promise, err)
		}
	}
	t.Logf("%d operations judged in %v", len(ops), time.Since(start))
}
