package allocs

import (
	"maps"
	"os"
	"strings"
	"testing"
)

var kept [8]*int

// keep allocates n times.
func keep(n int) {
	for i := range n {
		kept[i] = new(int)
	}
}

func BenchmarkNone(b *testing.B) {
	for b.Loop() {
		keep(0)
	}
}

func BenchmarkSome(b *testing.B) {
	for name, n := range map[string]int{"two": 2, "three of them (3)": 3} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				keep(n)
			}
		})
	}
}

// broken is set in the environment of benchmarks that are to fail.
const broken = "ALLOCS_TEST_BROKEN"

func BenchmarkBroken(b *testing.B) {
	b.Run("fails", func(b *testing.B) {
		if os.Getenv(broken) == "" {
			b.Skip("fails only when it is asked to")
		}
		b.Fatal("as it should")
	})
}

func TestAllocationsAreCounted(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector allocates")
	}
	want := map[string]int{"BenchmarkNone": 0, "BenchmarkSome/three_of_them_(3)": 3}
	got, err := measure(t.Context(), 100, []string{"BenchmarkNone", "BenchmarkSome/three_of_them_(3)"})
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	t.Setenv(broken, "yes")
	for name, complaint := range map[string]string{
		"BenchmarkSome/tw":      "no such benchmark",
		"BenchmarkSom":          "no such benchmark",
		"BenchmarkBroken/fails": "as it should",
	} {
		if got, err := measure(t.Context(), 100, []string{"BenchmarkNone", name}); err == nil || !strings.Contains(err.Error(), complaint) {
			t.Errorf("%s: %v, %v; want %q", name, got, err, complaint)
		}
	}
}

func TestACeilingIsHeldAndHonest(t *testing.T) {
	for _, c := range []struct {
		ceiling int
		seen    []int
		want    string // part of the complaint; empty: none
	}{
		{5, []int{5}, ""},
		{5, []int{6}, "6 allocations per operation, and the ceiling is 5"},
		{5, []int{9, 6, 7}, "6 allocations"},
		{5, []int{9, 5}, ""},
		{0, []int{1}, "the ceiling is 0"},
		{2, []int{0}, ""},
		{3, []int{0}, "far below"},
		{8, []int{6}, ""},
		{9, []int{6}, "6 allocations per operation, far below the ceiling of 9"},
		{9, []int{5, 6}, "6 allocations"},
		{9, []int{5, 7}, ""},
		{13, []int{10}, ""},
		{400, []int{300}, ""},
		{401, []int{300}, "far below"},
		{9, []int{20, 1}, ""}, // timing alone: neither is proved
	} {
		got := judge(c.ceiling, c.seen)
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("ceiling %d, seen %d: %q; want %q", c.ceiling, c.seen, got, c.want)
		}
	}
}
