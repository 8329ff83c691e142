package http

import (
	"context"
	"errors"
	"math"
	nethttp "net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/internal/planted"
)

// A feed is GET /v1/changes/PREFIX as a stream of server-sent events. It has a
// position in the history, and its pace is the client's: what the client has not
// taken yet stays where it is, in history. A feed near the newest change is served
// by the hub, which has each event ready; one further behind reads the store.
//
// The ids of events, by which a client resumes at any node:
//
//	N.k      change k of index N
//	N        all of index N; sent alone at the start and in silence, and with sync
//	N@KEY    the entry of KEY in the list that precedes the changes after N

const (
	// feedPiece is how much of a feed is gathered before it is sent.
	feedPiece = 64 << 10
	// feedSilence is after how long without an event a client gets a sign of life.
	feedSilence = 15 * time.Second
)

// feed is one stream.
type feed struct {
	x      *exchange
	prefix string
	// listing: the entries as of pos are being sent, and have been up to the key
	// listed.
	listing bool
	listed  string

	// pos is up to where all was sent. While waiting is set, the hub moves it on;
	// this and what follows is guarded by its lock then.
	pos     command.Position
	waiting bool
	wake    chan struct{} // one token: there may be something to send

	// Of the hub, under its lock.

	joined uint64           // how many had joined before
	since  command.Position // from where on the hub has what this feed wants
	broken error            // the hub cannot go on
}

// feedBuffers are for what a feed sends; an idle feed has none.
var feedBuffers = sync.Pool{New: func() any { b := make([]byte, 0, 4<<10); return &b }}

// wantsFeed reports whether the client asked for a stream.
func (x *exchange) wantsFeed() bool {
	return x.q.has(paramStream) || strings.Contains(headerValue(x.r.Header, "Accept"), "text/event-stream")
}

var (
	kindEvents  = []string{"text/event-stream"}
	headNoStore = []string{"no-store"}
	headNo      = []string{"no"}
)

// getFeed streams the changes under the prefix until the client goes away, the
// server stops, or what is next is no longer kept.
func (s *Server) getFeed(x *exchange, prefix string) {
	f := &feed{x: x, prefix: prefix, wake: make(chan struct{}, 1)}
	err := checkKey(prefix)
	var opts command.ReadOptions
	if err == nil {
		opts, err = x.readOptions()
	}
	var placed bool
	if err == nil {
		placed, err = f.place()
	}
	if err != nil {
		x.fail(err)
		return
	}
	var applied uint64
	info, err := s.node.Read(x.r.Context(), opts, func(v command.View) error {
		applied = v.Revision()
		return nil
	})
	if err != nil {
		x.failRead(&info, err)
		return
	}
	if !placed {
		f.pos = command.EndOf(applied)
	}
	x.readHeaders(&info, max(applied, 1))
	x.oldestHeader(&info)
	h := x.w.Header()
	h["Content-Type"], h["Cache-Control"] = kindEvents, headNoStore
	h["X-Accel-Buffering"] = headNo // a proxy would keep events to itself
	x.w.WriteHeader(nethttp.StatusOK)
	x.out = nil // the pool's may be large

	s.feeds.join(f, applied)
	defer s.feeds.leave(f)
	if err := f.run(); err != nil {
		s.log.Debug("feed broke off", "prefix", prefix, "error", err)
		panic(nethttp.ErrAbortHandler)
	}
}

// place finds where the feed begins: behind the last event the client has, or
// where it says. placed is false when that is the present.
func (f *feed) place() (placed bool, err error) {
	q := &f.x.q
	if q.has(paramTo) || q.has(paramLimit) {
		return false, badRequest("Invalid to or limit: a stream has no end")
	}
	from, err := q.countedNumber(paramFrom)
	if err != nil {
		return false, err
	}
	if id := headerValue(f.x.r.Header, "Last-Event-Id"); id != "" {
		return true, f.resume(id)
	}
	f.listing = q.has(paramInit)
	switch {
	case from > 0 && f.listing:
		return false, badRequest("Cannot specify ?from with ?init: the list is that of now")
	case from > 0:
		f.pos = command.EndOf(from - 1)
		return true, nil
	}
	return false, nil
}

// resume places the feed behind the event with this id.
func (f *feed) resume(id string) (err error) {
	wrong := badRequest("Invalid Last-Event-ID: " + strconv.Quote(id) + " is not the id of an event")
	revision, key, listing := strings.Cut(id, "@")
	revision, k, inside := strings.Cut(revision, ".")
	n, err := strconv.ParseUint(revision, 10, 64)
	if err != nil {
		return wrong
	}
	f.pos = command.EndOf(n)
	switch {
	case listing:
		f.listing = true
		f.listed, err = url.QueryUnescape(key)
	case inside:
		n, err = strconv.ParseUint(k, 10, 32)
		if !planted.Bug("rest-of-an-index-lost") {
			f.pos.K = uint32(n)
		}
	}
	if err != nil || listing && inside {
		return wrong
	}
	return nil
}

// run sends until the feed ends. An error means that it had to break off.
func (f *feed) run() error {
	s, ctx := f.x.s, f.x.r.Context()
	// Who is cut off before the first event is to know where it was.
	if f.send(f.sign(nil)) != nil {
		return nil
	}
	sent := time.Now()
	silence := time.NewTimer(feedSilence)
	defer silence.Stop()
	for s.stopping.Err() == nil && ctx.Err() == nil {
		buffer := feedBuffers.Get().(*[]byte)
		b, level, err := f.gather((*buffer)[:0])
		if err == nil && len(b) == 0 && time.Since(sent) >= feedSilence {
			b = f.sign(b)
		}
		gone, some := false, len(b) > 0
		if some {
			gone = f.send(b) != nil
			sent = time.Now()
		}
		if cap(b) <= keptBuffer {
			*buffer = b
			feedBuffers.Put(buffer)
		}
		switch {
		case gone, errors.Is(err, command.ErrCompacted), ctx.Err() != nil, s.stopping.Err() != nil:
			return nil
		case err != nil:
			return err
		case some, !level:
			continue
		}
		silence.Reset(feedSilence - time.Since(sent))
		select {
		case <-f.wake:
		case <-silence.C:
		case <-ctx.Done():
		case <-s.stopping.Done():
		}
	}
	return nil
}

// send gives the client b at once. It has WriteTimeout to take it.
func (f *feed) send(b []byte) error {
	f.x.renewWrite()
	if err := f.x.write(b); err != nil {
		return err
	}
	_ = nethttp.NewResponseController(f.x.w).Flush() // what fails ends the request's context
	return nil
}

// sign is a sign of life, with the place to resume at: an id without an event.
func (f *feed) sign(b []byte) []byte {
	b = append(b, ":\n"...)
	if !f.listing {
		b = appendFeedID(b, f.x.s.feeds.place(f))
	}
	return append(b, '\n')
}

// gather appends what is to be sent next, about a piece of it. level says that
// there is no more for now. With command.ErrCompacted, the last event is in out.
func (f *feed) gather(b []byte) (out []byte, level bool, err error) {
	if f.listing {
		return f.list(b)
	}
	out, covered, err := f.x.s.feeds.collect(f, b)
	if covered || err != nil {
		return out, len(out) == 0, err
	}
	out, err = f.catchUp(b)
	return out, false, err
}

// catchUp gathers what the hub does not have, or no longer, from the store.
func (f *feed) catchUp(b []byte) ([]byte, error) {
	var reached command.Position
	b, err := f.read(b, command.ReadOptions{}, func(b []byte, v command.View) ([]byte, error) {
		var err error
		reached, err = changesAfter(v, f.prefix, f.pos, math.MaxUint64, time.Now(), func(ch *command.Change) (more bool, err error) {
			if len(b) >= feedPiece {
				return false, nil
			}
			b, err = appendFeedChange(b, v, ch)
			return true, err
		})
		return b, err
	})
	if err == nil {
		f.pos = reached
	}
	return b, err
}

// list gathers entries as of the feed's position, and ends with sync. A node that
// has not applied it yet is waited for.
func (f *feed) list(b []byte) (out []byte, late bool, err error) {
	at, listed, whole := f.pos.Revision, f.listed, false
	o := command.ReadOptions{MinRevision: at, Wait: feedSilence}
	b, err = f.read(b, o, func(b []byte, v command.View) ([]byte, error) {
		listed, whole = f.listed, true
		err := v.ScanAt(f.prefix, listed, at, func(r command.Record) bool {
			if whole = len(b) < feedPiece; whole {
				b = appendFeedEntry(b, at, &r)
				listed = r.Key
			}
			return whole
		})
		return b, err
	})
	if errors.Is(err, command.ErrRevisionNotReached) {
		return b, true, nil
	}
	if err != nil {
		return b, false, err
	}
	f.listed = listed
	if whole {
		f.listing = false
		b = appendFeedSync(b, at)
	}
	return b, false, nil
}

// read has fn append to b from this node's own state. When what it wants is
// compacted, that is what is appended.
func (f *feed) read(b []byte, o command.ReadOptions, fn func([]byte, command.View) ([]byte, error)) ([]byte, error) {
	s := f.x.s
	ctx, cancel := context.WithCancel(f.x.r.Context())
	defer cancel()
	defer context.AfterFunc(s.stopping, cancel)()
	o.Mode = command.ReadStale
	var out []byte
	info, err := s.node.Read(ctx, o, func(v command.View) (err error) {
		out, err = fn(b[:0], v)
		return err
	})
	switch {
	case err == nil:
		return out, nil
	case errors.Is(err, command.ErrCompacted):
		return appendFeedCompacted(b[:0], info.Oldest), command.ErrCompacted
	default:
		return b[:0], err
	}
}

// appendFeedID begins an event.
func appendFeedID(b []byte, at command.Position) []byte {
	b = append(b, "id: "...)
	b = appendUint(b, at.Revision)
	if !at.IsEnd() {
		b = append(b, '.')
		b = appendUint(b, uint64(at.K))
	}
	return append(b, '\n')
}

func appendFeedChange(b []byte, v command.View, ch *command.Change) ([]byte, error) {
	op, before, err := compare(v, ch)
	if err != nil {
		return b, err
	}
	b = appendFeedID(b, ch.At)
	b = append(b, "event: "...)
	b = append(b, op...)
	b = append(b, "\ndata: "...)
	b = appendChange(b, ch, op, before)
	return append(b, "\n\n"...), nil
}

// appendFeedEntry shows an entry of the list as the change that made it.
func appendFeedEntry(b []byte, revision uint64, r *command.Record) []byte {
	b = append(b, "id: "...)
	b = appendUint(b, revision)
	b = append(b, '@')
	b = append(b, url.QueryEscape(r.Key)...)
	b = append(b, "\nevent: put\ndata: "...)
	ch := command.Change{At: command.Position{Revision: r.ModifyRevision}, Record: *r}
	b = appendChange(b, &ch, opPut, nil)
	return append(b, "\n\n"...)
}

func appendFeedSync(b []byte, revision uint64) []byte {
	b = appendFeedID(b, command.EndOf(revision))
	b = append(b, "event: sync\ndata: {\"Index\":"...)
	b = appendUint(b, revision)
	return append(b, "}\n\n"...)
}

// appendFeedCompacted takes the id back: a client that resumes by itself would
// only hear the same again.
func appendFeedCompacted(b []byte, oldest uint64) []byte {
	b = append(b, "id:\nevent: compacted\ndata: {\"Oldest\":"...)
	b = appendUint(b, oldest)
	return append(b, "}\n\n"...)
}
