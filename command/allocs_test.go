package command

import (
	"testing"

	"github.com/holdfast-db/holdfast/internal/allocs"
)

func TestAllocations(t *testing.T) {
	allocs.Check(t, 300, allocs.Ceilings{
		"BenchmarkDecodeEntryOf64Puts": 142,
	})
}
