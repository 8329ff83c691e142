package clustertests

import (
	"bytes"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/workload"
)

// plantedBug is a fault built into the binary on purpose, to show that this
// package finds it in a running cluster and not only in made-up histories.
type plantedBug struct {
	name    string // value of HOLDFAST_PLANTED, see package planted
	breaks  string // what the bug does
	disturb func(c *cluster, w *traffic)
	// more makes the workload that must find it, when that is not of the ordinary traffic.
	more func() workload.Workload
	// judge and kinds are a workload and the anomalies of which it must find one.
	judge string
	kinds []string
}

var plantedBugs = []plantedBug{
	{
		name:   "read-without-round",
		breaks: "a consistent read is answered from the node's own state, without asking the leader",
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
		name:   "forgotten-marker",
		breaks: "a node that starts does not apply its log up to the commit marker",
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
}

func TestPlantedBugsAreFound(t *testing.T) {
	if !anyPlanted(t) {
		t.Skip("SKIPPED: no source file has the build tag planted")
	}
	bin, err := build("holdfast-planted", "-tags", "planted")
	if err != nil {
		t.Fatal(err)
	}
	for _, bug := range plantedBugs {
		t.Run(bug.name+": "+bug.breaks, func(t *testing.T) {
			c := startCluster(t, threeSites, withBinary(bin, "HOLDFAST_PLANTED="+bug.name))
			var more []workload.Workload
			if bug.more != nil {
				more = append(more, bug.more())
			}
			w := c.load(more...)
			defer w.stop()
			w.awaitWrites(100)
			bug.disturb(c, w)
			w.stop()
			if bug.found(t, w.run.Check()) {
				c.waitLevel(30 * time.Second)
				return
			}
			c.inspect()
			found, err := w.run.Judge(t.Context())
			if !bug.found(t, found) {
				t.Errorf("a cluster in which %s passed as sound: %v, %v", bug.breaks, found, err)
			}
		})
	}
}

// found says whether the judge has condemned the bug.
func (b *plantedBug) found(t *testing.T, all []workload.Anomaly) bool {
	for _, a := range all {
		if a.Workload == b.judge && slices.Contains(b.kinds, a.Kind) {
			t.Logf("found: %.600s", a)
			return true
		}
	}
	return false
}

// anyPlanted says whether any source file carries the build tag.
func anyPlanted(t *testing.T) bool {
	t.Helper()
	for _, files := range sources(t) {
		if slices.ContainsFunc(files, func(file string) bool {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			return bytes.HasPrefix(b, []byte("//go:build planted\n"))
		}) {
			return true
		}
	}
	return false
}
