package transport

import (
	"testing"

	"github.com/holdfast-db/holdfast/internal/allocs"
)

func TestAllocations(t *testing.T) {
	allocs.Check(t, 1000, allocs.Ceilings{
		"BenchmarkCall/bytes=64/callers=1":                4,
		"BenchmarkCall/bytes=64/callers=16":               4,
		"BenchmarkCall/bytes=4096/callers=1":              4,
		"BenchmarkAppendEntries/entries=0/one/ours":       12,
		"BenchmarkAppendEntries/entries=0/pipeline/ours":  13,
		"BenchmarkAppendEntries/entries=1/one/ours":       17,
		"BenchmarkAppendEntries/entries=1/pipeline/ours":  18,
		"BenchmarkAppendEntries/entries=16/one/ours":      36,
		"BenchmarkAppendEntries/entries=16/pipeline/ours": 37,
	})
}
