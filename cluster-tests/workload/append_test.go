package workload

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// Words for histories of Append.

const (
	x = treeLists + "000001/"
	y = treeLists + "000003/"
)

func sees(list string, elements ...int) Step { return Step{List: list, Seen: elements, Known: true} }
func adds(list string, element int) Step     { return Step{List: list, Append: element} }

// asked is a transaction as it is sent.
func asked(steps []Step) Transaction {
	steps = slices.Clone(steps)
	for i := range steps {
		if steps[i].Append == 0 {
			steps[i] = Step{List: steps[i].List}
		}
	}
	return Transaction{Steps: steps}
}

func (m *made) txn(call, ret time.Duration, steps ...Step) {
	m.op(call, ret, "transaction", asked(steps), Transaction{Steps: steps})
}

func (m *made) txnAt(call, ret time.Duration, revision uint64, steps ...Step) {
	m.op(call, ret, "transaction", asked(steps), Transaction{Steps: steps, Revision: revision})
}

// look is a read in a mode.
func (m *made) look(call, ret time.Duration, mode string, steps ...Step) {
	in := asked(steps)
	in.Mode = mode
	m.op(call, ret, "read", in, Transaction{Mode: mode, Steps: steps})
}

func TestAppendJudgeFindsEachAnomaly(t *testing.T) {
	for _, c := range []struct {
		name  string
		make  func(m *made)
		kinds []string
	}{
		{"nothing", func(*made) {}, nil},
		{"one after the other", func(m *made) {
			m.txn(0, 1, adds(x, 1), adds(y, 2))
			m.txn(2, 3, sees(x, 1), adds(y, 3))
			m.look(4, 5, consistent, sees(x, 1), sees(y, 2, 3))
		}, nil},
		{"beside each other, either may come first", func(m *made) {
			m.txn(0, 9, adds(x, 1))
			m.txn(0, 9, adds(x, 2))
			m.look(0, 9, consistent, sees(x, 2))
			m.look(10, 11, consistent, sees(x, 2, 1))
		}, nil},
		{"an old state, of one moment", func(m *made) {
			m.txn(0, 1, adds(x, 1), adds(y, 2))
			m.txn(2, 3, adds(x, 3), adds(y, 4))
			m.look(4, 5, stale, sees(x, 1), sees(y, 2))
			m.look(4, 5, byDefault, sees(x), sees(y))
			m.look(6, 7, consistent, sees(x, 1, 3), sees(y, 2, 4))
		}, nil},
		{"what is unknown has happened or has not", func(m *made) {
			m.unknown(0, "transaction", asked([]Step{adds(x, 1), adds(y, 2)}))
			m.unknown(0, "transaction", asked([]Step{adds(x, 3), adds(y, 4)}))
			m.look(2, 3, consistent, sees(x, 1), sees(y, 2))
		}, nil},
		{"what is unknown happens late", func(m *made) {
			m.unknown(0, "transaction", asked([]Step{adds(x, 1)}))
			m.look(2, 3, consistent, sees(x))
			m.look(4, 5, consistent, sees(x, 1))
		}, nil},
		{"it sees its own", func(m *made) { m.txn(0, 1, sees(x), adds(x, 1), sees(x, 1), adds(x, 2), sees(x, 1, 2)) }, nil},

		{"it does not see its own", func(m *made) { m.txn(0, 1, adds(x, 1), sees(x)) }, []string{"internal"}},
		{"it sees one list twice, and not the same", func(m *made) {
			m.txn(0, 9, adds(x, 1))
			m.look(0, 9, consistent, sees(x), sees(x, 1))
		}, []string{"internal"}},
		{"nobody appended it", func(m *made) { m.look(0, 1, stale, sees(x, 1)) }, []string{"out of nothing"}},
		{"appended to another list", func(m *made) { m.txn(0, 1, adds(y, 1)); m.look(2, 3, stale, sees(x, 1)) }, []string{"out of nothing"}},
		{"there twice", func(m *made) { m.txn(0, 1, adds(x, 1)); m.look(2, 3, consistent, sees(x, 1, 1)) }, []string{"duplicate"}},
		{"acknowledged and not there", func(m *made) { m.txn(0, 1, adds(x, 1)); m.look(2, 3, consistent, sees(x)) }, []string{"lost"}},
		{"half of what was unknown is there", func(m *made) {
			m.unknown(0, "transaction", asked([]Step{adds(x, 1), adds(y, 2)}))
			m.look(2, 3, stale, sees(x, 1))
			m.look(4, 5, consistent, sees(y))
		}, []string{"half a transaction"}},
		{"one order here, another there", func(m *made) {
			m.txn(0, 9, adds(x, 1))
			m.txn(0, 9, adds(x, 2))
			m.look(10, 11, stale, sees(x, 1, 2))
			m.look(10, 11, stale, sees(x, 2, 1))
		}, []string{"incompatible order"}},
		{"a refused one is seen", func(m *made) {
			m.refused(0, 1, "transaction", asked([]Step{adds(x, 1)}))
			m.look(2, 3, stale, sees(x, 1))
		}, []string{"G1a"}},
		{"seen when it was half done", func(m *made) {
			m.txn(0, 9, adds(x, 1), adds(x, 2))
			m.look(0, 9, stale, sees(x, 1))
			m.look(10, 11, stale, sees(x, 1, 2))
		}, []string{"G1b", "G-single"}},
		{"G0", func(m *made) {
			m.txn(0, 9, adds(x, 1), adds(y, 2))
			m.txn(0, 9, adds(x, 3), adds(y, 4))
			m.look(10, 11, consistent, sees(x, 1, 3), sees(y, 4, 2))
		}, []string{"G0"}},
		{"G1c", func(m *made) {
			m.txn(0, 9, adds(x, 1), sees(y, 2))
			m.txn(0, 9, adds(y, 2), sees(x, 1))
		}, []string{"G1c"}},
		{"G-single", func(m *made) {
			m.txn(0, 9, adds(x, 1), adds(y, 2))
			m.look(0, 9, stale, sees(x), sees(y, 2))
			m.look(10, 11, consistent, sees(x, 1), sees(y, 2))
		}, []string{"G-single"}},
		{"G2: both wrote what the other had not seen", func(m *made) {
			m.txn(0, 9, sees(x), adds(y, 1))
			m.txn(0, 9, sees(y), adds(x, 2))
			m.look(10, 11, consistent, sees(x, 2), sees(y, 1))
		}, []string{"G2"}},
		{"G2: a long fork", func(m *made) {
			m.txn(0, 9, adds(x, 1))
			m.txn(0, 9, adds(y, 2))
			m.look(0, 9, stale, sees(x, 1), sees(y))
			m.look(0, 9, stale, sees(x), sees(y, 2))
			m.look(10, 11, consistent, sees(x, 1), sees(y, 2))
		}, []string{"G2"}},
		{"later, and sorted before", func(m *made) {
			m.txn(0, 1, adds(x, 1))
			m.txn(2, 3, adds(x, 2))
			m.look(4, 5, stale, sees(x, 2, 1))
		}, []string{"G0-realtime"}},
		{"read before it was sent", func(m *made) {
			m.look(0, 1, stale, sees(x, 1))
			m.txn(2, 3, adds(x, 1))
		}, []string{"G1c-realtime"}},
		{"a consistent read of an old state", func(m *made) {
			m.txn(0, 1, adds(x, 1))
			m.look(2, 3, consistent, sees(x))
			m.look(4, 5, consistent, sees(x, 1))
		}, []string{"G-single-realtime"}},
		{"what a stale read saw is gone for a while", func(m *made) {
			m.unknown(0, "transaction", asked([]Step{adds(x, 1)}))
			m.look(1, 2, stale, sees(x, 1))
			m.look(3, 4, consistent, sees(x))
			m.look(5, 6, consistent, sees(x, 1))
		}, []string{"G-single-realtime"}},
		{"two orders that real time alone denies", func(m *made) {
			m.txn(0, 1, adds(y, 1))
			m.txn(0, 9, sees(y), adds(x, 2))  // before the first, and
			m.look(2, 3, consistent, sees(x)) // before the second, though behind the first
			m.look(10, 11, consistent, sees(x, 2), sees(y, 1))
		}, []string{"G2-realtime"}},

		{"two revisions of one transaction", func(m *made) {
			m.txnAt(0, 1, 7, adds(x, 1), adds(y, 2))
			m.look(2, 3, stale, Step{List: x, Seen: []int{1}, Known: true, At: 6}, Step{List: y, Seen: []int{2}, Known: true, At: 7})
		}, []string{"two revisions of one transaction"}},
		{"one revision of two transactions", func(m *made) {
			m.txnAt(0, 9, 7, adds(x, 1))
			m.txnAt(0, 9, 7, adds(y, 2))
		}, []string{"one revision of two transactions"}},
		{"more than was there at its revision", func(m *made) {
			m.txnAt(0, 9, 7, adds(x, 1))
			m.op(0, 9, "read", asked([]Step{{List: x}}), Transaction{Steps: []Step{sees(x, 1)}, Revision: 6})
		}, []string{"state of another revision"}},
		{"less than was there at its revision", func(m *made) {
			m.txnAt(0, 9, 7, adds(x, 1))
			m.op(0, 9, "read", asked([]Step{{List: x}}), Transaction{Steps: []Step{sees(x)}, Revision: 7})
			m.look(10, 11, consistent, sees(x, 1))
		}, []string{"state of another revision"}},
		{"an answer that breaks the API", func(m *made) { m.op(0, 1, "read", asked([]Step{{List: x}}), Broken{"nonsense"}) }, []string{"broken answer"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var m made
			c.make(&m)
			condemns(t, NewAppend(), m, c.kinds...)
		})
	}
}

// TestAppendJudgeIsQuick judges twenty thousand transactions, sound ones and then with
// one that went wrong in the middle.
func TestAppendJudgeIsQuick(t *testing.T) {
	for _, c := range []struct {
		name  string
		kinds []string
	}{{"sound", nil}, {"a read of the past", []string{"G-single-realtime"}}} {
		t.Run(c.name, func(t *testing.T) {
			m := longHistory(20000, c.kinds != nil)
			began := time.Now()
			condemns(t, NewAppend(), m, c.kinds...)
			if d := time.Since(began); d > 20*time.Second {
				t.Errorf("it took %v", d)
			}
			t.Log(time.Since(began))
		})
	}
}

// longHistory is one of transactions of which five overlap at any time, in the order
// of their calls.
func longHistory(n int, wrong bool) (m made) {
	r := rand.New(rand.NewPCG(1, 2))
	lists := map[string][]int{}
	var all []string
	for i := range n {
		base := i / (6 * listLength) * listSlots
		a, b := listName(base+r.IntN(listSlots)), listName(base+r.IntN(listSlots))
		for _, l := range []string{a, b} {
			if !slices.Contains(all, l) {
				all = append(all, l)
			}
		}
		old := lists[a]
		if wrong && i == n/2 {
			m.look(time.Duration(10*i), time.Duration(10*i+50), consistent, sees(a, old[:max(len(old)-12, 0)]...))
			continue
		}
		if a == b || i%4 == 0 {
			m.look(time.Duration(10*i), time.Duration(10*i+50), []string{consistent, stale}[i%2], sees(a, lists[a]...), sees(b, lists[b]...))
			continue
		}
		m.txn(time.Duration(10*i), time.Duration(10*i+50), sees(a, old...), adds(a, i+1), adds(b, n+i+1))
		lists[a] = append(slices.Clone(old), i+1)
		lists[b] = append(slices.Clone(lists[b]), n+i+1)
	}
	for chunk := range slices.Chunk(all, 100) {
		var steps []Step
		for _, l := range chunk {
			steps = append(steps, sees(l, lists[l]...))
		}
		m.look(time.Duration(10*n+100), time.Duration(10*n+200), consistent, steps...)
	}
	return m
}
