package node

import (
	"context"
	"sync"
)

// flight lets many callers share runs of one function, so that each gets the
// outcome of a run that began after its call. At most one run is under way; the
// callers that arrive meanwhile share the next.
type flight[T any] struct {
	mu      sync.Mutex
	running *run[T] // guarded by mu
	next    *run[T] // guarded by mu; begins when running ends
}

type run[T any] struct {
	done  chan struct{}
	value T // written before done is closed
	err   error
}

// do returns the outcome of a run of fn that began after do was called. fn is
// not cut short when ctx ends: others may be waiting for it.
func (f *flight[T]) do(ctx context.Context, fn func() (T, error)) (T, error) {
	f.mu.Lock()
	var r *run[T]
	if f.running == nil {
		r = &run[T]{done: make(chan struct{})}
		f.running = r
		go f.work(r, fn)
	} else {
		if f.next == nil {
			f.next = &run[T]{done: make(chan struct{})}
		}
		r = f.next
	}
	f.mu.Unlock()
	select {
	case <-r.done:
		return r.value, r.err
	case <-ctx.Done():
		var zero T
		return zero, ctx.Err()
	}
}

// work runs r and then whatever run was asked for meanwhile.
func (f *flight[T]) work(r *run[T], fn func() (T, error)) {
	for r != nil {
		r.value, r.err = fn()
		f.mu.Lock()
		f.running, f.next = f.next, nil
		next := f.running
		f.mu.Unlock()
		close(r.done)
		r = next
	}
}

// signal wakes all who wait for something to change.
type signal struct {
	mu sync.Mutex
	ch chan struct{} // guarded by mu; closed and replaced by notify
}

// wait returns a channel that is closed at the next notify. Take it before
// looking at what may change.
func (s *signal) wait() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

func (s *signal) notify() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}
