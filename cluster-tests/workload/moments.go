package workload

import (
	"cmp"
	"math"
	"slices"
	"sort"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/history"
)

// front is how far something had come by a moment.
type front struct {
	steps []step
}

type step struct {
	at    time.Duration
	reach uint64
}

func (f *front) add(at time.Duration, reach uint64) { f.steps = append(f.steps, step{at, reach}) }

// settle puts all in order, once it is there.
func (f *front) settle() {
	slices.SortFunc(f.steps, func(a, b step) int { return cmp.Compare(a.at, b.at) })
	for i := 1; i < len(f.steps); i++ {
		f.steps[i].reach = max(f.steps[i].reach, f.steps[i-1].reach)
	}
}

// before is how far it had come before a moment, and since when.
func (f *front) before(at time.Duration) (reach uint64, since time.Duration) {
	i := sort.Search(len(f.steps), func(i int) bool { return f.steps[i].at >= at })
	if i == 0 {
		return 0, 0
	}
	return f.steps[i-1].reach, f.steps[i-1].at
}

// first is when it had come so far; never if it had not.
func (f *front) first(reach uint64) time.Duration {
	i := sort.Search(len(f.steps), func(i int) bool { return f.steps[i].reach >= reach })
	if i == len(f.steps) {
		return math.MaxInt64
	}
	return f.steps[i].at
}

// serving is what one node answered.
type serving struct {
	answered front
	calls    []period // in order of call; ret is then the earliest of this or a later call
}

type period struct{ call, ret time.Duration }

func (s *serving) add(o history.Op, applied uint64) {
	s.answered.add(o.Return, applied)
	s.calls = append(s.calls, period{o.Call, o.Return})
}

func (s *serving) settle() {
	s.answered.settle()
	slices.SortFunc(s.calls, func(a, b period) int { return cmp.Compare(a.call, b.call) })
	for i := len(s.calls) - 2; i >= 0; i-- {
		s.calls[i].ret = min(s.calls[i].ret, s.calls[i+1].ret)
	}
}

// firstAnswerTo is when something was answered that was asked at a moment or later.
func (s *serving) firstAnswerTo(at time.Duration) time.Duration {
	i := sort.Search(len(s.calls), func(i int) bool { return s.calls[i].call >= at })
	if i == len(s.calls) {
		return math.MaxInt64
	}
	return s.calls[i].ret
}

// clockwork tells when indexes were made, as far as that follows from requests
// that were answered with one.
type clockwork struct {
	indexes []uint64
	// begun is, for each of indexes, the latest call of a request answered with it
	// or a lower one; seen the earliest answer with it or a higher one.
	begun, seen []time.Duration
}

// newClockwork takes the index of each request that was answered with one.
func newClockwork(ops []history.Op, index func(history.Op) (uint64, bool)) *clockwork {
	type at struct {
		index     uint64
		call, ret time.Duration
	}
	var all []at
	for _, o := range ops {
		if i, ok := index(o); ok && o.Outcome == history.Decided {
			all = append(all, at{i, o.Call, o.Return})
		}
	}
	slices.SortFunc(all, func(a, b at) int { return cmp.Compare(a.index, b.index) })
	c := &clockwork{}
	for i, a := range all {
		begun := a.call
		if i > 0 {
			begun = max(begun, c.begun[i-1])
		}
		c.indexes, c.begun, c.seen = append(c.indexes, a.index), append(c.begun, begun), append(c.seen, a.ret)
	}
	for i := len(all) - 2; i >= 0; i-- {
		c.seen[i] = min(c.seen[i], c.seen[i+1])
	}
	return c
}

// notBefore is a moment before which an index was not made: something with a lower
// index was not even asked for.
func (c *clockwork) notBefore(index uint64) time.Duration {
	i, _ := slices.BinarySearch(c.indexes, index) // the first that is not lower
	if i == 0 {
		return 0
	}
	return c.begun[i-1]
}

// notAfter is a moment after which an index was not made: somebody had been
// answered with it, or with a higher one. ok is false when nobody was.
func (c *clockwork) notAfter(index uint64) (at time.Duration, ok bool) {
	i, _ := slices.BinarySearch(c.indexes, index)
	if i == len(c.indexes) {
		return 0, false
	}
	return c.seen[i], true
}
