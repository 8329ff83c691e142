package workload

import (
	"testing"
	"time"
)

func TestSetJudgeFindsWhatIsLostAndWhatCameFromNowhere(t *testing.T) {
	for _, c := range []struct {
		name  string
		make  func(m *made)
		kinds []string
	}{
		{"nothing", func(m *made) {}, nil},
		{"added and read", func(m *made) { m.op(0, 1, "add", 1, uint64(5)); m.op(2, 3, "read", nil, []int{1}) }, nil},
		{"a read beside an add sees either", func(m *made) { m.op(0, 4, "add", 1, uint64(5)); m.op(2, 3, "read", nil, []int(nil)) }, nil},
		{"an add of unknown outcome may be there or not", func(m *made) {
			m.unknown(0, "add", 1)
			m.unknown(0, "add", 2)
			m.op(2, 3, "read", nil, []int{2})
		}, nil},
		{"an acknowledged add is gone", func(m *made) { m.op(0, 1, "add", 1, uint64(5)); m.op(2, 3, "read", nil, []int(nil)) }, []string{"lost"}},
		{"a refused add is there", func(m *made) { m.refused(0, 1, "add", 1); m.op(2, 3, "read", nil, []int{1}) }, []string{"refused but there"}},
		{"nobody added it", func(m *made) { m.op(2, 3, "read", nil, []int{1}) }, []string{"out of nothing"}},
		{"seen before it was added", func(m *made) { m.op(2, 3, "read", nil, []int{1}); m.op(4, 5, "add", 1, uint64(5)) }, []string{"read of the future"}},
		{"an answer that breaks the API", func(m *made) { m.op(0, 1, "add", 1, Broken{"false"}) }, []string{"broken answer"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var m made
			c.make(&m)
			condemns(t, NewSet(), m, c.kinds...)
		})
	}
}

func TestSetJudgeIsQuickOnLongHistories(t *testing.T) {
	var m made
	var numbers []int
	for i := range 15_000 {
		at := time.Duration(4 * i)
		m.op(at, at+1, "add", i, uint64(i+1))
		if numbers = append(numbers, i); i%10 == 0 {
			m.op(at+2, at+3, "read", nil, numbers[:len(numbers):len(numbers)])
		}
	}
	began := time.Now()
	condemns(t, NewSet(), m)
	t.Logf("%d operations judged in %v", len(m), time.Since(began))
}
