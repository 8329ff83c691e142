package fault

import (
	"context"
	"strings"
	"time"
)

// Clocks is a target each of whose members has a clock of its own, as on a host of
// its own. The wall clocks can be made wrong; what measures time can only stand still.
type Clocks interface {
	// OwnClocks says whether they have: that takes a machine on which it can be done.
	OwnClocks() bool
	// Jump sets the wall clocks forward, or back.
	Jump(ctx context.Context, by time.Duration, names ...string) error
	// Strobe has the wall clocks swing: forward (or back) by that much and back again, over
	// and over, wrong in every second period. It takes the place of a skew.
	Strobe(ctx context.Context, swing, period time.Duration, names ...string) error
	// Skew has the wall clocks gain that much in each unit of time, or lose it. It takes the
	// place of a strobe.
	Skew(ctx context.Context, gain float64, names ...string) error
	// SetRight ends strobes and skews and sets the wall clocks right.
	SetRight(ctx context.Context, names ...string) error
	// Suspend puts the hosts to sleep: as Pause, but what processes measure time by stands
	// still too. Resume wakes them.
	Suspend(ctx context.Context, names ...string) error
}

var clocks = &Ability{
	Name: "clocks for each member",
	Has:  func(t Target) bool { c, ok := t.(Clocks); return ok && c.OwnClocks() },
	Heal: func(ctx context.Context, t Target) error { return t.(Clocks).SetRight(ctx, namesOf(t.Members())...) },
}

// wrongClock is a fault that makes the wall clocks of some members wrong; they are set right
// when it is over.
func wrongClock(name, what string, who whom, act func(ctx context.Context, s *Scene, t Clocks, name string) error) Fault {
	return Fault{
		Name: name, What: what, Group: "clock", Needs: []*Ability{clocks}, Least: 500 * time.Millisecond, Most: 8 * time.Second,
		Act: func(ctx context.Context, s *Scene) error {
			names, err := who(ctx, s)
			if err != nil {
				return err
			}
			t := s.Target.(Clocks)
			s.Undo(func(ctx context.Context) error { return t.SetRight(ctx, names...) })
			for _, name := range names {
				if err := act(ctx, s, t, name); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// far is a jump that leaps over everything that is kept for a time, or a small one; forward
// or back.
func (s *Scene) far() time.Duration {
	d := []time.Duration{s.between(10*time.Millisecond, time.Second), s.between(time.Second, time.Minute), s.between(time.Hour, 24*time.Hour)}[s.Rand.IntN(3)]
	if s.Rand.IntN(2) == 0 {
		return -d
	}
	return d
}

func bump(ctx context.Context, s *Scene, t Clocks, name string) error {
	by := s.far()
	s.Says("clock of %s jumps by %v", name, by)
	return t.Jump(ctx, by, name)
}

func strobe(ctx context.Context, s *Scene, t Clocks, name string) error {
	swing, period := s.far(), s.between(2*time.Millisecond, 50*time.Millisecond)
	s.Says("clock of %s jumps by %v and back every %v", name, swing, period)
	return t.Strobe(ctx, swing, period, name)
}

// skew makes a clock stand still, or run at up to five times its speed, after a jump of up
// to some minutes.
func skew(ctx context.Context, s *Scene, t Clocks, name string) error {
	by, gain := s.between(-5*time.Minute, 5*time.Minute), -1+5*s.Rand.Float64()
	s.Says("clock of %s is off by %v and gains %.2f", name, by, gain)
	if err := t.Jump(ctx, by, name); err != nil {
		return err
	}
	return t.Skew(ctx, gain, name)
}

// suspended is a fault that puts hosts to sleep.
func suspended(name, what string, who whom) Fault {
	return Fault{
		Name: name, What: what, Group: "clock", Needs: []*Ability{clocks}, Least: briefly, Most: 5 * time.Second,
		Act: func(ctx context.Context, s *Scene) error {
			names, err := who(ctx, s)
			if err != nil {
				return err
			}
			s.Says("suspend %s", strings.Join(names, " "))
			s.Undo(func(ctx context.Context) error { return s.Target.Resume(ctx, names...) })
			return s.Target.(Clocks).Suspend(ctx, names...)
		},
	}
}

var clockFaults = []Fault{
	wrongClock("clock-bump", "the leader's wall clock jumps", theLeader, bump),
	wrongClock("clock-bump-one", "the wall clock of a member jumps", any1(anyone), bump),
	wrongClock("clock-strobe", "the leader's wall clock jumps forth and back, over and over", theLeader, strobe),
	wrongClock("clock-strobe-one", "the wall clock of a member does", any1(anyone), strobe),
	wrongClock("clock-skew", "all wall clocks are off by minutes and run at speeds of their own", all, skew),
	suspended("suspension-leader", "the host of the leader sleeps", theLeader),
	suspended("suspension-one", "the host of a member sleeps", any1(anyone)),
	suspended("suspension-all", "all hosts sleep", all),
}
