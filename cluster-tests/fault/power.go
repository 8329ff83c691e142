package fault

import (
	"context"
	"strings"
	"time"
)

// Power is the ability of a target whose members' data lies on disks of their own, which
// know what was synced.
//
// A loss of power is judged as the strictest reading of POSIX allows: what was synced
// is there, of the rest any part may be.
type Power interface {
	// OwnDisks says whether they have: that takes a machine on which it can be done.
	OwnDisks() bool
	// LosePower ends the members' processes at once. On their disks is what was synced
	// and, of all else, what seed chooses: nothing with 0. They run again with Start.
	LosePower(ctx context.Context, seed uint64, names ...string) error
}

var power = &Ability{
	Name: "loss of power",
	Has:  func(t Target) bool { p, ok := t.(Power); return ok && p.OwnDisks() },
}

func powerFault(name, what string, least, most time.Duration, act func(context.Context, *Scene) error) Fault {
	return Fault{Name: name, What: what, Group: "power", Needs: []*Ability{power}, Least: least, Most: most, Act: act}
}

var powerFaults = []Fault{
	powerFault("power-loss-leader", "the leader loses power", 0, 3*time.Second, powerLost(theLeader)),
	powerFault("power-loss-one", "a member loses power", 0, 3*time.Second, powerLost(any1(anyone))),
	powerFault("power-loss-minority", "fewer than half of the voters lose power at once", 0, 3*time.Second, powerLost(aMinority)),
	powerFault("power-loss-majority", "most voters lose power at once", 0, 3*time.Second, powerLost(aMajority)),
	powerFault("power-loss-all", "all lose power at once", 0, 2*time.Second, powerLost(all)),
	Together("power-loss-leader-while-follower-frozen", "the leader loses power while a follower is frozen",
		process("", "", 0, 5*time.Second, paused(any1(voter))), powerFault("", "", time.Second, 5*time.Second, powerLost(theLeader))).in("power"),
	Together("power-loss-behind-cut", "a voter loses power while the leader is cut off",
		named(partitionFaults, "isolate-leader"), powerFault("", "", time.Second, 5*time.Second, powerLost(any1(voter)))).in("power"),
	othersLosePower,
}

// othersLosePower has all voters but the leader lose what they had not synced, votes and
// entries, while the only one that remembers cannot be heard: they must not go on as if
// they had not voted, nor without what it acknowledged with them.
var othersLosePower = Fault{
	Name: "power-loss-others-behind-cut", What: "the leader is cut off when all other voters lose power, and they come back without it",
	Group: "power", Needs: []*Ability{power}, Wants: manyVoters(2), Least: time.Second, Most: 8 * time.Second,
	Act: func(ctx context.Context, s *Scene) error {
		leader, err := s.Leader(ctx)
		if err != nil {
			return err
		}
		if _, err := s.Cut(ctx, IsolateLeader(s.Target.Members(), leader, s.Rand)); err != nil {
			return err
		}
		others, err := s.Choose(len(s.Target.Members()), voter)
		if err != nil {
			return err
		}
		if err := s.LosePower(ctx, others...); err != nil {
			return err
		}
		s.Rest(ctx, s.between(0, 2*time.Second))
		return s.Target.Start(ctx, others...)
	},
}

func powerLost(who whom) func(context.Context, *Scene) error {
	return func(ctx context.Context, s *Scene) error {
		names, err := who(ctx, s)
		if err != nil {
			return err
		}
		return s.LosePower(ctx, names...)
	}
}

// LosePower takes the power from members; they are started when the fault is over. Half
// of the time nothing is left but what was synced: that is the worst, if something is
// missing that should have been.
func (s *Scene) LosePower(ctx context.Context, names ...string) error {
	seed := uint64(0)
	if s.Rand.IntN(2) > 0 {
		seed = 1 + s.Rand.Uint64N(1<<32)
	}
	s.Says("power lost by %s, seed %d", strings.Join(names, " "), seed)
	s.Undo(func(ctx context.Context) error { return s.Target.Start(ctx, names...) })
	return s.Target.(Power).LosePower(ctx, seed, names...)
}
