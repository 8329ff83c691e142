package node

import (
	"time"

	"github.com/holdfast-db/holdfast/internal/planted"
)

// Clock is what a node measures leases and staleness by.
type Clock interface {
	// Steady is the time since an arbitrary moment. It never goes back, no
	// wall clock moves it, and it goes on while the host is suspended.
	Steady() time.Duration
	// Wall is the wall clock, which may jump.
	Wall() time.Time
}

// Instant is one moment on both clocks.
type Instant struct {
	Steady time.Duration
	Wall   time.Time
}

// Now reads both clocks.
func Now(c Clock) Instant { return Instant{Steady: c.Steady(), Wall: c.Wall()} }

// Before returns the instant d earlier.
func (t Instant) Before(d time.Duration) Instant {
	return Instant{Steady: t.Steady - d, Wall: t.Wall.Add(-d)}
}

// IsZero reports whether t was never set.
func (t Instant) IsZero() bool { return t.Wall.IsZero() }

// Age is how long ago t was, by the clock that advanced further: a clock that
// stood still, or was set back, must not make an answer look fresher than it is.
func (t Instant) Age(now Instant) time.Duration {
	if planted.Bug("age-by-gos-clock") {
		return now.Wall.Sub(t.Wall)
	}
	return max(now.Steady-t.Steady, now.Wall.Round(0).Sub(t.Wall.Round(0)), 0)
}

// SystemClock is the clock of the host.
type SystemClock struct{}

// Wall implements Clock.
func (SystemClock) Wall() time.Time { return time.Now() }
