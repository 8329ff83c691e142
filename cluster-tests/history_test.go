package clustertests

import (
	"fmt"
	"sync"
	"time"
)

// kind is what a client did.
type kind uint8

const (
	putOp    kind = iota
	casOp         // put with cas=index; 0: only if absent
	deleteOp      // delete
	readOp
)

func (k kind) String() string { return [...]string{"put", "cas", "delete", "read"}[k] }

// mode is how a read was asked for.
type mode uint8

const (
	consistent mode = iota
	leading         // no mode, at a voter: up to 100 ms behind after a leadership round
	local           // stale, or no mode at a learner
)

func (m mode) String() string { return [...]string{"consistent", "default", "stale"}[m] }

// op is one request of a client and what came of it. Every value is written
// once in a history, so that a value tells which write a read saw.
type op struct {
	client int
	node   string // asked; for a read the one that answered
	kind   kind
	key    string
	value  string // written, or read
	index  uint64 // casOp: the revision demanded
	// call <= ret, on one clock that never goes back.
	call, ret time.Duration
	outcome   outcome // of a write; reads that failed are not recorded

	// Of a decided write: whether it happened, and its revision.
	ok       bool
	revision uint64

	// Of a read. revision is the record's, 0 when there was none.
	mode           mode
	found          bool
	applied        uint64 // revision of the state that answered
	staleness      time.Duration
	stalenessKnown bool
	bound          time.Duration // of the age, asked for; 0 for none
	// crowded: one of too many at once for the judge of linearizability. What it may
	// miss is judged by the state that answered, and by the staleness that says.
	crowded bool
}

func (o op) String() string {
	span := fmt.Sprintf("[%v %v] client %d at %s", o.call.Round(time.Microsecond), o.ret.Round(time.Microsecond), o.client, o.node)
	switch {
	case o.kind == readOp && o.found:
		return fmt.Sprintf("%s: %s read %s = %q (revision %d, applied %d, staleness %v)", span, o.mode, o.key, o.value, o.revision, o.applied, o.staleness)
	case o.kind == readOp:
		return fmt.Sprintf("%s: %s read %s = nothing (applied %d, staleness %v)", span, o.mode, o.key, o.applied, o.staleness)
	}
	s := fmt.Sprintf("%s: %s %s = %q", span, o.kind, o.key, o.value)
	if o.kind == casOp {
		s += fmt.Sprintf(" if at %d", o.index)
	}
	if o.outcome == decided {
		return fmt.Sprintf("%s -> %v at %d", s, o.ok, o.revision)
	}
	return s + " -> " + o.outcome.String()
}

// changed says that the write certainly took effect.
func (o op) changed() bool { return o.kind != readOp && o.outcome == decided && o.ok }

// history collects ops of many clients. Its zero value is not usable.
type history struct {
	began time.Time

	mu  sync.Mutex
	ops []op
}

func newHistory() *history { return &history{began: time.Now()} }

// now is the moment on the history's clock.
func (h *history) now() time.Duration { return time.Since(h.began) }

func (h *history) add(o ...op) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, o...)
}

// all returns what was recorded so far.
func (h *history) all() []op {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ops[:len(h.ops):len(h.ops)]
}
