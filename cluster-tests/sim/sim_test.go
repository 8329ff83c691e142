//go:build linux

package sim

import (
	"flag"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/fault"
)

var (
	seeds  = flag.Int("seeds", 160, "how many clusters to simulate")
	first  = flag.Uint64("seed", 0, "the first of them; 0: ever others")
	length = flag.Duration("length", 15*time.Second, "how long faults act on each, in virtual time")
	faults = flag.String("faults", "all", "names of faults, or of groups of them, divided by commas")
)

func TestSim(t *testing.T) {
	chosen, err := fault.Named(*faults)
	if err != nil {
		t.Fatal(err)
	}
	runSeeds(t, *seeds, options{faults: chosen})
}

// The disks of these are file systems of another process, which costs time: so there
// are fewer.
func TestSimWithLossOfPower(t *testing.T) {
	chosen, err := fault.Named(*faults)
	if err != nil {
		t.Fatal(err)
	}
	runSeeds(t, (*seeds+19)/20, options{faults: slices.Concat(chosen, powerFaults, powerFaults, powerFaults), workloads: unharmed, power: true})
}

func runSeeds(t *testing.T, seeds int, o options) {
	o.length = *length
	o.faults = slices.DeleteFunc(o.faults, func(f fault.Fault) bool { return f.Rewinds })
	if *first == 0 {
		*first = uint64(time.Now().Unix())
	}
	var virtual, requests, acted atomic.Int64
	began, name := time.Now(), t.Name()
	t.Run("seeds", func(t *testing.T) {
		for i := range seeds {
			seed := *first + uint64(i)
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				t.Parallel()
				out := simulate(t, newScenario(seed, o))
				virtual.Add(int64(out.virtual))
				requests.Add(int64(out.requests))
				acted.Add(int64(len(out.faults)))
				if len(out.failures) > 0 {
					t.Errorf("%s\nhistory and logs: %s\nagain: go test ./cluster-tests/sim -run ^%s$ -seeds 1 -seed %d -length %v -faults %s", out, out.folder, name, seed, *length, *faults)
				}
			})
		}
	})
	took := time.Since(began)
	t.Logf("%d seeds, %v of virtual time in %v: %.0f virtual seconds a second; %d faults, %d requests",
		seeds, time.Duration(virtual.Load()).Round(time.Second), took.Round(time.Millisecond), float64(virtual.Load())/float64(took), acted.Load(), requests.Load())
}
