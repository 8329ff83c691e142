package node

import (
	"sort"
	"sync"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// The log is kept behind a snapshot for members that were away: what was written
// within Config.LogOutage, but no more than Config.LogRetention bytes. Raft counts
// entries, so both become a count, anew every few seconds.

const (
	// leastTrailing is how many entries are kept whatever the bounds say.
	leastTrailing = 256
	// nearLimit is how near to either bound a learner's place may come before there
	// is a warning, and farEnough from where on the next one is another episode.
	nearLimit = 0.8
	farEnough = 0.6
)

// logLimit is LogRetention in entries.
func (n *Node) logLimit() uint64 {
	return max(n.cfg.LogRetention/max(n.parts.Logs.EntryBytes(), 1), leastTrailing)
}

// retention remembers when the log was how long.
type retention struct {
	mu     sync.Mutex
	outage time.Duration // what is to be survived by log
	marks  []logMark     // guarded by mu; ascending, about retentionMarks over outage
}

type logMark struct {
	at   time.Duration // steady clock
	last uint64        // index the log ended with
}

const retentionMarks = 256

// note records where the log ends now.
func (r *retention) note(now time.Duration, last uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if k := len(r.marks); k > 0 && now-r.marks[k-1].at < r.outage/retentionMarks {
		return
	}
	r.marks = append(r.marks, logMark{now, last})
	for len(r.marks) > 1 && now-r.marks[1].at >= r.outage {
		r.marks = r.marks[1:]
	}
}

// within is how many entries before last were written within the outage; ok is false
// while this process has not run for that long, so that nobody knows.
func (r *retention) within(now time.Duration, last uint64) (entries uint64, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.marks) == 0 || now-r.marks[0].at < r.outage {
		return 0, false
	}
	return last - min(r.marks[0].last, last), true
}

// age is for how long at most an entry has been in the log. Of one that was there
// when this process started nothing older is known.
func (r *retention) age(now time.Duration, index uint64) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := sort.Search(len(r.marks), func(i int) bool { return r.marks[i].last >= index })
	switch {
	case len(r.marks) == 0:
		return 0
	case i > 0:
		i-- // it came after this mark
	}
	return now - r.marks[i].at
}

// perSecond is how many entries the log has grown by lately.
func (r *retention) perSecond(now time.Duration, last uint64) float64 {
	const recent = 10 * time.Second
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := len(r.marks) - 1; i >= 0; i-- {
		if dt := now - r.marks[i].at; dt >= recent || i == 0 && dt > 0 {
			return float64(last-min(r.marks[i].last, last)) / dt.Seconds()
		}
	}
	return 0
}

// place says how a member whose last entry is held stands to a log that begins with
// first and ends with last. It comes closer by progress entries per second; limit is
// how many entries the log may keep.
func (r *retention) place(now time.Duration, held, last, first uint64, progress float64, limit uint64) command.LogPlace {
	p := command.LogPlace{First: first, Distance: int64(held+1) - int64(first), ExpiresIn: -1}
	lacks := last - min(held, last)
	if lacks <= leastTrailing && p.Distance >= 0 {
		return p
	}
	p.Used = float64(lacks) / float64(limit)
	if growth := r.perSecond(now, last) - progress; growth > 0 {
		p.ExpiresIn = max(float64(limit)-float64(lacks), 0) / growth
	}
	if progress == 0 {
		age := r.age(now, held+1)
		p.Used = max(p.Used, age.Seconds()/r.outage.Seconds())
		if left := max(r.outage-age, 0).Seconds(); p.ExpiresIn < 0 || left < p.ExpiresIn {
			p.ExpiresIn = left
		}
	}
	if p.Distance < 0 {
		p.Used, p.ExpiresIn = max(p.Used, 1), 0
	}
	p.Warning = p.Used >= nearLimit
	return p
}

// warnings remembers which learners there was a warning for.
type warnings struct{ given map[string]bool }

// warn says of learners, once per episode, that they will soon need more than the
// log. Used by housekeeping only.
func (n *Node) warn(w *warnings) {
	all, err := n.replicas()
	if err != nil {
		w.given = nil // another leader looks
		return
	}
	if w.given == nil {
		w.given = map[string]bool{}
	}
	for _, r := range all {
		switch {
		case r.Log.Distance < 0 && !w.given[r.ID]:
			n.log.Warn("a learner lacks more than the log holds: it will take a delta, or a full copy",
				"learner", r.Name, "site", r.Site, "entries", r.Lag.Entries, "status", r.Status)
		case r.Log.Warning && !w.given[r.ID]:
			n.log.Warn("a learner will soon lack more than the log keeps, and then take a delta or a full copy",
				"learner", r.Name, "site", r.Site, "entries", r.Lag.Entries, "used", r.Log.Used, "expected-in", time.Duration(r.Log.ExpiresIn*float64(time.Second)).Round(time.Second))
		}
		w.given[r.ID] = r.Log.Warning || w.given[r.ID] && r.Log.Used > farEnough
	}
}
