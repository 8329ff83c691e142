package workload

import (
	"fmt"
	"testing"
	"time"
)

// at is a picture of pair 0 as of a revision.
func at(applied uint64, value string, modify uint64) Picture {
	return Picture{Applied: applied, Pairs: map[string]Both{"0": {"0", value, modify}}}
}

func TestRestoresJudgeFindsWhatIsNotOneStep(t *testing.T) {
	write := func(value string) Both { return Both{Pair: "0", Value: value} }
	// The pair is written, archived at 3 and written again; the archive is restored
	// at 10, and the pair written once more.
	for _, c := range []struct {
		name  string
		make  func(m *made)
		kinds []string
	}{
		{"nothing else", func(*made) {}, nil},
		{"before, restored, and after", func(m *made) {
			m.op(6, 7, "read", stale, at(5, "second", 4))
			m.op(12, 13, "read", consistent, at(10, "first", 2))
			m.op(16, 17, "read", consistent, at(11, "third", 11))
		}, nil},
		{"a node that has not heard of the restore", func(m *made) { m.op(16, 17, "read", stale, at(9, "second", 4)) }, nil},
		{"not all was put back", func(m *made) { m.op(12, 13, "read", stale, at(10, "second", 4)) }, []string{"not the state it says"}},
		{"put back too early", func(m *made) { m.op(12, 13, "read", stale, at(9, "first", 2)) }, []string{"not the state it says"}},
		{"at another index", func(m *made) { m.op(12, 13, "read", stale, at(10, "first", 10)) }, []string{"not the state it says"}},
		{"what came after it is gone", func(m *made) { m.op(16, 17, "read", stale, at(11, "first", 2)) }, []string{"not the state it says"}},
		{"an archive that is not its state", func(m *made) { m.op(6, 7, "save", "", Archived{1, at(5, "first", 2)}) }, []string{"not the state it says"}},
		{"an archive of two states", func(m *made) { m.op(6, 7, "save", "", Archived{1, Picture{Applied: 5, Torn: "two"}}) }, []string{"torn"}},
		{"a node goes back", func(m *made) {
			m.op(16, 17, "read", stale, at(11, "third", 11))
			m.op(18, 19, "read", stale, at(10, "first", 2))
		}, []string{"node goes back"}},
		{"a revision is given again", func(m *made) { m.op(20, 21, "write", write("fourth"), uint64(11)) }, []string{"revision goes back"}},
		{"a consistent read of before", func(m *made) { m.op(12, 13, "read", consistent, at(9, "second", 4)) }, []string{"read of the past"}},
		{"a restore of unknown outcome", func(m *made) {
			m.unknown(18, "restore", 0)
			m.op(20, 21, "read", consistent, at(12, "third", 11))
			m.op(22, 23, "read", consistent, at(20, "first", 2))
		}, nil},
		{"a write of unknown outcome", func(m *made) {
			m.unknown(18, "write", write("fourth"))
			m.op(20, 21, "read", consistent, at(12, "fourth", 12))
		}, nil},
		{"nobody wrote it", func(m *made) { m.op(20, 21, "read", consistent, at(12, "ghost", 12)) }, []string{"out of nothing"}},
		{"who waits is not woken", func(m *made) { m.op(12, 70_000, "wait", uint64(1), false) }, []string{"not woken"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var m made
			m.op(0, 1, "write", write("first"), uint64(2))
			m.op(2, 3, "save", "", Archived{0, at(3, "first", 2)})
			m.op(4, 5, "write", write("second"), uint64(4))
			m.op(8, 11, "restore", 0, uint64(10))
			m.op(14, 15, "write", write("third"), uint64(11))
			c.make(&m)
			condemns(t, NewRestores(), m, c.kinds...)
		})
	}
}

func TestRestoresJudgeIsQuick(t *testing.T) {
	var m made
	for i := range 10_000 {
		begin, value := time.Duration(10*i), fmt.Sprint("0.", i)
		m.op(begin, begin+1, "write", Both{Pair: "0", Value: value}, uint64(i+1))
		m.op(begin+2, begin+3, "read", stale, at(uint64(i+1), value, uint64(i+1)))
	}
	began := time.Now()
	condemns(t, NewRestores(), m)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("%d requests judged in %v", len(m), took)
	}
}
