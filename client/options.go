package client

import (
	"net/url"
	"strconv"
	"time"
)

// ReadOption says how a read is to be answered. Without any, a voter answers
// through the leader and a learner from its own copy.
type ReadOption func(*readOptions)

type readOptions struct {
	query url.Values
	wait  time.Duration
}

// Consistent asks for a linearizable answer.
func Consistent() ReadOption {
	return func(o *readOptions) { o.query.Set("consistent", "") }
}

// Stale asks for the state of the node that is asked, whatever its age.
func Stale() ReadOption {
	return func(o *readOptions) { o.query.Set("stale", "") }
}

// MaxStale asks for an answer at most that old: of the node that is asked if
// it can, else of one as new as the leader. An age of zero or less is refused
// by the server.
func MaxStale(age time.Duration) ReadOption {
	return func(o *readOptions) {
		o.query.Set("stale", "")
		o.query.Set("max_stale", age.String())
	}
}

// MinIndex asks for an answer that contains revision n, and has the server wait
// for it up to the given time; 0 leaves the time to the server (5 s).
func MinIndex(n uint64, wait time.Duration) ReadOption {
	return func(o *readOptions) { o.await("min_index", n, wait) }
}

// AtRevision asks Get, List, Keys and Export for the state exactly as it was at
// revision n; command.ErrCompacted when that is no longer kept. A revision
// still to come is waited for as by MinIndex. Every node gives the same answer,
// so the other options decide nothing then.
func AtRevision(n uint64, wait time.Duration) ReadOption {
	return func(o *readOptions) { o.await("rev", n, wait) }
}

// await asks for a revision that may be still to come.
func (o *readOptions) await(parameter string, n uint64, wait time.Duration) {
	o.query.Set(parameter, strconv.FormatUint(n, 10))
	if wait > 0 {
		Wait(wait)(o)
	} else {
		o.wait = max(o.wait, 5*time.Second)
	}
}

// Wait has the server hold back an answer of Changes without changes until
// there is one, for at most the given time.
func Wait(d time.Duration) ReadOption {
	return func(o *readOptions) {
		o.query.Set("wait", d.String())
		o.wait = d
	}
}

func read(opts []ReadOption) readOptions {
	o := readOptions{query: url.Values{}}
	for _, opt := range opts {
		opt(&o)
	}
	return o
}

// WriteOption says under which condition, and with what, a write is made.
type WriteOption func(url.Values)

// CAS lets the write happen only if the key's ModifyRevision is n; 0 on a put:
// only if there is no such key.
func CAS(n uint64) WriteOption {
	return func(q url.Values) { q.Set("cas", strconv.FormatUint(n, 10)) }
}

// Flags stores a number beside the value of a put. Without it, 0 is stored.
func Flags(n uint64) WriteOption {
	return func(q url.Values) { q.Set("flags", strconv.FormatUint(n, 10)) }
}

func write(opts []WriteOption) url.Values {
	q := url.Values{}
	for _, opt := range opts {
		opt(q)
	}
	return q
}
