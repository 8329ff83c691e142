package node

import (
	"testing"
	"time"
)

const holdOff = 30 * time.Second

// choose looks every second, from one moment to another, and says who is picked
// first and when.
func (p *preference) choose(from, to time.Duration, better map[string]int) (id string, at time.Duration) {
	for at = from; at <= to; at += time.Second {
		if id = p.pick(at, better); id != "" {
			return id, at
		}
	}
	return "", 0
}

func TestAPreferredVoterIsChosenAfterItHasBeenFitForTheHoldOff(t *testing.T) {
	var p preference
	p.begin(0, holdOff)
	if id, at := p.choose(0, time.Hour, map[string]int{"a": 1, "b": 2, "c": 2}); id != "b" || at != holdOff {
		t.Errorf("%s after %v", id, at)
	}
}

func TestAPreferredVoterThatComesAndGoesIsNotChosen(t *testing.T) {
	var p preference
	p.begin(0, holdOff)
	for round := range 100 {
		began := time.Duration(round) * holdOff
		if id, at := p.choose(began, began+holdOff-2*time.Second, map[string]int{"a": 1}); id != "" {
			t.Fatalf("%s after %v", id, at)
		}
		p.pick(began+holdOff-time.Second, nil) // it is not well for a moment
	}
}

func TestEachHandOverThatFailsIsFollowedByALongerHoldOff(t *testing.T) {
	var p preference
	p.begin(0, holdOff)
	now, want := time.Duration(0), holdOff
	for range 10 {
		id, at := p.choose(now, now+time.Hour, map[string]int{"a": 1})
		if id != "a" || at-now != want {
			t.Fatalf("%q after %v, want %v", id, at-now, want)
		}
		p.failed(holdOff)
		now, want = at+time.Second, min(2*want, maxHoldOffs*holdOff)
	}
}

func TestAPreferredVoterThatDoesNotKeepLeadershipGetsItLaterEachTime(t *testing.T) {
	var p preference
	now, want := time.Duration(0), holdOff
	for round := range 5 {
		p.begin(now, holdOff)
		id, at := p.choose(now, now+time.Hour, map[string]int{"a": 1})
		if id != "a" || at-now != want {
			t.Fatalf("round %d: %q after %v, want %v", round, id, at-now, want)
		}
		p.handed, p.handedAt = true, at
		now, want = at+5*time.Second, 2*want // and leads again
	}
	// One that did keep it is trusted again.
	p.begin(now, holdOff)
	_, at := p.choose(now, now+time.Hour, map[string]int{"a": 1})
	p.handed, p.handedAt = true, at
	now = at + 24*time.Hour
	p.begin(now, holdOff)
	if _, at = p.choose(now, now+time.Hour, map[string]int{"a": 1}); at-now != holdOff {
		t.Errorf("chosen after %v", at-now)
	}
}
