// Package history records what the clients of a cluster did and saw, and what
// faults acted on it meanwhile, on one clock. It judges nothing: that is the
// business of package workload.
package history

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"time"
)

// Outcome is what a client knows of its request.
type Outcome uint8

const (
	// Unknown: it may have happened, or may yet. Also of a request without an answer.
	Unknown Outcome = iota
	// Decided: the node gave its answer, which Op.Out holds.
	Decided
	// Refused: certainly nothing happened.
	Refused
)

func (o Outcome) String() string { return [...]string{"unknown", "decided", "refused"}[o] }

// MarshalText implements encoding.TextMarshaler.
func (o Outcome) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// Never is Op.Return of a request without an answer.
const Never time.Duration = math.MaxInt64

// Op is one request of a client and what came of it.
type Op struct {
	// ID counts the requests of a history from 0, by their Call.
	ID       int    `json:"id"`
	Workload string `json:"workload"`
	// Client is one of the workload's. A client makes one request at a time.
	Client int `json:"client"`
	// Node is the one that was asked.
	Node string `json:"node"`
	// Forgot is how often it had forgotten what it told: see History.Forgets.
	Forgot int `json:"forgot,omitempty"`
	// Name says what was asked for, in the workload's words.
	Name string `json:"op"`
	// Call and Return are moments on the history's clock, which never goes back.
	// Only what returned before something else was called is known to come first.
	Call    time.Duration `json:"call"`
	Return  time.Duration `json:"return"`
	Outcome Outcome       `json:"outcome"`
	// In and Out are of types of the workload. Out is nil unless Outcome is Decided.
	In  any `json:"in,omitempty"`
	Out any `json:"out,omitempty"`
	// Why is what the client was told where Outcome is not Decided.
	Why string `json:"why,omitempty"`
}

// Teller is the node, which is another one each time it has forgotten.
func (o Op) Teller() string {
	if o.Forgot == 0 {
		return o.Node
	}
	return fmt.Sprintf("%s (%d)", o.Node, o.Forgot)
}

// Before says whether o was over when p was called.
func (o Op) Before(p Op) bool { return o.Return < p.Call }

func (o Op) String() string {
	ret := "never"
	if o.Return != Never {
		ret = o.Return.Round(time.Microsecond).String()
	}
	s := fmt.Sprintf("[%v %s] %s client %d at %s: %s %+v", o.Call.Round(time.Microsecond), ret, o.Workload, o.Client, o.Node, o.Name, o.In)
	if o.Outcome == Decided {
		return fmt.Sprintf("%s -> %+v", s, o.Out)
	}
	return fmt.Sprintf("%s -> %s (%s)", s, o.Outcome, o.Why)
}

// Fault is something that was done to the cluster.
type Fault struct {
	Name string `json:"fault"`
	// On says to whom, and with what figures.
	On   string        `json:"on"`
	From time.Duration `json:"from"`
	To   time.Duration `json:"to"`
}

// History collects requests and faults. Its methods may be called by many at once.
type History struct {
	// Observe, if set before the first call, is told of each request when its
	// outcome is recorded, by the client that made it.
	Observe func(Op)

	began time.Time

	mu     sync.Mutex
	ops    []*Op
	faults []Fault
	forgot map[string]int // node -> how often
}

// New begins a history at the moment 0 of its clock.
func New() *History { return &History{began: time.Now()} }

// Now is the moment on the history's clock.
func (h *History) Now() time.Duration { return time.Since(h.began) }

// Call records that a request is about to be sent. Exactly one method of what it
// returns is called with the answer; without that, the outcome stays unknown.
func (h *History) Call(o Op) *Pending {
	h.mu.Lock()
	defer h.mu.Unlock()
	o.ID, o.Call, o.Return, o.Outcome, o.Forgot = len(h.ops), h.Now(), Never, Unknown, h.forgot[o.Node]
	h.ops = append(h.ops, &o)
	return &Pending{h, &o}
}

// Pending is a request without an answer yet.
type Pending struct {
	h *History
	o *Op
}

// Called is the moment of the call.
func (p *Pending) Called() time.Duration { return p.o.Call }

// Decided records the answer.
func (p *Pending) Decided(out any) { p.end(Decided, out, "") }

// Refused records that certainly nothing happened, and why.
func (p *Pending) Refused(why string) { p.end(Refused, nil, why) }

// Unknown records that it may have happened, or may yet: so it has no end either.
func (p *Pending) Unknown(why string) { p.end(Unknown, nil, why) }

func (p *Pending) end(outcome Outcome, out any, why string) {
	p.h.mu.Lock()
	p.o.Outcome, p.o.Out, p.o.Why = outcome, out, why
	if outcome != Unknown {
		p.o.Return = p.h.Now()
	}
	o := *p.o
	p.h.mu.Unlock()
	if p.h.Observe != nil {
		p.h.Observe(o)
	}
}

// Forgets records that a node, which does not run, may come back with less than it has
// told, as after a loss of power: what it had not synced by then is gone. Whoever judges
// by what one node told before goes by Op.Teller.
func (h *History) Forgets(node string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.forgot == nil {
		h.forgot = map[string]int{}
	}
	h.forgot[node]++
}

// Struck records a fault that is over, by the moments of the clock that time.Now reads.
func (h *History) Struck(name, on string, from, to time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.faults = append(h.faults, Fault{Name: name, On: on, From: from.Sub(h.began), To: to.Sub(h.began)})
}

// Ops are copies of the requests so far, by their calls; of one workload unless
// its name is "".
func (h *History) Ops(workload string) []Op {
	h.mu.Lock()
	defer h.mu.Unlock()
	var ops []Op
	for _, o := range h.ops {
		if workload == "" || o.Workload == workload {
			ops = append(ops, *o)
		}
	}
	return ops
}

// Faults are copies of the faults so far, by their beginning.
func (h *History) Faults() []Fault {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.faults)
}

// Write writes all as JSON, a line each: faults first, then requests. Moments are
// in nanoseconds since the history began.
func (h *History) Write(w io.Writer) error {
	out := bufio.NewWriter(w)
	lines := json.NewEncoder(out)
	for _, f := range h.Faults() {
		if err := lines.Encode(f); err != nil {
			return err
		}
	}
	for _, o := range h.Ops("") {
		if err := lines.Encode(o); err != nil {
			return err
		}
	}
	return out.Flush()
}
