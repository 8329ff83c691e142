package node

import (
	"sync"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// Report is what a member tells the leader of itself with each freshness probe.
type Report struct {
	Revision  uint64          `json:"revision"`
	Applied   uint64          `json:"applied"`    // Raft index
	LastIndex uint64          `json:"last_index"` // of its log
	Lineage   command.Lineage `json:"lineage"`
	// StalenessMS is the age of the member's state; -1 unknown.
	StalenessMS int64 `json:"staleness_ms"`
}

// reports holds the latest report of each member, on the leader.
type reports struct {
	mu   sync.Mutex
	byID map[string]reported // guarded by mu
}

type reported struct {
	Report
	at time.Duration // steady clock
	// leader is what the leader itself had applied then: lag compares the two
	// at one moment.
	leader uint64
	// perSecond is how many entries the member came closer to the leader's
	// applied index per second between its last two reports.
	perSecond float64
}

func (r *reports) record(id string, rep Report, at time.Duration, leader uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byID == nil {
		r.byID = map[string]reported{}
	}
	old, known := r.byID[id]
	now := reported{Report: rep, at: at, leader: leader}
	if dt := (at - old.at).Seconds(); known && dt > 0 && rep.Applied >= old.Applied {
		now.perSecond = float64(rep.Applied-old.Applied) / dt
	}
	r.byID[id] = now
}

func (r *reports) get(id string) (reported, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v, ok := r.byID[id]
	return v, ok
}

func (r *reports) clear() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.byID = nil
}
