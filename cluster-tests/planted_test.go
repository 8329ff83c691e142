package clustertests

import (
	"bytes"
	"os"
	"slices"
	"testing"
	"time"
)

// plantedBug is a fault built into the binary on purpose, to show that this
// package finds it in a running cluster and not only in made-up histories.
//
// The code of a bug stands in a file with build tag `planted` beside what it
// breaks, and acts only if HOLDFAST_PLANTED names it. No released binary has
// the tag.
type plantedBug struct {
	name    string // value of HOLDFAST_PLANTED
	breaks  string // what the bug does
	disturb func(c *cluster, w *workload)
	// found is the judgement that must condemn what clients saw.
	found func([]op) error
}

var plantedBugs = []plantedBug{
	{
		name:   "read-without-round",
		breaks: "a consistent read is answered from the node's own state, without asking the leader",
		disturb: func(c *cluster, w *workload) {
			c.cutOff("east")
			w.awaitWrites(200)
			w.awaitReads(c.node("e1"), 50)
			c.heal()
		},
		found: findNonLinearizable,
	},
	{name: "read-without-round", breaks: "the same, seen when a leader wakes", disturb: pausedLeader.disturb, found: findStale},
	{name: "read-without-round", breaks: "the same, seen on either side of a cut", disturb: leaderAndLearner.disturb, found: findStale},
	{name: "read-without-round", breaks: "the same, seen while leadership is handed on", disturb: leadershipHanded.disturb, found: findNonLinearizable},
	{
		name:    "late-certificate",
		breaks:  "a read takes its certificate after it has opened its view",
		disturb: stopsOfCopies,
		found:   findUnderstatedAge,
	},
	{
		name:    "certificate-from-the-answer",
		breaks:  "a certificate counts from the moment the leader's answer was read, not from the question",
		disturb: stopsOfCopies,
		found:   findUnderstatedAge,
	},
	{
		name:   "forgotten-marker",
		breaks: "a node that starts does not apply its log up to the commit marker",
		disturb: func(c *cluster, w *workload) {
			e1 := c.node("e1")
			w.awaitWrites(200)
			w.awaitReads(e1, 50)
			c.kill(e1)
			c.cutOff("east")
			c.start(e1)
			w.awaitReads(e1, 50)
			c.heal()
		},
		found: findGoingBack,
	},
}

// findStale looks for consistent reads that miss what was written before, as those two
// judges do that see all of them.
func findStale(ops []op) error {
	if err := findNonLinearizable(ops); err != nil {
		return err
	}
	return findUnderstatedAge(ops)
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
			w := c.load()
			defer w.stop()
			w.awaitWrites(100)
			bug.disturb(c, w)
			w.stop()
			err := bug.found(w.history.all())
			if err == nil {
				t.Errorf("a cluster in which %s passed as sound", bug.breaks)
				return
			}
			t.Logf("found: %.600s", err.Error())
			c.waitLevel(30 * time.Second)
		})
	}
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
