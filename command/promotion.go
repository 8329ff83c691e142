package command

import (
	"fmt"
	"slices"
	"time"
)

// Fork is where an epoch of the cluster began: the last of the epoch before it that
// the new home has. Every copy of the state has all forks.
type Fork struct {
	// Epoch is the one that began, and Site its home.
	Epoch uint64 `json:"epoch"`
	Site  string `json:"site"`
	// Index and Term are of the last log entry of the epoch before that the new home
	// has. Whoever holds nothing behind it holds no write that was ever acknowledged
	// and that the new home lacks.
	Index uint64 `json:"index"`
	Term  uint64 `json:"term"`
	// Revision and Lineage are what that entry led to. Begins is the first revision of
	// the new epoch; those in between were never given here.
	Revision uint64  `json:"revision"`
	Lineage  Lineage `json:"lineage"`
	Begins   uint64  `json:"begins"`
	// Committed is the last revision that was known, at the new home, to be decided
	// by a majority of the old one. Up to it the histories of the two are equal.
	Committed uint64 `json:"committed"`
	// At is the moment it happened, by the wall clock of the new home.
	At time.Time `json:"at"`
}

// Has reports whether the new home has all that was ever acknowledged by entries up
// to the one of that index and term, the last of some member's log. A leader has what
// was committed before its term, and each of its entries follows that; so of two logs
// the one that ends with the higher term, or in the same term with the higher index,
// holds every committed entry of the other.
func (f *Fork) Has(index, term uint64) bool {
	return term < f.Term || term == f.Term && index <= f.Index
}

// SameFork reports whether two nodes that know of a beginning of one epoch mean the
// same one. If not, two sites were made home, each without the other.
func SameFork(a, b Fork) bool {
	return a.Epoch == b.Epoch && a.Site == b.Site && a.Begins == b.Begins && a.Lineage == b.Lineage && a.At.Equal(b.At)
}

// ForkAfter is the first fork behind an epoch, where those who live in it and the
// others parted; ok is false when they did not.
func ForkAfter(forks []Fork, epoch uint64) (first Fork, ok bool) {
	for _, f := range forks {
		if f.Epoch > epoch && (!ok || f.Epoch < first.Epoch) {
			first, ok = f, true
		}
	}
	return first, ok
}

// AllForks are those a node knows: of its state, and what it has learned before that
// had them.
func AllForks(state, learned []Fork) []Fork {
	all := slices.Clone(state)
	for _, f := range learned {
		if !slices.ContainsFunc(state, func(s Fork) bool { return s.Epoch == f.Epoch }) {
			all = append(all, f)
		}
	}
	return all
}

// Parting is where a node that lives in an epoch, and knows the forks own, parted from
// the home that knows theirs: before an epoch that began for each of them apart, or else
// behind its own. ok is false when they did not part.
func Parting(own, theirs []Fork, epoch uint64) (at Fork, ok bool) {
	for _, t := range theirs {
		for _, o := range own {
			if o.Epoch == t.Epoch && !SameFork(o, t) && (!ok || t.Epoch < at.Epoch) {
				at, ok = t, true
				at.Revision, at.Committed = min(t.Revision, o.Revision), min(t.Committed, o.Revision)
			}
		}
	}
	if ok {
		return at, true
	}
	return ForkAfter(theirs, epoch)
}

// EpochStart says how an epoch begins in the state of its seed.
type EpochStart struct {
	// Fork has the epoch's number, its home site, the last entry of the log, which the
	// state holds, and Committed and At. The rest of it follows from the state.
	Fork Fork
	// Term is above that of the last entry and of any vote of this node.
	Term uint64
	// Voter is the only voter, a member.
	Voter string
}

// Promotion is the order to be the seed of a new home, as it is kept with the
// identity of the node that was given it.
type Promotion struct {
	Epoch uint64 `json:"epoch"` // that begins with it
	// Source is the member whose log goes furthest; empty when it is the seed.
	Source     string `json:"source,omitempty"`
	SourceAddr string `json:"source_addr,omitempty"`
	// Index and Term are of the last entry of that log.
	Index uint64 `json:"index"`
	Term  uint64 `json:"term"`
	// Sealed: the seed has all of it. From here on the promotion is completed, unless
	// another home was begun meanwhile; before, the node may still be what it was.
	Sealed bool `json:"sealed,omitempty"`
	// Committed is as of Fork.
	Committed uint64 `json:"committed,omitempty"`
}

// Standing is where a member says that it stands when the home site is lost.
type Standing struct {
	ID, Name, Site, Address string
	Role                    Role
	Voter                   bool // at the home that is lost
	// Reachable: it answered. The fields below are known of such a member only.
	Reachable           bool
	LastTerm, LastIndex uint64 // of its log
	Revision            uint64 // applied
	// Certified is the wall-clock moment up to which it is known to hold every write
	// that was acknowledged, zero when it never was.
	Certified time.Time
	// CutOff is how long ago it last heard of a leader, in Go duration syntax; "never"
	// when it has not since its start.
	CutOff string
	// Reaches lists the leader and the voters of the home site that it reaches.
	Reaches []string
	// Unfit is why its contents cannot be a new home's, empty when they can.
	Unfit string
}

// PromotionPlan is what making a site the home would do.
type PromotionPlan struct {
	Site     string // to become home
	HomeSite string // that is lost
	Epoch    uint64 // that would begin
	Members  []Standing
	// Seed is the node of the site that becomes the only voter, and Source the one
	// whose contents it goes on with: those that go furthest.
	Seed, Source string
	// Revision and Certified are those of the source. What was acknowledged at home
	// after that moment may be lost to the cluster.
	Revision  uint64
	Certified time.Time
	// Unreachable names the members that did not answer, and HomeReached the voters of
	// the home site that do.
	Unreachable, HomeReached []string
	// Confirm is the text that confirms exactly this plan.
	Confirm string
	// Started: it was confirmed and is under way; the seed completes it, also over a
	// crash.
	Started bool
}

// ConfirmText is the text that confirms a plan: it names what would be there.
func (p *PromotionPlan) ConfirmText() string {
	return fmt.Sprintf("%s-at-%d-epoch-%d", p.Site, p.Revision, p.Epoch)
}
