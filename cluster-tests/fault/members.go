package fault

import (
	"context"
	"time"
)

// Memberships is a target whose members come and go.
type Memberships interface {
	// Remove takes a member out of the cluster by an operator's order. Its process
	// has ended when it returns. ErrMissed says that it was refused, as it is while
	// those who are left would have no majority.
	Remove(ctx context.Context, name string) error
	// Admit empties the directory of a member that does not run and starts it: it
	// joins as another member of the same name. For one that was not removed, that
	// is the loss of its disk.
	Admit(ctx context.Context, name string) error
	// Move stops a member and starts it at another address, with its directory.
	Move(ctx context.Context, name string) error
}

var memberships = can[Memberships]("changes of membership", nil)

// LogStores is a target whose members may keep their log in more than one way.
type LogStores interface {
	// OtherLogStore has a member that does not run use another log store from its
	// next start on.
	OtherLogStore(ctx context.Context, name string) error
}

var logStores = can[LogStores]("choice of log stores", nil)

// Snapshots is a target that archives are taken of and restored to.
type Snapshots interface {
	// Save takes an archive of the state as it is now.
	Save(ctx context.Context) ([]byte, error)
	// Restore puts an archive in place of the state, on all members.
	Restore(ctx context.Context, archive []byte) error
}

var snapshots = can[Snapshots]("archives", nil)

func membership(name, what string, wants func([]Member) bool, act func(context.Context, *Scene, Memberships) error) Fault {
	return Fault{
		Name: name, What: what, Group: "member", Needs: []*Ability{memberships}, Wants: wants,
		Least: 4 * time.Second, Most: 10 * time.Second,
		Act: func(ctx context.Context, s *Scene) error { return act(ctx, s, s.Target.(Memberships)) },
	}
}

// removeAndAdmit takes a member out; it joins anew when the fault is over, or
// half way through.
func removeAndAdmit(of func(Member) bool) func(context.Context, *Scene, Memberships) error {
	return func(ctx context.Context, s *Scene, t Memberships) error {
		names, err := s.Choose(1, of)
		if err != nil {
			return err
		}
		return s.removeAndAdmit(ctx, t, names[0])
	}
}

func (s *Scene) removeAndAdmit(ctx context.Context, t Memberships, name string) error {
	s.Says("remove %s, admit it", name)
	admitted := false
	admit := func(ctx context.Context) error {
		if admitted {
			return nil
		}
		admitted = true
		return t.Admit(ctx, name)
	}
	if err := t.Remove(ctx, name); err != nil {
		return err
	}
	s.Undo(admit)
	if !s.Rest(ctx, time.Until(s.over)/2) {
		return nil
	}
	return admit(ctx)
}

// lostDisk kills a member, which comes back with nothing.
func lostDisk(of func(Member) bool) func(context.Context, *Scene, Memberships) error {
	return func(ctx context.Context, s *Scene, t Memberships) error {
		names, err := s.Choose(1, of)
		if err != nil {
			return err
		}
		if err := s.Kill(ctx, names[0]); err != nil {
			return err
		}
		s.Rest(ctx, s.between(0, 2*time.Second))
		s.Says("%s comes back empty", names[0])
		return t.Admit(ctx, names[0])
	}
}

var memberFaults = []Fault{
	membership("remove-learner", "a learner is removed, and joins anew", have(learner), removeAndAdmit(learner)),
	membership("remove-voter", "a voter is removed, and joins anew", manyVoters(3), removeAndAdmit(voter)),
	membership("remove-leader", "the leader is removed, and joins anew", manyVoters(3), func(ctx context.Context, s *Scene, t Memberships) error {
		name, err := s.Leader(ctx)
		if err != nil {
			return err
		}
		return s.removeAndAdmit(ctx, t, name)
	}),
	membership("lost-learner", "a learner loses its disk", have(learner), lostDisk(learner)),
	membership("lost-voter", "a voter loses its disk, and enters as another member", manyVoters(3), lostDisk(voter)),
	membership("move", "a member comes back at another address", nil, func(ctx context.Context, s *Scene, t Memberships) error {
		names, err := s.Choose(1, anyone)
		if err != nil {
			return err
		}
		s.Says("move %s", names[0])
		return t.Move(ctx, names[0])
	}),
	{
		Name: "spare-stands-in", What: "a voter is dead for so long that a spare votes in its place", Group: "member", Wants: have(spare),
		Least: 6 * time.Second, Most: 12 * time.Second, Act: killed(any1(voter)),
	},
	{
		Name: "spare-stands-in-for-the-leader", What: "the same with the leader", Group: "member", Wants: have(spare),
		Least: 6 * time.Second, Most: 12 * time.Second, Act: killed(theLeader),
	},
	{
		Name: "other-log-store", What: "a rolling restart in which each member changes to the other log store", Group: "member",
		Needs: []*Ability{logStores}, Least: 12 * time.Second, Most: 25 * time.Second,
		Act: func(ctx context.Context, s *Scene) error {
			return s.rollingRestart(ctx, s.Target.(LogStores).OtherLogStore)
		},
	},
	{
		Name: "restore", What: "an archive is taken, and restored under load", Group: "member",
		Needs: []*Ability{snapshots}, Least: 2 * time.Second, Most: 8 * time.Second, Rewinds: true,
		Act: func(ctx context.Context, s *Scene) error {
			t := s.Target.(Snapshots)
			archive, err := t.Save(ctx)
			if err != nil {
				return err
			}
			s.Rest(ctx, time.Until(s.over)/2)
			s.Says("restore %d bytes", len(archive))
			return t.Restore(ctx, archive)
		},
	},
}
