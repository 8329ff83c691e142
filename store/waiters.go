package store

import (
	"container/heap"
	"context"
	"math"
	"sync"
	"sync/atomic"

	"github.com/holdfast-db/holdfast/command"
)

// waitlist lets goroutines wait until a counter reaches their target. Advancing
// the counter costs one atomic load while nobody is concerned, and wakes only
// those it satisfies.
type waitlist struct {
	// lowest is the smallest target waited for, MaxUint64 when there is none.
	// A waiter stores it before it looks at the counter for the last time, the
	// advancer loads it after it moved the counter: one of them sees the other.
	lowest  atomic.Uint64
	mu      sync.Mutex
	waiting targets
	closed  bool
}

type target struct {
	value uint64
	index int // in the heap, -1 once out of it
	// reached is set before done is closed, unless the list was closed.
	reached bool
	done    chan struct{}
}

func newWaitlist() *waitlist {
	w := &waitlist{}
	w.lowest.Store(math.MaxUint64)
	return w
}

// wait returns nil once current() >= value, or the context's error, or
// command.ErrStopping after close.
func (w *waitlist) wait(ctx context.Context, value uint64, current func() uint64) error {
	if current() >= value {
		return nil
	}
	t := &target{value: value, done: make(chan struct{})}
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return command.ErrStopping
	}
	heap.Push(&w.waiting, t)
	w.lowest.Store(w.waiting[0].value)
	w.mu.Unlock()

	if current() >= value {
		w.leave(t)
		return nil
	}
	select {
	case <-t.done:
		if t.reached {
			return nil
		}
		return command.ErrStopping
	case <-ctx.Done():
		w.leave(t)
		return ctx.Err()
	}
}

func (w *waitlist) leave(t *target) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if t.index >= 0 {
		heap.Remove(&w.waiting, t.index)
		w.settle()
	}
}

// advance is called after the counter has reached value.
func (w *waitlist) advance(value uint64) {
	if w.lowest.Load() > value {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.waiting) > 0 && w.waiting[0].value <= value {
		t := heap.Pop(&w.waiting).(*target)
		t.reached = true
		close(t.done)
	}
	w.settle()
}

// close wakes everyone, and fails whoever comes later.
func (w *waitlist) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	for len(w.waiting) > 0 {
		close(heap.Pop(&w.waiting).(*target).done)
	}
	w.settle()
}

func (w *waitlist) settle() {
	lowest := uint64(math.MaxUint64)
	if len(w.waiting) > 0 {
		lowest = w.waiting[0].value
	}
	w.lowest.Store(lowest)
}

// targets is a heap with the lowest target on top.
type targets []*target

func (h targets) Len() int           { return len(h) }
func (h targets) Less(i, j int) bool { return h[i].value < h[j].value }
func (h targets) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *targets) Push(x any) {
	t := x.(*target)
	t.index = len(*h)
	*h = append(*h, t)
}
func (h *targets) Pop() any {
	old := *h
	t := old[len(old)-1]
	old[len(old)-1] = nil
	t.index = -1
	*h = old[:len(old)-1]
	return t
}
