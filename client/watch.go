package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// OpSync is the Op of an event that is no change: all keys there were have been
// listed, as of its Index.
const OpSync Op = "sync"

// Event is one change, or OpSync.
type Event struct {
	Change
	// ID names the place behind this event, for Start.After.
	ID string
}

// Start says where a watch begins; the zero value is now.
type Start struct {
	// From asks for all changes from this index on.
	From uint64
	// Init asks for all keys there are first, as if each were just put, then
	// OpSync, then what changes after it. From must be 0.
	Init bool
	// After goes on behind the event with this ID, and makes the others void.
	After string
}

// How long a watch waits between two rounds over servers that gave it nothing.
const (
	leastRetry = 100 * time.Millisecond
	mostRetry  = 2 * time.Second
)

// sign is how often a server gives a sign of life on a stream.
const sign = 15 * time.Second

// Watch calls fn for each change of a key under the prefix, in order, none left
// out and none twice, until ctx ends, whose cause it returns, or fn fails, whose
// error comes back unchanged. It stays with a server while that answers, and goes
// on at another: once it has been connected, it does not give up.
//
// Errors: command.ErrCompacted when what comes next is no longer kept, as an
// *Error that tells the oldest revision; begin anew with Init then.
func (c *Client) Watch(ctx context.Context, prefix string, start Start, fn func(Event) error, opts ...ReadOption) error {
	if strings.HasPrefix(prefix, "/") {
		return leadingSlash("prefix", prefix)
	}
	o := read(opts)
	if start.From > 0 {
		o.query.Set("from", strconv.FormatUint(start.From, 10))
	}
	if start.Init {
		o.query.Set("init", "")
	}
	w := watcher{c: c, fn: fn, request: o.request("/v1/changes/" + prefix)}
	w.request.accept, w.request.after = "text/event-stream, application/json", start.After
	for retry := leastRetry; ; {
		before := w.events
		err := c.each(ctx, w.request, func(s server) (bool, error) { return true, w.follow(ctx, s) })
		var named *Error
		switch {
		case w.ended != nil:
			return w.ended
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !w.connected, errors.As(err, &named) && named.Status < http.StatusInternalServerError:
			return err
		case w.events > before:
			retry = leastRetry
		}
		if err := pause(ctx, retry); err != nil {
			return err
		}
		retry = min(2*retry, mostRetry)
	}
}

// watcher is one Watch.
type watcher struct {
	c         *Client
	fn        func(Event) error
	request   request
	connected bool
	events    int
	ended     error // ends the watch
}

// follow reads one stream. The error says why it ended; nil that the watch did.
func (w *watcher) follow(ctx context.Context, s server) error {
	ctx, dog := watch(ctx, w.c.timeout+w.request.wait)
	defer dog.stop()
	res, _, err := w.c.send(ctx, s, w.request, dog)
	if err != nil {
		return dog.cause(err)
	}
	defer func() { _ = res.Body.Close() }()
	w.connected = true
	dog.limit = sign + w.c.timeout
	r := eventReader{r: bufio.NewReaderSize(watchedReader{res.Body, dog}, 64<<10), id: w.request.after}
	for {
		if err := r.next(); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return dog.cause(err)
		}
		if len(r.data) > 0 {
			// fn may take its time.
			dog.timer.Stop()
			if w.ended, err = w.deliver(s, &r); w.ended != nil || err != nil {
				return err
			}
			dog.moved()
		}
		w.request.after = r.id
	}
}

// deliver hands an event to fn. ended is what ends the watch.
func (w *watcher) deliver(s server, r *eventReader) (ended, err error) {
	if r.name == "compacted" {
		var at struct{ Oldest uint64 }
		if err := json.Unmarshal(r.data, &at); err != nil {
			return nil, notAnEvent(s, err)
		}
		return &Error{
			Address: s.address, Code: command.ErrCompacted.Code, Oldest: at.Oldest, sentinel: command.ErrCompacted,
			Message: fmt.Sprintf("%s: what follows %s, the oldest kept is %d", command.ErrCompacted.Message, w.place(), at.Oldest),
			Hint:    "begin again with what there is now",
		}, nil
	}
	var wire wireChange
	if err := json.Unmarshal(r.data, &wire); err != nil {
		return nil, notAnEvent(s, err)
	}
	wire.Op = Op(r.name)
	w.events++
	return w.fn(Event{Change: wire.change(), ID: r.id}), nil
}

// place says for people where the watch is.
func (w *watcher) place() string {
	if w.request.after == "" {
		return "the beginning asked for"
	}
	at, _, _ := strings.Cut(w.request.after, "@")
	return "revision " + at
}

func notAnEvent(s server, err error) error {
	return fmt.Errorf("%s sent something that is not an event of Holdfast: %w", s.address, err)
}

// eventReader takes server-sent events off a stream.
type eventReader struct {
	r *bufio.Reader
	// Of the last event. id stays until another one comes.
	id, name string
	data     []byte // valid until the next event
	line     []byte
}

// next reads up to the end of an event, which has no data when it only moves the
// id. io.EOF says that the stream ended, maybe inside one.
func (e *eventReader) next() error {
	e.name, e.data = "", e.data[:0]
	id := e.id
	for {
		line, err := e.readLine()
		if err != nil {
			return err
		}
		if len(line) == 0 {
			e.id = id
			return nil
		}
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(field) {
		case "id":
			id = string(value)
		case "event":
			e.name = string(value)
		case "data":
			if len(e.data) > 0 {
				e.data = append(e.data, '\n')
			}
			e.data = append(e.data, value...)
		}
	}
}

// readLine reads a line of any length, without its end.
func (e *eventReader) readLine() ([]byte, error) {
	e.line = e.line[:0]
	for {
		part, err := e.r.ReadSlice('\n')
		e.line = append(e.line, part...)
		if err == nil {
			return bytes.TrimRight(e.line, "\r\n"), nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
	}
}
