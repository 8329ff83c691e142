package fault

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// cluster is a home of so many voters, one spare and two sites with learners.
func cluster(voters int) []Member {
	var members []Member
	for i := range voters {
		members = append(members, Member{Name: fmt.Sprint("n", i+1), Site: "home", Voter: true})
	}
	return append(members,
		Member{Name: "s1", Site: "home", Spare: true},
		Member{Name: "e1", Site: "east"}, Member{Name: "e2", Site: "east"}, Member{Name: "w1", Site: "west"})
}

// net is who hears whom under a partition.
type net struct {
	members []Member
	lost    map[Pair]bool
}

func (n net) hears(to, from string) bool { return to == from || !n.lost[Pair{from, to}] }

// linked says whether both hear each other.
func (n net) linked(a, b string) bool { return n.hears(a, b) && n.hears(b, a) }

// heard are those a member hears, itself included, among some.
func (n net) heard(by string, among []string) []string {
	return slices.DeleteFunc(slices.Clone(among), func(from string) bool { return !n.hears(by, from) })
}

// group are all whom a member reaches over links, with detours.
func (n net) group(name string) []string {
	group := []string{name}
	for i := 0; i < len(group); i++ {
		for _, m := range n.members {
			if !slices.Contains(group, m.Name) && n.linked(group[i], m.Name) {
				group = append(group, m.Name)
			}
		}
	}
	slices.Sort(group)
	return group
}

// symmetric says whether whatever is lost is lost in both directions.
func (n net) symmetric() bool {
	for p := range n.lost {
		if !n.lost[Pair{p.To, p.From}] {
			return false
		}
	}
	return true
}

// sides are the groups that nobody hears across; an error unless each member
// hears all of its own.
func (n net) sides() ([][]string, error) {
	var sides [][]string
	seen := map[string]bool{}
	for _, m := range n.members {
		if seen[m.Name] {
			continue
		}
		side := n.group(m.Name)
		for _, a := range side {
			seen[a] = true
			for _, o := range n.members {
				if n.hears(a, o.Name) != slices.Contains(side, o.Name) {
					return nil, fmt.Errorf("%s hears %s: %v, its side is %v", a, o.Name, n.hears(a, o.Name), side)
				}
			}
		}
		sides = append(sides, side)
	}
	return sides, nil
}

func votersOf(members []Member, among []string) []string {
	return slices.DeleteFunc(voters(members), func(n string) bool { return !slices.Contains(among, n) })
}

// two demands two sides and gives the one with a member first.
func (n net) two(first string) (with, without []string, err error) {
	sides, err := n.sides()
	if err != nil {
		return nil, nil, err
	}
	if len(sides) != 2 {
		return nil, nil, fmt.Errorf("%d sides: %v", len(sides), sides)
	}
	if slices.Contains(sides[0], first) {
		return sides[0], sides[1], nil
	}
	return sides[1], sides[0], nil
}

// TestShapesHaveTheirDefiningProperty holds each shape against the sentence
// that defines it, for clusters of three to five voters and many seeds.
func TestShapesHaveTheirDefiningProperty(t *testing.T) {
	const leader = "n2"
	type property func(n net) error
	// all directions that are lost touch one member at one end, and none there is kept.
	allOf := func(end func(Pair) string, among func(net, string) bool) property {
		return func(n net) error {
			hit := map[string]int{}
			for p := range n.lost {
				hit[end(p)]++
			}
			for name, count := range hit {
				if !among(n, name) || len(hit) != 1 || count != len(n.members)-1 {
					return fmt.Errorf("%d directions lost at %s, %d members hit", count, name, len(hit))
				}
			}
			return expect(nil, len(hit) == 1, "%d members hit", len(hit))
		}
	}
	to, from := func(p Pair) string { return p.To }, func(p Pair) string { return p.From }
	isLeader := func(_ net, name string) bool { return name == leader }
	isFollower := func(n net, name string) bool {
		return name != leader && slices.Contains(voters(n.members), name)
	}
	siteLoses := func(n net, arrives bool) error {
		for _, site := range Remote(n.members) {
			want := directions(n.members, func(f, t Member) bool {
				if arrives {
					return f.Site == site && t.Site != site
				}
				return f.Site != site && t.Site == site
			})
			if len(want) == len(n.lost) && !slices.ContainsFunc(want, func(p Pair) bool { return !n.lost[p] }) {
				return nil
			}
		}
		return fmt.Errorf("it is no remote site that loses just one direction")
	}
	for _, c := range []struct {
		name  string
		shape Shape
		holds property
	}{
		{"isolate one", IsolateOne, func(n net) error {
			sides, err := n.sides()
			return expect(err, len(sides) == 2 && (len(sides[0]) == 1 || len(sides[1]) == 1), "sides %v", sides)
		}},
		{"isolate the leader", IsolateLeader, func(n net) error {
			with, _, err := n.two(leader)
			return expect(err, len(with) == 1, "the leader sees %v", with)
		}},
		{"halves", Halves, func(n net) error {
			a, b, err := n.two(leader)
			va, vb := len(votersOf(n.members, a)), len(votersOf(n.members, b))
			return expect(err, va-vb <= 1 && vb-va <= 1, "%d and %d voters", va, vb)
		}},
		{"minority", Minority, func(n net) error {
			a, b, err := n.two(leader)
			va, vb := len(votersOf(n.members, a)), len(votersOf(n.members, b))
			return expect(err, min(va, vb) >= 1 && 2*min(va, vb) < va+vb, "%d and %d voters", va, vb)
		}},
		{"the leader in the minority", LeaderInMinority, func(n net) error {
			with, without, err := n.two(leader)
			v, w := len(votersOf(n.members, with)), len(votersOf(n.members, without))
			return expect(err, v < w, "%d voters with the leader, %d without", v, w)
		}},
		{"bridge", Bridge, func(n net) error {
			var bridges []string
			for _, m := range n.members {
				if len(n.heard(m.Name, namesOf(n.members))) == len(n.members) {
					bridges = append(bridges, m.Name)
				}
			}
			if len(bridges) != 1 || !n.symmetric() || !slices.Contains(voters(n.members), bridges[0]) {
				return fmt.Errorf("%v see everybody", bridges)
			}
			rest := net{slices.DeleteFunc(slices.Clone(n.members), func(m Member) bool { return m.Name == bridges[0] }), n.lost}
			sides, err := rest.sides()
			if err != nil || len(sides) != 2 {
				return fmt.Errorf("without the bridge: %v, %w", sides, err)
			}
			for _, side := range sides {
				if 2*len(votersOf(n.members, side)) > len(voters(n.members)) {
					return fmt.Errorf("%v have a majority without the bridge", side)
				}
			}
			return nil
		}},
		{"majorities ring", MajoritiesRing, func(n net) error {
			all := voters(n.members)
			var majorities []string
			for _, v := range all {
				heard := n.heard(v, all)
				if len(heard) != len(all)/2+1 {
					return fmt.Errorf("%s hears %v of %d voters", v, heard, len(all))
				}
				majorities = append(majorities, fmt.Sprint(heard))
			}
			slices.Sort(majorities)
			return expect(nil, len(slices.Compact(majorities)) == len(all), "two hear the same: %v", majorities)
		}},
		{"the leader deaf", LeaderDeaf, allOf(to, isLeader)},
		{"the leader mute", LeaderMute, allOf(from, isLeader)},
		{"a follower deaf", FollowerDeaf, allOf(to, isFollower)},
		{"a follower mute", FollowerMute, allOf(from, isFollower)},
		{"the leader and one follower", LeaderFromFollower, func(n net) error {
			for p := range n.lost {
				if p.From != leader && p.To != leader || !isFollower(n, p.From) && !isFollower(n, p.To) {
					return fmt.Errorf("lost %v", p)
				}
			}
			return expect(nil, len(n.lost) == 2 && n.symmetric(), "lost %v", n.lost)
		}},
		{"the leader with a learner", LeaderWithLearner, func(n net) error {
			with, _, err := n.two(leader)
			return expect(err, len(with) == 2 && len(votersOf(n.members, with)) == 1, "the leader sees %v", with)
		}},
		{"the leader and the voters", LeaderFromVoters, func(n net) error {
			for _, m := range n.members {
				if want := m.Name == leader || !m.Voter; n.linked(leader, m.Name) != want {
					return fmt.Errorf("the leader sees %s: %v", m.Name, !want)
				}
			}
			return expect(nil, len(n.lost) == 2*(len(voters(n.members))-1), "lost %v", n.lost)
		}},
		{"one site", CutSite, func(n net) error {
			sides, err := n.sides()
			if err != nil || len(sides) != 2 {
				return fmt.Errorf("sides %v, %w", sides, err)
			}
			for _, side := range sides {
				if len(Sites(slices.DeleteFunc(slices.Clone(n.members), func(m Member) bool { return !slices.Contains(side, m.Name) }))) == 1 {
					return nil
				}
			}
			return fmt.Errorf("neither of %v is one site", sides)
		}},
		{"home", CutHome, func(n net) error {
			with, _, err := n.two(leader)
			return expect(err, slices.Contains(with, "s1") && len(with) == len(voters(n.members))+1, "home is %v", with)
		}},
		{"a site deaf", SiteDeaf, func(n net) error { return siteLoses(n, false) }},
		{"a site mute", SiteMute, func(n net) error { return siteLoses(n, true) }},
		{"everyone", Everyone, func(n net) error {
			sides, err := n.sides()
			return expect(err, len(sides) == len(n.members), "sides %v", sides)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			drawn := map[string]bool{}
			for voters := 3; voters <= 5; voters++ {
				members := cluster(voters)
				for seed := range uint64(50) {
					pairs := c.shape(members, leader, rand.New(rand.NewPCG(seed, 0)))
					if again := c.shape(members, leader, rand.New(rand.NewPCG(seed, 0))); !slices.Equal(pairs, again) {
						t.Fatalf("seed %d gives %v, then %v", seed, pairs, again)
					}
					n := net{members, map[Pair]bool{}}
					for _, p := range pairs {
						if p.From == p.To || n.lost[p] {
							t.Fatalf("%v is blocked twice, or from itself", p)
						}
						n.lost[p] = true
					}
					if err := c.holds(n); err != nil {
						t.Fatalf("%d voters, seed %d: %v\n%s", voters, seed, err, describe(pairs))
					}
					drawn[describe(pairs)] = true
				}
			}
			// Without a leader a voter is taken for it.
			if pairs := c.shape(cluster(3), "", rand.New(rand.NewPCG(1, 0))); len(pairs) == 0 {
				t.Error("nothing is cut when nobody leads")
			}
			t.Logf("%d different partitions", len(drawn))
		})
	}
}

// expect is an error of its own, or that what is wanted does not hold.
func expect(err error, want bool, format string, args ...any) error {
	if err != nil || want {
		return err
	}
	return fmt.Errorf(format, args...)
}

func TestDescribeTellsOneWayFromBoth(t *testing.T) {
	got := describe([]Pair{{"a", "b"}, {"b", "a"}, {"c", "a"}})
	if want := "a--b c->a"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
