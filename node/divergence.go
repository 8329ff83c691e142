package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// Equal revisions with different lineages mean different contents, which must
// never be and is found at the next freshness probe: the report names revision
// and lineage of one moment, the leader looks up its own lineage at that
// revision, and its answer carries the verdict. From then on the member answers
// no read, not even a stale one, until a full copy has replaced its contents.
//
// That the leader is the one who is right is only likely. So it says so only
// with a majority of the voters on its side; and a leader that a majority differs
// from hands over, and is then judged like everybody else.

// verdict is what a leader says of a member's contents.
type verdict uint8

const (
	unknown  verdict = iota // the leader's history does not reach there, or not yet
	equal                   // the same as the leader's
	differs                 // not the same as those of the leader and of most voters
	disputed                // not the same as the leader's, and the voters have not decided
)

// divergence is what a node knows of the difference between its contents and the
// leader's.
type divergence struct {
	first atomic.Uint64 // the first such revision, as far as it is known
	// settled: most voters agree with the leader, so these contents are wrong.
	settled atomic.Bool
	located bool // first has been narrowed down; used by the healing loop only
}

// mayBeRight reports whether nothing is settled against this node's contents.
func (n *Node) mayBeRight() bool {
	d := n.diverged.Load()
	return d == nil || !d.settled.Load()
}

// Diverged is the first revision at which this node's contents are known to
// differ from the leader's, 0 while they are not. Until a copy has replaced them,
// View and Export refuse.
func (n *Node) Diverged() uint64 {
	if d := n.diverged.Load(); d != nil {
		return d.first.Load()
	}
	return 0
}

// wrong is why this node's contents must not be read, nil when they may.
func (n *Node) wrong() error {
	if at := n.Diverged(); at != 0 {
		return command.ErrDiverged.With("from revision %d on", at)
	}
	return nil
}

// judge records a member's report, on the leader, and compares its contents.
func (n *Node) judge(id string, r Report, applied uint64) verdict {
	v := n.compare(r)
	from := n.reports.record(id, r, v, n.cfg.Clock.Steady(), applied).differs
	if v != differs {
		return v
	}
	same, different, all := n.poll(from)
	if 2*different > all {
		n.alarm()
	}
	if 2*same <= all {
		return disputed
	}
	return differs
}

// compare says whether what a member reports is what this node has, or had.
func (n *Node) compare(r Report) verdict {
	view, err := n.parts.State.View()
	if err != nil {
		return unknown
	}
	index, revision := view.Applied(), view.Revision()
	view.Close()
	if r.Applied <= index && r.Revision > revision || r.Applied >= index && r.Revision < revision {
		return differs // the same entries make the same revisions
	}
	switch own, err := n.parts.State.LineageAt(r.Revision); {
	case err != nil:
		return unknown
	case own == r.Lineage:
		return equal
	}
	return differs
}

// poll counts the voters that have this leader's contents at a revision, itself
// included, and those of which it is known that theirs differ at any.
func (n *Node) poll(revision uint64) (same, different, all int) {
	others, self := n.voters()
	same = self
	for _, id := range others {
		switch r, _ := n.reports.get(id); {
		case r.differs != 0:
			different++
		case r.equal >= revision && r.equal != 0:
			same++
		}
	}
	return same, different, len(others) + self
}

// outvoted reports whether this node leads with contents that most voters do not
// have.
func (n *Node) outvoted() bool {
	if n.raft.State() != raft.Leader {
		return false
	}
	_, different, all := n.poll(0)
	return 2*different > all
}

// judged takes in the leader's verdict on a report of this node.
func (n *Node) judged(r Report, v verdict) {
	switch v {
	case equal:
		n.diverged.Store(nil)
		return
	case differs, disputed:
	default:
		return
	}
	own, err := n.parts.State.LineageAt(r.Revision)
	if err == nil && own != r.Lineage || errors.Is(err, command.ErrRevisionNotReached) {
		return // the contents have been replaced since
	}
	if n.raft.State() == raft.Leader {
		return // elected since: whoever asks it next finds out who is right
	}
	d := n.diverged.Load()
	if d == nil {
		d = &divergence{}
		d.first.Store(max(r.Revision, 1))
		n.diverged.Store(d)
		n.log.Error("contents differ from the leader's: no read is answered until they are replaced", "revision", r.Revision)
	}
	d.settled.Store(v == differs)
	n.alarm()
}

// alarm makes the healing loop look.
func (n *Node) alarm() {
	select {
	case n.sick <- struct{}{}:
	default:
	}
}

// answerLineage serves methodLineage.
func (n *Node) answerLineage(req []byte) ([]byte, error) {
	if len(req) != 8 {
		return nil, errors.New("lineage request is cut off")
	}
	l, err := n.parts.State.LineageAt(binary.BigEndian.Uint64(req))
	return l[:], err
}

// findFirst narrows down where the contents began to differ: lineages differ from
// there on, so it takes few questions. What either side has compacted counts as
// equal: then it is the first revision at which the difference can be shown.
func (n *Node) findFirst(ctx context.Context, d *divergence, leader string) error {
	low, high := n.parts.State.OldestRevision(), d.first.Load()
	for low < high {
		mid := low + (high-low)/2
		same, err := n.sameAt(ctx, leader, mid)
		switch {
		case err != nil:
			return err
		case same:
			low = mid + 1
		default:
			high = mid
		}
	}
	d.first.Store(high)
	return nil
}

func (n *Node) sameAt(ctx context.Context, leader string, revision uint64) (bool, error) {
	own, err := n.parts.State.LineageAt(revision)
	if errors.Is(err, command.ErrCompacted) {
		return true, nil
	} else if err != nil {
		return false, err
	}
	theirs, err := n.parts.Transport.Call(ctx, leader, methodLineage, binary.BigEndian.AppendUint64(nil, revision))
	switch {
	case errors.Is(err, command.ErrCompacted):
		return true, nil
	case errors.Is(err, command.ErrRevisionNotReached):
		return false, nil
	case err != nil:
		return false, err
	}
	if len(theirs) != len(own) {
		return false, fmt.Errorf("lineage of %d bytes", len(theirs))
	}
	return command.Lineage(theirs) == own, nil
}
