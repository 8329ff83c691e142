package bench

import (
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// tally is what became of the requests of one kind.
type tally struct {
	latency *hdrhistogram.Histogram // of those that were carried out
	inTime  int64                   // how many of them were before the end
	failed  map[string]int64        // by kind of error
	unknown int64                   // failed writes that may have happened
}

// Latencies are kept in nanoseconds with three digits, from 100 ns to an hour.
func newTally() *tally {
	return &tally{latency: hdrhistogram.New(100, int64(time.Hour), 3), failed: map[string]int64{}}
}

// mostTroubles bounds how many kinds of errors are told apart.
const mostTroubles = 20

func (t *tally) fail(v verdict) {
	if _, known := t.failed[v.trouble]; !known && len(t.failed) >= mostTroubles {
		v.trouble = "others"
	}
	t.failed[v.trouble]++
	if v.unknown {
		t.unknown++
	}
}

func (t *tally) add(o *tally) {
	t.latency.Merge(o.latency)
	t.inTime += o.inTime
	for trouble, n := range o.failed {
		t.failed[trouble] += n
	}
	t.unknown += o.unknown
}

// watchRow names what watchers were told, beside the kinds of requests.
const watchRow = "watch"

// record is what a run has seen. All connections write to it: with few processors one
// lock, held for some 50 ns, costs less than to add up many records of 200 KiB.
type record struct {
	mu     sync.Mutex
	kinds  map[string]*tally // by name of the kind of request; watchRow, too
	recent *tally            // of all requests since the last look
}

func newRecord(mix Mix, watchers bool) *record {
	r := &record{kinds: map[string]*tally{}, recent: newTally()}
	for op := range mix {
		r.kinds[op.String()] = newTally()
	}
	if watchers {
		r.kinds[watchRow] = newTally()
	}
	return r
}

// note keeps what became of a request, or of a notice. counted says whether it belongs to what is
// measured; inTime, whether it came before the end.
func (r *record) note(kind string, took time.Duration, v verdict, counted, inTime bool) {
	took = min(took, time.Hour)
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.kinds[kind]
	if v.trouble != "" {
		if counted {
			t.fail(v)
		}
		r.recent.fail(v)
		return
	}
	if counted {
		_ = t.latency.RecordValue(int64(took)) // it is in range
	}
	if inTime {
		t.inTime++
	}
	if kind != watchRow {
		_ = r.recent.latency.RecordValue(int64(took))
	}
}

// Moment is how a run is going.
type Moment struct {
	Elapsed   time.Duration // since the load began
	WarmingUp bool
	PerSecond float64 // requests carried out since the last Moment
	P50, P99  time.Duration
	Errors    int64
}

// look returns what has been since the last look, which was so long ago.
func (r *record) look(since time.Duration) Moment {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.recent.latency
	m := Moment{
		PerSecond: float64(h.TotalCount()) / since.Seconds(),
		P50:       time.Duration(h.ValueAtPercentile(50)), P99: time.Duration(h.ValueAtPercentile(99)),
	}
	for _, n := range r.recent.failed {
		m.Errors += n
	}
	h.Reset()
	clear(r.recent.failed)
	return m
}

// Result is what a run came to.
type Result struct {
	Target       Target
	Addresses    []string
	Connections  int
	Rate         float64 `json:",omitempty"` // requests per second that were due; 0: a closed loop
	Keys         int
	Distribution Distribution
	ValueSize    int
	TxnOps       int     `json:",omitempty"`
	Watchers     int     `json:",omitempty"`
	WatchBy      WatchBy `json:",omitempty"`
	Seed         uint64
	Seconds      float64 // that were measured
	Interrupted  bool    `json:",omitempty"`
	// Operations are the kinds of requests in the order of their names, "watch" for what watchers were told, and
	// "all" requests if there is more than one kind.
	Operations []Operation
	// Unsent are requests of an open loop that were due and could not be sent before the
	// end, because all connections waited for answers. They are in no latency.
	Unsent int64
	Server CPU
	Client CPU // this process
}

// Operation is what became of one kind of request.
type Operation struct {
	Name         string
	Count        int64   // carried out
	PerSecond    float64 // of them, what was carried out before the end
	Milliseconds Latency
	Errors       map[string]int64 `json:",omitempty"` // by kind
	// OutcomeUnknown is how many of the errors were writes that may have happened all the same.
	OutcomeUnknown int64
}

// Latency is how long requests took that were carried out. For watchers it is how long after the
// acknowledgement of a write they were told of it, 0 when they were told before.
type Latency struct{ Mean, P50, P90, P99, P999, Max float64 }

// CPU is the processor time that was used while it was measured.
type CPU struct {
	// MicrosecondsPerOperation is nil if it could not be found out for all servers, or nothing was carried out.
	MicrosecondsPerOperation *float64
	// Problems say why it could not be found out.
	Problems []string `json:",omitempty"`
}

// AllRow names the row of all requests together.
const AllRow = "all"

// operations sums up what was seen in so many seconds.
func (r *record) operations(seconds float64) []Operation {
	r.mu.Lock()
	defer r.mu.Unlock()
	var rows []Operation
	all, requests := newTally(), 0
	for _, name := range slices.SortedFunc(maps.Keys(r.kinds), strings.Compare) {
		if name != watchRow {
			rows = append(rows, r.kinds[name].operation(name, seconds))
			all.add(r.kinds[name])
			requests++
		}
	}
	if requests > 1 {
		rows = append(rows, all.operation(AllRow, seconds))
	}
	if w := r.kinds[watchRow]; w != nil {
		rows = append(rows, w.operation(watchRow, seconds))
	}
	return rows
}

// perSecond is how many requests were carried out, of all kinds.
func (r *record) perSecond(seconds float64) float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	var n int64
	for name, t := range r.kinds {
		if name != watchRow {
			n += t.inTime
		}
	}
	return float64(n) / seconds
}

func (t *tally) operation(name string, seconds float64) Operation {
	at := func(percent float64) float64 { return millis(float64(t.latency.ValueAtPercentile(percent))) }
	o := Operation{
		Name: name, Count: t.latency.TotalCount(), Errors: maps.Clone(t.failed), OutcomeUnknown: t.unknown,
		Milliseconds: Latency{
			Mean: millis(t.latency.Mean()), P50: at(50), P90: at(90), P99: at(99), P999: at(99.9), Max: millis(float64(t.latency.Max())),
		},
	}
	if seconds > 0 {
		o.PerSecond = float64(t.inTime) / seconds
	}
	return o
}

// millis are those of nanoseconds, without what is below a microsecond.
func millis(nanoseconds float64) float64 {
	return math.Trunc(nanoseconds/float64(time.Microsecond)) / 1000
}
