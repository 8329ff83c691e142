package fault

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Together is several faults at once. They choose different members. Each
// begins when the one before it has begun; only the last may take its time.
func Together(name, what string, faults ...Fault) Fault {
	f := Fault{Name: name, What: what, Group: "composed", Prompt: true}
	for _, part := range faults {
		f.Prompt = f.Prompt && part.Prompt
		f.Needs = append(f.Needs, part.Needs...)
		f.Least, f.Most = max(f.Least, part.Least), max(f.Most, part.Most)
		f.Rewinds = f.Rewinds || part.Rewinds
	}
	f.Wants = func(members []Member) bool {
		return !slices.ContainsFunc(faults, func(p Fault) bool { return p.Wants != nil && !p.Wants(members) })
	}
	f.Act = func(ctx context.Context, s *Scene) error {
		for _, part := range faults {
			if err := part.Act(ctx, s); err != nil {
				return err
			}
		}
		return nil
	}
	return f
}

// in is the fault as one of that group.
func (f Fault) in(group string) Fault {
	f.Group = group
	return f
}

// beside is a fault with another one at the same time, drawn from those that act at
// once; the fault itself where none goes with it.
func beside(f Fault, faults []Fault, rng *rand.Rand) Fault {
	fit := slices.DeleteFunc(slices.Clone(faults), func(o Fault) bool { return !o.Prompt || o.Group == f.Group || o.Group == "composed" })
	if f.Brings != "" || f.Rewinds || f.Group == "member" || f.Group == "composed" || len(fit) == 0 {
		return f
	}
	o := fit[rng.IntN(len(fit))]
	return Together(o.Name+besides+f.Name, o.What+", and "+f.What, o, f)
}

// besides stands between the names of two faults that a plan has put together.
const besides = " + "

// Split gives the names of the faults that a plan's step, or a record of it, is made of.
func Split(name string) []string { return strings.Split(name, besides) }

// named is a fault of those given.
func named(faults []Fault, name string) Fault {
	return faults[slices.IndexFunc(faults, func(f Fault) bool { return f.Name == name })]
}

// The combinations that single faults do not reach: who is left is too few, or
// knows too little, or comes back to something else than it left.
var composedFaults = []Fault{
	Together("kill-leader-while-follower-frozen", "the leader is killed while a follower is frozen",
		process("", "", 0, 5*time.Second, paused(any1(voter))), process("", "", time.Second, 5*time.Second, killed(theLeader))),
	Together("freeze-leader-kill-minority", "the leader is frozen while others are killed",
		named(processFaults, "pause-leader"), named(processFaults, "kill-minority")),
	Together("cut-leader-kill-follower", "the leader is cut off while a follower is killed",
		named(partitionFaults, "isolate-leader"), process("", "", 0, 5*time.Second, killed(any1(voter)))),
	Together("deaf-leader-frozen-follower", "nothing reaches the leader, and a follower is frozen",
		named(partitionFaults, "leader-deaf"), process("", "", 0, 5*time.Second, paused(any1(voter)))),
	Together("bridge-and-kill", "two sides see each other only through one voter, and a member is killed",
		named(partitionFaults, "bridge"), named(processFaults, "kill-one")),
	Together("flapping-rolling-kill", "a follower is cut off one way while all are killed in turn",
		named(partitionFaults, "follower-mute"), named(processFaults, "rolling-kill")),
	Together("cut-site-kill-leader", "a site is cut off when the leader dies",
		named(partitionFaults, "cut-site"), named(processFaults, "kill-leader")),
	Together("kill-all-behind-cuts", "all are killed, and come back into a partition", killAllBehind(Halves)),
	Together("kill-all-into-a-ring", "all are killed, and come back where each hears another majority", killAllBehind(MajoritiesRing)),
	Together("staggered-return", "all are killed, and come back one after the other, the last leader last", process("", "", 3*time.Second, 8*time.Second, staggered)),
	Together("transfers-behind-cuts", "leadership is handed over while a follower is deaf",
		named(partitionFaults, "follower-deaf"), named(momentFaults, "transfers")),
	Together("bad-lines-kill-leader", "lines are bad when the leader dies", named(lineFaults, "bad-line"), named(processFaults, "kill-leader")),
	Together("frozen-learner-cut-home", "a learner is frozen while home is cut off",
		named(partitionFaults, "cut-home"), process("", "", 0, 5*time.Second, paused(any1(learner)))),
}

// killAllBehind kills all members and starts them behind a cut.
func killAllBehind(shape Shape) Fault {
	f := process("", "", 3*time.Second, 8*time.Second, func(ctx context.Context, s *Scene) error {
		names, err := all(ctx, s)
		if err != nil {
			return err
		}
		pairs := shape(s.Target.Members(), s.leader(ctx), s.Rand)
		if err := s.Kill(ctx, names...); err != nil {
			return err
		}
		if _, err := s.Cut(ctx, pairs); err != nil {
			return err
		}
		return s.Target.Start(ctx, names...)
	})
	f.Wants = manyVoters(3)
	return f
}

// staggered kills all members and starts them one after the other, those first
// that did not lead: whoever knows most comes last.
func staggered(ctx context.Context, s *Scene) error {
	leader := s.leader(ctx)
	names, err := all(ctx, s)
	if err != nil {
		return err
	}
	s.Rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	slices.SortStableFunc(names, func(a, b string) int {
		return strings.Compare(map[bool]string{true: "last"}[a == leader], map[bool]string{true: "last"}[b == leader])
	})
	if err := s.Kill(ctx, names...); err != nil {
		return err
	}
	for _, name := range names {
		if !s.Rest(ctx, s.between(0, 1500*time.Millisecond)) {
			return nil
		}
		if err := s.Target.Start(ctx, name); err != nil {
			return err
		}
	}
	return nil
}
