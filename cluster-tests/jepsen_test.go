package clustertests

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/fault"
	"github.com/holdfast-db/holdfast/cluster-tests/history"
	"github.com/holdfast-db/holdfast/cluster-tests/workload"
	"github.com/holdfast-db/holdfast/command"
)

var (
	runtimeFlag   = flag.String("runtime", "", "TestJepsen: what clusters run on: netns, loopback, compose, or all; without it the first that can be had")
	workloadsFlag = flag.String("workloads", "", "TestJepsen: the workloads, by name, divided by commas; without it all, beside each other")
	faultsFlag    = flag.String("faults", "", "TestJepsen: the faults, by name or group, divided by commas; without it all")
	seedFlag      = flag.Uint64("seed", 0, "TestJepsen: what is left open to chance; 0 for a new one")
	durationFlag  = flag.Duration("duration", 0, "TestJepsen: how long faults act in one round; 0 until each of the round's has acted once")
	jepsenRounds  = flag.Int("rounds", 2, "TestJepsen: clusters on each runtime; 0 for as many as it takes until each fault has acted")
	hoursFlag     = flag.Float64("hours", 0, "TestJepsen: go on with new seeds for so many hours (make jepsen HOURS=n)")
	keepFlag      = flag.String("keep", os.TempDir(), "the `directory` in which a failed test leaves its logs, data and history")
	reportFlag    = flag.String("report", "", "TestJepsen: write the report to `file`.md and file.json")
)

// TestJepsen puts clusters under faults while clients of all workloads are at work, and
// has each workload judge what its clients saw. A round is one cluster under a schedule
// of faults drawn from a seed. When a round fails, everything that is known of it stays
// in one folder, and the output says how to repeat it.
func TestJepsen(t *testing.T) {
	faults, err := fault.Named(*faultsFlag)
	if err != nil {
		t.Fatal(err)
	}
	loads := workloads(t)
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64N(1 << 32)
	}
	tally := newTally()
	defer func() {
		fmt.Print(tally)
		if *reportFlag != "" {
			if err := tally.write(*reportFlag); err != nil {
				t.Error(err)
			}
		}
	}()
	began := time.Now()
	for again := true; again; again = *hoursFlag > 0 && time.Since(began).Hours() < *hoursFlag {
		for _, rt := range runtimesAsked(t) {
			for _, r := range rt.rounds(seed, faults, loads) {
				r.tally = tally
				t.Run(fmt.Sprintf("%s/%d", rt.name, r.seed), func(disks *testing.T) {
					disks.Run("cluster", func(t *testing.T) { r.run(t, disks) }) // disks outlive it
				})
				seed = r.seed + 1
			}
		}
	}
}

// runtimesAsked are those of the flag that can be had. Of the others a line is printed.
func runtimesAsked(t *testing.T) []platform {
	t.Helper()
	var asked []platform
	for _, rt := range runtimes {
		named := slices.Contains(strings.Split(*runtimeFlag, ","), rt.name)
		if !named && *runtimeFlag != "all" && *runtimeFlag != "" {
			continue
		}
		switch why := rt.lacks(); {
		case why == "":
			asked = append(asked, rt)
		case named:
			t.Fatalf("runtime %s: %s", rt.name, why)
		default:
			fmt.Printf("SKIPPED: runtime %s: %s\n", rt.name, why)
		}
		if *runtimeFlag == "" && len(asked) == 1 {
			break
		}
	}
	if len(asked) == 0 {
		t.Fatalf("no runtime is called %q", *runtimeFlag)
	}
	return asked
}

// handful is about how long the faults of one round act.
const handful = 20 * time.Second

// rounds are those of one pass over a runtime. A workload that can only run alone has a
// round of its own where each fault is to act, and else every eighth or so.
func (p platform) rounds(seed uint64, faults []fault.Fault, loads [][]string) []round {
	dealt := hands(seed, faults)
	if p.most > 0 && *jepsenRounds == 0 {
		dealt = dealt[:min(p.most, len(dealt))]
	}
	var all []round
	for i, hand := range dealt {
		r := round{runtime: p, seed: seed + uint64(i), faults: hand, workloads: loads[0]}
		if rng := rand.New(rand.NewPCG(r.seed, 3)); *jepsenRounds > 0 && rng.IntN(8) == 0 {
			r.workloads = loads[rng.IntN(len(loads))]
		}
		all = append(all, r)
	}
	if *jepsenRounds == 0 {
		for i, alone := range loads[1:] {
			all = append(all, round{runtime: p, seed: seed + uint64(len(all)), faults: dealt[i%len(dealt)], workloads: alone})
		}
	}
	return all
}

// hands are the faults of each round. When they are not named, or each is to act, they
// are dealt out in an order by chance, those apart that want a cluster of another kind.
func hands(seed uint64, faults []fault.Fault) [][]fault.Fault {
	if *faultsFlag != "" && *jepsenRounds > 0 {
		return slices.Repeat([][]fault.Fault{faults}, *jepsenRounds)
	}
	rng := rand.New(rand.NewPCG(seed, 2))
	var all [][]fault.Fault
	for _, apart := range []func(fault.Fault) bool{
		func(f fault.Fault) bool { return !f.Rewinds && !needsDisks(f) }, needsDisks, func(f fault.Fault) bool { return f.Rewinds },
	} {
		var hand []fault.Fault
		var takes time.Duration
		for _, i := range rng.Perm(len(faults)) {
			f := faults[i]
			each := (f.Least+f.Most)/2 + time.Second
			if f.Brings != "" {
				each += 5 * time.Second
			}
			if !apart(f) {
				continue
			}
			if len(hand) > 0 && takes+each > handful {
				all, hand, takes = append(all, hand), nil, 0
			}
			hand, takes = append(hand, f), takes+each
		}
		if len(hand) > 0 {
			all = append(all, hand)
		}
	}
	rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	if *jepsenRounds > 0 {
		all = all[:min(*jepsenRounds, len(all))]
	}
	return all
}

func needsDisks(f fault.Fault) bool {
	return slices.ContainsFunc(f.Needs, func(a *fault.Ability) bool { return a.Name == "disks" || a.Name == "loss of power" })
}

// round is one cluster under faults.
type round struct {
	runtime   platform
	seed      uint64
	faults    []fault.Fault
	workloads []string
	tally     *tally
}

// draw makes up the cluster.
func (r round) draw() setup {
	rng := rand.New(rand.NewPCG(r.seed, 1))
	if r.runtime.fixed != nil {
		return *r.runtime.fixed
	}
	s := setup{disks: slices.ContainsFunc(r.faults, needsDisks), nodes: slices.Clone(voters), logStore: []string{"wal", "boltdb"}[rng.IntN(2)], trips: map[string]time.Duration{}}
	if rng.IntN(3) == 0 {
		s.nodes = append(s.nodes, spec{"n4", "home", true, command.RoleVoter}, spec{"n5", "home", true, command.RoleVoter})
	}
	if rng.IntN(3) == 0 || slices.ContainsFunc(r.faults, func(f fault.Fault) bool { return f.Wants != nil && f.Wants(membersOf(nodesOf(spares))) }) {
		s.nodes = append(s.nodes, spares...)
	}
	for _, site := range []string{"east", "west"} {
		s.nodes = append(s.nodes, spec{site[:1] + "1", site, false, command.RoleLearner})
		s.trips[site] = time.Duration(rng.IntN(60)) * time.Millisecond
	}
	s.flags = []string{"--catchup-rate", copyRate, "--session-ttl-min", "1s"}
	brings := func(m fault.Moment) bool {
		return slices.ContainsFunc(r.faults, func(f fault.Fault) bool { return f.Brings == m })
	}
	if rng.IntN(4) == 0 || brings(fault.FullCopy) {
		// Who was away needs a copy soon. The other log store keeps whole files.
		s.logStore, s.flags = "boltdb", append(s.flags, "--log-retention", "64KiB")
	}
	if rng.IntN(4) == 0 || brings(fault.Compaction) {
		s.flags = append(s.flags, "--history-age", "2s", "--history-changes", "500")
	}
	if rng.IntN(3) == 0 {
		s.flags = append(s.flags, "--raft-multiplier", "2")
	}
	return s
}

var spares = []spec{{"s1", "home", true, command.RoleSpare}}

// command is what repeats the round.
func (r round) command() string {
	args := []string{"go test ./cluster-tests -run '^TestJepsen$' -count 1 -v -timeout 1h", "-runtime " + r.runtime.name, fmt.Sprint("-seed ", r.seed), "-rounds 1"}
	if *durationFlag > 0 {
		args = append(args, fmt.Sprint("-duration ", *durationFlag))
	}
	if *workloadsFlag != "" || len(r.workloads) == 1 {
		args = append(args, "-workloads "+strings.Join(r.workloads, ","))
	}
	names := make([]string, len(r.faults))
	for i, f := range r.faults {
		names[i] = f.Name
	}
	args = append(args, "-faults "+strings.Join(names, ","))
	return strings.Join(args, " ")
}

// workloads are the names of those of the flag: first those that run beside each other,
// then each that can only run alone.
func workloads(t *testing.T) [][]string {
	t.Helper()
	asked := strings.Split(*workloadsFlag, ",")
	var together []string
	var all [][]string
	found := 0
	for _, w := range workload.All() {
		switch {
		case *workloadsFlag != "" && !slices.Contains(asked, w.Name()):
			continue
		case workload.Alone(w):
			all = append(all, []string{w.Name()})
		default:
			together = append(together, w.Name())
		}
		found++
	}
	if *workloadsFlag != "" && found != len(asked) {
		t.Fatalf("of %q only %v %v are workloads", *workloadsFlag, together, all)
	}
	if len(together) > 0 {
		all = slices.Insert(all, 0, together)
	}
	return all
}

// Times of a round beside the faults'.
const (
	think    = 25 * time.Millisecond // of a client, on average
	calm     = time.Second           // clients work before the first fault and after the last
	recovery = 90 * time.Second      // until all are level again
	last     = time.Minute           // for the last reads
)

func (r round) run(t, disks *testing.T) {
	began := time.Now()
	drawn := r.draw()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
	defer cancel()
	var s rig
	var run *workload.Run
	var found []workload.Anomaly
	h := history.New()
	t.Cleanup(func() { // after the cluster's, which may find more
		if t.Failed() && s != nil {
			if found == nil && run != nil { // it did not come so far
				found = run.Check()
			}
			r.keep(t, s.directory(), drawn, h, found)
		}
	})
	s = r.runtime.start(t, disks, drawn)
	s.watch(h.Forgets)
	var faults []fault.Fault
	rewinds := false
	for _, f := range r.faults {
		if why := f.Fits(s); why != nil {
			r.tally.lacks(r.runtime.name, f, why)
			continue
		}
		faults, rewinds = append(faults, f), rewinds || f.Rewinds
	}
	env := &workload.Env{Nodes: s.clients(), History: h, Seed: r.seed, Think: think, Clients: 4}
	all := slices.DeleteFunc(workload.All(), func(w workload.Workload) bool { return !slices.Contains(r.workloads, w.Name()) })
	var err error
	if run, err = workload.Start(ctx, env, all...); err != nil {
		t.Fatal(err)
	}
	workload.Rest(ctx, calm)
	err = fault.Run(ctx, s, r.plan(faults), func(f fault.Record) {
		h.Struck(f.Fault, on(f), f.From, f.To)
		r.tally.struck(r.runtime.name, f)
		t.Logf("%s for %v: %s", f.Fault, f.To.Sub(f.From).Round(time.Millisecond), on(f))
	})
	if err != nil {
		t.Error(err)
	}
	workload.Rest(ctx, calm)
	run.Stop()
	s.recover(recovery)
	if !rewinds { // else all nodes have come out equal, and nothing more is promised
		ending, cancel := context.WithTimeout(ctx, last)
		defer cancel()
		if found, err = run.Judge(ending); err != nil {
			t.Error(err)
		}
	}
	for _, a := range found {
		t.Errorf("ANOMALY %v", a)
	}
	r.tally.judged(all, h, found)
	t.Logf("%v: %d operations of %d workloads, %d faults, %d anomalies in %v", drawn, len(h.Ops("")), len(all), len(h.Faults()), len(found), time.Since(began).Round(time.Second))
}

// plan is when which fault acts.
func (r round) plan(faults []fault.Fault) []fault.Step {
	if *durationFlag > 0 {
		return fault.Plan(r.seed, faults, *durationFlag)
	}
	return fault.Plan(r.seed, faults, 24*time.Hour)[:len(faults)]
}

// on says whom a fault acted on and how.
func on(f fault.Record) string {
	if f.Err != nil {
		return strings.TrimPrefix(fmt.Sprintf("%s; %v", f.What, f.Err), "; ")
	}
	return f.What
}

// keep writes down what is known of a failed round.
func (r round) keep(t *testing.T, dir string, drawn setup, h *history.History, found []workload.Anomaly) {
	t.Helper()
	marks := make([]history.Mark, len(found))
	var told strings.Builder
	fmt.Fprintf(&told, "Repeat:\n\n  %s\n\nCluster: %v\n\n", r.command(), drawn)
	for i, a := range found {
		marks[i] = history.Mark{Title: a.Workload + ": " + a.Kind, Text: a.Text, Ops: a.Ops}
		fmt.Fprintf(&told, "%v\n\n", a)
	}
	write := func(name string, content func(*os.File) error) {
		f, err := os.Create(filepath.Join(dir, name))
		if err == nil {
			err = content(f)
		}
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			t.Errorf("%s is not whole: %v", name, err)
		}
	}
	write("history.jsonl", func(f *os.File) error { return h.Write(f) })
	write("timeline.html", func(f *os.File) error {
		return h.WriteTimeline(f, fmt.Sprintf("%s, seed %d", r.runtime.name, r.seed), marks)
	})
	write("README", func(f *os.File) error { _, err := f.WriteString(told.String()); return err })
	t.Logf("history, timeline, logs and data are in %s; repeat with\n  %s", dir, r.command())
}
