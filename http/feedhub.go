package http

import (
	"context"
	"errors"
	"iter"
	"maps"
	"math"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

const (
	// hubBytes bounds the events the hub keeps for feeds that are near the end.
	hubBytes = 8 << 20
	// hubStep is about how much the hub takes in at once.
	hubStep = 1 << 20
	// hubWait bounds one wait for a change.
	hubWait = time.Minute
	// A wake-up costs hubPause of a processor, so that is what the hub waits for
	// each feed that it woke before it looks for more: what comes meanwhile goes
	// out together. hubRest bounds this, and is the delay it may add.
	hubPause = 40 * time.Microsecond
	hubRest  = 4 * time.Millisecond
	// hubRetry is how long the hub waits after a failure.
	hubRetry = 200 * time.Millisecond
)

// feedHub follows the newest changes once for all feeds of a server, as long as
// there is a feed. It encodes each change that a feed wants once and keeps the
// last of these events. One goroutine works for it; it ends with the last feed.
type feedHub struct {
	s *Server

	mu    sync.Mutex
	stop  context.CancelFunc // of the goroutine; nil while there is none
	feeds map[*feed]struct{}
	// prefixes counts the feeds of each; wanted are all of them, nil when that must be
	// found anew.
	prefixes map[string]int
	wanted   *prefixSet
	joins    uint64
	// ring has, of all changes after start and up to end, those that feeds want,
	// oldest first.
	ring       []feedEvent
	bytes      int
	start, end command.Position
}

// feedEvent is a change as feeds send it.
type feedEvent struct {
	at   command.Position
	key  string
	wire []byte
}

func newFeedHub(s *Server) *feedHub {
	return &feedHub{s: s, feeds: map[*feed]struct{}{}, prefixes: map[string]int{}}
}

// join takes in a feed. applied is a revision this node has.
func (h *feedHub) join(f *feed, applied uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stop == nil {
		h.reset(command.EndOf(applied))
		var ctx context.Context
		ctx, h.stop = context.WithCancel(h.s.stopping)
		go h.follow(ctx)
	}
	f.joined, f.since = h.joins, h.end
	h.joins++
	h.feeds[f] = struct{}{}
	if h.prefixes[f.prefix]++; h.prefixes[f.prefix] == 1 {
		h.wanted = nil
	}
}

func (h *feedHub) leave(f *feed) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.feeds, f)
	if h.prefixes[f.prefix]--; h.prefixes[f.prefix] == 0 {
		delete(h.prefixes, f.prefix)
		h.wanted = nil
	}
	if len(h.feeds) == 0 {
		h.stop()
		h.stop = nil
		h.reset(command.Position{})
	}
}

// reset empties the ring and goes on behind a position.
func (h *feedHub) reset(end command.Position) {
	h.ring, h.bytes, h.start, h.end = nil, 0, end, end
}

// place is up to where a feed has sent all there was.
func (h *feedHub) place(f *feed) command.Position {
	h.mu.Lock()
	defer h.mu.Unlock()
	return f.pos
}

// collect appends what the feed is to send next, about a piece of it; nothing
// means that it is to wait. covered is false when the hub does not have it.
func (h *feedHub) collect(f *feed, b []byte) (out []byte, covered bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f.waiting = false
	if f.broken != nil || f.pos.Before(h.start) || f.pos.Before(f.since) {
		return b, false, f.broken
	}
	for _, e := range h.after(f.pos) {
		if len(b) >= feedPiece {
			return b, true, nil
		}
		if strings.HasPrefix(e.key, f.prefix) {
			b = append(b, e.wire...)
		}
		f.pos = e.at
	}
	f.waiting = len(b) == 0
	return b, true, nil
}

// after are the events of the ring behind a position.
func (h *feedHub) after(p command.Position) []feedEvent {
	return h.ring[sort.Search(len(h.ring), func(i int) bool { return p.Before(h.ring[i].at) }):]
}

// follow is the hub's goroutine.
func (h *feedHub) follow(ctx context.Context) {
	for ctx.Err() == nil {
		woken, err := h.step(ctx)
		var pause time.Duration
		switch {
		case ctx.Err() != nil, errors.Is(err, command.ErrRevisionNotReached):
		case err != nil:
			h.fail(err)
			pause = hubRetry
		default:
			pause = min(time.Duration(woken)*hubPause, hubRest)
		}
		// The system's timers are no finer than a millisecond.
		if pause >= time.Millisecond {
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
		}
	}
}

// fail ends all feeds. Their clients resume, where they get to know why not.
func (h *feedHub) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for f := range h.feeds {
		f.broken = err
		f.rouse()
	}
}

// rouse wakes a feed. The hub's lock must be held.
func (f *feed) rouse() {
	f.waiting = false
	select {
	case f.wake <- struct{}{}:
	default: // it is about to look
	}
}

// step waits for changes, takes them in, and says how many feeds it woke.
func (h *feedHub) step(ctx context.Context) (woken int, err error) {
	h.mu.Lock()
	end := h.end
	h.mu.Unlock()
	o := command.ReadOptions{Mode: command.ReadStale}
	if end.IsEnd() {
		o.MinRevision, o.Wait = end.Revision+1, hubWait
	}
	var (
		events  []feedEvent
		reached command.Position
		wanted  *prefixSet
		joins   uint64
		lost    bool // what follows end is no longer kept
	)
	_, err = h.s.node.Read(ctx, o, func(v command.View) (err error) {
		wanted, joins = h.want()
		events, lost = nil, false
		var wire []byte // of all events
		var ends []int
		reached, err = changesAfter(v, "", end, math.MaxUint64, time.Now(), func(ch *command.Change) (more bool, err error) {
			if len(wire) >= hubStep {
				return false, nil
			}
			if !wanted.has(ch.Record.Key) {
				return true, nil
			}
			wire, err = appendFeedChange(wire, v, ch)
			events = append(events, feedEvent{at: ch.At, key: strings.Clone(ch.Record.Key)})
			ends = append(ends, len(wire))
			return true, err
		})
		if lost = errors.Is(err, command.ErrCompacted); lost {
			reached = command.EndOf(v.Revision())
			return nil
		}
		for i, from := 0, 0; i < len(events); i++ {
			events[i].wire = wire[from:ends[i]:ends[i]]
			from = ends[i]
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if ctx.Err() != nil {
		return 0, nil // another may follow by now
	}
	if lost {
		h.reset(reached)
	} else {
		h.take(events, reached)
	}
	told := map[string]struct{}{} // prefixes of which there is an event
	for _, e := range events {
		for prefix := range wanted.of(e.key) {
			told[prefix] = struct{}{}
		}
	}
	for f := range h.feeds {
		_, tell := told[f.prefix]
		switch {
		case f.joined >= joins:
			// Its prefix was not looked for.
			f.since = reached
		case !f.waiting:
			continue
		case !lost && !tell:
			if f.pos.Before(reached) {
				f.pos = reached
			}
			continue
		}
		if f.waiting {
			f.rouse()
			woken++
		}
	}
	return woken, nil
}

// want gives the prefixes of all feeds that have joined so far.
func (h *feedHub) want() (wanted *prefixSet, joins uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.wanted == nil {
		h.wanted = newPrefixSet(maps.Keys(h.prefixes))
	}
	return h.wanted, h.joins
}

// prefixSet finds which of many prefixes a key begins with, in a time that grows with
// how many lengths they have: ten thousand feeds of a key each have a few. It is never changed.
type prefixSet struct {
	all     map[string]struct{}
	lengths []int // that they have, ascending
}

func newPrefixSet(prefixes iter.Seq[string]) *prefixSet {
	s := &prefixSet{all: map[string]struct{}{}}
	lengths := map[int]struct{}{}
	for p := range prefixes {
		s.all[p], lengths[len(p)] = struct{}{}, struct{}{}
	}
	s.lengths = slices.Sorted(maps.Keys(lengths))
	return s
}

// of yields the prefixes that a key begins with, the shortest first.
func (s *prefixSet) of(key string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, n := range s.lengths {
			if n > len(key) {
				return
			}
			if _, ok := s.all[key[:n]]; ok && !yield(key[:n]) {
				return
			}
		}
	}
}

// has reports whether a key begins with any of them.
func (s *prefixSet) has(key string) bool {
	for range s.of(key) {
		return true
	}
	return false
}

// take puts events into the ring, and drops the oldest when it is full.
func (h *feedHub) take(events []feedEvent, reached command.Position) {
	h.ring, h.end = append(h.ring, events...), reached
	for _, e := range events {
		h.bytes += len(e.wire)
	}
	drop := 0
	for ; h.bytes > hubBytes; drop++ {
		h.bytes -= len(h.ring[drop].wire)
		h.start = h.ring[drop].at
		h.ring[drop] = feedEvent{}
	}
	h.ring = h.ring[drop:]
}
