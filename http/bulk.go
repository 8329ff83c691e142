package http

import (
	"context"
	"errors"
	"io"
	nethttp "net/http"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

const (
	// chunkBytes and chunkPairs bound what one write of an upload carries.
	chunkBytes = 256 << 10
	chunkPairs = 1000
	// chunksInFlight is how many writes of one upload may be under way.
	chunksInFlight = 4
	// progressEvery bounds how often an upload's client is told.
	progressEvery = 200 * time.Millisecond
	// streamPiece is how much of an export is gathered before it is sent.
	streamPiece = 64 << 10
)

// putBulk is PUT /v1/bulk/PREFIX. The reply is lines of progress, the last of
// which has Errors; or an ordinary error when nothing was acknowledged. Two goroutines work on an upload: one, owned
// by this call, takes records off the body; this one makes chunks of them,
// keeps the writes going and tells the client.
func (s *Server) putBulk(x *exchange) {
	prefix := x.named()
	if err := checkKey(prefix); err != nil {
		x.fail(err)
		return
	}
	// Progress is told while records are still coming in.
	_ = nethttp.NewResponseController(x.w).EnableFullDuplex()
	// net/http ends a request's context when its body breaks off, and would so
	// hide the cause, and cut off writes that have what they need.
	ctx, cancel := context.WithCancel(context.WithoutCancel(x.r.Context()))
	release := context.AfterFunc(s.requests, cancel)
	up := &upload{x: x, ctx: ctx, cancel: cancel, groups: make(chan []command.KV), ended: make(chan struct{})}
	var unread error // the reading side's failure, valid once groups is closed
	whole := false   // the body was read to its end, valid once read is closed
	read := make(chan struct{})
	go func() {
		defer close(read)
		unread = up.read(prefix)
		close(up.groups)
		if whole = unread == nil; !whole {
			<-up.ended // first the client gets to know
			whole = !up.broken && x.drain()
		}
	}()
	defer func() {
		release()
		cancel()
		close(up.ended)
		<-read
		if !whole {
			// What the client still sends must not be taken for its next request,
			// and is not waited for.
			x.renewRead(time.Nanosecond)
			panic(nethttp.ErrAbortHandler)
		}
	}()
	err := up.run(&unread)
	up.finish(err)
	if err != nil {
		x.renewRead(drainPause) // what is left of the body need not arrive at leisure
	}
}

// upload is one PUT /v1/bulk under way.
type upload struct {
	x      *exchange
	ctx    context.Context // of the writes
	cancel context.CancelFunc

	// groups carries what was read to the writing side, in order.
	groups chan []command.KV
	// ended is closed when nothing more is wanted.
	ended chan struct{}
	// broken: the body cannot be read any further. Of the reading side.
	broken bool

	// All below belongs to the writing side.

	rest   []command.KV // of the last group, not in a chunk yet
	next   *chunk       // being filled
	flight []*chunk     // proposed, oldest first
	done   uint64       // records acknowledged, without gaps from the first on
	index  uint64       // highest revision among them
	told   time.Time
}

// chunk is some records that are written together.
type chunk struct {
	put   command.PutMany
	at    map[string]int // key -> its place in put
	bytes int
	count uint64 // records, repeated keys included
	// clash: a chunk in flight has one of the keys, and must come first.
	clash bool

	result  command.Result
	err     error
	decided chan struct{} // closed once result and err are set
}

func newChunk() *chunk {
	return &chunk{at: make(map[string]int), decided: make(chan struct{})}
}

func (c *chunk) full() bool { return c.count >= chunkPairs || c.bytes >= chunkBytes }

// add appends a record. A key that repeats replaces its earlier pair: the last
// one would win anyway.
func (c *chunk) add(kv command.KV) {
	c.count++
	c.bytes += len(kv.Key) + len(kv.Value)
	if i, ok := c.at[kv.Key]; ok {
		c.put.KVs[i] = kv
		return
	}
	c.at[kv.Key] = len(c.put.KVs)
	c.put.KVs = append(c.put.KVs, kv)
}

// read takes records off the body until it ends, fails, or is no longer
// wanted. Records are handed over in the groups in which they arrived, so that
// none waits for one that is still under way.
func (up *upload) read(prefix string) error {
	var (
		group []command.KV
		bytes int
		count int
	)
	hand := func() {
		if len(group) == 0 {
			return
		}
		select {
		case up.groups <- group:
		case <-up.ended:
		}
		group, bytes = nil, 0
	}
	cfg := &up.x.s.cfg
	rr := newRecordReader(up.x.r.Body, cfg.MaxRecord, func() {
		hand()
		up.x.renewRead(cfg.BodyTimeout)
	})
	for {
		p, err := rr.next()
		if err == nil {
			if p.Key == "" {
				err = errMissingKey.advise("give the record a key")
			} else {
				p.Key = prefix + p.Key
				err = checkPair(&p, cfg.MaxValue)
			}
		}
		if err != nil {
			hand()
			if err == io.EOF {
				up.x.renewRead(0)
				return nil
			}
			return up.explain(err, count+1, p.Key)
		}
		count++
		group = append(group, command.KV{Key: p.Key, Value: p.Value, Flags: p.Flags})
		if bytes += len(p.Key) + len(p.Value); bytes >= chunkBytes || len(group) >= chunkPairs {
			hand()
		}
		select {
		case <-up.ended:
			return context.Canceled
		default:
		}
	}
}

// explain says which record could not be taken, unless it is the connection
// that failed.
func (up *upload) explain(err error, number int, key string) error {
	var p *problem
	if !errors.As(err, &p) {
		up.broken = true
		return up.x.brokenBody(err)
	}
	which := "Record " + strconv.Itoa(number)
	if key != "" {
		which += " (" + strconv.Quote(key) + ")"
	}
	q := *p
	q.text = which + ": " + p.text
	return &q
}

// checkPair says why a record cannot be written.
func checkPair(p *pair, maxValue int64) error {
	if err := checkKey(p.Key); err != nil {
		return err
	}
	if int64(len(p.Value)) > maxValue {
		return valueTooLarge(p.Key, sizesOf(int64(len(p.Value)), maxValue))
	}
	if !defaultScope(p.Namespace) {
		return foreignScope("namespace", p.Namespace)
	}
	if !defaultScope(p.Partition) {
		return foreignScope("partition", p.Partition)
	}
	return nil
}

// run writes what is read until all of it is acknowledged or something fails,
// and returns the failure. *unread is the reading side's. No write is under
// way when it returns.
func (up *upload) run(unread *error) error {
	up.next = newChunk()
	defer func() {
		for _, c := range up.flight {
			<-c.decided
		}
	}()
	groups := up.groups
	for {
		for len(up.rest) > 0 && !up.next.full() {
			up.add(up.rest[0])
			up.rest = up.rest[1:]
		}
		if up.ready(groups == nil) {
			up.propose()
			continue
		}
		if groups == nil && len(up.flight) == 0 {
			return *unread
		}
		in := groups
		if up.next.full() {
			in = nil // let the sender wait
		}
		// A request ends with its body when that breaks off. Only a client whose body
		// is complete goes away by itself.
		var gone <-chan struct{}
		if groups == nil && *unread == nil {
			gone = up.x.r.Context().Done()
		}
		var oldest chan struct{}
		if len(up.flight) > 0 {
			oldest = up.flight[0].decided
		}
		select {
		case group, ok := <-in:
			if up.rest = group; !ok {
				groups = nil
			}
		case <-oldest:
			if err := up.acknowledge(); err != nil {
				return err
			}
		case <-up.x.s.stopping.Done():
			if len(up.flight) > 0 {
				return command.ErrOutcomeUnknown.With("node is stopping")
			}
			return command.ErrStopping
		case <-gone:
			up.cancel()
			return context.Canceled
		}
	}
}

// ready reports whether the next chunk should be proposed now: when it is full
// or nothing else is under way, and no more than allowed are.
func (up *upload) ready(last bool) bool {
	switch n := len(up.flight); {
	case up.next.count == 0:
		return false
	case n == 0:
		return true
	case up.next.clash || n == chunksInFlight:
		return false
	default:
		return last || up.next.full()
	}
}

func (up *upload) add(kv command.KV) {
	for _, c := range up.flight {
		if _, ok := c.at[kv.Key]; ok {
			up.next.clash = true
		}
	}
	up.next.add(kv)
}

// propose sends the next chunk on its way. A goroutine of its own waits for
// the result and ends with it.
func (up *upload) propose() {
	c := up.next
	up.flight, up.next = append(up.flight, c), newChunk()
	go func() {
		defer close(c.decided)
		c.result, c.err = up.x.s.node.Propose(up.ctx, &c.put)
		if c.err == nil {
			c.err = c.result.Err
		}
	}()
}

// acknowledge counts the oldest chunk in flight, which is decided.
func (up *upload) acknowledge() error {
	c := up.flight[0]
	up.flight = up.flight[1:]
	if c.err != nil {
		return c.err
	}
	up.done += c.count
	up.index = max(up.index, c.result.Revision)
	if now := time.Now(); now.Sub(up.told) >= progressEvery {
		up.told = now
		return up.tell(append(up.line(), '}', '\n'))
	}
	return nil
}

// line begins a line of progress.
func (up *upload) line() []byte {
	b := append(up.x.out[:0], `{"Done":`...)
	b = appendUint(b, up.done)
	b = append(b, `,"Index":`...)
	return appendUint(b, up.index)
}

// tell sends a line at once.
func (up *upload) tell(line []byte) error {
	x := up.x
	x.out = line
	if !x.w.Written() {
		x.w.Header()["Content-Type"] = kindNDJSON
		x.w.WriteHeader(nethttp.StatusOK)
	}
	x.renewWrite()
	if _, err := x.w.Write(line); err != nil {
		return context.Canceled // the client is gone
	}
	_ = nethttp.NewResponseController(x.w).Flush()
	return nil
}

// finish tells the outcome. An upload that failed before anything was
// acknowledged gets an ordinary error; once the client was told of progress,
// or has some to be told of, the error is in the last line.
func (up *upload) finish(failure error) {
	if failure != nil && up.done == 0 {
		up.x.lastOfConn() // the body may not come to its end
		up.x.fail(failure)
		_ = nethttp.NewResponseController(up.x.w).Flush()
		return
	}
	b := append(up.line(), `,"Errors":[`...)
	if failure != nil {
		p, known := explain(failure)
		if !known {
			up.x.s.log.Error("bulk upload failed", "error", failure, "done", up.done)
		}
		b = appendProblem(b, p, true)
	}
	_ = up.tell(append(b, "]}\n"...)) // the client is gone; there is nobody to tell
}

// getBulk is GET /v1/bulk/PREFIX: all records under the prefix at one revision.
func (s *Server) getBulk(x *exchange) {
	prefix := x.named()
	err := checkKey(prefix)
	var opts command.ReadOptions
	if err == nil {
		opts, err = x.readOptions()
	}
	var past uint64
	if err == nil {
		past, err = x.pastRevision(&opts)
	}
	if err != nil {
		x.fail(err)
		return
	}
	var revision uint64
	info, err := s.node.Read(x.r.Context(), opts, func(v command.View) error {
		revision = v.Revision()
		return nil
	})
	if err != nil {
		x.failRead(&info, err)
		return
	}
	if past > 0 {
		revision = past
	}
	x.readHeaders(&info, max(revision, 1))
	out := export{x: x, lines: strings.Contains(headerValue(x.r.Header, "Accept"), "application/x-ndjson")}
	if revision > 0 { // else there is nothing yet
		err = s.node.Export(x.r.Context(), prefix, revision, out.record)
	}
	if err == nil {
		err = out.end()
	}
	if err == nil {
		return
	}
	if x.w.Written() {
		s.log.Debug("export broke off", "prefix", prefix, "revision", revision, "error", err)
		// Only a cut connection tells the client that this is not all.
		panic(nethttp.ErrAbortHandler)
	}
	delete(x.w.Header(), "X-Consul-Index")
	x.failRead(&info, err)
}

// export writes records as they come, in pieces.
type export struct {
	x     *exchange
	lines bool // NDJSON instead of one array
	count int
}

func (e *export) record(r command.Record) error {
	x := e.x
	if !e.lines {
		if e.count == 0 {
			x.out = append(x.out, '[')
		} else {
			x.out = append(x.out, ",\n"...)
		}
	}
	x.out = appendPair(x.out, &r)
	if e.lines {
		x.out = append(x.out, '\n')
	}
	e.count++
	if len(x.out) >= streamPiece {
		return e.send()
	}
	return nil
}

func (e *export) end() error {
	if !e.lines {
		if e.count == 0 {
			e.x.out = append(e.x.out, '[')
		}
		e.x.out = append(e.x.out, "]\n"...)
	}
	return e.send()
}

func (e *export) send() error {
	x := e.x
	if !x.w.Written() {
		kind := kindJSON
		if e.lines {
			kind = kindNDJSON
		}
		x.w.Header()["Content-Type"] = kind
		x.w.WriteHeader(nethttp.StatusOK)
		x.w.WriteHeaderNow()
	}
	x.renewWrite()
	_, err := x.w.Write(x.out)
	x.out = x.out[:0]
	return err
}
