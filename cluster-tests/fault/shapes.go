package fault

import (
	"math/rand/v2"
	"slices"
)

// Shape says which directions a partition blocks among members, of whom leader
// leads ("" when nobody does; then a voter is taken for it). What is left open
// to it is drawn from rng. It changes nothing and asks nobody.
type Shape func(members []Member, leader string, rng *rand.Rand) []Pair

// IsolateOne cuts one member, whoever it is, off from all others.
func IsolateOne(members []Member, _ string, rng *rand.Rand) []Pair {
	return apart(members, only(members[rng.IntN(len(members))].Name))
}

// IsolateLeader cuts the leader off from all others.
func IsolateLeader(members []Member, leader string, rng *rand.Rand) []Pair {
	return apart(members, only(leading(members, leader, rng)))
}

// Halves divides the voters into two sides of which one has at most one more
// than the other, and each other member goes to either side.
func Halves(members []Member, _ string, rng *rand.Rand) []Pair {
	names := shuffled(voters(members), rng)
	return apart(members, sides(members, names[:len(names)/2], rng))
}

// Minority cuts fewer than half of the voters off from the majority. Each
// other member goes to either side.
func Minority(members []Member, _ string, rng *rand.Rand) []Pair {
	names := shuffled(voters(members), rng)
	return apart(members, sides(members, names[:minority(len(names), rng)], rng))
}

// LeaderInMinority is Minority with the leader on the smaller side.
func LeaderInMinority(members []Member, leader string, rng *rand.Rand) []Pair {
	names := shuffled(voters(members), rng)
	at := slices.Index(names, leading(members, leader, rng))
	names[0], names[at] = names[at], names[0]
	return apart(members, sides(members, names[:minority(len(names), rng)], rng))
}

// Bridge divides the members into two sides that do not see each other, but
// for one voter, which sees both.
func Bridge(members []Member, _ string, rng *rand.Rand) []Pair {
	names := shuffled(voters(members), rng)
	bridge, rest := names[0], names[1:]
	side := sides(members, rest[:len(rest)/2], rng)
	return slices.DeleteFunc(apart(members, side), func(p Pair) bool { return p.From == bridge || p.To == bridge })
}

// MajoritiesRing lets each voter hear just a majority of the voters, and no
// two of them the same majority. Other members hear, and are heard by, all.
// With three voters, no two of them hear each other.
func MajoritiesRing(members []Member, _ string, rng *rand.Rand) []Pair {
	ring := shuffled(voters(members), rng)
	n := len(ring)
	others := n / 2 // that a voter hears, to be one of a majority
	before := others / 2
	var pairs []Pair
	for i, to := range ring {
		// The voters that follow those it hears, round the ring.
		for k := others - before + 1; k < n-before; k++ {
			pairs = append(pairs, Pair{ring[(i+k)%n], to})
		}
	}
	return pairs
}

// LeaderDeaf loses all that goes to the leader; it is heard as before.
func LeaderDeaf(members []Member, leader string, rng *rand.Rand) []Pair {
	name := leading(members, leader, rng)
	return directions(members, func(from, to Member) bool { return to.Name == name })
}

// LeaderMute loses all that comes from the leader; it hears as before.
func LeaderMute(members []Member, leader string, rng *rand.Rand) []Pair {
	name := leading(members, leader, rng)
	return directions(members, func(from, to Member) bool { return from.Name == name })
}

// FollowerDeaf loses all that goes to one voter that does not lead.
func FollowerDeaf(members []Member, leader string, rng *rand.Rand) []Pair {
	name := follower(members, leader, rng)
	return directions(members, func(from, to Member) bool { return to.Name == name })
}

// FollowerMute loses all that comes from one voter that does not lead.
func FollowerMute(members []Member, leader string, rng *rand.Rand) []Pair {
	name := follower(members, leader, rng)
	return directions(members, func(from, to Member) bool { return from.Name == name })
}

// LeaderFromFollower keeps the leader and one other voter apart, which both
// see all others.
func LeaderFromFollower(members []Member, leader string, rng *rand.Rand) []Pair {
	name := leading(members, leader, rng)
	other := follower(members, name, rng)
	return directions(members, func(from, to Member) bool {
		return from.Name == name && to.Name == other || from.Name == other && to.Name == name
	})
}

// LeaderWithLearner leaves the leader one member that has no vote, and cuts
// the two off from all others.
func LeaderWithLearner(members []Member, leader string, rng *rand.Rand) []Pair {
	side := []string{leading(members, leader, rng)}
	if names := namesOf(slices.DeleteFunc(slices.Clone(members), voter)); len(names) > 0 {
		side = append(side, names[rng.IntN(len(names))])
	}
	return apart(members, only(side...))
}

// LeaderFromVoters keeps the leader and the other voters apart; members
// without a vote see all of them.
func LeaderFromVoters(members []Member, leader string, rng *rand.Rand) []Pair {
	name := leading(members, leader, rng)
	return directions(members, func(from, to Member) bool {
		return from.Voter && to.Voter && (from.Name == name || to.Name == name)
	})
}

// CutSite cuts one site off from all others.
func CutSite(members []Member, _ string, rng *rand.Rand) []Pair {
	all := Sites(members)
	site := all[rng.IntN(len(all))]
	return directions(members, func(from, to Member) bool { return (from.Site == site) != (to.Site == site) })
}

// CutHome cuts the voters' site off from all others, which see each other.
func CutHome(members []Member, _ string, _ *rand.Rand) []Pair {
	home := Home(members)
	return directions(members, func(from, to Member) bool { return (from.Site == home) != (to.Site == home) })
}

// SiteDeaf loses all that goes to one site without voters from elsewhere; what
// it sends arrives.
func SiteDeaf(members []Member, _ string, rng *rand.Rand) []Pair {
	far := Remote(members)
	site := far[rng.IntN(len(far))]
	return directions(members, func(from, to Member) bool { return from.Site != site && to.Site == site })
}

// SiteMute loses all that one site without voters sends elsewhere; what is
// sent to it arrives.
func SiteMute(members []Member, _ string, rng *rand.Rand) []Pair {
	far := Remote(members)
	site := far[rng.IntN(len(far))]
	return directions(members, func(from, to Member) bool { return from.Site == site && to.Site != site })
}

// Everyone lets nobody see anybody.
func Everyone(members []Member, _ string, _ *rand.Rand) []Pair {
	return directions(members, func(from, to Member) bool { return true })
}

// Sites are the sites of members, in the members' order.
func Sites(members []Member) []string {
	var sites []string
	for _, m := range members {
		if !slices.Contains(sites, m.Site) {
			sites = append(sites, m.Site)
		}
	}
	return sites
}

// Home is the voters' site.
func Home(members []Member) string { return members[slices.IndexFunc(members, voter)].Site }

// Remote are the sites but the voters'.
func Remote(members []Member) []string {
	home := Home(members)
	return slices.DeleteFunc(Sites(members), func(site string) bool { return site == home })
}

// directions are the directions between different members for which lost holds.
func directions(members []Member, lost func(from, to Member) bool) []Pair {
	var pairs []Pair
	for _, from := range members {
		for _, to := range members {
			if from.Name != to.Name && lost(from, to) {
				pairs = append(pairs, Pair{from.Name, to.Name})
			}
		}
	}
	return pairs
}

// apart keeps those on a side and those not on it apart, in both directions.
func apart(members []Member, side map[string]bool) []Pair {
	return directions(members, func(from, to Member) bool { return side[from.Name] != side[to.Name] })
}

func only(names ...string) map[string]bool {
	side := map[string]bool{}
	for _, n := range names {
		side[n] = true
	}
	return side
}

// sides puts the named voters on a side, and each member without a vote by
// chance.
func sides(members []Member, names []string, rng *rand.Rand) map[string]bool {
	side := only(names...)
	for _, m := range members {
		if !m.Voter && rng.IntN(2) == 0 {
			side[m.Name] = true
		}
	}
	return side
}

func voters(members []Member) []string {
	return namesOf(slices.DeleteFunc(slices.Clone(members), func(m Member) bool { return !m.Voter }))
}

// leading is the leader, or a voter in its place.
func leading(members []Member, leader string, rng *rand.Rand) string {
	if names := voters(members); !slices.Contains(names, leader) {
		return names[rng.IntN(len(names))]
	}
	return leader
}

// follower is a voter that does not lead.
func follower(members []Member, leader string, rng *rand.Rand) string {
	names := slices.DeleteFunc(voters(members), func(n string) bool { return n == leader })
	return names[rng.IntN(len(names))]
}

func shuffled(names []string, rng *rand.Rand) []string {
	rng.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	return names
}

// minority is a number of voters below half of n, and at least one.
func minority(n int, rng *rand.Rand) int { return 1 + rng.IntN(max(1, (n-1)/2)) }
