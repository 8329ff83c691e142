package allocs

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Ceilings are the most allocations that one operation of each benchmark may cost.
// The names are those that `go test -bench` prints, without the number of processors.
type Ceilings map[string]int

// runs is how often a count is taken that is not as recorded.
const runs = 5

// Check runs benchmarks of the package under test, as many operations of each, and
// fails t for each that allocates more than its ceiling, and for each whose ceiling
// is so far above what it allocates that it would not be noticed to grow. Operations
// are enough when what is allocated once, and in the background, is less than one
// allocation for each.
func Check(t *testing.T, operations int, ceilings Ceilings) {
	t.Helper()
	switch {
	case raceDetector:
		t.Skip("allocations are not counted: the race detector makes some of its own")
	case testing.CoverMode() != "":
		t.Skip("allocations are not counted: what counts coverage keeps functions from being inlined")
	}
	seen := map[string][]int{}
	left := slices.Sorted(maps.Keys(ceilings))
	for range runs {
		if len(left) == 0 {
			return
		}
		counts, err := measure(t.Context(), operations, left)
		if err != nil {
			t.Fatal(err)
		}
		left = slices.DeleteFunc(left, func(name string) bool {
			seen[name] = append(seen[name], counts[name])
			held := judge(ceilings[name], seen[name]) == ""
			if held && testing.Verbose() {
				t.Logf("%s: %d, ceiling %d", name, counts[name], ceilings[name])
			}
			return held
		})
	}
	for _, name := range left {
		t.Errorf("%s: %s", name, judge(ceilings[name], seen[name]))
		t.Logf("to see where it allocates: %s", profile(name))
	}
}

// judge says what is wrong with a ceiling when so many allocations were seen in one
// run after the other; empty: nothing.
func judge(ceiling int, seen []int) string {
	least, most := slices.Min(seen), slices.Max(seen)
	switch {
	case least > ceiling:
		return fmt.Sprintf("%d allocations per operation, and the ceiling is %d (seen: %d); spare them, or raise the ceiling and say why in the commit", least, ceiling, seen)
	case ceiling >= most+3 && 3*ceiling > 4*most:
		return fmt.Sprintf("%d allocations per operation, far below the ceiling of %d (seen: %d); lower the ceiling, so that it is noticed when they come back", most, ceiling, seen)
	}
	return ""
}

// measure runs benchmarks of this test binary and returns the allocations of one
// operation of each.
func measure(ctx context.Context, operations int, names []string) (map[string]int, error) {
	patterns := make([]string, len(names))
	for i, name := range names {
		patterns[i] = pattern(name)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, "-test.run=^$", "-test.bench="+strings.Join(patterns, "|"),
		fmt.Sprintf("-test.benchtime=%dx", operations), "-test.benchmem", "-test.cpu=1", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), "GOGC=off", "GOMEMLIMIT=1GiB")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	counts := parse(string(out))
	for _, name := range names {
		if _, ok := counts[name]; !ok {
			return nil, fmt.Errorf("%s has a ceiling, but there is no such benchmark\n%s", name, out)
		}
	}
	return counts, nil
}

// pattern is what -bench selects one benchmark with.
func pattern(name string) string {
	parts := strings.Split(name, "/")
	for i, part := range parts {
		parts[i] = "^" + regexp.QuoteMeta(part) + "$"
	}
	return strings.Join(parts, "/")
}

// parse finds the allocations per operation in what benchmarks print.
func parse(out string) map[string]int {
	counts := map[string]int{}
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		at := slices.Index(fields, "allocs/op")
		if at < 1 {
			continue
		}
		if n, err := strconv.Atoi(fields[at-1]); err == nil {
			counts[fields[0]] = n
		}
	}
	return counts
}

// profile is a command that shows which lines a benchmark allocates in. It runs for
// longer than Check does, so that operations outweigh their preparation.
func profile(name string) string {
	pkg := "."
	if info, ok := debug.ReadBuildInfo(); ok {
		pkg = strings.TrimSuffix(info.Path, ".test")
	}
	return fmt.Sprintf("go test -run '^$' -bench '%s' -benchtime 2s -cpu 1 -memprofilerate 1 -memprofile /tmp/mem.out -o /tmp/allocs.test %s && go tool pprof -sample_index alloc_objects -top /tmp/allocs.test /tmp/mem.out", pattern(name), pkg)
}
