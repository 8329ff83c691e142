package node

import (
	"testing"
	"time"
)

func TestTheVoterWithTheMostCompleteLogIsChosen(t *testing.T) {
	f := func(term, index uint64, priority int) finding {
		return finding{Term: 7, Leaderless: true, Eligible: true, LastTerm: term, LastIndex: index, Priority: priority}
	}
	unfit, sees := f(9, 99, 9), f(9, 99, 9)
	unfit.Eligible, sees.Leaderless = false, false
	for name, c := range map[string]struct {
		voters map[string]finding
		want   string
	}{
		"the later last term":                      {map[string]finding{"a": f(2, 50, 5), "b": f(3, 10, 0)}, "b"},
		"then the longer log":                      {map[string]finding{"a": f(3, 10, 5), "b": f(3, 11, 0)}, "b"},
		"then the higher priority":                 {map[string]finding{"a": f(3, 10, 0), "b": f(3, 10, 1), "c": f(3, 10, 0)}, "b"},
		"then the first":                           {map[string]finding{"c": f(3, 10, 0), "b": f(3, 10, 0)}, "b"},
		"not one that cannot stand":                {map[string]finding{"a": f(1, 1, 0), "b": unfit}, "a"},
		"not one that sees a leader":               {map[string]finding{"a": f(1, 1, 0), "b": sees}, "a"},
		"nobody, when all that find it are no use": {map[string]finding{"b": unfit}, ""},
	} {
		if got := choose(c.voters); got != c.want {
			t.Errorf("%s: %q was chosen, not %q", name, got, c.want)
		}
	}
}

func TestElectionsThatFollowOneAnotherAreSlowedDownUntilItIsCalm(t *testing.T) {
	const beat = 50 * time.Millisecond
	var p pace
	now := time.Now()
	p.next(now, beat)
	if !p.allows(now, beat) {
		t.Fatal("the first election is held up")
	}
	waited := time.Duration(0)
	for i := range 12 {
		began := now
		for !p.allows(now, beat) {
			now = now.Add(time.Millisecond)
		}
		last := waited
		waited = now.Sub(began)
		if i > 1 && waited != min(2*last, 2*beatsPerHeartbeat*beat) {
			t.Errorf("election %d waited for %v, the one before for %v", i, waited, last)
		}
		p.next(now, beat)
	}
	if waited != 2*beatsPerHeartbeat*beat {
		t.Errorf("in the end an election waits for %v", waited)
	}
	now = now.Add(2 * waited)
	p.next(now, beat)
	if !p.allows(now, beat) {
		t.Error("after a term that lasted, an election is held up")
	}
}
