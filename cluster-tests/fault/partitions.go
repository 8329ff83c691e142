package fault

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// partition is a fault that holds one shape.
func partition(name, what string, shape Shape, wants func([]Member) bool) Fault {
	return Fault{
		Name: name, What: what, Group: "partition", Wants: wants, Prompt: true,
		Least: 500 * time.Millisecond, Most: 6 * time.Second,
		Act: func(ctx context.Context, s *Scene) error {
			_, err := s.cutShape(ctx, shape)
			return err
		},
	}
}

// cutShape blocks what the shape says now.
func (s *Scene) cutShape(ctx context.Context, shape Shape) (heal func(context.Context) error, err error) {
	pairs := shape(s.Target.Members(), s.leader(ctx), s.Rand)
	if len(pairs) == 0 {
		return nil, fmt.Errorf("%w: the shape cuts nobody off", ErrMissed)
	}
	return s.Cut(ctx, pairs)
}

// describe names what is cut, briefly: a--b is cut both ways, a->b one way.
func describe(pairs []Pair) string {
	var parts []string
	for _, p := range pairs {
		switch both := slices.Contains(pairs, Pair{p.To, p.From}); {
		case !both:
			parts = append(parts, p.From+"->"+p.To)
		case p.From < p.To:
			parts = append(parts, p.From+"--"+p.To)
		}
	}
	slices.SortFunc(parts, cmp.Compare[string])
	return strings.Join(parts, " ")
}

func manyVoters(n int) func([]Member) bool {
	return func(members []Member) bool { return len(voters(members)) >= n }
}

func manySites(members []Member) bool { return len(Sites(members)) > 1 }

var partitionFaults = []Fault{
	partition("isolate-one", "one member is cut off", IsolateOne, nil),
	partition("isolate-leader", "the leader is cut off", IsolateLeader, nil),
	partition("halves", "the voters are cut into halves", Halves, manyVoters(2)),
	partition("minority", "a minority of the voters is cut off", Minority, manyVoters(2)),
	partition("leader-in-minority", "a minority with the leader is cut off", LeaderInMinority, manyVoters(2)),
	partition("bridge", "two sides see each other only through one voter", Bridge, manyVoters(3)),
	partition("majorities-ring", "each voter hears a majority, no two the same", MajoritiesRing, manyVoters(3)),
	partition("leader-deaf", "nothing reaches the leader", LeaderDeaf, nil),
	partition("leader-mute", "nothing comes from the leader", LeaderMute, nil),
	partition("follower-deaf", "nothing reaches one follower", FollowerDeaf, manyVoters(2)),
	partition("follower-mute", "nothing comes from one follower", FollowerMute, manyVoters(2)),
	partition("leader-from-follower", "the leader and one follower do not see each other", LeaderFromFollower, manyVoters(2)),
	partition("leader-with-learner", "the leader sees one learner only", LeaderWithLearner, have(learner)),
	partition("leader-from-voters", "the leader and the other voters do not see each other; learners see all", LeaderFromVoters, manyVoters(2)),
	partition("cut-site", "one site is cut off", CutSite, manySites),
	partition("cut-home", "the voters' site is cut off from all others", CutHome, manySites),
	partition("site-deaf", "nothing reaches one remote site", SiteDeaf, manySites),
	partition("site-mute", "nothing comes from one remote site", SiteMute, manySites),
	partition("everyone-alone", "nobody sees anybody", Everyone, nil),
	flapping("flapping-leader", "the leader is cut off and joined again, over and over", IsolateLeader, nil),
	flapping("flapping-halves", "ever other halves of the voters see nothing of each other", Halves, manyVoters(2)),
	flapping("flapping-site", "a site is cut off and joined again, over and over", CutSite, manySites),
	flapping("flapping-one-way", "ever other voters are deaf", FollowerDeaf, manyVoters(2)),
}

// flapping is a shape that comes and goes, each time as the shape has it then.
func flapping(name, what string, shape Shape, wants func([]Member) bool) Fault {
	return Fault{
		Name: name, What: what, Group: "partition", Wants: wants,
		Least: 2 * time.Second, Most: 7 * time.Second,
		Act: func(ctx context.Context, s *Scene) error {
			for {
				heal, err := s.cutShape(ctx, shape)
				if err != nil {
					return err
				}
				s.Rest(ctx, s.between(50*time.Millisecond, 2*time.Second))
				if err := heal(ctx); err != nil {
					return err
				}
				if !s.Rest(ctx, s.between(50*time.Millisecond, time.Second)) {
					return nil
				}
			}
		},
	}
}
