package http

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestAKeyIsOfAllPrefixesItBeginsWith(t *testing.T) {
	prefixes := []string{"", "a", "a/", "a/b", "a/b/c", "b", "é", "a/x"}
	keys := []string{"", "a", "a/", "a/b", "a/bc", "a/b/c/d", "b", "c", "é/1", "\xc3", "ab"}
	for _, from := range [][]string{prefixes, prefixes[1:], prefixes[3:5], nil} {
		s := newPrefixSet(slices.Values(from))
		for _, key := range keys {
			want := slices.DeleteFunc(slices.Clone(from), func(p string) bool { return !strings.HasPrefix(key, p) })
			slices.SortStableFunc(want, func(a, b string) int { return len(a) - len(b) })
			if got := slices.Collect(s.of(key)); !slices.Equal(got, want) {
				t.Errorf("of %q, %q begins with %q, not %q", from, key, want, got)
			}
			if s.has(key) != (len(want) > 0) {
				t.Errorf("of %q, %q has one: %v", from, key, s.has(key))
			}
		}
	}
}

func BenchmarkPrefixSet(b *testing.B) {
	for _, n := range []int{10, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var all []string
			for i := range n {
				all = append(all, fmt.Sprintf("app/config/%d", i))
			}
			s := newPrefixSet(slices.Values(all))
			b.ReportAllocs()
			for i := range b.N {
				if !s.has(all[i%n]) {
					b.Fatal(all[i%n])
				}
			}
		})
	}
}
