package workload

import (
	"testing"
	"time"
)

func TestJournalJudgeCondemnsWhatIsBrokenAndNothingElse(t *testing.T) {
	entry := func(n int) JournalEntry { return JournalEntry{0, n} }
	stale, consistent := JournalRead{}, JournalRead{Consistent: true}
	upTo := func(last int) JournalSeen { return JournalSeen{First: min(last, 1), Last: last} }
	aged := func(last int, age time.Duration) JournalSeen {
		s := upTo(last)
		s.Staleness, s.StalenessKnown = age*time.Millisecond, true
		return s
	}
	// two entries are acknowledged, the second of them at 30.
	two := func(m *made) { m.op(0, 10, "append", entry(1), uint64(5)); m.op(20, 30, "append", entry(2), uint64(6)) }
	for _, c := range []struct {
		name  string
		make  func(m *made)
		kinds []string
	}{
		{"nothing", func(m *made) {}, nil},
		{"written and read", func(m *made) { two(m); m.op(40, 50, "read", consistent, upTo(2)) }, nil},
		{"a copy that lags and says so", func(m *made) { two(m); m.op(40, 50, "read", stale, aged(1, 10)) }, nil},
		{"a copy that lags and does not know how much", func(m *made) { two(m); m.op(400, 500, "read", stale, upTo(0)) }, nil},
		{"a copy that lags more than it says", func(m *made) { two(m); m.op(40, 50, "read", stale, aged(1, 9)) }, []string{"older than it says"}},
		{"an entry repeated until it is acknowledged", func(m *made) {
			m.unknown(0, "append", entry(1))
			m.refused(1, 2, "append", entry(1))
			m.op(3, 4, "read", stale, upTo(1))
			m.op(5, 6, "append", entry(1), uint64(5))
		}, nil},
		{"the last entry is lost", func(m *made) { two(m); m.op(40, 50, "read", consistent, upTo(1)) }, []string{"lost"}},
		{"all is lost", func(m *made) { two(m); m.op(40, 50, "read", consistent, upTo(0)) }, []string{"lost"}},
		{"an entry is lost under a later one", func(m *made) {
			two(m)
			m.op(40, 50, "append", entry(3), uint64(7))
			m.op(60, 70, "read", consistent, JournalSeen{First: 1, Last: 3, Gap: 2})
		}, []string{"no prefix"}},
		{"the first entry is lost", func(m *made) { two(m); m.op(40, 50, "read", stale, JournalSeen{First: 2, Last: 2}) }, []string{"no prefix"}},
		{"the end is read, from behind what is there", func(m *made) {
			two(m)
			m.op(40, 50, "read", JournalRead{After: 2}, JournalSeen{})
			m.op(40, 50, "read", JournalRead{After: 1, Consistent: true}, JournalSeen{First: 2, Last: 2})
		}, nil},
		{"a copy that goes back", func(m *made) {
			two(m)
			m.op(40, 50, "read", stale, upTo(2))
			m.op(60, 70, "read", stale, upTo(1))
		}, []string{"went back"}},
		{"a copy that went back since long ago", func(m *made) {
			two(m)
			m.op(40, 50, "read", stale, upTo(2))
			m.op(42, 55, "read", stale, upTo(1)) // beside it
			m.op(60, 70, "read", stale, upTo(1))
		}, []string{"went back"}},
		{"reads of one copy that overlap", func(m *made) {
			two(m)
			m.op(40, 60, "read", stale, upTo(2))
			m.op(50, 70, "read", stale, upTo(1))
		}, nil},
		{"two copies of which one lags", func(m *made) {
			two(m)
			m.op(40, 50, "read", stale, upTo(2))
			m.op(60, 70, "read", stale, upTo(1))
			(*m)[len(*m)-1].Node = "e1"
		}, nil},
		{"an entry nobody wrote", func(m *made) { two(m); m.op(40, 50, "read", stale, upTo(3)) }, []string{"out of nothing"}},
		{"an entry from the future", func(m *made) { m.op(0, 1, "read", stale, upTo(1)); m.op(2, 3, "append", entry(1), uint64(5)) }, []string{"out of nothing"}},
		{"an answer that breaks the API", func(m *made) { m.op(0, 1, "read", stale, Broken{"?"}) }, []string{"broken answer"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var m made
			c.make(&m)
			condemns(t, NewJournal(), m, c.kinds...)
		})
	}
}

func TestJournalJudgeIsQuickOnLongHistories(t *testing.T) {
	var m made
	for i := range 20_000 {
		at := time.Duration(2 * i)
		m.op(at, at+1, "append", JournalEntry{0, i + 1}, uint64(i+1))
		m.op(at, at+2, "read", JournalRead{After: max(0, i-tail)}, JournalSeen{First: max(0, i-tail) + 1, Last: max(i, 1), StalenessKnown: true})
	}
	began := time.Now()
	condemns(t, NewJournal(), m)
	t.Logf("%d operations judged in %v", len(m), time.Since(began))
}
