//go:build linux

package sim

import (
	"context"
	"sync"
	"time"
)

// clock is a machine's: what its node judges leases and staleness by, and stamps entries
// with. Its wall clock can be made wrong. Its steady one is that of the bubble: no
// member's runs faster than another's.
type clock struct {
	began time.Time

	mu     sync.Mutex
	ahead  time.Duration // at the moment since
	since  time.Time
	gain   float64       // what it gains in each unit of time
	swing  time.Duration // how much it is ahead besides, in every second period
	period time.Duration // 0: it does not swing
}

func newClock() *clock {
	now := time.Now()
	return &clock{began: now, since: now}
}

// Steady implements node.Clock.
func (c *clock) Steady() time.Duration { return time.Since(c.began) }

// Wall implements node.Clock.
func (c *clock) Wall() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	wall := now.Add(c.drift(now))
	if c.period > 0 && now.Sub(c.began)/c.period%2 == 1 {
		wall = wall.Add(c.swing)
	}
	return wall
}

// drift is how much it is ahead, swings left out; c.mu is held.
func (c *clock) drift(now time.Time) time.Duration {
	return c.ahead + time.Duration(c.gain*float64(now.Sub(c.since)))
}

// set changes how it runs, from what it shows now on.
func (c *clock) set(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	c.ahead, c.since = c.drift(now), now
	change()
}

func (c *Cluster) eachClock(names []string, change func(*clock)) {
	for _, m := range c.named(names) {
		m.clock.set(func() { change(m.clock) })
	}
}

// OwnClocks implements fault.Clocks.
func (*Cluster) OwnClocks() bool { return true }

// Jump implements fault.Clocks.
func (c *Cluster) Jump(_ context.Context, by time.Duration, names ...string) error {
	c.eachClock(names, func(k *clock) { k.ahead += by })
	return nil
}

// Strobe implements fault.Clocks.
func (c *Cluster) Strobe(_ context.Context, swing, period time.Duration, names ...string) error {
	c.eachClock(names, func(k *clock) { k.gain, k.swing, k.period = 0, swing, period })
	return nil
}

// Skew implements fault.Clocks.
func (c *Cluster) Skew(_ context.Context, gain float64, names ...string) error {
	c.eachClock(names, func(k *clock) { k.gain, k.swing, k.period = gain, 0, 0 })
	return nil
}

// SetRight implements fault.Clocks.
func (c *Cluster) SetRight(_ context.Context, names ...string) error {
	c.eachClock(names, func(k *clock) { k.ahead, k.gain, k.swing, k.period = 0, 0, 0, 0 })
	return nil
}

// Suspend implements fault.Clocks. What a process measures time by does not stand still:
// see Pause.
func (c *Cluster) Suspend(ctx context.Context, names ...string) error { return c.Pause(ctx, names...) }
