package main

import "testing"

func TestTheMemoryLimitIsNeverBelowWhatIsInUse(t *testing.T) {
	for _, live := range []uint64{0, 10 << 20, memoryGoal / 2, memoryGoal, 4 << 30} {
		for _, stacks := range []uint64{0, memoryGoal / 2, memoryGoal} {
			if got := memoryLimit(live, stacks); got < memoryGoal || got < int64(live)*5/4+int64(stacks) {
				t.Errorf("limit for %d bytes in use and %d of stacks is %d", live, stacks, got)
			}
		}
	}
	if got := memoryLimit(50<<20, 1<<20); got != memoryGoal {
		t.Errorf("limit for little in use is %d; want %d", got, memoryGoal)
	}
}
