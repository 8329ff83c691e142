package main

import (
	"context"
	"math"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// The collector lets garbage grow to the size of what is in use, which after a
// burst of writes is a lot of memory for nothing. Up to memoryGoal it may; beyond,
// it has to be thrifty. What is really in use is never squeezed: the limit leaves
// the heap memorySlack times what is live, or the collector would run all the time.
const (
	memoryGoal  = 176 << 20
	memorySlack = 1.5
)

// limitMemory keeps the garbage of this process low until ctx ends. With GOMEMLIMIT
// in the environment, that counts.
func limitMemory(ctx context.Context) {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	debug.SetMemoryLimit(memoryGoal)
	go func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		defer debug.SetMemoryLimit(math.MaxInt64)
		samples := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}}
		limit := int64(memoryGoal)
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			metrics.Read(samples)
			if want := memoryLimit(samples[0].Value.Uint64(), samples[1].Value.Uint64()); want != limit {
				debug.SetMemoryLimit(want)
				limit = want
			}
		}
	}()
}

// memoryLimit is the limit for what was live after the last collection, and for the
// stacks of goroutines: many idle connections have nearly as much of those as heap.
func memoryLimit(live, stacks uint64) int64 {
	return max(memoryGoal, int64(memorySlack*float64(live)+float64(stacks)))
}
