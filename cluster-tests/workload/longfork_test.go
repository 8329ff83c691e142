package workload

import (
	"testing"
	"time"
)

// glance is a read of a whole group: keys 1 to 3 are written at revisions 11 to 13.
func (m *made) glance(call, ret time.Duration, mode string, revision uint64, keys ...int) {
	out := Sight{Revision: revision, Keys: map[int]uint64{}}
	for _, key := range keys {
		out.Keys[key] = 10 + uint64(key)
	}
	m.op(call, ret, "read", forkRead{Way: byGets, Mode: mode}, out)
}

func (m *made) put(call, ret time.Duration, key int) {
	m.op(call, ret, "write", ForkKey{0, key}, uint64(10+key))
}

func TestLongForkJudgeFindsEachAnomaly(t *testing.T) {
	for _, c := range []struct {
		name  string
		make  func(m *made)
		kinds []string
	}{
		{"nothing", func(*made) {}, nil},
		{"a chain", func(m *made) {
			m.put(0, 9, 1)
			m.put(0, 9, 2)
			m.glance(0, 9, stale, 10)
			m.glance(0, 9, consistent, 11, 1)
			m.glance(0, 9, byDefault, 14, 1, 2)
			m.glance(20, 21, stale, 10)
		}, nil},
		{"one of unknown outcome is seen", func(m *made) {
			m.unknown(0, "write", ForkKey{0, 1})
			m.glance(1, 2, stale, 11, 1)
		}, nil},
		{"a key alone", func(m *made) {
			m.put(0, 1, 1)
			m.op(2, 3, "read", forkRead{Way: byKey, Mode: consistent, Key: 1}, Sight{Revision: 11, Keys: map[int]uint64{1: 11}})
			m.op(2, 3, "read", forkRead{Way: byKey, Mode: consistent, Key: 2}, Sight{Revision: 11})
		}, nil},
		{"the second without the first", func(m *made) {
			m.unknown(0, "write", ForkKey{0, 1})
			m.unknown(0, "write", ForkKey{0, 2})
			m.glance(1, 2, stale, 11, 1)
			m.glance(1, 2, stale, 12, 2)
		}, []string{"long fork", "state of another revision"}},
		{"a key alone that was there already", func(m *made) {
			m.put(0, 1, 1)
			m.op(2, 3, "read", forkRead{Way: byKey, Mode: stale, Key: 1}, Sight{Revision: 12})
		}, []string{"state of another revision"}},
		{"two revisions of one write", func(m *made) {
			m.put(0, 9, 1)
			m.op(0, 9, "read", forkRead{Way: byGets, Mode: stale}, Sight{Revision: 14, Keys: map[int]uint64{1: 12}})
		}, []string{"two revisions of one write"}},
		{"a refused write is there", func(m *made) {
			m.refused(0, 1, "write", ForkKey{0, 1})
			m.glance(2, 3, stale, 11, 1)
		}, []string{"refused but there"}},
		{"nobody wrote it", func(m *made) { m.glance(2, 3, stale, 11, 1) }, []string{"out of nothing"}},
		{"seen before it was written", func(m *made) { m.glance(0, 1, stale, 11, 1); m.put(2, 3, 1) }, []string{"read of the future"}},
		{"a consistent read misses what was acknowledged", func(m *made) {
			m.put(0, 1, 1)
			m.glance(2, 3, consistent, 10)
		}, []string{"stale", "read of the past"}},
		{"a consistent read misses what was seen", func(m *made) {
			m.unknown(0, "write", ForkKey{0, 1})
			m.glance(1, 2, stale, 11, 1)
			m.glance(3, 4, consistent, 10)
		}, []string{"stale", "read of the past"}},
		{"an answer that breaks the API", func(m *made) { m.op(0, 1, "write", ForkKey{0, 1}, Broken{"nonsense"}) }, []string{"broken answer"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var m made
			c.make(&m)
			condemns(t, NewLongFork(), m, c.kinds...)
		})
	}
}

func TestLongForkJudgeIsQuick(t *testing.T) {
	var m made
	for i := range 20000 {
		group := i / 100
		in := ForkKey{group, i / 25 % forkKeys}
		at := time.Duration(10 * i)
		if i%25 == 0 {
			m.op(at, at+5, "write", in, uint64(i+1))
			continue
		}
		out := Sight{Revision: uint64(i + 1), Keys: map[int]uint64{}}
		for key := range in.Key + 1 {
			out.Keys[key] = uint64(group*100 + key*25 + 1)
		}
		m.op(at, at+5, "read", forkRead{Group: group, Way: byTree, Mode: consistent}, out)
	}
	began := time.Now()
	condemns(t, NewLongFork(), m)
	if d := time.Since(began); d > 20*time.Second {
		t.Errorf("it took %v", d)
	}
}
