// Package workload holds the clients that put a cluster to the test, each kind
// together with the judge of the promise it is about.
//
// A workload knows the cluster by its HTTP API alone, through one http.Client per
// node. So the same code runs against processes, against containers, and against
// a cluster in virtual time whose network is in memory. Its judge sees nothing but
// the history: what was asked, what was answered, and when.
//
// What a judge may demand is written in docs/MANUAL.md and at the top of each file.
package workload

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/history"
)

// Workload is a kind of client and the judge of what it saw. A value serves one run.
type Workload interface {
	// Name is a short word, the same for every run. Keys of a workload begin with
	// it and a slash, so that several can run beside each other.
	Name() string
	// Setup writes what the clients start from, on a cluster without faults.
	Setup(ctx context.Context, e *Env) error
	// Clients runs the clients and returns when ctx has ended and all of them have.
	Clients(ctx context.Context, e *Env)
	// Finish makes the last reads, when the cluster is whole and level again.
	Finish(ctx context.Context, e *Env) error
	// Check judges the history of this workload alone.
	Check(ops []history.Op) []Anomaly
}

// Anomaly is a broken promise.
type Anomaly struct {
	Workload string `json:"workload"`
	// Kind is a short name: "G-single", "lost update", "read of the past".
	Kind string `json:"kind"`
	// Text says what was seen, for a person who knows the API.
	Text string `json:"text"`
	// Ops are the requests that show it.
	Ops []int `json:"ops"`
}

func (a Anomaly) String() string { return fmt.Sprintf("%s: %s: %s", a.Workload, a.Kind, a.Text) }

// anomaly makes an Anomaly of the requests that show it, whose text ends with them.
func anomaly(kind, text string, ops ...history.Op) Anomaly {
	a := Anomaly{Kind: kind, Text: text}
	for _, o := range ops {
		a.Workload = o.Workload
		a.Ops = append(a.Ops, o.ID)
		a.Text += "\n  " + o.String()
	}
	return a
}

// Env is what a workload runs in.
type Env struct {
	// Nodes are all members, running or not, in a fixed order.
	Nodes []*Node
	// History takes what is done and seen.
	History *history.History
	// Seed decides what each client does, though not how fast.
	Seed uint64
	// Think is the mean time a client waits between two requests.
	Think time.Duration
	// Clients is how many a workload has, more or less.
	Clients int

	mu    sync.Mutex
	asked map[*Node]int  // clients that wait for a node now
	left  map[*Node]bool // nodes that are left alone
	queue []*turn        // clients that wait for any node, by their arrival
}

// turn is a client that waits for one of some nodes.
type turn struct {
	nodes []*Node
	rand  *rand.Rand
	got   chan *Node // holds one
}

// Rand is the source of a client's choices, the same for the same seed.
func (e *Env) Rand(workload string, client int) *rand.Rand {
	h := e.Seed
	for _, b := range []byte(workload) {
		h = h*1099511628211 + uint64(b)
	}
	return rand.New(rand.NewPCG(h, uint64(client)))
}

// Voters and Learners are the nodes that do, or do not, vote at the start.
func (e *Env) Voters() []*Node {
	return slices.DeleteFunc(slices.Clone(e.Nodes), func(n *Node) bool { return !n.Voter })
}
func (e *Env) Learners() []*Node {
	return slices.DeleteFunc(slices.Clone(e.Nodes), func(n *Node) bool { return n.Voter })
}

// atOnce is how many clients ask one node at the same time, so that a node that
// hangs holds up few of them and the others go on. Each waits for what it has sent.
const atOnce = 3

// Pick chooses one of nodes to ask, and counts the client as waiting for it until
// release is called. When all are asked by enough others it waits for its turn, so
// that clients who ask all the time keep nobody out; ok is false once ctx has ended.
func (e *Env) Pick(ctx context.Context, r *rand.Rand, nodes []*Node) (n *Node, release func(), ok bool) {
	if ctx.Err() != nil {
		return nil, nil, false
	}
	mine := &turn{nodes: nodes, rand: r, got: make(chan *Node, 1)}
	e.mu.Lock()
	e.queue = append(e.queue, mine)
	e.serve()
	e.mu.Unlock()
	select {
	case n = <-mine.got:
		return n, func() { e.release(n) }, true
	case <-ctx.Done():
	}
	e.mu.Lock()
	e.queue = slices.DeleteFunc(e.queue, func(o *turn) bool { return o == mine })
	e.mu.Unlock()
	select {
	case n = <-mine.got:
		e.release(n)
	default:
	}
	return nil, nil, false
}

func (e *Env) release(n *Node) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.asked[n]--
	e.serve()
}

// serve gives nodes to those who wait for one, in their order. Called with mu held.
func (e *Env) serve() {
	if e.asked == nil {
		e.asked = map[*Node]int{}
	}
	e.queue = slices.DeleteFunc(e.queue, func(t *turn) bool {
		free := slices.DeleteFunc(slices.Clone(t.nodes), func(n *Node) bool { return e.left[n] || e.asked[n] >= atOnce })
		if len(free) == 0 {
			return false
		}
		n := free[t.rand.IntN(len(free))]
		e.asked[n]++
		t.got <- n
		return true
	})
}

// Leave keeps Pick from choosing a node, and returns when no client that chose it
// waits for it any more or ctx has ended. ComeBack ends that.
func (e *Env) Leave(ctx context.Context, n *Node) {
	for e.leave(n) > 0 && ctx.Err() == nil {
		Rest(ctx, 5*time.Millisecond)
	}
}

func (e *Env) leave(n *Node) (asked int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.left == nil {
		e.left = map[*Node]bool{}
	}
	e.left[n] = true
	return e.asked[n]
}

// ComeBack lets clients choose a node again.
func (e *Env) ComeBack(n *Node) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.left, n)
	e.serve()
}

// Pause is a client's time to think: between nothing and twice Think.
func (e *Env) Pause(ctx context.Context, r *rand.Rand) {
	if e.Think > 0 {
		Rest(ctx, time.Duration(r.Int64N(int64(2*e.Think))))
	}
}

// Rest waits, unless ctx ends.
func Rest(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// loop is a client that makes one request after the other, numbered from 0, each at one
// of nodes, until ctx ends. When request says that it was not decided the client rests a
// moment before it thinks, so that refusals, which come at once, do not make it spin.
func (e *Env) loop(ctx context.Context, r *rand.Rand, nodes []*Node, request func(n *Node, seq int) (decided bool)) {
	for seq := 0; ; seq++ {
		n, release, ok := e.Pick(ctx, r, nodes)
		if !ok {
			return
		}
		decided := request(n, seq)
		release()
		if !decided {
			Rest(ctx, 5*time.Millisecond)
		}
		e.Pause(ctx, r)
	}
}

// each runs n clients, numbered from 0, and returns when all have.
func (e *Env) each(n int, client func(id int)) {
	var running sync.WaitGroup
	for id := range n {
		running.Go(func() { client(id) })
	}
	running.Wait()
}

// All makes one of each workload.
func All() []Workload {
	return []Workload{
		NewSet(), NewRegister(), NewJournal(), NewCounter(), NewCausal(), NewAppend(), NewBank(), NewLongFork(),
		NewLocks(), NewSemaphores(), NewWatches(), NewFeeds(), NewRestores(),
	}
}

// Alone says whether a workload can only run alone on a cluster, since what it does
// breaks the promises that others judge. Such a workload has the method Alone.
func Alone(w Workload) bool {
	a, ok := w.(interface{ Alone() bool })
	return ok && a.Alone()
}

// Run is a set of workloads at work on one cluster.
type Run struct {
	env       *Env
	workloads []Workload
	end       context.CancelFunc
	running   sync.WaitGroup
}

// Start sets workloads up, one after the other, and starts their clients.
func Start(ctx context.Context, e *Env, workloads ...Workload) (*Run, error) {
	for _, w := range workloads {
		if err := w.Setup(ctx, e); err != nil {
			return nil, fmt.Errorf("set up %s: %w", w.Name(), err)
		}
	}
	r := &Run{env: e, workloads: workloads}
	ctx, r.end = context.WithCancel(ctx)
	for _, w := range workloads {
		r.running.Go(func() { w.Clients(ctx, e) })
	}
	return r, nil
}

// Stop ends the clients and waits for them: each for the answer it waits for.
func (r *Run) Stop() {
	r.end()
	r.running.Wait()
}

// Judge makes the last reads of each workload on the whole and level cluster and
// returns all anomalies. The error says that the last reads could not be made.
func (r *Run) Judge(ctx context.Context) ([]Anomaly, error) {
	for _, w := range r.workloads {
		if err := w.Finish(ctx, r.env); err != nil {
			return r.Check(), fmt.Errorf("last reads of %s: %w", w.Name(), err)
		}
	}
	return r.Check(), nil
}

// Check judges what was recorded so far.
func (r *Run) Check() (found []Anomaly) {
	for _, w := range r.workloads {
		shown := map[string]int{}
		for _, a := range w.Check(r.env.History.Ops(w.Name())) {
			if shown[a.Kind]++; shown[a.Kind] > mostAnomalies {
				continue
			}
			a.Workload = w.Name()
			found = append(found, a)
		}
	}
	return found
}

// mostAnomalies are shown of one kind and workload: one lost write may be missed by a
// thousand reads.
const mostAnomalies = 5
