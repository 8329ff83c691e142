package client

import (
	"crypto/rand"
	"net/http"
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

// Block has the server hold back the answer until there is one with a higher index
// than n, for at most the given time. An index of 0 is answered at once.
func Block(n uint64, d time.Duration) ReadOption {
	return func(o *readOptions) {
		if n > 0 {
			o.query.Set("index", strconv.FormatUint(n, 10))
			o.query.Set("wait", d.String())
			o.wait = d + d/16 + time.Second
		}
	}
}

func read(opts []ReadOption) readOptions {
	o := readOptions{query: url.Values{}}
	for _, opt := range opts {
		opt(&o)
	}
	return o
}

// request is a read of a path with these options.
func (o readOptions) request(path string) request {
	return request{method: http.MethodGet, path: path, query: o.query, wait: o.wait}
}

// WriteOption says under which condition, and with what, a write is made.
type WriteOption func(*writeOptions)

type writeOptions struct {
	query url.Values
	// once is the idempotency key; empty when the write has none.
	once string
	wait time.Duration // that the server was asked to wait
}

// CAS lets the write happen only if the key's ModifyRevision is n; 0 on a put:
// only if there is no such key.
func CAS(n uint64) WriteOption {
	return func(o *writeOptions) { o.query.Set("cas", strconv.FormatUint(n, 10)) }
}

// Flags stores a number beside the value of a put. Without it, 0 is stored.
func Flags(n uint64) WriteOption {
	return func(o *writeOptions) { o.query.Set("flags", strconv.FormatUint(n, 10)) }
}

// Acquire takes the key's lock for a session along with a put, which fails when
// another session holds it, or its lock-delay is not over.
func Acquire(session string) WriteOption {
	return func(o *writeOptions) { o.query.Set("acquire", session) }
}

// Release gives the key's lock back along with a put, which fails when the session
// does not hold it.
func Release(session string) WriteOption {
	return func(o *writeOptions) { o.query.Set("release", session) }
}

// Once makes the write happen exactly once, however often and through whichever
// servers it has to be sent: the client repeats it until it knows what became of
// it. The servers remember it for some minutes, which costs them about as much as a
// small write.
func Once() WriteOption {
	return func(o *writeOptions) { o.once = newOnceKey() }
}

// IdempotencyKey is Once with a key of the caller's own, 1 to 128 printable ASCII
// characters, so that another process may repeat the write too: the same key with
// another write is command.ErrKeyReused.
func IdempotencyKey(key string) WriteOption {
	return func(o *writeOptions) { o.once = key }
}

// Await has the answer wait, up to the given time, until all servers of a site have
// the write; "" is all sites. Meta.AwaitTimeout tells when they had not.
func Await(site string, d time.Duration) WriteOption {
	return func(o *writeOptions) {
		if site == "" {
			o.query.Set("await", "all")
		} else {
			o.query.Set("await", "site:"+site)
		}
		if d > 0 {
			o.query.Set("wait", d.String())
		}
		o.wait = max(d, 5*time.Second)
	}
}

func write(opts []WriteOption) writeOptions {
	o := writeOptions{query: url.Values{}}
	for _, opt := range opts {
		opt(&o)
	}
	return o
}

// request is a write with these options and a body.
func (o writeOptions) request(method string, body []byte) request {
	return request{method: method, query: o.query, body: body, write: true, once: o.once, wait: o.wait}
}

// newOnceKey draws a key that nobody else has.
func newOnceKey() string { return rand.Text() }
