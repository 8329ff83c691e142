//go:build linux

package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/holdfast-db/holdfast/cluster-tests/fault"
	"github.com/holdfast-db/holdfast/cluster-tests/history"
	"github.com/holdfast-db/holdfast/cluster-tests/workload"
	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/internal/agent"
	"github.com/holdfast-db/holdfast/store"
)

const (
	// form and recover are how long a cluster may take to be whole and level.
	formTime    = time.Minute
	recoverTime = 2 * time.Minute
	// stuckAfter is how much real time may pass without virtual time: then somebody
	// waits for what nobody will do, for a mutex, say.
	stuckAfter = 5 * time.Minute
)

// outcome is what came of one seed.
type outcome struct {
	seed     uint64
	virtual  time.Duration
	requests int
	faults   []fault.Record
	failures []string
	history  *history.History // nil: it did not come to that
	folder   string           // with history and logs, of a run that failed
}

// scenario is what a seed makes: a cluster, its clients and its faults.
type scenario struct {
	seed      uint64
	plan      plan
	ownDisks  bool          // members' disks fail and lose power: they are file systems of faultfs
	replaced  time.Duration // how long a voter is dead until a spare votes in its place
	think     time.Duration
	clients   int
	workloads []workload.Workload
	steps     []fault.Step
	// rewinds says that an operator takes the cluster back to an earlier state: what
	// clients were promised ends there, and all that is left is that members come out
	// equal. The workload that makes restores itself is judged all the same.
	rewinds bool
}

// options narrow what a seed may choose.
type options struct {
	faults    []fault.Fault
	workloads []string // of these; nil: of all
	ownDisks  bool     // members' disks fail and lose power
	length    time.Duration
}

// newScenario draws one from a seed; the same for the same seed and options.
func newScenario(seed uint64, o options) *scenario {
	r := rand.New(rand.NewPCG(seed, 0x73696d))
	s := &scenario{seed: seed, plan: plan{seed: seed, voters: 3, level: hclog.Info}}
	if s.ownDisks = o.ownDisks; s.ownDisks {
		s.plan.disks = &disks{} // until they are mounted
	}
	if r.IntN(5) == 0 {
		s.plan.voters = 5
	}
	s.plan.sites = map[string]int{"east": 1 + r.IntN(2)}
	if r.IntN(2) == 0 {
		s.plan.sites["west"] = 1
	}
	s.plan.spare, s.plan.shortLog, s.plan.shortHistory = r.IntN(4) == 0, r.IntN(2) == 0, r.IntN(2) == 0
	s.plan.logStore = []string{store.LogStoreWAL, store.LogStoreWAL, store.LogStoreBolt}[r.IntN(3)]
	for _, change := range []func(p *plan){ // where none of the faults can act
		func(p *plan) { p.spare = true },
		func(p *plan) { p.shortHistory = true },
		func(p *plan) { p.logStore, p.shortLog, p.shortHistory = store.LogStoreBolt, true, false },
	} {
		if !slices.ContainsFunc(o.faults, s.plan.fits) {
			change(&s.plan)
		}
	}
	s.replaced = between(r, time.Second, 5*time.Second)
	lan := line{latency: between(r, 20*time.Microsecond, time.Millisecond), jitter: between(r, 0, time.Millisecond)}
	wan := map[string]line{}
	for _, site := range slices.Sorted(maps.Keys(s.plan.sites)) {
		wan[site] = line{latency: between(r, time.Millisecond, 80*time.Millisecond), jitter: between(r, 0, 10*time.Millisecond)}
	}
	s.plan.lines = func(a, b *host) line {
		if a.site == b.site || a.site == "" || b.site == "" {
			return lan
		}
		return wan[a.site].and(wan[b.site])
	}
	machines := map[string]hardware{}
	for _, name := range []string{"n1", "n2", "n3", "n4", "n5", "s1", "e1", "e2", "w1"} {
		var hw hardware
		if r.IntN(2) == 0 {
			hw.sync, hw.hiccup = between(r, 50*time.Microsecond, 5*time.Millisecond), between(r, 10*time.Millisecond, time.Second)
		}
		if r.IntN(3) == 0 {
			hw.apply = between(r, 50*time.Microsecond, 10*time.Millisecond)
		}
		machines[name] = hw
	}
	s.plan.hardware = func(name string) hardware { return machines[name] }
	copyRate := int64(64<<10 + r.IntN(1<<20))
	s.plan.edit = func(c *agent.Config) {
		if s.plan.shortLog {
			c.LogRetention, c.CatchUpRate = 4<<10, copyRate
		}
		if s.plan.shortHistory {
			c.History = command.Retention{Age: 2 * time.Second, Changes: 50, Bytes: 1 << 20}
		}
	}
	s.think = between(r, 50*time.Millisecond, 400*time.Millisecond)
	s.clients = 2 + r.IntN(4)
	s.workloads = slices.DeleteFunc(workload.All(), func(w workload.Workload) bool {
		return o.workloads != nil && !slices.Contains(o.workloads, w.Name())
	})
	r.Shuffle(len(s.workloads), func(i, j int) { s.workloads[i], s.workloads[j] = s.workloads[j], s.workloads[i] })
	s.workloads = s.workloads[:min(len(s.workloads), 1+r.IntN(3))]
	if i := slices.IndexFunc(s.workloads, workload.Alone); i >= 0 {
		s.workloads = s.workloads[i : i+1]
	}
	fitting := slices.DeleteFunc(slices.Clone(o.faults), func(f fault.Fault) bool { return !s.plan.fits(f) })
	s.steps = fault.Plan(seed, someRewind(fitting, r), o.length)
	s.rewinds = slices.ContainsFunc(s.steps, func(step fault.Step) bool { return step.Fault.Rewinds })
	return s
}

// fits says whether a fault can act on a cluster that is made by the plan.
func (p *plan) fits(f fault.Fault) bool {
	return f.Fits(&Cluster{members: p.members(), disks: p.disks}) == nil && p.comes(f.Brings)
}

// someRewind leaves the faults that rewind the cluster to one seed in ten, with few others
// beside them, so that they act.
func someRewind(faults []fault.Fault, r *rand.Rand) []fault.Fault {
	steady := slices.DeleteFunc(slices.Clone(faults), func(f fault.Fault) bool { return f.Rewinds })
	switch {
	case len(steady) == 0 || len(steady) == len(faults):
		return faults
	case r.IntN(10) > 0:
		return steady
	}
	r.Shuffle(len(steady), func(i, j int) { steady[i], steady[j] = steady[j], steady[i] })
	return append(slices.DeleteFunc(faults, func(f fault.Fault) bool { return !f.Rewinds }), steady[:min(2, len(steady))]...)
}

func between(r *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(r.Int64N(int64(most-least)))
}

// simulate runs one seed in a bubble of its own.
func simulate(t *testing.T, s *scenario) *outcome {
	dir, err := os.MkdirTemp(fastest(), fmt.Sprintf("holdfast-sim-%d-", s.seed))
	if err != nil {
		t.Fatal(err)
	}
	s.plan.dir = dir
	if s.ownDisks {
		var names []string
		for _, m := range s.plan.members() {
			names = append(names, m.Name)
		}
		s.plan.disks = mountDisks(t, names)
	}
	o := &outcome{seed: s.seed, folder: dir}
	h := &watched{seed: s.seed}
	defer h.watch()()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		defer func() { o.virtual = time.Since(began) }()
		if err := o.live(s, h); err != nil {
			o.failures = append(o.failures, err.Error())
		}
	})
	if len(o.failures) == 0 {
		o.discard()
		return o
	}
	if o.history != nil {
		o.write(o.history)
	}
	return o
}

// discard removes what a run has left on disk.
func (o *outcome) discard() { _ = os.RemoveAll(o.folder) }

// fastest is the directory for data: one in memory, where there is one.
func fastest() string {
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		return "/dev/shm"
	}
	return ""
}

// live is the whole life of a cluster.
func (o *outcome) live(s *scenario, w *watched) error {
	ctx := context.Background()
	c, err := newCluster(s.plan)
	if err != nil {
		return err
	}
	closed := false
	end := func() error {
		if closed {
			return nil
		}
		closed = true
		return c.close()
	}
	defer func() { _ = end() }() // with an error, the first one counts
	for _, m := range c.members {
		c.start(m)
	}
	if err := c.level(formTime); err != nil {
		return fmt.Errorf("the cluster does not form: %w", err)
	}
	if s.plan.spare {
		if err := c.replaced(ctx, s.replaced); err != nil {
			return err
		}
	}

	h := history.New()
	o.history = h
	env := &workload.Env{Nodes: c.nodes(), History: h, Seed: s.seed, Think: s.think, Clients: s.clients}
	c.forgets = h.Forgets
	judged := !s.rewinds
	for _, load := range s.workloads {
		if restores, ok := load.(*workload.Restores); ok {
			c.archivist, judged = restores.Archivist(env), true
		}
	}
	run, err := workload.Start(ctx, env, s.workloads...)
	if err != nil {
		return err
	}
	err = fault.Run(ctx, c, s.steps, func(r fault.Record) {
		w.alive(fmt.Sprintf("after fault %s", r.Fault))
		o.faults = append(o.faults, r)
		h.Struck(r.Fault, r.What, r.From, r.To)
	})
	w.alive("healed")
	run.Stop()
	o.requests = len(h.Ops(""))
	if err != nil {
		return err
	}
	w.alive("clients stopped")
	if err := c.level(recoverTime); err != nil {
		return err
	}
	if judged {
		found, err := run.Judge(ctx)
		if err != nil {
			return err
		}
		for _, a := range found {
			o.failures = append(o.failures, a.String())
		}
		w.alive("judged")
	}
	err = end()
	select {
	case what := <-c.died:
		err = errors.Join(errors.New(what), err)
	default:
	}
	return err
}

// write leaves the history in the folder, for a run that failed.
func (o *outcome) write(h *history.History) {
	for name, write := range map[string]func(*os.File) error{
		"history.json":  func(f *os.File) error { return h.Write(f) },
		"timeline.html": func(f *os.File) error { return h.WriteTimeline(f, fmt.Sprintf("seed %d", o.seed), nil) },
	} {
		f, err := os.Create(filepath.Join(o.folder, name))
		if err == nil {
			err = errors.Join(write(f), f.Close())
		}
		if err != nil {
			o.failures = append(o.failures, err.Error())
		}
	}
}

// String tells of a run that failed.
func (o *outcome) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d failed after %v of virtual time and %d requests:\n", o.seed, o.virtual.Round(time.Millisecond), o.requests)
	for _, f := range o.failures {
		fmt.Fprintf(&b, "  %s\n", strings.ReplaceAll(f, "\n", "\n  "))
	}
	fmt.Fprintf(&b, "faults:\n")
	for _, r := range o.faults {
		fmt.Fprintf(&b, "  %s\n", describe(r))
	}
	return b.String()
}

func describe(r fault.Record) string {
	s := fmt.Sprintf("%s to %s  %-24s %s", r.From.UTC().Format("15:04:05.000"), r.To.UTC().Format("15:04:05.000"), r.Fault, r.What)
	if r.Err != nil {
		s += fmt.Sprintf(" (%v)", r.Err)
	}
	return s
}

// watched is a run from outside its bubble. There, time goes on when it stands still
// inside.
type watched struct {
	seed  uint64
	beats chan string
}

// watch ends the program, with what every goroutine does, when nothing is heard of the
// run for too long. The returned function ends the watch.
func (w *watched) watch() (stop func()) {
	w.beats = make(chan string)
	done := make(chan struct{})
	go func() {
		late := time.NewTimer(stuckAfter)
		last := "the beginning"
		for {
			select {
			case last = <-w.beats:
				late.Reset(stuckAfter)
			case <-late.C:
				stacks := make([]byte, 64<<20)
				stacks = stacks[:runtime.Stack(stacks, true)]
				panic(fmt.Sprintf("seed %d: nothing has moved for %v since %s\n%s", w.seed, stuckAfter, last, stacks))
			case <-done:
				return
			}
		}
	}()
	return func() { close(done) }
}

// alive is called inside the bubble.
func (w *watched) alive(where string) { w.beats <- where }
