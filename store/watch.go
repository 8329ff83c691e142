package store

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/holdfast-db/holdfast/command"
)

// watches knows who waits for a change of what. Publishing costs one atomic load
// while nobody waits, and some look-ups per change while anybody does, however
// many wait for something else.
type watches struct {
	// waiting counts the watches. One is counted before its owner looks at the
	// state, and the publisher loads it after the state moved: one of them sees
	// the other.
	waiting atomic.Int64
	mu      sync.Mutex
	targets map[command.Target]*watched
	// lengths are those of the prefixes among the targets, ascending: a key is
	// under one of them if what it is when cut to a length is a target.
	lengths []prefixLength
}

// watched is a target and those who wait for it. All share one channel.
type watched struct {
	changed chan struct{}
	waiting int
}

type prefixLength struct{ length, targets int }

// Watch returns a channel that is closed at the first change of t that becomes
// visible after the call, or when the whole state is replaced, or closed. A view
// taken after the call, and then the channel, miss nothing. stop releases the
// watch; it must be called once, also after the change.
func (s *State) Watch(t command.Target) (changed <-chan struct{}, stop func()) {
	return s.watches.add(t)
}

func (w *watches) add(t command.Target) (changed <-chan struct{}, stop func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	at, ok := w.targets[t]
	if !ok {
		if w.targets == nil {
			w.targets = make(map[command.Target]*watched)
		}
		at = &watched{changed: make(chan struct{})}
		w.targets[t] = at
		w.countLength(t, 1)
	}
	at.waiting++
	w.waiting.Add(1)
	return at.changed, func() { w.leave(t, at) }
}

func (w *watches) leave(t command.Target, at *watched) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.targets[t] != at {
		return // woken
	}
	w.waiting.Add(-1)
	if at.waiting--; at.waiting == 0 {
		w.remove(t)
	}
}

func (w *watches) remove(t command.Target) {
	delete(w.targets, t)
	w.countLength(t, -1)
}

func (w *watches) countLength(t command.Target, by int) {
	if t.Kind != command.TargetPrefix {
		return
	}
	i, ok := slices.BinarySearchFunc(w.lengths, len(t.Key), func(l prefixLength, n int) int { return cmp.Compare(l.length, n) })
	if !ok {
		w.lengths = slices.Insert(w.lengths, i, prefixLength{length: len(t.Key)})
	}
	if w.lengths[i].targets += by; w.lengths[i].targets == 0 {
		w.lengths = slices.Delete(w.lengths, i, i+1)
	}
}

// wake wakes who waits for one of the changes, which are visible.
func (w *watches) wake(changes []*change) {
	if w.waiting.Load() == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range changes {
		key := c.rec.Key
		switch {
		case c.table != tableKV:
			w.fire(command.Target{Kind: command.TargetMembers})
		case strings.HasPrefix(key, SpaceSessions):
			w.fire(command.Target{Kind: command.TargetSessions})
		case !isSystem(key):
			w.fire(command.Target{Kind: command.TargetKey, Key: key})
			for i := len(w.lengths) - 1; i >= 0; i-- { // from behind, since fire may delete
				if n := w.lengths[i].length; n <= len(key) {
					w.fire(command.Target{Kind: command.TargetPrefix, Key: key[:n]})
				}
			}
		}
	}
}

// wakeAll wakes everyone: there is no telling what changed.
func (w *watches) wakeAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for t := range w.targets {
		w.fire(t)
	}
}

func (w *watches) fire(t command.Target) {
	if at, ok := w.targets[t]; ok {
		close(at.changed)
		w.waiting.Add(-int64(at.waiting))
		w.remove(t)
	}
}
