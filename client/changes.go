package client

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// Op is what a change did.
type Op string

// The operations.
const (
	OpPut    Op = "put"
	OpDelete Op = "delete"
	OpLock   Op = "lock"
	OpUnlock Op = "unlock"
)

// Change is one change of a key.
type Change struct {
	// Index is the revision that made it. One revision may change many keys.
	Index uint64
	// Op is OpPut or OpDelete in what History returns.
	Op Op
	// Record is what the key became; of a deleted one, only Key and
	// ModifyRevision are set.
	Record command.Record
	// Prev is what the key was before. It is nil when the key did not exist, for
	// changes of the oldest revision kept, and in what History returns.
	Prev *command.Record
	// Time is the leader's clock when the change was proposed, for display; zero
	// when it is no longer known.
	Time time.Time
}

// Span says which changes are wanted: those with From <= Index <= To, and no
// more than Limit. Zero sets no bound. An index is never split, so there can be
// more than Limit.
type Span struct {
	From, To uint64
	Limit    int
}

// mostChanges is how many changes a server puts into one reply.
const mostChanges = 10_000

// History returns the changes of a key that are kept, newest first;
// command.ErrKeyNotFound when it never existed as far as history goes back,
// which Meta.Oldest tells. The last may be older than that: it is what the key
// was then.
func (c *Client) History(ctx context.Context, key string, span Span, opts ...ReadOption) ([]Change, Meta, error) {
	if strings.HasPrefix(key, "/") {
		return nil, Meta{}, leadingSlash("key", key)
	}
	var all []Change
	for {
		changes, a, err := c.changes(ctx, "/v1/history/"+key, span, read(opts))
		if err != nil {
			return nil, a.meta, err
		}
		all = append(all, changes...)
		if a.next == 0 || span.used(len(changes)) {
			return all, a.meta, nil
		}
		span.To = a.next
	}
}

// Changes calls fn for each change of a key under the prefix, in order and
// index by index, from span.From, which is 1 or more, to what the answering
// node has. It returns the index at which to go on: behind the last change, or,
// when fn fails, that of the change it failed for, so that this index comes
// again as a whole. An error of fn comes back unchanged; command.ErrCompacted
// says that history does not go back so far, and as an *Error how far it does.
//
// Watch follows a prefix.
func (c *Client) Changes(ctx context.Context, prefix string, span Span, fn func(Change) error, opts ...ReadOption) (next uint64, meta Meta, err error) {
	if strings.HasPrefix(prefix, "/") {
		return span.From, Meta{}, leadingSlash("prefix", prefix)
	}
	o := read(opts)
	for {
		changes, a, err := c.changes(ctx, "/v1/changes/"+prefix, span, o)
		if err != nil {
			return span.From, a.meta, err
		}
		for _, ch := range changes {
			if err := fn(ch); err != nil {
				return ch.Index, a.meta, err
			}
		}
		caughtUp := a.next > a.meta.Applied || a.next <= span.From
		span.From = max(span.From, a.next)
		if caughtUp || span.used(len(changes)) || span.To > 0 && span.From > span.To {
			return span.From, a.meta, nil
		}
		// Only the first answer is worth waiting for: there is more already.
		o.query.Del("wait")
	}
}

// used takes n changes off the limit, and reports whether none are left.
func (s *Span) used(n int) bool {
	if s.Limit <= 0 {
		return false
	}
	s.Limit = max(s.Limit-n, 0)
	return s.Limit == 0
}

// changes asks for one reply of changes.
func (c *Client) changes(ctx context.Context, path string, span Span, o readOptions) ([]Change, answer, error) {
	limit := mostChanges
	if span.Limit > 0 {
		limit = min(limit, span.Limit)
	}
	for name, n := range map[string]uint64{"from": span.From, "to": span.To, "limit": uint64(limit)} {
		if n > 0 {
			o.query.Set(name, strconv.FormatUint(n, 10))
		}
	}
	a, err := c.doRead(ctx, o.request(path))
	if err != nil {
		return nil, a, err
	}
	var wire []wireChange
	if err := a.decode(&wire); err != nil {
		return nil, a, err
	}
	changes := make([]Change, len(wire))
	for i := range wire {
		changes[i] = wire[i].change()
	}
	return changes, a, nil
}

// wireChange is a change as the API shows it.
type wireChange struct {
	Index uint64
	Op    Op
	KV    entry
	Prev  *entry
	Time  time.Time
}

func (w *wireChange) change() Change {
	c := Change{Index: w.Index, Op: w.Op, Record: w.KV.record(), Time: w.Time}
	if w.Prev != nil {
		before := w.Prev.record()
		c.Prev = &before
	}
	return c
}
