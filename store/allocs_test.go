package store

import (
	"testing"

	"github.com/holdfast-db/holdfast/internal/allocs"
)

func TestAllocations(t *testing.T) {
	// Few operations, so that all are done before the buffer is written to the file in
	// the background.
	allocs.Check(t, 100, allocs.Ceilings{
		"BenchmarkApply64Puts/over_0_keys":    477,
		"BenchmarkPublishBesideWatches/10000": 14,
		"BenchmarkGet/memory":                 0,
		"BenchmarkGet/file":                   24,
		"BenchmarkView":                       5,
		"BenchmarkScan1000/keys_only_false":   3012,
		"BenchmarkScan1000/keys_only_true":    1008,
		"BenchmarkAppend/wal/1x256B":          10,
		"BenchmarkAppend/wal/64x256B":         262,
		"BenchmarkAppend/boltdb/1x256B":       95,
		"BenchmarkAppend/boltdb/64x256B":      2200,
	})
}
