//go:build !linux

package node

import (
	"time"

	"golang.org/x/sys/unix"
)

// Steady implements Clock with CLOCK_MONOTONIC, which on macOS goes on while
// the host sleeps.
func (SystemClock) Steady() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic("node: CLOCK_MONOTONIC: " + err.Error())
	}
	return time.Duration(ts.Nano())
}
