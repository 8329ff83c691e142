package workload

import (
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/history"
)

// The words histories are made of. Times are in milliseconds; every op is by
// its own client, so any two may overlap.

func done(name string, in, out any, call, ret time.Duration) history.Op {
	return history.Op{Workload: "register", Node: "n1", Name: name, In: in, Out: out,
		Call: call * time.Millisecond, Return: ret * time.Millisecond, Outcome: history.Decided}
}

func wrote(key, value string, call, ret time.Duration, revision uint64) history.Op {
	return done("put", Write{Key: key, Value: value}, Written{true, revision}, call, ret)
}

func maybeWrote(key, value string, call, ret time.Duration) history.Op {
	return unsure(wrote(key, value, call, ret, 0))
}

func casOf(key, value string, index uint64, call, ret time.Duration, ok bool, revision uint64) history.Op {
	return done("cas", Write{Key: key, Value: value, Index: index}, Written{ok, revision}, call, ret)
}

func deleted(key string, call, ret time.Duration, revision uint64) history.Op {
	return done("delete", Write{Key: key}, Written{true, revision}, call, ret)
}

// saw is a read at node that found value at revision in a state at applied.
func saw(node string, m ReadMode, key, value string, revision, applied uint64, call, ret time.Duration) history.Op {
	o := done("read", Read{Key: key, Mode: m}, Seen{Found: value != "", Value: value, Revision: revision, Applied: applied}, call, ret)
	o.Node = node
	return o
}

// aged adds the staleness the answer named, in milliseconds.
func aged(o history.Op, staleness time.Duration) history.Op {
	s := o.Out.(Seen)
	s.Staleness, s.StalenessKnown = staleness*time.Millisecond, true
	o.Out = s
	return o
}

// within adds the bound that the read was given, in milliseconds.
func within(o history.Op, bound time.Duration) history.Op {
	r := o.In.(Read)
	r.MaxStale = bound * time.Millisecond
	o.In = r
	return o
}

// crowded marks a read as one of very many.
func crowded(o history.Op) history.Op {
	r := o.In.(Read)
	r.Crowded = true
	o.In = r
	return o
}

func refused(o history.Op) history.Op {
	o.Outcome, o.Out = history.Refused, nil
	return o
}

func unsure(o history.Op) history.Op {
	o.Outcome, o.Out, o.Return = history.Unknown, nil, history.Never
	return o
}

// numbered makes a history of ops, each by its own client.
func numbered(ops []history.Op) made {
	for i := range ops {
		ops[i].ID, ops[i].Client = i, i
	}
	return ops
}

func TestRegisterJudgeCondemnsWhatIsBrokenAndNothingElse(t *testing.T) {
	for _, c := range []struct {
		name  string
		ops   []history.Op
		kinds []string
	}{
		{"nothing", nil, nil},
		{"writes and what is read after them", []history.Op{
			wrote("k", "a", 0, 10, 5), aged(saw("n2", Consistent, "k", "a", 5, 5, 20, 30), 0),
			wrote("k", "b", 40, 50, 6), aged(saw("e1", Consistent, "k", "b", 6, 6, 60, 70), 0),
		}, nil},
		{"a read beside a write sees either", []history.Op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 60, 6),
			saw("n1", Consistent, "k", "b", 6, 6, 30, 40), saw("n2", Consistent, "k", "a", 5, 5, 21, 29),
		}, nil},
		{"a stale consistent read", []history.Op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 30, 6),
			saw("n2", Consistent, "k", "a", 5, 5, 40, 50),
		}, []string{"not linearizable"}},
		{"a stale consistent read that also claims to be fresh", []history.Op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 30, 6),
			aged(saw("n2", Consistent, "k", "a", 5, 5, 40, 50), 0),
		}, []string{"not linearizable", "older than it says"}},
		{"a default read within the lease", []history.Op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 30, 6),
			saw("n1", Default, "k", "a", 5, 5, 100, 105),
		}, nil},
		{"a default read beyond the lease", []history.Op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 30, 6),
			saw("n1", Default, "k", "a", 5, 5, 140, 150),
		}, []string{"not linearizable"}},
		{"a lost write", []history.Op{
			wrote("k", "a", 0, 10, 5), saw("n2", Consistent, "k", "", 0, 5, 20, 30),
		}, []string{"not linearizable", "no prefix"}},
		{"a lost write under a later one", []history.Op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 30, 6), saw("n2", Consistent, "k", "a", 5, 6, 40, 50),
		}, []string{"not linearizable", "no prefix"}},
		{"a lost write whose revision was given again", []history.Op{
			wrote("k", "a", 0, 10, 5), wrote("j", "b", 20, 30, 5),
		}, []string{"revision given twice"}},
		{"a write of unknown outcome that happened", []history.Op{
			maybeWrote("k", "a", 0, 10), saw("n2", Consistent, "k", "a", 5, 5, 20, 30),
		}, nil},
		{"a write of unknown outcome that never happened", []history.Op{
			wrote("k", "a", 0, 10, 5), maybeWrote("k", "b", 20, 30), saw("n2", Consistent, "k", "a", 5, 5, 40, 50),
		}, nil},
		{"a write of unknown outcome that happened late", []history.Op{
			wrote("k", "a", 0, 10, 5), maybeWrote("k", "b", 20, 30), saw("n2", Consistent, "k", "a", 5, 5, 40, 50),
			saw("n2", Consistent, "k", "b", 6, 6, 60, 70),
		}, nil},
		{"a write of unknown outcome that came and went", []history.Op{
			wrote("k", "a", 0, 10, 5), maybeWrote("k", "b", 20, 30), saw("n1", Consistent, "k", "b", 6, 6, 40, 50),
			saw("n2", Consistent, "k", "a", 5, 7, 60, 70),
		}, []string{"not linearizable"}},
		{"a write that happened twice", []history.Op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 30, 6), saw("n1", Consistent, "k", "a", 7, 7, 40, 50),
		}, []string{"not linearizable", "no prefix"}},
		{"a refused write that happened", []history.Op{
			refused(wrote("k", "a", 0, 10, 0)), saw("n1", Consistent, "k", "a", 5, 5, 20, 30),
		}, []string{"not linearizable", "out of nothing"}},
		{"a value from nowhere", []history.Op{
			saw("n1", Stale, "k", "ghost", 5, 5, 20, 30),
		}, []string{"out of nothing"}},
		{"a read of the future", []history.Op{
			saw("n1", Stale, "k", "a", 5, 5, 0, 10), wrote("k", "a", 20, 30, 5),
		}, []string{"read of the future"}},
		{"cas that won and cas that lost", []history.Op{
			wrote("k", "a", 0, 10, 5), casOf("k", "b", 5, 20, 30, true, 6), casOf("k", "c", 5, 40, 50, false, 6),
			casOf("k", "d", 0, 60, 70, false, 6),
		}, nil},
		{"two winners of one cas", []history.Op{
			wrote("k", "a", 0, 10, 5), casOf("k", "b", 5, 20, 40, true, 6), casOf("k", "c", 5, 20, 40, true, 7),
		}, []string{"not linearizable"}},
		{"a cas that lost without cause", []history.Op{
			wrote("k", "a", 0, 10, 5), casOf("k", "b", 5, 20, 30, false, 5),
		}, []string{"not linearizable"}},
		{"create-if-absent twice", []history.Op{
			casOf("k", "a", 0, 0, 10, true, 5), casOf("k", "b", 0, 20, 30, true, 6),
		}, []string{"not linearizable"}},
		{"create-if-absent after a delete", []history.Op{
			casOf("k", "a", 0, 0, 10, true, 5), deleted("k", 20, 30, 6), casOf("k", "b", 0, 40, 50, true, 7),
		}, nil},
		{"a cas of unknown outcome that won", []history.Op{
			wrote("k", "a", 0, 10, 5), unsure(casOf("k", "b", 5, 20, 30, true, 6)), saw("n1", Consistent, "k", "b", 6, 6, 40, 50),
			casOf("k", "c", 6, 60, 70, true, 7),
		}, nil},
		{"a cas of unknown outcome that won against the wrong revision", []history.Op{
			wrote("k", "a", 0, 10, 5), unsure(casOf("k", "b", 4, 20, 30, true, 6)), saw("n1", Consistent, "k", "b", 6, 6, 40, 50),
		}, []string{"not linearizable"}},
		{"a delete that did not last", []history.Op{
			wrote("k", "a", 0, 10, 5), deleted("k", 20, 30, 6), saw("n1", Consistent, "k", "a", 5, 6, 40, 50),
		}, []string{"not linearizable", "no prefix"}},
		{"a delete of nothing", []history.Op{
			wrote("j", "x", 0, 5, 5), deleted("k", 20, 30, 5), saw("n1", Consistent, "k", "", 0, 5, 40, 50),
		}, nil},
		{"a delete of unknown outcome that happened", []history.Op{
			wrote("k", "a", 0, 10, 5), unsure(deleted("k", 20, 30, 0)), saw("n1", Consistent, "k", "", 0, 6, 40, 50),
		}, nil},
		{"a copy that lags", []history.Op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 30, 6), wrote("j", "c", 40, 50, 7),
			aged(saw("e1", Stale, "k", "a", 5, 5, 60, 65), 41), aged(saw("e1", Stale, "k", "b", 6, 6, 70, 75), 21),
			aged(saw("e1", Stale, "j", "", 0, 6, 80, 85), 31),
		}, nil},
		{"a copy with a hole in its prefix", []history.Op{
			wrote("k", "a", 0, 10, 5), wrote("j", "b", 20, 30, 6),
			saw("e1", Stale, "k", "", 0, 6, 40, 50),
		}, []string{"no prefix"}},
		{"a record newer than the state it stands in", []history.Op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 30, 6), saw("e1", Stale, "k", "b", 6, 5, 40, 50),
		}, []string{"no prefix"}},
		{"a copy that goes back", []history.Op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 30, 6),
			saw("e1", Stale, "k", "b", 6, 6, 40, 50), saw("e1", Stale, "k", "a", 5, 5, 60, 70),
		}, []string{"went back"}},
		{"two copies of which one lags", []history.Op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 30, 6),
			saw("e1", Stale, "k", "b", 6, 6, 40, 50), saw("w1", Stale, "k", "a", 5, 5, 60, 70),
		}, nil},
		{"reads of one copy that overlap", []history.Op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 30, 6),
			saw("e1", Stale, "k", "b", 6, 6, 40, 60), saw("e1", Stale, "k", "a", 5, 5, 50, 70),
		}, nil},
		{"a staleness that is said too low", []history.Op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 30, 6),
			aged(saw("e1", Stale, "k", "a", 5, 5, 100, 110), 69),
		}, []string{"older than it says"}},
		{"a staleness that just covers it", []history.Op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 30, 6),
			aged(saw("e1", Stale, "k", "a", 5, 5, 100, 110), 70),
		}, nil},
		{"a staleness that is not known says nothing", []history.Op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 30, 6), saw("e1", Stale, "k", "a", 5, 5, 1000, 1010),
		}, nil},
		{"a bounded read that is older than its bound", []history.Op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 30, 6),
			within(aged(saw("e1", Stale, "k", "a", 5, 5, 100, 110), 80), 69),
		}, []string{"older than max_stale"}},
		{"a bounded read that just keeps its bound", []history.Op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 30, 6),
			within(aged(saw("e1", Stale, "k", "a", 5, 5, 100, 110), 80), 70),
		}, nil},
		{"a crowd's stale consistent read, which its staleness tells of", []history.Op{
			wrote("k", "a", 0, 10, 5), wrote("k", "b", 20, 30, 6),
			crowded(aged(saw("n2", Consistent, "k", "a", 5, 5, 40, 50), 0)),
		}, []string{"older than it says"}},
		{"an answer that breaks the API, of a write that happened", []history.Op{
			done("put", Write{Key: "k", Value: "a"}, Broken{"false"}, 0, 10), saw("n2", Consistent, "k", "a", 5, 5, 20, 30),
		}, []string{"broken answer"}},
		{"reads that failed", []history.Op{
			wrote("k", "a", 0, 10, 5), refused(saw("n2", Consistent, "k", "", 0, 0, 20, 30)),
		}, nil},
		{"a revision that goes back in real time", []history.Op{
			wrote("k", "a", 0, 10, 6), wrote("j", "b", 20, 30, 5),
		}, []string{"revision goes back"}},
	} {
		t.Run(c.name, func(t *testing.T) { condemns(t, NewRegister(), numbered(c.ops), c.kinds...) })
	}
}

func TestRegisterJudgeIsQuickOnLongHistories(t *testing.T) {
	// Eight clients, each behind the other by one op, one key for each eighty
	// ops and a write of unknown outcome on every key: what a scene records.
	const us = time.Microsecond
	var ops []history.Op
	for i := range 40_000 {
		key := "k" + string(rune('a'+i/80%26)) + string(rune('a'+i/80/26%26))
		at := time.Duration(i)
		switch i % 4 {
		case 0:
			ops = append(ops, wrote(key, fmt.Sprint("v", i), 0, 0, uint64(i+1)))
			ops[i].Call, ops[i].Return = at*us, (at+8)*us
		case 1, 2:
			w := ops[i-i%4]
			ops = append(ops, saw("n1", Consistent, key, w.In.(Write).Value, w.Out.(Written).Revision, w.Out.(Written).Revision, 0, 0))
			ops[i].Call, ops[i].Return = (at+8)*us, (at+12)*us
		case 3:
			w := ops[i-3]
			if i%80 == 3 {
				o := maybeWrote(key, w.In.(Write).Value+"?", 0, 0)
				o.Call = w.Call
				ops = append(ops, o)
				continue
			}
			ops = append(ops, aged(saw("e1", Stale, key, w.In.(Write).Value, w.Out.(Written).Revision, w.Out.(Written).Revision, 0, 0), 100))
			ops[i].Call, ops[i].Return = (at+8)*us, (at+12)*us
		}
	}
	began := time.Now()
	condemns(t, NewRegister(), numbered(ops))
	t.Logf("%d operations judged in %v", len(ops), time.Since(began))
}
