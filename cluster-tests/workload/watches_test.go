package workload

import (
	"fmt"
	"testing"
	"time"
)

const aKey, aDir = "watches/0/0", "watches/0/"

// waited is a read that waited at n1.
func (m *made) waited(call, ret time.Duration, in Wait, index, applied uint64, entries ...Change) {
	seen := Woken{Index: index, Applied: applied}
	for _, c := range entries {
		seen.Entries = append(seen.Entries, c.KV)
	}
	m.op(call, ret, "wait", in, seen)
}

func TestWatchesJudgeFindsWhoIsNotWokenOrMisled(t *testing.T) {
	local := func(target string, index uint64) Wait { return Wait{target, stale, index, time.Minute} }
	one, two := changed(2, aKey, "0.0", "", 0), changed(4, aKey, "0.1", "", 0)
	// A key is written at 2 and 4, another one under the same prefix at 3, and
	// something else meanwhile and later.
	other := changed(3, "watches/0/1", "0.2", "", 0)
	log := []Change{one, other, two, changed(20, "watches/1/0", "0.3", "", 0)}
	written := func(m *made) {
		m.op(0, 1, "edit", []Edit{{Target: aKey, Value: "0.0"}}, uint64(2))
		m.op(2, 3, "edit", []Edit{{Target: "watches/0/1", Value: "0.2"}}, uint64(3))
		m.op(4, 5, "edit", []Edit{{Target: aKey, Value: "0.1"}}, uint64(4))
		m.op(9_000, 9_001, "edit", []Edit{{Target: "watches/1/0", Value: "0.3"}}, uint64(20))
	}
	for _, c := range []struct {
		name  string
		make  func(m *made)
		kinds []string
	}{
		{"woken with what it waited for", func(m *made) {
			m.waited(1, 2, local(aKey, 0), 2, 2, one)
			m.waited(2, 6, local(aKey, 2), 4, 4, two)
			m.waited(7, 8, local(aDir, 2), 4, 4, two, other)
		}, nil},
		{"a node that lags", func(m *made) { m.waited(9_500, 9_501, local(aDir, 0), 3, 3, one, other) }, nil},
		{"nothing happened in time", func(m *made) { m.waited(6, 8_000, local(aKey, 4), 4, 15, two) }, nil},
		{"the index of now with the value of before", func(m *made) { m.waited(5, 6, local(aKey, 1), 4, 4, one) }, []string{"not the state it says"}},
		{"the value of before with the state of now", func(m *made) { m.waited(5, 6, local(aKey, 1), 2, 4, one) }, []string{"not the state it says"}},
		{"an index above the last change", func(m *made) { m.waited(5, 6, local(aDir, 1), 9, 9, two, other) }, []string{"not the state it says"}},
		{"an index of a missing key is that of all keys", func(m *made) { m.waited(5, 6, local("watches/0/9", 1), 9, 9) }, nil},
		{"a list with a hole", func(m *made) { m.waited(5, 6, local(aDir, 1), 4, 4, two) }, []string{"not the state it says"}},
		{"a node that goes back", func(m *made) {
			m.waited(5, 6, local(aKey, 0), 4, 4, two)
			m.waited(7, 8, local(aKey, 0), 2, 3, one)
		}, []string{"node goes back"}},
		{"answers that crossed", func(m *made) {
			m.waited(5, 8, local(aKey, 0), 4, 4, two)
			m.waited(7, 9, local(aKey, 0), 2, 3, one)
		}, nil},
		{"a consistent read that misses something", func(m *made) {
			m.waited(10, 11, Wait{aKey, consistent, 0, 0}, 2, 3, one)
		}, []string{"read of the past"}},
		{"a read at the leader that is just not too old", func(m *made) {
			m.waited(100, 101, Wait{aKey, byDefault, 0, 0}, 2, 3, one)
			m.waited(104, 106, Wait{aKey, byDefault, 0, 0}, 2, 3, one)
		}, nil},
		{"a read at the leader that is too old", func(m *made) { m.waited(106, 107, Wait{aKey, byDefault, 0, 0}, 2, 3, one) }, []string{"read of the past"}},
		{"asleep while the node tells others", func(m *made) {
			m.waited(3, 9_500, local(aKey, 2), 4, 20, two)
			m.waited(5, 6, local(aDir, 0), 4, 4, two, other)
			m.waited(3_200, 3_201, local(aDir, 0), 4, 4, two, other)
		}, []string{"missed wake-up"}},
		{"a node that stood still", func(m *made) {
			m.waited(3, 9_500, local(aKey, 2), 4, 20, two)
			m.waited(5, 6, local(aDir, 0), 4, 4, two, other)
			m.waited(3_200, 8_800, local(aDir, 0), 4, 4, two, other)
		}, nil},
		{"an answer that was long under way", func(m *made) {
			m.waited(3, 9_500, local(aKey, 2), 4, 4, two)
			m.waited(5, 6, local(aDir, 0), 4, 4, two, other)
			m.waited(3_200, 3_201, local(aDir, 0), 4, 4, two, other)
		}, nil},
		{"a delete of nothing long after, answered with what was last", func(m *made) {
			m.waited(3, 6, local(aKey, 2), 4, 4, two)
			m.waited(5, 6, local(aDir, 0), 4, 4, two, other)
			m.waited(3_200, 3_201, local(aDir, 0), 4, 4, two, other)
			m.op(9_000, 9_001, "edit", []Edit{{Target: watchKey(1, 2), Delete: true}}, uint64(4))
		}, nil},
		{"never woken at all", func(m *made) { m.op(60_000, 120_000, "last", aKey, false) }, []string{"never woken"}},
		{"a write that is lost", func(m *made) { m.op(5, 6, "edit", []Edit{{Target: aKey, Value: "1.0"}}, uint64(5)) }, []string{"lost"}},
		{"a delete that is lost", func(m *made) { m.op(5, 6, "edit", []Edit{{Target: aDir, Delete: true}}, uint64(5)) }, []string{"lost"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var m made
			written(&m)
			c.make(&m)
			m.told(log...)
			condemns(t, NewWatches(), m, c.kinds...)
		})
	}
}

func TestWatchesJudgeIsQuick(t *testing.T) {
	var m made
	var log []Change
	for i := range 10_000 {
		at, index := time.Duration(10*i), uint64(i+2)
		c := changed(index, watchKey(i%watchDirs, i%watchKeys), fmt.Sprint("0.", i), "", 0)
		log = append(log, c)
		m.op(at, at+1, "edit", []Edit{{Target: c.KV.Key, Value: fmt.Sprint("0.", i)}}, index)
		m.waited(at+2, at+3, Wait{c.KV.Key, stale, index - 1, time.Minute}, index, index, c)
	}
	m.told(log...)
	began := time.Now()
	condemns(t, NewWatches(), m)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("%d requests judged in %v", len(m), took)
	}
}
