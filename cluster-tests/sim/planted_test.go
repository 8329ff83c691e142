//go:build linux && planted

package sim

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/fault"
)

// plantedBug is a fault in the code, shown on purpose (package planted), that some seed
// has to find.
type plantedBug struct {
	name string
	// faults and workload are what the seeds are narrowed to, so that few are enough.
	faults, workload string
	// kinds are the anomalies of the workload that are this bug's; "parted" is that of
	// nodes that hold different data.
	kinds []string
	// ownDisks: members' disks may fail and lose power.
	ownDisks bool
}

var plantedBugs = []plantedBug{
	{"read-without-round", "isolate-leader,leader-in-minority,cut-site", "register", []string{"not linearizable", "older than it says"}, false},
	{"forgotten-marker", "kill-all,kill-all-behind-cuts", "register", []string{"went back"}, false},
	{"cas-before-the-log", "isolate-leader", "register", []string{"not linearizable"}, false},
	{"min-index-ignored", "cut-site", "causal", []string{"min_index ignored"}, false},
	{"time-of-the-leader", "transfers,kill-leader", "counter", []string{"another answer", "happened twice", "refused but there"}, false},
	{"acknowledged-when-appended", "isolate-leader,leader-in-minority", "set", []string{"lost"}, false},
	{"vote-not-synced", "power-loss-others-behind-cut", "set", []string{"lost", "parted"}, true},
	{"judged-before-the-log", "cut-site", "append", []string{"lost", "incompatible order", "G-single", "G2"}, false},
	{"transaction-in-steps", "cut-site", "bank", []string{"wrong total"}, false},
	{"clock-in-apply", "cut-site", "set", []string{"parted"}, false},
}

// mostSeeds is how many clusters may run until a bug is found.
const mostSeeds = 40

func TestPlantedBugsAreFoundInVirtualTime(t *testing.T) {
	for _, bug := range plantedBugs {
		t.Run(bug.name, func(t *testing.T) {
			t.Setenv("HOLDFAST_PLANTED", bug.name)
			chosen, err := fault.Named(bug.faults)
			if err != nil {
				t.Fatal(err)
			}
			run := func(seed uint64) *outcome {
				o := simulate(t, newScenario(seed, options{faults: chosen, workloads: []string{bug.workload}, ownDisks: bug.ownDisks, length: 20 * time.Second}))
				o.discard()
				return o
			}
			var last *outcome
			for seed := range uint64(mostSeeds) {
				last = run(seed + 1)
				found := slices.IndexFunc(last.failures, bug.finds)
				if found < 0 {
					continue
				}
				t.Logf("seed %d: %.300s", last.seed, last.failures[found])
				t.Setenv("HOLDFAST_PLANTED", "")
				if sound := run(last.seed); len(sound.failures) > 0 {
					t.Errorf("without the bug, too: %s", sound)
				}
				return
			}
			t.Errorf("%d clusters with this bug passed as sound; the last one said: %q", mostSeeds, last.failures)
		})
	}
}

func (b plantedBug) finds(failure string) bool {
	return slices.ContainsFunc(b.kinds, func(kind string) bool {
		if kind == "parted" {
			return strings.HasPrefix(failure, "DIVERGED")
		}
		return strings.HasPrefix(failure, b.workload+": "+kind)
	})
}
