package clustertests

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"
)

// A learner that crashes and starts again while it is cut off has all it had,
// serves it, and does not claim to know how old it is.
func TestLearnerRestartedWhileCutOffServesWhatItHad(t *testing.T) {
	for i, how := range []string{"crash", "graceful stop"} {
		onLogStores(t, i, how, func(t *testing.T, logStore option) {
			c := startCluster(t, threeSites, logStore)
			e1, n1 := c.node("e1"), c.node("n1")
			before := time.Now()
			for seq := range 300 {
				if w := put(n1, fmt.Sprintf("journal/before/%d", seq), fmt.Sprint(seq), ""); !w.ok {
					t.Fatalf("put: %+v", w)
				}
			}
			had := c.waitLevel(10 * time.Second)

			c.cutOff("east")
			if how == "crash" {
				c.kill(e1)
			} else {
				c.stop(e1)
			}
			for seq := range 50 { // what it must not show yet
				if w := put(n1, fmt.Sprintf("journal/during/%d", seq), fmt.Sprint(seq), ""); !w.ok {
					t.Fatalf("put at home during the cut: %+v", w)
				}
			}
			c.start(e1)
			c.waitReady(e1)

			s, ok := e1.status()
			if !ok || s.Applied != had.Applied || s.Lineage != had.Lineage {
				t.Errorf("e1 had revision %d with lineage %s, came back with %d and %s", had.Applied, had.Lineage, s.Applied, s.Lineage)
			}
			if s.Staleness != -1 {
				t.Errorf("e1 says in its status that it is %d ms stale, which it cannot know", s.Staleness)
			}
			for _, query := range []string{"", "stale"} {
				a, err := read(e1, "journal/before/299", query)
				if err != nil || len(a.entries) != 1 || string(a.entries[0].Value) != "299" {
					t.Fatalf("last entry at e1 with %q: %+v, %v", query, a, err)
				}
				if a.stalenessKnown {
					t.Errorf("e1 says %v of staleness, which it cannot know", a.staleness)
				}
				asOf, err := time.Parse(time.RFC3339, a.freshAsOf)
				if err != nil || asOf.Before(before.Add(-time.Second)) || asOf.After(time.Now()) {
					t.Errorf("X-Holdfast-Fresh-As-Of is %q (%v), want a moment after %v", a.freshAsOf, err, before)
				}
			}
			keys, err := keysUnder(e1, "journal/", "stale")
			if err != nil || len(keys) != 300 {
				t.Errorf("e1 has %d journal entries (%v), want the 300 from before the cut", len(keys), err)
			}
			if a, err := read(e1, "journal/before/0", "max_stale=24h"); err != nil || a.status != http.StatusServiceUnavailable {
				t.Errorf("a bounded read of a copy of unknown age: %+v, %v; want 503", a, err)
			}
			demandAlone(c, e1)

			c.heal()
			c.wait(30*time.Second, "e1 knows its staleness again", func() bool {
				s, ok := e1.status()
				return ok && s.Staleness >= 0 && s.Applied > had.Applied
			})
			c.waitLevel(30 * time.Second)
			if keys, err := keysUnder(e1, "journal/", "stale"); err != nil || len(keys) != 350 {
				t.Errorf("after the cut e1 has %d journal entries (%v), want 350", len(keys), err)
			}
		})
	}
}

// A write through one node can be read at any other by its revision.
func TestOwnWritesAreReadAtEverySite(t *testing.T) {
	c := startCluster(t, threeSites)
	for i := range 100 {
		at := c.nodes[i%len(c.nodes)]
		key, value := fmt.Sprintf("own/%d", i%7), fmt.Sprint(i)
		w := put(at, key, value, "")
		if !w.ok || w.err != nil {
			t.Fatalf("put at %s: %+v", at, w)
		}
		for _, n := range c.nodes {
			a, err := read(n, key, fmt.Sprintf("stale&min_index=%d", w.revision))
			if err != nil || len(a.entries) != 1 || string(a.entries[0].Value) != value || a.entries[0].ModifyIndex != w.revision || a.applied < w.revision {
				t.Fatalf("written through %s at revision %d, read at %s: %+v, %v", at, w.revision, n, a, err)
			}
		}
	}
	a, err := read(c.node("e1"), "own/1", "stale&min_index=1000000&wait=200ms")
	if err != nil || a.status != http.StatusGatewayTimeout {
		t.Errorf("min_index of a revision that is not there: %+v, %v; want 504", a, err)
	}
}

// Learners never lead and never vote, whatever happens to the voters.
func TestLearnersNeverLead(t *testing.T) {
	c := startCluster(t, threeSites)
	w := c.load()
	defer w.stop()
	w.awaitWrites(100)
	c.kill(c.voters()...)
	// Without any voter the learners are alone for longer than many elections
	// would take; what they say of themselves must not change.
	until := time.Now().Add(5 * time.Second)
	for time.Now().Before(until) {
		for _, n := range c.learners() {
			if s, ok := n.status(); !ok || s.Mode != "learner" {
				t.Fatalf("%s says it is %q", n, s.Mode)
			}
			if a, err := read(n, "journal/", "recurse&stale"); err != nil || a.status != http.StatusOK {
				t.Fatalf("%s stopped serving: %+v, %v", n, a.status, err)
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	for _, n := range c.voters() {
		c.start(n)
	}
	leader := c.waitLeader()
	if !slices.Contains(c.voters(), leader) {
		t.Errorf("%s leads", leader)
	}
	w.awaitWrites(100)
	w.judge()
}
