//go:build linux

package sim

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/fault"
)

func TestWallClocksJumpSwingGainAndAreSetRight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &Cluster{members: []*member{{Name: "n1", clock: newClock()}, {Name: "n2", clock: newClock()}}}
		var _ fault.Clocks = c
		ctx := t.Context()
		ahead := func(name string) time.Duration { return time.Until(c.member(name).clock.Wall()) }
		demand := func(what string, got, want time.Duration) {
			t.Helper()
			if got != want {
				t.Errorf("%s: %v ahead, not %v", what, got, want)
			}
		}
		for _, err := range []error{c.Jump(ctx, -time.Hour, "n1"), c.Skew(ctx, 0.5, "n1")} {
			if err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(10 * time.Second)
		demand("a clock that jumped back and gains", ahead("n1"), 5*time.Second-time.Hour)
		demand("the other one", ahead("n2"), 0)
		if err := c.Strobe(ctx, time.Minute, 10*time.Millisecond, "n2"); err != nil {
			t.Fatal(err)
		}
		demand("a strobe in an even period", ahead("n2"), 0)
		time.Sleep(10 * time.Millisecond)
		demand("a strobe in an odd period", ahead("n2"), time.Minute)
		if err := c.SetRight(ctx, "n1", "n2"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		demand("set right", ahead("n1"), 0)
		demand("set right", ahead("n2"), 0)
		if steady := c.member("n1").clock.Steady(); steady != 11*time.Second+10*time.Millisecond {
			t.Errorf("the steady clock went on by %v", steady)
		}
	})
}
