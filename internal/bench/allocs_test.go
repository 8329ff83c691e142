package bench

import (
	"testing"

	"github.com/holdfast-db/holdfast/internal/allocs"
)

func TestAllocations(t *testing.T) {
	allocs.Check(t, 1000, allocs.Ceilings{
		"BenchmarkRequest": 0,
	})
}
