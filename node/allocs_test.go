package node_test

import (
	"testing"

	"github.com/holdfast-db/holdfast/internal/allocs"
)

func TestAllocations(t *testing.T) {
	// The log is in memory: beside a slow disk more is done in the background for each
	// write. What the log allocates has ceilings in store.
	allocs.Check(t, 1000, allocs.Ceilings{
		"BenchmarkGroup":                        11,
		"BenchmarkPropose/log=memory/clients=1": 80,
		"BenchmarkRead/stale":                   5,
		"BenchmarkRead/default":                 13,
		"BenchmarkRead/consistent":              28,
	})
	// How many writes share an entry depends on how fast the log is, and on the
	// scheduler: 21 to 26 were seen.
	allocs.Check(t, 5000, allocs.Ceilings{"BenchmarkPropose/log=wal/clients=128": 28})
}
