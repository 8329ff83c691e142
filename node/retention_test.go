package node

import (
	"math"
	"testing"
	"time"
)

// grown is a retention that has seen the log grow for a while.
func grown(outage, ran time.Duration, perSecond uint64) (r *retention, now time.Duration, last uint64) {
	r = &retention{outage: outage}
	for now = 0; now < ran; now += time.Second {
		last += perSecond
		r.note(now, last)
	}
	return r, now - time.Second, last
}

// TestTheLogKeepsWhatWasWrittenWithinTheOutage: a little more, never less, and
// nothing is dropped by time until this process has seen that much of it.
func TestTheLogKeepsWhatWasWrittenWithinTheOutage(t *testing.T) {
	const perSecond = 10
	r, now, last := grown(time.Hour, 3*time.Hour, perSecond)
	entries, ok := r.within(now, last)
	if least := uint64(3600 * perSecond); !ok || entries < least || entries > least*11/10 {
		t.Errorf("%d entries, %v; the last hour has %d", entries, ok, least)
	}
	if len(r.marks) > 2*retentionMarks {
		t.Errorf("%d marks are kept", len(r.marks))
	}
	r, now, last = grown(time.Hour, 59*time.Minute, perSecond)
	if entries, ok := r.within(now, last); ok {
		t.Errorf("%d entries, after 59 minutes", entries)
	}
}

// TestAPlaceInTheLogNearsItsEnd by bytes, which are entries here, or by age,
// whichever comes first.
func TestAPlaceInTheLogNearsItsEnd(t *testing.T) {
	const perSecond, limit = 10, 36_000 // an hour's worth
	long, now, last := grown(24*time.Hour, 3*time.Hour, perSecond)
	short, _, _ := grown(time.Hour, 3*time.Hour, perSecond)
	for name, c := range map[string]struct {
		r          *retention
		lacks      uint64
		progress   float64
		used, left float64
		warning    bool
	}{
		"level":                      {long, 3, 0, 0, -1, false},
		"few entries, however old":   {short, leastTrailing, 0, 0, -1, false},
		"half by bytes":              {long, limit / 2, 0, 0.5, 1800, false},
		"nine tenths by bytes":       {long, limit * 9 / 10, 0, 0.9, 360, true},
		"and it comes closer":        {long, limit * 9 / 10, 20, 0.9, -1, true},
		"half an hour of an hour":    {short, 1800 * perSecond, 0, 0.5, 1800, false},
		"fifty minutes of an hour":   {short, 3000 * perSecond, 0, 5.0 / 6, 600, true},
		"more than is kept by bytes": {long, limit * 2, 0, 2, 0, true},
	} {
		p := c.r.place(now, last-c.lacks, last, 1, c.progress, limit)
		near := func(a, b, within float64) bool { return math.Abs(a-b) <= within }
		if !near(p.Used, c.used, 0.02) || !near(p.ExpiresIn, c.left, max(c.left*0.05, 0.01)) || p.Warning != c.warning {
			t.Errorf("%s: %+v", name, p)
		}
		if p.Distance != int64(last-c.lacks) {
			t.Errorf("%s: its place is %d entries from the first one of the log", name, p.Distance)
		}
	}
	if p := long.place(now, 10, last, 12, 0, 1<<40); p.Distance != -1 || !p.Warning || p.Used < 1 || p.ExpiresIn != 0 {
		t.Errorf("its next entry is gone: %+v", p)
	}
}
