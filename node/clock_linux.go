package node

import (
	"time"

	"golang.org/x/sys/unix"
)

// Steady implements Clock with CLOCK_BOOTTIME: Go's own monotonic clock stands
// still while the host is suspended, and a copy that slept would call itself
// fresh.
func (SystemClock) Steady() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("node: CLOCK_BOOTTIME: " + err.Error()) // every Linux since 2.6.39 has it
	}
	return time.Duration(ts.Nano())
}
