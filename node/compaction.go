package node

import (
	"errors"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// How often, and from which distance on, a leader moves the compaction point: an
// entry in the log must be worth it, and what becomes superfluous at once is
// dropped in one go on every node.
const (
	compactionInterval = 2 * time.Second
	// A step is due when it forgets one of so many parts of the kept revisions, or
	// when none was made for one of so many parts of the age to be kept.
	compactionParts    = 64
	compactionAgeParts = 16
)

// compaction moves the compaction point as Config.History asks for, while this
// node leads.
func (n *Node) compaction() {
	tick := time.NewTicker(compactionInterval)
	defer tick.Stop()
	moved, told := n.cfg.Clock.Steady(), ""
	for {
		select {
		case <-tick.C:
		case <-n.stop:
			return
		}
		if n.time.Load() == nil {
			moved = n.cfg.Clock.Steady() // it does not lead
			continue
		}
		due := n.cfg.Clock.Steady()-moved >= n.cfg.History.Age/compactionAgeParts
		did, err := n.compact(due)
		switch {
		case err == nil:
			told = ""
		case errors.Is(err, command.ErrNotLeader), errors.Is(err, command.ErrOutcomeUnknown), errors.Is(err, command.ErrStopping):
		case err.Error() != told:
			told = err.Error()
			n.log.Warn("history is not compacted", "error", err)
		}
		if did {
			moved = n.cfg.Clock.Steady()
		}
	}
}

// compact proposes the compaction point that the retention gives, when that
// forgets enough of the kept revisions or, with due, anything at all.
func (n *Node) compact(due bool) (did bool, err error) {
	s := n.parts.State
	start, err := s.HistoryStart(n.cfg.History)
	if err != nil {
		return false, err
	}
	oldest, newest := s.OldestRevision(), s.Revision()
	if start <= oldest || !due && (start-oldest)*compactionParts < newest-oldest {
		return false, nil
	}
	_, err = n.group.submit(n.ctx, write{encoded: command.Append(nil, &command.Compact{Revision: start})})
	return err == nil, err
}
