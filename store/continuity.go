package store

import (
	"fmt"
	"math"
)

// continuity follows a walk over history. From the compaction point on nothing is
// missing: revisions follow each other, or begin an epoch, and so do the changes of
// each. So a walk notices what a bad page hides from it.
type continuity struct {
	at    position // of the last change
	known bool
}

// continuityFrom is for a walk that begins at a position.
func continuityFrom(from position, oldest uint64) continuity {
	switch {
	case from.rev <= oldest || from.rev == 0:
		return continuity{}
	case from.k == 0:
		return continuity{position{from.rev - 1, math.MaxUint32 - 1}, true}
	}
	return continuity{position{from.rev, from.k - 1}, true}
}

// take moves on to the change that the walk came to.
func (c *continuity) take(at position, oldest uint64) error {
	was := *c
	c.at, c.known = at, at.rev >= oldest
	switch {
	case !was.known || was.at.rev < oldest && at.rev <= oldest:
	case at == position{was.at.rev, was.at.k + 1}, at == position{was.at.rev + 1, 0}, at == position{was.at.rev + epochLeap, 0}:
	default:
		return was.gap(at)
	}
	return nil
}

// end is called when there is no change left up to a revision that is reached.
func (c *continuity) end(rev, oldest uint64) error {
	if c.known && c.at.rev < rev && rev > oldest {
		return c.gap(position{rev: rev + 1})
	}
	return nil
}

// gap is the damage that nothing is found between c and at.
func (c *continuity) gap(at position) error {
	from, to := position{c.at.rev, c.at.k + 1}.bytes(), at.bytes()
	return &damageError{
		table: string(bucketHistory), from: from[:], to: to[:],
		problem: fmt.Sprintf("history lacks what follows revision %d.%d and comes before %d.%d", c.at.rev, c.at.k, at.rev, at.k),
	}
}
