package fakeclock

import (
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// begin starts a process that sees the clock; it is ended with the test.
func (c *Clock) begin(t *testing.T) *teller {
	t.Helper()
	p, err := c.teller()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.end(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// see is what the process sees, and how far its wall clock is ahead, give or take what
// it takes to ask.
func (p *teller) see(t *testing.T) (s seen, ahead time.Duration) {
	t.Helper()
	s, err := p.ask()
	if err != nil {
		t.Fatal(err)
	}
	return s, time.Until(s.wall)
}

// near says whether a clock was ahead by d, on a machine as busy as may be.
func near(ahead, d time.Duration) bool { return (ahead - d).Abs() < 10*time.Second }

func (p *teller) expect(t *testing.T, d time.Duration) {
	t.Helper()
	if _, ahead := p.see(t); !near(ahead, d) {
		t.Errorf("the wall clock is ahead by %v, not %v", ahead, d)
	}
}

func TestAClockJumpsForThePrograms(t *testing.T) {
	one, other := New(t), New(t)
	a, b := one.begin(t), other.begin(t)
	a.expect(t, 0)
	for _, jump := range []time.Duration{time.Hour, -2 * time.Hour} {
		before, _ := a.see(t)
		one.Jump(jump)
		a.expect(t, one.Ahead())
		b.expect(t, 0)
		after, _ := a.see(t)
		if steady, boot := after.steady-before.steady, after.boot-before.boot; (steady - boot).Abs() > 50*time.Millisecond {
			t.Errorf("Go's steady clock went on by %v while %v passed", steady, boot)
		}
	}
	a.expect(t, -time.Hour)
	one.begin(t).expect(t, -time.Hour) // a program that starts later finds the clock as it is
	one.Right()
	a.expect(t, 0)
}

func TestAStrobeGoesForthAndBack(t *testing.T) {
	c := New(t)
	p := c.begin(t)
	c.Strobe(time.Hour, 5*time.Millisecond)
	turns, there := 0, false
	for deadline := time.Now().Add(10 * time.Second); turns < 6; {
		if time.Now().After(deadline) {
			t.Fatalf("the clock has turned %d times in 10 s", turns)
		}
		if _, ahead := p.see(t); near(ahead, time.Hour) != there {
			there = !there
			turns++
		}
	}
	c.Strobe(0, 0)
	p.expect(t, 0)
}

func TestASkewedClockKeepsWhatItGained(t *testing.T) {
	c := New(t)
	p := c.begin(t)
	for _, gain := range []float64{10_000, -10_000} {
		before, outside := c.Ahead(), time.Now()
		c.Skew(gain)
		for inside := time.Now(); time.Since(inside) < 10*time.Millisecond; { // time is what this is about
			p.see(t)
		}
		c.Skew(0)
		gained, most := c.Ahead()-before, time.Since(outside)
		if gained.Abs() < 100*time.Second || gained.Abs() > 10_000*most || gained > 0 != (gain > 0) {
			t.Errorf("in between 10ms and %v with a gain of %v the clock gained %v", most, gain, gained)
		}
		p.expect(t, c.Ahead())
	}
}

// A suspended host: what Go measures time by stands still, the other clocks show what
// has passed.
func TestASleepingHostsSteadyClockStandsStill(t *testing.T) {
	c := New(t)
	p := c.begin(t)
	before, _ := p.see(t)
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := c.Sleep(p.cmd.Process); err != nil {
		t.Fatal(err)
	}
	const sleep = 300 * time.Millisecond
	<-time.After(sleep) // time is what this is about
	c.Wake()
	if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	after, _ := p.see(t)
	boot, steady, wall := after.boot-before.boot, after.steady-before.steady, after.wall.Sub(before.wall)
	if steady < 0 || boot < sleep || boot-steady < sleep || steady > 100*time.Millisecond || (boot-wall).Abs() > 100*time.Millisecond {
		t.Errorf("in %v by CLOCK_BOOTTIME Go's steady clock went on by %v and the wall clock by %v", boot, steady, wall)
	}
}

// Programs are often started by another that becomes them.
func TestAProgramStartedByAnotherHasTheClock(t *testing.T) {
	c := New(t)
	env, err := exec.LookPath("env")
	if err != nil {
		t.Skip("SKIPPED: there is no program env")
	}
	c.Jump(time.Hour)
	p, err := c.teller(env)
	if err != nil {
		t.Fatal(err)
	}
	p.expect(t, time.Hour)
	if err := p.end(); err != nil {
		t.Error(err)
	}
}

func TestAProgramThatNeverBeginsIsAnError(t *testing.T) {
	c := New(t)
	for _, command := range []string{"/nonexistent", "/bin/true"} {
		if err := c.Start(exec.Command(command), "/bin/sh"); err == nil {
			t.Errorf("%s became /bin/sh", command)
		}
	}
}
