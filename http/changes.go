package http

import (
	"context"
	"math"
	nethttp "net/http"
	"strconv"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

const (
	// changesBytes is how large a reply of changes may grow before it ends.
	changesBytes = 4 << 20
	// changesLimit is the largest limit of changes in a reply, and what the
	// change list has without one; historyLimit is what a history has.
	changesLimit = 10_000
	historyLimit = 100
	// changesTime is how long changes are gathered before the reply ends. The
	// rest of viewLimit is for the index that was begun.
	changesTime = viewLimit / 2
	// changesStep is after how many revisions a search for changes under a
	// prefix, which may be rare, looks at the clock.
	changesStep = 64
)

// changes is a read of changes: what is wanted, and what one evaluation found.
// A reply ends early rather than grow too large or take too long, but never
// inside an index.
type changes struct {
	x               *exchange
	from, to, limit uint64

	began time.Time
	seen  int
	count uint64 // gathered
	at    uint64 // index of the change gathered last
	// next is the index at which to go on; 0 in a history that is whole.
	next uint64
	err  error // of a callback
}

// readChanges reads which changes are wanted, all of them when nothing is said.
func (x *exchange) readChanges(limit uint64) (c changes, err error) {
	c = changes{x: x, to: math.MaxUint64, limit: limit}
	if c.from, err = x.q.number(paramFrom); err != nil {
		return c, err
	}
	if x.q.has(paramTo) {
		if c.to, err = x.q.number(paramTo); err != nil {
			return c, err
		}
	}
	if x.q.has(paramLimit) {
		if c.limit, err = x.q.countedNumber(paramLimit); err != nil {
			return c, err
		}
	}
	c.limit = min(c.limit, changesLimit)
	return c, nil
}

// begin starts an evaluation.
func (c *changes) begin() {
	c.x.resetReply()
	c.x.out = append(c.x.out, '[')
	c.began = time.Now()
	c.seen, c.count, c.at, c.next, c.err = 0, 0, 0, 0, nil
}

// full reports whether the reply ends here, before a change of this index.
func (c *changes) full(index uint64) bool {
	if c.count == 0 || index == c.at {
		return false
	}
	return c.count >= c.limit || c.x.gathered+int64(len(c.x.out)) >= changesBytes || time.Since(c.began) > changesTime
}

// add gathers a change, and reports whether there may be another.
func (c *changes) add(ch *command.Change, op string, before *command.Record) bool {
	x := c.x
	if c.count > 0 {
		x.out = append(x.out, ',')
	}
	x.out = appendChange(x.out, ch, op, before)
	c.count++
	c.at = ch.At.Revision
	return c.pass()
}

// pass leaves a change behind, and reports whether there may be another.
func (c *changes) pass() bool {
	c.seen++
	c.err = c.x.mayGoOn(c.seen, c.began)
	return c.err == nil
}

// nextHeader says where to go on.
func (c *changes) nextHeader() {
	c.x.w.Header()["X-Holdfast-Next"] = []string{strconv.FormatUint(c.next, 10)}
}

// getHistory is GET /v1/history/KEY: the kept changes of a key, newest first.
func (s *Server) getHistory(x *exchange) {
	key := x.named()
	err := checkKey(key)
	if err == nil && key == "" {
		err = errMissingKey
	}
	var opts command.ReadOptions
	if err == nil {
		opts, err = x.readOptions()
	}
	var c changes
	if err == nil {
		c, err = x.readChanges(historyLimit)
	}
	if err != nil {
		x.fail(err)
		return
	}
	var (
		known bool   // the key has a history
		index uint64 // of its newest change
	)
	info, err := s.node.Read(x.r.Context(), opts, func(v command.View) error {
		c.begin()
		known, index = false, v.KVRevision()
		err := v.KeyHistory(key, func(ch command.Change) bool {
			r := ch.At.Revision
			if !known {
				known, index = true, r
			}
			switch {
			case r > c.to:
				return c.pass()
			case r < c.from:
				return false
			case c.full(r):
				c.next = r
				return false
			case ch.Deleted:
				return c.add(&ch, opDelete, nil)
			default:
				return c.add(&ch, opPut, nil)
			}
		})
		if err == nil {
			err = c.err
		}
		x.out = append(x.out, ']')
		return err
	})
	if err != nil {
		x.failRead(&info, err)
		return
	}
	x.readHeaders(&info, max(index, 1))
	x.oldestHeader(&info)
	if !known {
		x.replyEmpty(nethttp.StatusNotFound)
		return
	}
	if c.next > 0 {
		c.nextHeader()
	}
	x.replyJSON(nethttp.StatusOK)
}

// getChanges is GET /v1/changes/PREFIX: the changes of all keys under a prefix,
// in order, index by index.
func (s *Server) getChanges(x *exchange) {
	prefix := x.named()
	if x.wantsFeed() {
		s.getFeed(x, prefix)
		return
	}
	err := checkKey(prefix)
	var opts command.ReadOptions
	if err == nil {
		opts, err = x.readOptions()
	}
	var c changes
	if err == nil {
		c, err = x.readChanges(changesLimit)
	}
	if err == nil && c.from == 0 {
		err = badRequest("Invalid from: say at which index to begin, from 1 on")
	}
	if err != nil {
		x.fail(err)
		return
	}
	var index uint64 // up to which the reply is whole
	deadline := x.start.Add(opts.Wait)
	for waiting := opts.Wait > 0; ; {
		info, err := s.node.Read(x.r.Context(), opts, func(v command.View) error {
			c.begin()
			err := c.gather(v, prefix)
			index = min(c.next-1, v.Revision())
			x.out = append(x.out, ']')
			return err
		})
		if err != nil {
			x.failRead(&info, err)
			return
		}
		if waiting && c.count == 0 && c.next <= c.to {
			// Up to next there is nothing, and that stays so. When the wait is
			// over it is read once more, so that the headers speak of now.
			c.from = c.next
			waiting = s.awaitRevision(x.r.Context(), c.next, deadline)
			continue
		}
		x.readHeaders(&info, max(index, 1))
		x.oldestHeader(&info)
		c.nextHeader()
		x.replyJSON(nethttp.StatusOK)
		return
	}
}

// gather adds changes under the prefix until the reply is full or there are no
// more.
func (c *changes) gather(v command.View, prefix string) error {
	full := false
	reached, err := changesAfter(v, prefix, command.EndOf(c.from-1), c.to, c.began, func(ch *command.Change) (bool, error) {
		if full = c.full(ch.At.Revision); full {
			c.next = ch.At.Revision
			return false, nil
		}
		op, before, err := compare(v, ch)
		if err != nil {
			return false, err
		}
		return c.add(ch, op, before), c.err
	})
	if !full {
		c.next = reached.Revision + 1
	}
	return err
}

// changesAfter calls fn for each change under the prefix after a position and up
// to a revision, in order, until fn returns false for one it did not take in. It
// returns up to where fn has seen all there is. It ends early, between two
// revisions, when the view was begun too long ago.
func changesAfter(v command.View, prefix string, after command.Position, to uint64, began time.Time,
	fn func(*command.Change) (bool, error),
) (reached command.Position, err error) {
	for reached, to = after, min(to, v.Revision()); reached.Before(command.EndOf(to)); {
		last, more := min(reached.Revision+changesStep, to), true
		var failed error
		err := v.ChangesAfter(prefix, reached, last, func(ch command.Change) bool {
			if more, failed = fn(&ch); !more || failed != nil {
				return false
			}
			reached = ch.At
			return true
		})
		if err == nil {
			err = failed
		}
		if err != nil || !more {
			return reached, err
		}
		if reached = command.EndOf(last); time.Since(began) > changesTime {
			break
		}
	}
	return reached, nil
}

// compare says what a change did, and what the key was before; nil when it did
// not exist, or when that is no longer kept.
func compare(v command.View, ch *command.Change) (op string, before *command.Record, err error) {
	var old command.Change
	hasPrev := ch.Prev != command.Position{}
	if !ch.Deleted && ch.Record.CreateRevision > ch.Prev.Revision {
		hasPrev = false // the key is new: what preceded is a delete, which need not be kept
	}
	// What preceded the changes of the oldest revision may be gone on some nodes
	// and still lie about on others; all are to answer alike.
	known := !hasPrev || ch.At.Revision > v.OldestRevision()
	if hasPrev && known {
		if old, err = v.ChangeAt(ch.Prev); err != nil {
			return "", nil, err
		}
		if !old.Deleted {
			before = &old.Record
		}
	}
	switch was, is := &old.Record, &ch.Record; {
	case ch.Deleted:
		op = opDelete
	case known && is.LockIndex > was.LockIndex:
		op = opLock
	case known && is.Session == "" && was.Session != "":
		op = opUnlock
	default:
		op = opPut
	}
	return op, before, nil
}

// awaitRevision waits until this node has applied a revision, and reports
// whether it has. It gives up at the deadline, and when the server stops.
func (s *Server) awaitRevision(ctx context.Context, revision uint64, deadline time.Time) bool {
	left := time.Until(deadline)
	if left <= 0 {
		return false
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.stopping, cancel)()
	o := command.ReadOptions{Mode: command.ReadStale, MinRevision: revision, Wait: left}
	_, err := s.node.Read(ctx, o, func(command.View) error { return nil })
	return err == nil
}
