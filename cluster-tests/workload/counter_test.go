package workload

import (
	"fmt"
	"testing"
	"time"
)

func TestCounterJudgeCondemnsWhatIsBrokenAndNothingElse(t *testing.T) {
	put := CounterWrite{ID: "p", Key: "o", Value: "p"}
	one := CounterWrite{ID: "a", Key: "k", Value: "a", CAS: true}
	two := CounterWrite{ID: "b", Key: "k", Value: "b", CAS: true, Index: 5}
	made5, made6, made7 := Written{true, 5}, Written{true, 6}, Written{true, 7}
	ch := func(w CounterWrite, revision uint64) CounterChange { return CounterChange{w.Key, w.Value, revision} }
	for _, c := range []struct {
		name    string
		make    func(m *made)
		changes []CounterChange
		kinds   []string
	}{
		{"nothing", func(m *made) {}, nil, nil},
		{"written and listed", func(m *made) { m.op(0, 1, "write", one, made5); m.op(2, 3, "write", two, made6) }, []CounterChange{ch(one, 5), ch(two, 6)}, nil},
		{"repeated", func(m *made) {
			m.unknown(0, "write", one)
			m.op(1, 2, "write", one, made5)
			m.op(3, 4, "write", one, made5)
		}, []CounterChange{ch(one, 5)}, nil},
		{"never decided, and happened", func(m *made) { m.unknown(0, "write", put) }, []CounterChange{ch(put, 5)}, nil},
		{"never decided, and did not happen", func(m *made) { m.unknown(0, "write", put) }, []CounterChange{}, nil},
		{"it did not happen, and a repeat is told so", func(m *made) {
			m.op(0, 1, "write", one, made5)
			m.op(2, 3, "write", put, made6)
			m.op(4, 5, "write", CounterWrite{ID: "x", Key: "k", Value: "x", CAS: true}, Written{false, 7})
			m.op(6, 7, "write", CounterWrite{ID: "x", Key: "k", Value: "x", CAS: true}, Written{false, 7})
		}, []CounterChange{ch(one, 5), ch(put, 6)}, nil},
		{"a repeat is told another revision", func(m *made) { m.op(0, 1, "write", one, made5); m.op(2, 3, "write", one, made6) },
			[]CounterChange{ch(one, 5)}, []string{"another answer"}},
		{"a repeat is told that it did not happen", func(m *made) { m.op(0, 1, "write", one, made5); m.op(2, 3, "write", one, Written{false, 5}) },
			[]CounterChange{ch(one, 5)}, []string{"another answer"}},
		{"a repeat happened again", func(m *made) { m.unknown(0, "write", put); m.op(1, 2, "write", put, made5) },
			[]CounterChange{ch(put, 5), ch(put, 8)}, []string{"happened twice"}},
		{"it happened at another revision than was said", func(m *made) { m.op(0, 1, "write", put, made5) }, []CounterChange{ch(put, 4)}, []string{"another answer"}},
		{"it happened the first time, and the repeat found its condition broken", func(m *made) {
			m.unknown(0, "write", one)
			m.op(1, 2, "write", one, Written{false, 7})
		}, []CounterChange{ch(one, 5)}, []string{"refused but there"}},
		{"an acknowledged one is lost", func(m *made) { m.op(0, 1, "write", put, made5) }, []CounterChange{}, []string{"lost"}},
		{"two follow the same one", func(m *made) {
			three := two
			three.ID, three.Value = "c", "c"
			m.op(0, 1, "write", one, made5)
			m.op(2, 3, "write", two, made6)
			m.op(2, 3, "write", three, made7)
		}, []CounterChange{ch(one, 5), ch(two, 6), {"k", "c", 7}}, []string{"lost update"}},
		{"nobody wrote it", func(m *made) {}, []CounterChange{{"k", "z", 5}}, []string{"out of nothing"}},
		{"an answer that breaks the API", func(m *made) { m.op(0, 1, "write", put, Broken{"422"}) }, []CounterChange{ch(put, 5)}, []string{"broken answer"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var m made
			c.make(&m)
			if c.changes != nil {
				m.op(100, 110, "changes", nil, CounterChanges{1, 100, c.changes})
			}
			condemns(t, NewCounter(), m, c.kinds...)
		})
	}
}

// A cluster that keeps little history shows only the end of it. What is known from
// several lists counts together.
func TestCounterJudgeDemandsOfAListOnlyWhatItCovers(t *testing.T) {
	one := CounterWrite{ID: "a", Key: "k", Value: "a", CAS: true}
	two := CounterWrite{ID: "b", Key: "k", Value: "b", CAS: true, Index: 5}
	put := CounterWrite{ID: "p", Key: "o", Value: "p"}
	writes := func(m *made) {
		m.op(0, 1, "write", one, Written{true, 5})
		m.op(2, 3, "write", two, Written{true, 6})
		m.op(4, 5, "write", put, Written{true, 9})
	}
	for _, c := range []struct {
		name  string
		lists []CounterChanges
		kinds []string
	}{
		{"the first write is too old, the last too new", []CounterChanges{{6, 8, []CounterChange{{"k", "b", 6}}}}, nil},
		{"one within is missing", []CounterChanges{{6, 9, []CounterChange{{"k", "b", 6}}}}, []string{"lost"}},
		{"another list had it elsewhere", []CounterChanges{
			{1, 8, []CounterChange{{"k", "a", 5}, {"k", "b", 6}, {"o", "p", 7}}}, {9, 9, []CounterChange{{"o", "p", 9}}},
		}, []string{"another answer", "happened twice"}},
		{"what it followed ought to be in the list", []CounterChanges{{4, 6, []CounterChange{{"k", "b", 6}}}}, []string{"lost", "lost update"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var m made
			writes(&m)
			for i, list := range c.lists {
				m.op(time.Duration(100+i), time.Duration(101+i), "changes", nil, list)
			}
			condemns(t, NewCounter(), m, c.kinds...)
		})
	}
}

func TestCounterJudgeIsQuickOnLongHistories(t *testing.T) {
	var m made
	var changes []CounterChange
	for i := range 10_000 {
		at := time.Duration(4 * i)
		w := CounterWrite{ID: fmt.Sprint(i), Key: "k", Value: fmt.Sprint(i), CAS: true, Index: uint64(i)}
		m.op(at, at+1, "write", w, Written{true, uint64(i + 1)})
		m.op(at+2, at+3, "write", w, Written{true, uint64(i + 1)})
		changes = append(changes, CounterChange{"k", w.Value, uint64(i + 1)})
	}
	for range 5 {
		m.op(50_000, 50_001, "changes", nil, CounterChanges{1, 20_000, changes})
	}
	began := time.Now()
	condemns(t, NewCounter(), m)
	t.Logf("%d operations judged in %v", len(m), time.Since(began))
}
