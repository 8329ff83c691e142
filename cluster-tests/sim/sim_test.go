//go:build linux

package sim

import (
	"flag"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
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
	loads  = flag.String("workloads", "", "names of workloads, divided by commas; without it all")
)

// Clusters leave much behind and hold little: the collector has no need to come so often.
func TestMain(m *testing.M) {
	debug.SetGCPercent(400)
	m.Run()
}

func TestSim(t *testing.T) {
	chosen, err := fault.Named(*faults)
	if err != nil {
		t.Fatal(err)
	}
	runSeeds(t, *seeds, options{faults: chosen})
}

// The disks of these are file systems of another process, which costs time: so there
// are fewer.
func TestSimOnDisks(t *testing.T) {
	chosen, err := fault.Named(*faults)
	if err != nil {
		t.Fatal(err)
	}
	more, err := fault.Named("power,disks")
	if err != nil {
		t.Fatal(err)
	}
	runSeeds(t, (*seeds+19)/20, options{faults: slices.Concat(chosen, more), ownDisks: true})
}

func runSeeds(t *testing.T, seeds int, o options) {
	o.length = *length
	if *loads != "" {
		o.workloads = strings.Split(*loads, ",")
	}
	if *first == 0 {
		*first = uint64(time.Now().Unix())
	}
	var virtual, requests atomic.Int64
	var mu sync.Mutex
	acted, missed := map[string]int{}, map[string]int{} // how often, by the name of the fault
	began, name := time.Now(), t.Name()
	t.Run("seeds", func(t *testing.T) {
		for i := range seeds {
			seed := *first + uint64(i)
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				t.Parallel()
				out := simulate(t, newScenario(seed, o))
				virtual.Add(int64(out.virtual))
				requests.Add(int64(out.requests))
				mu.Lock()
				defer mu.Unlock()
				for _, r := range out.faults {
					for _, name := range fault.Split(r.Fault) {
						acted[name]++
						if r.Err != nil {
							missed[name]++
						}
					}
				}
				if len(out.failures) > 0 {
					t.Errorf("%s\nhistory and logs: %s\nagain: go test ./cluster-tests/sim -run ^%s$ -seeds 1 -seed %d -length %v -faults %s -workloads %q", out, out.folder, name, seed, *length, *faults, *loads)
				}
			})
		}
	})
	took := time.Since(began)
	all := 0
	for name, n := range acted {
		all += n
		if missed[name] == n {
			t.Logf("%s never came about, in %d attempts", name, n)
		}
	}
	t.Logf("%d seeds, %v of virtual time in %v: %.0f virtual seconds a second; %d faults, %d requests",
		seeds, time.Duration(virtual.Load()).Round(time.Second), took.Round(time.Millisecond), float64(virtual.Load())/float64(took), all, requests.Load())
}
