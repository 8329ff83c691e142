package workload

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/history"
)

// changed is a change of a key as a log tells it; without a value it is a delete.
func changed(index uint64, key, value, session string, lock uint64) Change {
	c := Change{Index: index, Op: "put", KV: Entry{Key: key, Value: []byte(value), Session: session, LockIndex: lock, ModifyIndex: index}}
	if value == "" {
		c.Op = "delete"
	}
	return c
}

// told ends a history with what all nodes tell.
func (m *made) told(changes ...Change) {
	m.op(900_000, 900_001, "log", nil, logOf(changes...))
	m.op(900_002, 900_003, "log", nil, Log{From: 1, To: logOf(changes...).To, Sum: logOf(changes...).Sum})
}

func logOf(changes ...Change) Log {
	l := Log{From: 1, To: 1_000_000, Changes: changes}
	l.Sum = fmt.Sprintf("%x", fmt.Appendf(nil, "%+v", changes))
	return l
}

const aLock = "locks/release/0"

var (
	aSession = Session{TTL: time.Second, LockDelay: 300 * time.Millisecond, Behavior: "release"}
	aHolding = Grab{aLock, "s1", "held 1"}
	aWrite   = Fenced{Lock: aLock, Session: "s1", LockIndex: 1, Modify: 2, Value: "write 1"}
	anOther  = Grab{aLock, "s2", "held 2"}
)

// twoHoldings is what clients saw of two sessions, the second of which gets the lock
// when the first has ended; and what the log tells of it.
func twoHoldings() (made, []Change) {
	var m made
	m.op(0, 1, "session", aSession, Opened{"s1", 1})
	m.op(2, 3, "acquire", aHolding, Got{OK: true, Index: 2})
	m.op(3, 4, "look", Look{aLock, 2}, []Entry{{Key: aLock, ModifyIndex: 2, LockIndex: 1, Session: "s1", Value: []byte("held 1")}})
	m.op(5, 6, "write", aWrite, uint64(3))
	m.op(500, 501, "renew", "s1", true)
	m.op(600, 601, "session", aSession, Opened{"s2", 4})
	m.op(602, 603, "acquire", anOther, Got{Index: 4})
	m.op(700, 701, "destroy", "s1", uint64(5))
	m.op(1100, 1101, "acquire", Grab{aLock, "s2", "held 3"}, Got{OK: true, Index: 6, Lock: 2})
	m.op(1102, 1103, "write", Fenced{aLock, "s2", 2, 6, "write 2"}, uint64(7))
	m.op(1200, 1201, "release", Grab{aLock, "s2", "free 1"}, Got{OK: true, Index: 8})
	m.op(1300, 1301, "destroy", "s2", uint64(9))
	m.op(5000, 5001, "left", nil, []string{})
	return m, []Change{
		changed(2, aLock, "held 1", "s1", 1),
		changed(3, "locks/resource/release/0", "write 1", "", 0),
		changed(5, aLock, "held 1", "", 1),
		changed(6, aLock, "held 3", "s2", 2),
		changed(7, "locks/resource/release/0", "write 2", "", 0),
		changed(8, aLock, "free 1", "", 2),
	}
}

func TestLocksJudgeFindsWhatBreaksALock(t *testing.T) {
	for _, c := range []struct {
		name  string
		alter func(m *made, log []Change) []Change
		kinds []string
	}{
		{"two holdings", func(_ *made, log []Change) []Change { return log }, nil},
		{"granted while it was held", func(_ *made, log []Change) []Change {
			return slices.Delete(log, 2, 3) // never given back
		}, []string{"two holders", "lock index"}},
		{"LockIndex stays", func(_ *made, log []Change) []Change {
			log[3].KV.LockIndex, log[5].KV.LockIndex = 1, 1
			return log
		}, []string{"lock index", "acknowledged but not so", "fence"}},
		{"a write by who held it before", func(m *made, log []Change) []Change {
			m.op(1105, 1106, "write", Fenced{aLock, "s1", 1, 2, "write 3"}, uint64(70))
			return append(log, changed(70, "locks/resource/release/0", "write 3", "", 0))
		}, []string{"fence"}},
		{"a fenced write that was refused", func(m *made, log []Change) []Change {
			m.refused(1105, 1106, "write", Fenced{aLock, "s2", 2, 6, "write 3"})
			return slices.Insert(log, 5, changed(7, "locks/resource/release/0", "write 3", "", 0))
		}, []string{"refused but there"}},
		{"an acknowledged write is not there", func(_ *made, log []Change) []Change { return slices.Delete(log, 1, 2) }, []string{"lost"}},
		{"an acknowledged lock is not there", func(_ *made, log []Change) []Change {
			return slices.Delete(log, 3, 6)
		}, []string{"acknowledged but not so", "lost"}},
		{"taken before the lock-delay is over", func(m *made, log []Change) []Change {
			(*m)[8].Call, (*m)[8].Return = 800*time.Millisecond, 801*time.Millisecond
			return log
		}, []string{"lock delay"}},
		{"refused though it is free", func(m *made, log []Change) []Change {
			m.op(1250, 1251, "acquire", Grab{"locks/release/1", "s2", "held 9"}, Got{Index: 8})
			return log
		}, []string{"refused without cause"}},
		{"a release of nothing is refused", func(m *made, log []Change) []Change {
			m.op(1250, 1251, "release", Grab{aLock, "s1", "free 9"}, Got{Index: 8})
			return log
		}, nil},
		{"deleted with a session that gives back", func(_ *made, log []Change) []Change {
			log[2] = changed(5, aLock, "", "", 0)
			log[3].KV.LockIndex, log[5].KV.LockIndex = 1, 1
			return log
		}, []string{"behaviour", "acknowledged but not so", "fence"}},
		{"a session ends and keeps one of its locks", func(m *made, log []Change) []Change {
			m.op(10, 11, "acquire", Grab{"locks/release/1", "s1", "held 8"}, Got{OK: true, Index: 4})
			return slices.Insert(log, 2, changed(4, "locks/release/1", "held 8", "s1", 1))
		}, []string{"half ended"}},
		{"granted to a session that has ended", func(m *made, log []Change) []Change {
			m.unknown(1150, "acquire", Grab{aLock, "s1", "held 7"})
			return append(log, changed(70, aLock, "held 7", "s1", 3))
		}, []string{"granted to an ended session"}},
		{"a session ends before its TTL", func(m *made, log []Change) []Change {
			*m = slices.Delete(*m, 7, 8) // nobody destroys it
			return log
		}, []string{"session ended early", "lock delay"}},
		{"a session ends after its TTL", func(m *made, log []Change) []Change {
			*m = slices.Delete(*m, 7, 8)
			for i := range *m {
				if o := &(*m)[i]; i >= 7 {
					o.Call, o.Return = o.Call+time.Second, o.Return+time.Second
				} else if o.In == "s1" {
					o.Call, o.Return = 100*time.Millisecond, 101*time.Millisecond
				}
			}
			return log
		}, nil},
		{"a session is gone, then there", func(m *made, log []Change) []Change {
			m.op(1050, 1051, "session", aSession, Opened{"s3", 5})
			m.op(4000, 4001, "renew", "s3", false)
			m.op(4100, 4101, "renew", "s3", true)
			return log
		}, []string{"session came back"}},
		{"a session that nobody renews ends", func(m *made, log []Change) []Change {
			m.op(1050, 1051, "session", aSession, Opened{"s3", 5})
			m.op(2100, 2101, "renew", "s3", false)
			return log
		}, nil},
		{"a session never ends", func(m *made, log []Change) []Change {
			m.op(60_000, 60_001, "left", nil, []string{"s9"})
			return log
		}, []string{"session never ends"}},
		{"a lock can never be had again", func(m *made, log []Change) []Change {
			m.op(60_000, 60_001, "free", aLock, false)
			return log
		}, []string{"never free"}},
		{"a look that is older than the lock", func(m *made, log []Change) []Change {
			m.op(1150, 1151, "look", Look{aLock, 6}, []Entry{{Key: aLock, ModifyIndex: 5}})
			return log
		}, []string{"read of the past"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, log := twoHoldings()
			log = c.alter(&m, log)
			m.told(log...)
			condemns(t, NewLocks(), m, c.kinds...)
		})
	}
	t.Run("nodes tell different things", func(t *testing.T) {
		m, log := twoHoldings()
		m.told(log...)
		other := logOf(log[:4]...)
		m.op(900_010, 900_011, "log", nil, other)
		condemns(t, NewLocks(), m, "nodes differ")
	})
}

func TestLocksJudgeIsQuick(t *testing.T) {
	var m made
	var log []Change
	for i := range 5000 {
		at := time.Duration(10 * i)
		index := uint64(5*i + 1)
		s, held := fmt.Sprint("s", i), fmt.Sprint("held ", i)
		m.op(at, at+1, "session", Session{TTL: time.Second, Behavior: "release"}, Opened{s, index})
		m.op(at+1, at+2, "acquire", Grab{aLock, s, held}, Got{OK: true, Index: index + 1})
		write := Fenced{aLock, s, uint64(i + 1), index + 1, fmt.Sprint("write ", i)}
		m.op(at+2, at+3, "write", write, index+2)
		m.op(at+4, at+5, "destroy", s, index+3)
		log = append(log, changed(index+1, aLock, held, s, uint64(i+1)), changed(index+2, resource(aLock), write.Value, "", 0),
			changed(index+3, aLock, held, "", uint64(i+1)))
	}
	m.told(log...)
	began := time.Now()
	condemns(t, NewLocks(), m)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("%d requests judged in %v", len(m), took)
	}
}

func TestSemaphoresJudgeFindsWhoIsOneTooMany(t *testing.T) {
	const dir = "semaphores/0/"
	seat := func(writer, session string, in bool, based uint64, holders ...string) Swap {
		s := Swap{dir + ".lock", Seats{Limit: seats, Holders: map[string]bool{}, Writer: writer, Session: session, In: in, Based: based}}
		for _, h := range holders {
			s.Holders[h] = true
		}
		return s
	}
	list := func(index uint64, s Swap) Change {
		return changed(index, s.Key, fmt.Sprintf(`{"Writer":%q,"Session":%q,"In":%v,"Based":%d}`, s.Writer, s.Session, s.In, s.Based), "", 0)
	}
	// Three contenders, of whom two come in.
	sound := func() (m made, log []Change) {
		for i := range 3 {
			at, s := time.Duration(10*i), fmt.Sprint("s", i)
			m.op(at, at+1, "session", Session{TTL: time.Second, Behavior: "delete"}, Opened{s, uint64(2*i + 1)})
			m.op(at+2, at+3, "acquire", Grab{dir + s, s, "contender " + s}, Got{OK: true, Index: uint64(2*i + 2)})
			log = append(log, changed(uint64(2*i+2), dir+s, "contender "+s, s, 1))
		}
		m.op(100, 101, "swap", seat("a", "s0", true, 0, "s0"), Got{OK: true, Index: 7})
		m.op(110, 111, "swap", seat("b", "s1", true, 7, "s0", "s1"), Got{OK: true, Index: 8})
		m.op(112, 113, "swap", seat("c", "s2", true, 7, "s0", "s2"), Got{Index: 8})
		return m, append(log, list(7, m[6].In.(Swap)), list(8, m[7].In.(Swap)))
	}
	for _, c := range []struct {
		name  string
		alter func(m *made, log []Change) []Change
		kinds []string
	}{
		{"two are in", func(_ *made, log []Change) []Change { return log }, nil},
		{"one leaves, and one comes", func(m *made, log []Change) []Change {
			m.op(200, 201, "swap", seat("d", "s0", false, 8, "s1"), Got{OK: true, Index: 9})
			m.op(210, 211, "swap", seat("e", "s2", true, 9, "s1", "s2"), Got{OK: true, Index: 10})
			return append(log, list(9, (*m)[9].In.(Swap)), list(10, (*m)[10].In.(Swap)))
		}, nil},
		{"one ends, and one comes", func(m *made, log []Change) []Change {
			m.op(200, 201, "destroy", "s0", uint64(9))
			m.op(210, 211, "swap", seat("e", "s2", true, 8, "s1", "s2"), Got{OK: true, Index: 10})
			return append(log, changed(9, dir+"s0", "", "", 0), list(10, (*m)[10].In.(Swap)))
		}, nil},
		{"a list that had changed is replaced", func(m *made, log []Change) []Change {
			(*m)[8].Out = Got{OK: true, Index: 9}
			return append(log, list(9, (*m)[8].In.(Swap)))
		}, []string{"lost update", "too many"}},
		{"three are in", func(m *made, log []Change) []Change {
			m.op(200, 201, "swap", seat("d", "s2", true, 8, "s0", "s1", "s2"), Got{OK: true, Index: 9})
			return append(log, list(9, (*m)[9].In.(Swap)))
		}, []string{"too many"}},
		{"a refused compare-and-set happened", func(m *made, log []Change) []Change {
			m.op(200, 201, "swap", seat("d", "s0", false, 8, "s1"), Got{Index: 8})
			return append(log, list(9, (*m)[9].In.(Swap)))
		}, []string{"acknowledged but not so"}},
		{"an acknowledged one is not there", func(_ *made, log []Change) []Change { return log[:4] }, []string{"acknowledged but not so"}},
		{"nobody gets in any more", func(m *made, log []Change) []Change {
			m.op(60_000, 60_001, "free", dir, false)
			return log
		}, []string{"never free"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, log := sound()
			m.told(c.alter(&m, log)...)
			condemns(t, NewSemaphores(), m, c.kinds...)
		})
	}
}

// A clockwork must not say more than follows.
func TestClockworkBoundsWhenAnIndexWasMade(t *testing.T) {
	var m made
	m.op(10, 20, "x", nil, uint64(5))
	m.op(15, 40, "x", nil, uint64(9))
	m.op(30, 35, "x", nil, uint64(12))
	c := newClockwork(m, func(o history.Op) (uint64, bool) { return o.Out.(uint64), true })
	for index, want := range map[uint64]time.Duration{4: 0, 5: 0, 6: 10, 9: 10, 10: 15, 13: 30} {
		if got := c.notBefore(index); got != want*time.Millisecond {
			t.Errorf("index %d not before %v, want %v ms", index, got, want)
		}
	}
	for index, want := range map[uint64]time.Duration{5: 20, 6: 35, 12: 35} {
		if got, ok := c.notAfter(index); !ok || got != want*time.Millisecond {
			t.Errorf("index %d not after %v, want %v ms", index, got, want)
		}
	}
	if at, ok := c.notAfter(13); ok {
		t.Errorf("index 13 was made before %v, says nobody", at)
	}
}
