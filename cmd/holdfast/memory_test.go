package main

import "testing"

func TestTheMemoryLimitIsNeverBelowWhatIsInUse(t *testing.T) {
	for _, live := range []uint64{0, 10 << 20, memoryGoal / 2, memoryGoal, 4 << 30} {
		if got := memoryLimit(live); got < memoryGoal || got < int64(live)*5/4 {
			t.Errorf("limit for %d bytes in use is %d", live, got)
		}
	}
	if got := memoryLimit(50 << 20); got != memoryGoal {
		t.Errorf("limit for little in use is %d; want %d", got, memoryGoal)
	}
}
