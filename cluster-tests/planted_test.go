package clustertests

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/workload"
)

// plantedBug is a fault built into the binary on purpose, to show that this
// package finds it in a running cluster and not only in made-up histories.
type plantedBug struct {
	name    string   // value of HOLDFAST_PLANTED, see package planted
	breaks  string   // what the bug does
	with    []option // beside the binary
	disturb func(c *cluster, w *traffic)
	// more makes the workload that must find it, when that is not of the ordinary traffic.
	more func() workload.Workload
	// judge and kinds are a workload and the anomalies of which it must find one. With
	// no judge the nodes must be found to hold different things.
	judge string
	kinds []string
	// simulated: the same judge has to find it in virtual time (cluster-tests/sim), which
	// is much cheaper. On processes it is searched for with -long.
	simulated bool
}

// patience is how often a disturbance is repeated until the bug is found, in one cluster
// after the other: what happens at the moment of a fault is a matter of luck, and some
// judges can only judge a cluster that is level and rests.
var patience = []int{4, 8, 16, 32}

var plantedBugs = []plantedBug{
	{
		name:      "read-without-round",
		simulated: true,
		breaks:    "a consistent read is answered from the node's own state, without asking the leader",
		disturb: func(c *cluster, w *traffic) {
			c.cutOff("east")
			w.awaitWrites(200)
			w.awaitReads(c.node("e1"), 50)
			c.heal()
		},
		judge: "register", kinds: []string{"not linearizable"},
	},
	{name: "read-without-round", breaks: "the same, seen when a leader wakes", disturb: pausedLeader.disturb, judge: "register", kinds: []string{"not linearizable", "older than it says"}},
	{name: "read-without-round", breaks: "the same, seen on either side of a cut", disturb: leaderAndLearner.disturb, judge: "register", kinds: []string{"not linearizable", "older than it says"}},
	{name: "read-without-round", breaks: "the same, seen while leadership is handed on", disturb: leadershipHanded.disturb, judge: "register", kinds: []string{"not linearizable"}},
	{
		name:    "late-certificate",
		breaks:  "a read takes its certificate after it has opened its view",
		disturb: stopsOfCopies,
		judge:   "register",
		kinds:   []string{"older than it says"},
	},
	{
		name:    "certificate-from-the-answer",
		breaks:  "a certificate counts from the moment the leader's answer was read, not from the question",
		disturb: stopsOfCopies,
		judge:   "register",
		kinds:   []string{"older than it says"},
	},
	{
		name:      "forgotten-marker",
		simulated: true,
		breaks:    "a node that starts does not apply its log up to the commit marker",
		disturb: func(c *cluster, w *traffic) {
			e1 := c.node("e1")
			w.awaitWrites(200)
			w.awaitReads(e1, 50)
			c.kill(e1)
			c.cutOff("east")
			c.start(e1)
			w.awaitReads(e1, 50)
			c.heal()
		},
		judge: "register",
		kinds: []string{"went back"},
	},
	{
		name:      "cas-before-the-log",
		simulated: true,
		breaks:    "compare-and-set compares when it is asked for, not when it is applied",
		disturb:   func(_ *cluster, w *traffic) { w.awaitWrites(200) },
		judge:     "register",
		kinds:     []string{"not linearizable"},
	},
	{
		name:      "min-index-ignored",
		simulated: true,
		breaks:    "a node whose copy is behind answers all the same",
		more:      func() workload.Workload { return workload.NewCausal() },
		disturb:   func(_ *cluster, w *traffic) { w.awaitWrites(200) },
		judge:     "causal",
		kinds:     []string{"min_index ignored"},
	},
	{
		name:    "max-stale-before-the-answer",
		breaks:  "whether an answer is fresh enough is judged before it is made",
		disturb: stopsOfCopies,
		judge:   "register",
		kinds:   []string{"broken answer", "older than max_stale"},
	},
	{
		name:      "time-of-the-leader",
		simulated: true,
		breaks:    "cluster time leaps with the leader, and results of writes with idempotency keys are forgotten early",
		more:      func() workload.Workload { return workload.NewCounter() },
		disturb:   leadershipTaken,
		judge:     "counter",
		kinds:     []string{"another answer", "happened twice", "refused but there"},
	},
	{
		name:      "acknowledged-when-appended",
		simulated: true,
		breaks:    "a write that a majority never had is acknowledged",
		more:      func() workload.Workload { return workload.NewSet() },
		disturb:   leaderCutOff,
		judge:     "set",
		kinds:     []string{"lost"},
	},
	{
		name:    "time-of-the-leader",
		breaks:  "the same, seen by lock-delays that end with the leader",
		with:    []option{withFlags(shortSessions...)},
		more:    func() workload.Workload { return workload.NewLocks() },
		disturb: leadershipTaken,
		judge:   "locks",
		kinds:   []string{"lock delay"},
	},
	{
		name:    "token-not-stepped",
		breaks:  "a lock that is held anew keeps its LockIndex, so that nothing is fenced",
		with:    []option{withFlags(shortSessions...)},
		more:    func() workload.Workload { return workload.NewLocks() },
		disturb: func(_ *cluster, w *traffic) { w.awaitWrites(200) },
		judge:   "locks",
		kinds:   []string{"lock index"},
	},
	{
		name:    "rest-of-the-time-to-live",
		breaks:  "a new leader gives sessions less than their whole time",
		with:    []option{withFlags(shortSessions...)},
		more:    func() workload.Workload { return workload.NewLocks() },
		disturb: leadershipTaken,
		judge:   "locks",
		kinds:   []string{"session ended early"},
	},
	{
		name:    "cas-before-the-log",
		breaks:  "the same, seen by a semaphore that lets in one too many",
		with:    []option{withFlags(shortSessions...)},
		more:    func() workload.Workload { return workload.NewSemaphores() },
		disturb: func(_ *cluster, w *traffic) { w.awaitWrites(200) },
		judge:   "semaphores",
		kinds:   []string{"lost update", "too many"},
	},
	{
		name:    "index-of-the-newest",
		breaks:  "an answer has an index newer than what it tells",
		more:    func() workload.Workload { return workload.NewWatches() },
		disturb: func(_ *cluster, w *traffic) { w.awaitWrites(200) },
		judge:   "watches",
		kinds:   []string{"not the state it says"},
	},
	{
		name:    "rest-of-an-index-lost",
		breaks:  "a feed that is resumed inside an index goes on behind it",
		more:    func() workload.Workload { return workload.NewFeeds() },
		disturb: func(_ *cluster, w *traffic) { w.awaitWrites(200) },
		judge:   "feeds",
		kinds:   []string{"gap"},
	},
	{
		name:    "archive-one-short",
		breaks:  "an archive lacks the last of what it says it holds",
		more:    func() workload.Workload { return workload.NewRestores() },
		disturb: func(_ *cluster, w *traffic) { w.awaitWrites(200) },
		judge:   "restores",
		kinds:   []string{"not the state it says", "torn"},
	},
	{
		name:      "clock-in-apply",
		simulated: true,
		breaks:    "what an entry becomes depends on who applies it",
		disturb:   func(_ *cluster, w *traffic) { w.awaitWrites(100) },
	},
	{
		name:      "judged-before-the-log",
		simulated: true,
		breaks:    "the conditions of a transaction's writes are not judged again where it stands in the log",
		disturb:   func(_ *cluster, w *traffic) { w.awaitWrites(200) },
		more:      func() workload.Workload { return workload.NewAppend() },
		judge:     "append",
		kinds:     []string{"lost", "incompatible order", "G-single", "G2"},
	},
	{
		name:    "view-per-operation",
		breaks:  "each operation of a transaction that reads opens a view of its own",
		disturb: func(_ *cluster, w *traffic) { w.awaitWrites(200) },
		more:    func() workload.Workload { return workload.NewBank() },
		judge:   "bank",
		kinds:   []string{"wrong total"},
	},
	{
		name:      "transaction-in-steps",
		simulated: true,
		breaks:    "each write of a transaction is a revision of its own",
		disturb:   func(_ *cluster, w *traffic) { w.awaitWrites(200) },
		more:      func() workload.Workload { return workload.NewBank() },
		judge:     "bank",
		kinds:     []string{"wrong total"},
	},
	{
		name:    "revision-of-another-view",
		breaks:  "a read says the revision that the state has after it, not that of the view it read",
		disturb: func(_ *cluster, w *traffic) { w.awaitWrites(200) },
		more:    func() workload.Workload { return workload.NewLongFork() },
		judge:   "longfork",
		kinds:   []string{"state of another revision"},
	},
	{
		name:    "time-from-the-wall-clock",
		breaks:  "the leader stamps entries by its wall clock",
		with:    []option{withClocks},
		disturb: leaderClock,
		more:    func() workload.Workload { return workload.NewCounter() },
		judge:   "counter",
		kinds:   []string{"another answer", "happened twice", "refused but there"},
	},
	{
		name:    "age-by-gos-clock",
		breaks:  "ages are measured by Go's clock, which stands still while the host sleeps",
		with:    []option{withClocks},
		disturb: suspendedLearner,
		judge:   "register",
		kinds:   []string{"older than it says"},
	},
	{
		name:    "age-by-gos-clock",
		breaks:  "the same, seen when a leader wakes",
		with:    []option{withClocks},
		disturb: suspendedLeader,
		judge:   "register",
		kinds:   []string{"not linearizable", "older than it says"},
	},
}

// leadershipTaken has another voter lead.
func leadershipTaken(c *cluster, w *traffic) {
	leader := c.waitLeader()
	w.awaitWrites(100)
	c.transfer(leader, without(c.voters(), leader)[0])
	w.awaitWrites(200)
}

// leaderCutOff has the leader go on for itself for a while.
func leaderCutOff(c *cluster, w *traffic) {
	leader := c.waitLeader()
	c.split(leader)
	c.waitLeader(without(c.voters(), leader)...)
	w.awaitWrites(50)
	c.heal()
	w.awaitReads(leader, 50)
}

// shortSessions lets clients have sessions that end soon.
var shortSessions = []string{"--session-ttl-min", "1s"}

// A bug that stands in the code is in the table of docs/TESTING.md and in that of a test
// which must find it; and both name no bug that there is not.
func TestEachPlantedBugIsListedAndSearchedFor(t *testing.T) {
	asked := regexp.MustCompile(`planted\.Bug\("([a-z-]+)"\)`)
	listed := regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\|")
	inCode, inTests := map[string]bool{}, ""
	for _, files := range sources(t) {
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasSuffix(file, "_test.go") {
				inTests += string(text)
				continue
			}
			for _, found := range asked.FindAllSubmatch(text, -1) {
				inCode[string(found[1])] = true
			}
		}
	}
	text, err := os.ReadFile("../docs/TESTING.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "## Planted bugs")
	section, _, _ = strings.Cut(section, "\n## ")
	inDocs := map[string]bool{}
	for _, found := range listed.FindAllStringSubmatch(section, -1) {
		inDocs[found[1]] = true
	}
	if len(inCode) == 0 || !maps.Equal(inCode, inDocs) {
		t.Errorf("bugs in the code: %v\nbugs in docs/TESTING.md: %v", slices.Sorted(maps.Keys(inCode)), slices.Sorted(maps.Keys(inDocs)))
	}
	for bug := range inCode {
		if !strings.Contains(inTests, strconv.Quote(bug)) {
			t.Errorf("no test searches for %s", bug)
		}
	}
}

func TestPlantedBugsAreFound(t *testing.T) {
	bin, err := build("holdfast-planted", "-tags", "planted")
	if err != nil {
		t.Fatal(err)
	}
	for _, bug := range plantedBugs {
		t.Run(bug.name+": "+bug.breaks, func(t *testing.T) {
			if bug.simulated && !*longFlag {
				t.Skip("SKIPPED: searched for in virtual time; here with -long")
			}
			found := false
			for _, rounds := range patience {
				t.Run(fmt.Sprint("rounds=", rounds), func(t *testing.T) { found = bug.foundWithin(t, bin, rounds) })
				if found || t.Failed() {
					return
				}
			}
			t.Errorf("clusters in which %s passed as sound", bug.breaks)
		})
	}
}

// foundWithin says whether the bug is found in a new cluster that is disturbed so often.
func (b *plantedBug) foundWithin(t *testing.T, bin string, rounds int) bool {
	c := startCluster(t, threeSites, append(b.with, withBinary(bin, "HOLDFAST_PLANTED="+b.name))...)
	var more []workload.Workload
	if b.more != nil {
		more = append(more, b.more())
	}
	w := c.load(more...)
	defer w.stop()
	w.awaitWrites(100)
	for range rounds {
		b.disturb(c, w)
		if b.found(c, w.run.Check()) {
			return true
		}
	}
	w.stop()
	c.inspect()
	all, err := w.run.Judge(t.Context())
	if b.found(c, all) {
		return true
	}
	t.Logf("not in %d rounds: %v, %v", rounds, all, err)
	return false
}

// found says whether the bug was condemned. If so, the cluster is not worth an
// inspection.
func (b *plantedBug) found(c *cluster, all []workload.Anomaly) bool {
	what := ""
	if b.judge == "" {
		ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
		defer cancel()
		var d *workload.Divergence
		if _, err := workload.Level(ctx, c.seenByClients(nil).Nodes); errors.As(err, &d) {
			what = d.Error()
		}
	}
	for _, a := range all {
		if a.Workload == b.judge && slices.Contains(b.kinds, a.Kind) {
			what = a.String()
			break
		}
	}
	if what != "" {
		c.t.Logf("found: %.600s", what)
		c.spoiled = true
	}
	return what != ""
}
