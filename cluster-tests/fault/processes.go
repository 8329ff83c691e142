package fault

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Pauses below and above the time after which voters replace a leader that is
// not heard: Raft's heartbeat timeout is 1 s unless told otherwise, and what
// watches the leader notices a silence of six beats of 50 ms.
const (
	briefly = 200 * time.Millisecond
	lease   = time.Second
)

// process is a fault that acts on processes.
func process(name, what string, least, most time.Duration, act func(context.Context, *Scene) error) Fault {
	return Fault{Name: name, What: what, Group: "process", Least: least, Most: most, Act: act}
}

// whom chooses members for a fault.
type whom func(context.Context, *Scene) ([]string, error)

func any1(of func(Member) bool) whom {
	return func(_ context.Context, s *Scene) ([]string, error) { return s.Choose(1, of) }
}

func theLeader(ctx context.Context, s *Scene) ([]string, error) {
	name, err := s.Leader(ctx)
	return []string{name}, err
}

func aMinority(_ context.Context, s *Scene) ([]string, error) {
	return s.Choose(minority(len(voters(s.Target.Members())), s.Rand), voter)
}

// aMajority is the smallest.
func aMajority(_ context.Context, s *Scene) ([]string, error) {
	return s.Choose(len(voters(s.Target.Members()))/2+1, voter)
}

func all(_ context.Context, s *Scene) ([]string, error) {
	return s.Choose(len(s.Target.Members()), anyone)
}

func killed(who whom) func(context.Context, *Scene) error {
	return func(ctx context.Context, s *Scene) error {
		names, err := who(ctx, s)
		if err != nil {
			return err
		}
		return s.Kill(ctx, names...)
	}
}

func paused(who whom) func(context.Context, *Scene) error {
	return func(ctx context.Context, s *Scene) error {
		names, err := who(ctx, s)
		if err != nil {
			return err
		}
		return s.Pause(ctx, names...)
	}
}

var processFaults = []Fault{
	process("kill-one", "kill -9 of one member", 0, 5*time.Second, killed(any1(anyone))),
	process("kill-leader", "kill -9 of the leader", 0, 5*time.Second, killed(theLeader)),
	process("kill-minority", "kill -9 of a minority of the voters", 0, 5*time.Second, killed(aMinority)),
	process("kill-majority", "kill -9 of a majority of the voters", 0, 5*time.Second, killed(aMajority)),
	process("kill-all", "kill -9 of all members at once", 0, 3*time.Second, killed(all)),
	process("kill-over-and-over", "one voter after the other is killed and started, with no time to recover", 3*time.Second, 10*time.Second, killOverAndOver),
	process("pause-one", "one member is frozen", briefly, 5*time.Second, paused(any1(anyone))),
	process("pause-leader-briefly", "the leader is frozen for less than its lease", briefly, lease*8/10, paused(theLeader)),
	process("pause-leader", "the leader is frozen for longer than its lease", lease*13/10, 6*time.Second, paused(theLeader)),
	process("pause-minority-briefly", "a minority of the voters is frozen for less than the lease", briefly, lease*8/10, paused(aMinority)),
	process("pause-minority", "a minority of the voters is frozen", lease*13/10, 6*time.Second, paused(aMinority)),
	process("pause-majority", "a majority of the voters is frozen", briefly, 5*time.Second, paused(aMajority)),
	process("pause-all", "all members are frozen, as when a host is suspended", briefly, 4*time.Second, paused(all)),
	process("pause-over-and-over", "ever other voters stop for moments", 3*time.Second, 8*time.Second, pauseOverAndOver),
	process("stop-leader", "the leader is stopped as an operator does, and started", 0, 3*time.Second, stopped(theLeader)),
	process("rolling-restart", "all members are restarted one after the other, each when the one before is ready", 10*time.Second, 20*time.Second,
		func(ctx context.Context, s *Scene) error { return s.rollingRestart(ctx, nil) }),
	process("rolling-kill", "all members are killed and started one after the other, with no care for readiness", 3*time.Second, 8*time.Second, rollingKill),
}

func stopped(who whom) func(context.Context, *Scene) error {
	return func(ctx context.Context, s *Scene) error {
		names, err := who(ctx, s)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := s.Stop(ctx, name); err != nil {
				return err
			}
		}
		return nil
	}
}

// Stop ends a process as an operator does; it is started when the fault is
// over.
func (s *Scene) Stop(ctx context.Context, name string) error {
	s.Says("stop %s", name)
	s.Undo(func(ctx context.Context) error { return s.Target.Start(ctx, name) })
	return s.Target.Stop(ctx, name)
}

func killOverAndOver(ctx context.Context, s *Scene) error {
	names := voters(s.Target.Members())
	for s.Rest(ctx, s.between(0, 500*time.Millisecond)) {
		name := names[s.Rand.IntN(len(names))]
		if err := s.Kill(ctx, name); err != nil {
			return err
		}
		s.Rest(ctx, s.between(0, 500*time.Millisecond))
		if err := s.Target.Start(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

func pauseOverAndOver(ctx context.Context, s *Scene) error {
	names := voters(s.Target.Members())
	for s.Rest(ctx, s.between(0, 300*time.Millisecond)) {
		name := names[s.Rand.IntN(len(names))]
		if err := s.Pause(ctx, name); err != nil {
			return err
		}
		s.Rest(ctx, s.between(50*time.Millisecond, 1500*time.Millisecond))
		if err := s.Target.Resume(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// rollingRestart stops and starts each member, in an order drawn by chance,
// and waits for each to be ready. Between the two it calls changed, if given.
func (s *Scene) rollingRestart(ctx context.Context, changed func(ctx context.Context, name string) error) error {
	names := s.Free(anyone)
	s.Rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	s.Take(names...)
	for i, name := range names {
		if err := s.Stop(ctx, name); err != nil {
			return err
		}
		if changed != nil {
			if err := changed(ctx, name); err != nil {
				return err
			}
		}
		if err := s.Target.Start(ctx, name); err != nil {
			return err
		}
		if !s.AwaitReady(ctx, name) && i < len(names)-1 {
			s.Says("no time left for %v", names[i+1:])
			return nil
		}
	}
	return nil
}

func rollingKill(ctx context.Context, s *Scene) error {
	for _, name := range slices.Concat(voters(s.Target.Members()), s.Free(learner)) {
		if err := s.Kill(ctx, name); err != nil {
			return err
		}
		s.Rest(ctx, s.between(0, 300*time.Millisecond))
		if err := s.Target.Start(ctx, name); err != nil {
			return fmt.Errorf("start %s: %w", name, err)
		}
		if !s.Rest(ctx, s.between(0, time.Second)) {
			return nil
		}
	}
	return nil
}
