package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Pair is one record of a bulk stream, as `consul kv export` writes it.
type Pair struct {
	Key   string `json:"key"`
	Flags uint64 `json:"flags"`
	Value []byte `json:"value"`
}

// Export calls fn for each key that starts with prefix, in ascending order, all
// at one revision: Meta.Index. A nil error means that fn saw all of them. An
// error of fn ends the stream and comes back unchanged.
//
// Another server is tried only as long as fn was not called.
func (c *Client) Export(ctx context.Context, prefix string, fn func(Pair) error, opts ...ReadOption) (Meta, error) {
	path, err := bulkPath(prefix)
	if err != nil {
		return Meta{}, err
	}
	r := read(opts).request(path)
	var (
		meta  Meta
		ended error // the stream's end, once fn was called
	)
	err = c.each(ctx, r, func(s server) (bool, error) {
		ctx, dog := watch(ctx, c.timeout+r.wait)
		defer dog.stop()
		res, sent, err := c.send(ctx, s, r, dog)
		if err != nil {
			return sent, dog.cause(err)
		}
		defer func() { _ = res.Body.Close() }()
		meta = parseMeta(s, res.Header)
		started := false
		err = readPairs(watchedReader{res.Body, dog}, func(p Pair) error {
			started = true
			return fn(p)
		})
		if err = dog.cause(err); err != nil && started {
			ended = err
			return true, nil
		}
		return true, err
	})
	if err == nil {
		err = ended
	}
	return meta, err
}

// readPairs reads one JSON array to its end.
func readPairs(r io.Reader, fn func(Pair) error) error {
	broken := func(err error) error {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("the export was cut off: %w", err)
	}
	d := json.NewDecoder(r)
	if t, err := d.Token(); err != nil {
		return broken(err)
	} else if t != json.Delim('[') {
		return fmt.Errorf("the export begins with %v instead of an array", t)
	}
	for d.More() {
		var p Pair
		if err := d.Decode(&p); err != nil {
			return broken(err)
		}
		if err := fn(p); err != nil {
			return err
		}
	}
	if _, err := d.Token(); err != nil {
		return broken(err)
	}
	return nil
}

func bulkPath(prefix string) (string, error) {
	if strings.HasPrefix(prefix, "/") {
		return "", leadingSlash("prefix", prefix)
	}
	return "/v1/bulk/" + prefix, nil
}

// errStalled ends a stream on which nothing moved.
var errStalled = errors.New("nothing was transferred for too long")

// watchdog cancels a context when nothing moved for a while.
type watchdog struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	limit  time.Duration
}

// watch returns a context that ends with errStalled once moved was not called
// for limit.
func watch(ctx context.Context, limit time.Duration) (context.Context, *watchdog) {
	ctx, cancel := context.WithCancelCause(ctx)
	return ctx, &watchdog{
		ctx: ctx, cancel: cancel, limit: limit,
		timer: time.AfterFunc(limit, func() { cancel(fmt.Errorf("%w (%v)", errStalled, limit)) }),
	}
}

func (w *watchdog) moved() { w.timer.Reset(w.limit) }

func (w *watchdog) stop() {
	w.timer.Stop()
	w.cancel(nil)
}

// cause replaces an error that the watchdog brought about with its reason.
func (w *watchdog) cause(err error) error {
	if err != nil && errors.Is(context.Cause(w.ctx), errStalled) {
		return context.Cause(w.ctx)
	}
	return err
}

// watchedReader tells the watchdog, if there is one, of every byte that passes.
type watchedReader struct {
	io.Reader
	dog *watchdog
}

func (r watchedReader) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	if n > 0 && r.dog != nil {
		r.dog.moved()
	}
	return n, err
}
