package fault

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Moment is something a member goes through and in the middle of which it may
// be hit.
type Moment string

const (
	FullCopy   Moment = "full-copy"  // the member takes in a full copy of the state
	Delta      Moment = "delta"      // the member takes in what it missed
	Compaction Moment = "compaction" // the member drops old history
	Transfer   Moment = "transfer"   // the member, which leads, hands leadership over
)

// Moments is a target that can bring its members to a moment.
type Moments interface {
	// Bring makes the member go through the moment, and returns when it is under
	// way, as nearly as can be seen from outside. It may restart the member. It
	// gives up with ErrMissed when the moment has passed unseen, or with ctx.
	Bring(ctx context.Context, m Moment, name string) error
}

var moments = can[Moments]("moments to hit", nil)

// Transfers is a target whose leadership can be handed over on purpose.
type Transfers interface {
	// Transfer hands leadership to a voter, "" for any. It fails when nobody leads
	// or the voter does not take it.
	Transfer(ctx context.Context, to string) error
}

var transfers = can[Transfers]("hand-overs", nil)

// patience is how long a fault waits for its moment.
const patience = 30 * time.Second

// hits are the faults that hit a member, or the leader, in the middle of a
// moment of the member's.
func hits(m Moment, of func(Member) bool) []Fault {
	var faults []Fault
	for _, hit := range []struct {
		name, what string
		act        func(ctx context.Context, s *Scene, name string) error
	}{
		{"kill-in-", "kill -9 of the member in the middle of a ", func(ctx context.Context, s *Scene, name string) error {
			return s.Kill(ctx, name)
		}},
		{"kill-leader-in-", "kill -9 of the leader in the middle of a member's ", func(ctx context.Context, s *Scene, _ string) error {
			return killed(theLeader)(ctx, s)
		}},
		{"cut-in-", "the member is cut off in the middle of a ", func(ctx context.Context, s *Scene, name string) error {
			_, err := s.Cut(ctx, apart(s.Target.Members(), only(name)))
			return err
		}},
		{"pause-in-", "the member is frozen in the middle of a ", func(ctx context.Context, s *Scene, name string) error {
			return s.Pause(ctx, name)
		}},
	} {
		if m == Transfer && hit.name == "kill-leader-in-" {
			continue // the member is the leader
		}
		faults = append(faults, Fault{
			Name: hit.name + string(m), What: hit.what + string(m), Group: "moment",
			Needs: []*Ability{moments}, Wants: have(of),
			Least: time.Second, Most: 6 * time.Second, Brings: m,
			Act: func(ctx context.Context, s *Scene) error {
				name, err := s.member(ctx, m, of)
				if err != nil {
					return err
				}
				s.Says("%s at %s", m, name)
				// What it was brought to may have ended its process.
				s.Undo(func(ctx context.Context) error { return s.Target.Start(ctx, name) })
				bring, cancel := context.WithTimeout(ctx, patience)
				defer cancel()
				holds := time.Until(s.over)
				if err := s.Target.(Moments).Bring(bring, m, name); err != nil {
					if bring.Err() != nil && ctx.Err() == nil {
						err = fmt.Errorf("%w: no %s in time: %v", ErrMissed, m, err)
					}
					return err
				}
				s.over = time.Now().Add(holds) // its time begins now
				s.Rest(ctx, s.between(0, 50*time.Millisecond))
				return hit.act(ctx, s, name)
			},
		})
	}
	return faults
}

// member chooses whom to hit in the middle of a moment.
func (s *Scene) member(ctx context.Context, m Moment, of func(Member) bool) (string, error) {
	if m == Transfer {
		return s.Leader(ctx)
	}
	names, err := s.Choose(1, of)
	if err != nil {
		return "", err
	}
	return names[0], nil
}

var momentFaults = slices.Concat(
	hits(FullCopy, learner),
	hits(Delta, learner),
	hits(Compaction, anyone),
	hits(Transfer, voter),
	[]Fault{{
		Name: "transfers", What: "leadership is handed over, over and over", Group: "moment", Needs: []*Ability{transfers}, Wants: manyVoters(2),
		Least: 2 * time.Second, Most: 8 * time.Second,
		Act: func(ctx context.Context, s *Scene) error {
			done := 0
			for s.Rest(ctx, s.between(100*time.Millisecond, 1500*time.Millisecond)) {
				if s.Target.(Transfers).Transfer(ctx, "") == nil { // refused where nobody else is fit
					done++
				}
			}
			s.Says("%d hand-overs", done)
			if done == 0 {
				return fmt.Errorf("%w: nobody took leadership over", ErrMissed)
			}
			return nil
		},
	}},
)
