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
	LastTerm  uint64          `json:"last_term"`
	Lineage   command.Lineage `json:"lineage"`
	// StalenessMS is the age of the member's state; -1 unknown.
	StalenessMS int64 `json:"staleness_ms"`
	// Priority is how much the member is to lead, see Config.LeaderPriority.
	Priority int `json:"priority,omitempty"`
	// Disk is how the member's disk does; empty when it does not say. DiskLatencyMS is
	// the mean time of an append to its log.
	Disk          command.DiskState `json:"disk,omitempty"`
	DiskLatencyMS int64             `json:"disk_latency_ms,omitempty"`
}

// reports holds the latest report of each member, on the leader.
type reports struct {
	mu   sync.Mutex
	byID map[string]reported // guarded by mu
}

type reported struct {
	Report
	at time.Duration // steady clock
	// equal is the highest revision at which the member's contents were the
	// leader's, and differs the lowest one reported since at which they were not; 0
	// when there is none.
	equal, differs uint64
	// leader is what the leader itself had applied then: lag compares the two
	// at one moment.
	leader uint64
	// perSecond is how many entries the member came closer to the leader's
	// applied index per second between its last two reports.
	perSecond float64
}

// record keeps a report, and what comparing it has shown. A comparison that could
// not be made leaves what was known standing.
func (r *reports) record(id string, rep Report, v verdict, at time.Duration, leader uint64) reported {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byID == nil {
		r.byID = map[string]reported{}
	}
	old, known := r.byID[id]
	now := reported{Report: rep, at: at, leader: leader, equal: old.equal, differs: old.differs}
	switch v {
	case equal:
		now.equal, now.differs = rep.Revision, 0
	case differs:
		if now.differs == 0 {
			now.differs = max(rep.Revision, 1)
		}
	}
	if dt := (at - old.at).Seconds(); known && dt > 0 && rep.Applied >= old.Applied {
		now.perSecond = float64(rep.Applied-old.Applied) / dt
	}
	r.byID[id] = now
	return now
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
