package node

import (
	"context"
	"time"
)

// preference is what a leader knows of voters that are to lead rather than itself.
// It belongs to the leadership loop.
type preference struct {
	// well is since when each voter of a higher priority has been found fit to lead
	// at every look, by id, on the steady clock.
	well map[string]time.Duration
	// hold is how long it must have been so. It starts as Config.LeaderHoldOff and
	// doubles with each hand-over that failed, or that led back here soon.
	hold time.Duration
	// handedAt is when the last hand-over was begun, if handed.
	handed   bool
	handedAt time.Duration
	done     chan error // the end of the one under way; nil when there is none
}

// maxHoldOffs bounds how far the hold-off grows, in multiples of it.
const maxHoldOffs = 32

// begin is called when this node has begun to lead.
func (p *preference) begin(now, holdOff time.Duration) {
	p.well = map[string]time.Duration{}
	if p.handed && now-p.handedAt <= 2*p.hold {
		p.failed(holdOff) // who was preferred did not lead for long
	} else {
		p.hold, p.handed = holdOff, false
	}
}

// failed notes that a hand-over came to nothing.
func (p *preference) failed(holdOff time.Duration) {
	p.handed, p.well = false, map[string]time.Duration{}
	p.hold = min(2*p.hold, maxHoldOffs*holdOff)
}

// pick is told which voters, with which priorities, are to lead rather and fit now. It
// returns the one that leadership goes to, "" for none yet.
func (p *preference) pick(now time.Duration, better map[string]int) (id string) {
	for known := range p.well {
		if _, still := better[known]; !still {
			delete(p.well, known)
		}
	}
	for candidate, priority := range better {
		since, known := p.well[candidate]
		if !known {
			p.well[candidate] = now
			continue
		}
		if now-since < p.hold {
			continue
		}
		if id == "" || priority > better[id] || priority == better[id] && candidate < id {
			id = candidate
		}
	}
	return id
}

// prefer hands leadership to a voter of a higher priority that has been fit to lead
// for long enough. It never waits.
func (n *Node) prefer() {
	p := &n.preference
	now := n.cfg.Clock.Steady()
	select {
	case err := <-p.done:
		p.done = nil
		if err != nil {
			n.log.Info("the preferred leader did not take over", "error", err)
			p.failed(n.cfg.LeaderHoldOff)
		}
	default:
		if p.done != nil {
			return
		}
	}
	better := map[string]int{}
	for _, v := range n.fitVoters() {
		if v.priority > n.cfg.LeaderPriority && v.well {
			better[v.id] = v.priority
		}
	}
	id := p.pick(now, better)
	if id == "" {
		return
	}
	n.log.Info("handing over to the preferred leader", "id", id, "priority", better[id])
	done := make(chan error, 1)
	p.handed, p.handedAt, p.done = true, now, done
	n.loop(func() {
		ctx, cancel := context.WithTimeout(n.ctx, transferLimit)
		defer cancel()
		done <- n.handOver(ctx, id)
	})
}
