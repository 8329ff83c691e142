package http

import (
	"bytes"
	"encoding/json"
	"errors"
	nethttp "net/http"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/holdfast-db/holdfast/command"
)

const (
	// pieceSize is how much of a long reply is written under one deadline, and
	// how much of it is gathered before the next buffer is begun.
	pieceSize = 256 << 10
	// keptBuffer is the largest buffer that goes back to the pool.
	keptBuffer = 1 << 20
	// bufferedByServer is the size up to which net/http computes the length of
	// a reply by itself, when the handler ends with it.
	bufferedByServer = 2 << 10
)

// exchange is one request and its reply. Exchanges are pooled with their
// buffers: nothing may hold on to one after its handler returned.
type exchange struct {
	s     *Server
	w     replier
	r     *nethttp.Request
	start time.Time
	q     query
	base  string // of the route: the path before what the request names

	// out is the reply, or its last part when it has grown long; more has the
	// parts before it.
	out  []byte
	more [][]byte
	// gathered counts the bytes in more.
	gathered int64

	read keyRead
	// known is the index that a blocking read waits to see passed; 0 when the reply
	// waits for nothing.
	known   uint64
	pending pending
	// parked: the connection was taken away, and this exchange has no reply.
	parked bool
}

// replier is what a reply goes to. The status of one that was not written yet can be
// changed.
type replier interface {
	nethttp.ResponseWriter
	// Status is the one set last, 200 when none was.
	Status() int
	// Written reports whether the reply has begun; WriteHeaderNow begins it.
	Written() bool
	WriteHeaderNow()
}

var exchanges = sync.Pool{New: func() any {
	x := &exchange{out: make([]byte, 0, usualBuffer)}
	x.read.one = x.readOne
	x.read.list = x.readList
	return x
}}

// answerer answers a request, and reports whether the reply is whole: the connection
// of one that is not must be closed, silently.
type answerer func(w replier, r *nethttp.Request) (whole bool)

// answerer makes the answerer of a route.
func (s *Server) answerer(rt route) answerer {
	observe := s.metrics.route(rt.method, rt.path)
	base, _ := rt.base()
	return func(w replier, r *nethttp.Request) (whole bool) {
		x := exchanges.Get().(*exchange)
		x.s, x.w, x.r, x.base, x.start = s, w, r, base, time.Now()
		s.metrics.inFlight.Add(1)
		defer func() {
			s.metrics.inFlight.Add(-1)
			p := recover()
			whole = p == nil || x.survive(p)
			if !x.parked {
				observe(x.w.Status(), time.Since(x.start))
			}
			x.release()
		}()
		x.serve(rt)
		return true
	}
}

// handler makes gin's handler of what answers the requests of a route.
func handler(answer answerer) gin.HandlerFunc {
	return func(c *gin.Context) {
		if !answer(c.Writer, c.Request) {
			panic(nethttp.ErrAbortHandler)
		}
	}
}

func (x *exchange) serve(rt route) {
	if x.s.stopping.Err() != nil {
		x.lastOfConn()
	}
	if x.r.ContentLength != 0 {
		// Nobody may keep us waiting for a body, whether it is read or not.
		x.renewRead(x.s.cfg.BodyTimeout)
	}
	if err := x.q.parse(x.r.URL.RawQuery, rt.params); err != nil {
		x.fail(err)
		return
	}
	if rt.scoped() {
		if err := x.q.scope(x.s.cfg.Datacenter, x.r.Header); err != nil {
			x.fail(err)
			return
		}
	}
	rt.handle(x.s, x)
}

// lastOfConn has the connection closed behind this reply, and the client told.
func (x *exchange) lastOfConn() { x.w.Header()["Connection"] = []string{"close"} }

// survive answers a request whose handler panicked, and reports whether it
// could. A reply that was begun can only be cut off, so that nobody takes it
// for a whole one.
func (x *exchange) survive(p any) bool {
	if p == nethttp.ErrAbortHandler {
		return false
	}
	x.s.log.Error("request handler panicked", "method", x.r.Method, "path", x.r.URL.Path, "panic", p, "stack", string(debug.Stack()))
	if x.w.Written() {
		return false
	}
	clear(x.w.Header())
	x.fail(&problem{
		status: nethttp.StatusInternalServerError, code: codeInternal,
		text: "Internal error", hint: "the cause is in the log of this node",
	})
	return true
}

// release gives the exchange back to the pool.
func (x *exchange) release() {
	x.resetReply()
	if cap(x.out) > keptBuffer {
		x.out = make([]byte, 0, usualBuffer)
	}
	x.s, x.w, x.r = nil, nil, nil
	x.read.clear()
	x.known, x.pending, x.parked = 0, pending{}, false
	if x.q.given != 0 {
		x.q = query{}
	}
	exchanges.Put(x)
}

// resetReply forgets what was gathered for the reply.
func (x *exchange) resetReply() {
	x.out, x.more, x.gathered = x.out[:0], nil, 0
}

// spill begins a new buffer when the current one is full, so that a long reply
// is never copied to grow.
func (x *exchange) spill() {
	if len(x.out) < pieceSize {
		return
	}
	x.gathered += int64(len(x.out))
	x.more = append(x.more, x.out)
	x.out = make([]byte, 0, pieceSize+pieceSize/8)
}

// Header values that never change. net/http copies them.
var (
	kindJSON   = []string{"application/json"}
	kindText   = []string{"text/plain; charset=utf-8"}
	kindNDJSON = []string{"application/x-ndjson"}
	headTrue   = []string{"true"}
	headFalse  = []string{"false"}
	headNoSniff,
	headSandbox,
	headUnknown = []string{"nosniff"}, []string{"sandbox"}, []string{"unknown"}
)

// reply sends what out and more hold.
func (x *exchange) reply(status int, kind []string) {
	h := x.w.Header()
	h["Content-Type"] = kind
	size := x.gathered + int64(len(x.out))
	if size > bufferedByServer || status >= nethttp.StatusBadRequest {
		h["Content-Length"] = []string{strconv.FormatInt(size, 10)}
	}
	x.begin(status)
	for _, b := range x.more {
		if x.write(b) != nil {
			return
		}
	}
	_ = x.write(x.out) // the client is gone; there is nobody to tell
}

// replyJSON sends what out and more hold, indented when the client asked.
func (x *exchange) replyJSON(status int) {
	if x.q.has(paramPretty) {
		var indented bytes.Buffer
		if json.Indent(&indented, bytes.Join(append(x.more, x.out), nil), "", "    ") == nil {
			indented.WriteByte('\n')
			x.resetReply()
			x.out = indented.Bytes()
		}
	}
	x.reply(status, kindJSON)
}

// replyValue sends v as JSON with status 200.
func (x *exchange) replyValue(v any) { x.replyStatus(nethttp.StatusOK, v) }

// replyStatus sends v as JSON.
func (x *exchange) replyStatus(status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		x.fail(err)
		return
	}
	x.out = append(x.out[:0], b...)
	x.replyJSON(status)
}

// replyEmpty sends a status and headers only.
func (x *exchange) replyEmpty(status int) {
	x.begin(status)
	x.w.WriteHeaderNow()
}

// begin sets the status of a reply. The server's own write deadline, set when
// the request arrived, serves for what is small and soon; a reply that took
// its time needs a new one.
func (x *exchange) begin(status int) {
	if time.Since(x.start) > x.s.cfg.WriteTimeout/4 {
		x.renewWrite()
	}
	x.w.WriteHeader(status)
}

// write sends b in pieces, each of a long reply under its own deadline: one
// that moves is not cut off, one that the client does not take is.
func (x *exchange) write(b []byte) error {
	long := x.gathered > 0 || len(b) > pieceSize
	for len(b) > 0 {
		n := min(len(b), pieceSize)
		if long {
			x.renewWrite()
		}
		if _, err := x.w.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// renewWrite gives the next write the whole of WriteTimeout.
func (x *exchange) renewWrite() {
	// Not every ResponseWriter has deadlines; those of connections do.
	_ = nethttp.NewResponseController(x.w).SetWriteDeadline(time.Now().Add(x.s.cfg.WriteTimeout))
}

// fail answers with the status and text of err.
func (x *exchange) fail(err error) {
	if x.parked {
		return
	}
	p, known := explain(err)
	if !known {
		x.s.log.Error("request failed", "method", x.r.Method, "path", x.r.URL.Path, "error", err)
	} else if p.status >= 500 && x.s.log.IsDebug() {
		x.s.log.Debug("request failed", "method", x.r.Method, "path", x.r.URL.Path, "error", err)
	}
	x.resetReply()
	if wantsJSON(x.r.Header) {
		x.out = appendProblem(x.out, p, false)
		x.reply(p.status, kindJSON)
		return
	}
	x.out = append(x.out, p.text...)
	x.w.Header()["X-Content-Type-Options"] = headNoSniff
	x.reply(p.status, kindText)
}

// failRead is fail for a read: it also says what the asked node could tell.
func (x *exchange) failRead(info *command.ReadInfo, err error) {
	if info.Node != "" {
		x.readHeaders(info, 0)
	}
	if errors.Is(err, command.ErrCompacted) {
		x.oldestHeader(info)
	}
	x.fail(err)
}

// oldestHeader says since which revision history is kept.
func (x *exchange) oldestHeader(info *command.ReadInfo) {
	if info.Oldest > 0 {
		x.w.Header()["X-Holdfast-Oldest"] = []string{strconv.FormatUint(info.Oldest, 10)}
	}
}

// readHeaders says what the answer of a read is worth. All numbers share one
// string and all one-element lists one array, since this is the hot path.
// Index 0 sends no index: the read failed. tag is the index as an entity tag.
func (x *exchange) readHeaders(info *command.ReadInfo, index uint64) (tag []string) {
	h := x.w.Header()
	lists := new([7]string)
	var scratch [80]byte
	b := append(scratch[:0], '"')
	b = appendUint(b, index)
	b = append(b, '"')
	endIndex := len(b)
	b = appendUint(b, milliseconds(info.LastContact))
	endContact := len(b)
	b = appendUint(b, info.Revision)
	endApplied := len(b)
	if info.StalenessKnown {
		b = appendUint(b, milliseconds(info.Staleness+time.Millisecond-1)) // an upper bound: round up
	}
	all := string(b)

	if index > 0 {
		lists[0] = all[1 : endIndex-1]
		h["X-Consul-Index"] = lists[0:1:1]
	}
	if info.KnownLeader {
		h["X-Consul-Knownleader"] = headTrue
	} else {
		h["X-Consul-Knownleader"] = headFalse
	}
	lists[1] = all[endIndex:endContact]
	h["X-Consul-Lastcontact"] = lists[1:2:2]
	lists[2] = info.Node
	h["X-Holdfast-Node"] = lists[2:3:3]
	lists[3] = info.Site
	h["X-Holdfast-Site"] = lists[3:4:4]
	lists[4] = all[endContact:endApplied]
	h["X-Holdfast-Applied"] = lists[4:5:5]
	lists[6] = all[:endIndex]
	tag = lists[6:7:7]
	if info.StalenessKnown {
		lists[5] = all[endApplied:]
		h["X-Holdfast-Staleness"] = lists[5:6:6]
		return tag
	}
	h["X-Holdfast-Staleness"] = headUnknown
	if !info.FreshAsOf.IsZero() {
		h["X-Holdfast-Fresh-As-Of"] = []string{info.FreshAsOf.UTC().Format(time.RFC3339Nano)}
	}
	return tag
}

func milliseconds(d time.Duration) uint64 { return uint64(max(d, 0) / time.Millisecond) }

// statusHeaders are the read headers of an answer made of the node's own
// knowledge rather than of a view.
func (x *exchange) statusHeaders(st *command.NodeStatus) {
	h := x.w.Header()
	known := headFalse
	if st.Leader != "" || st.LeaderID != "" {
		known = headTrue
	}
	h["X-Consul-Knownleader"] = known
	h["X-Consul-Lastcontact"] = []string{strconv.FormatUint(milliseconds(st.LastContact), 10)}
	h["X-Holdfast-Node"] = []string{st.Name}
	h["X-Holdfast-Site"] = []string{st.Site}
	h["X-Holdfast-Applied"] = []string{strconv.FormatUint(st.Revision, 10)}
}

// readOptions reads how a read wants to be answered.
func (x *exchange) readOptions() (o command.ReadOptions, err error) {
	if o.Wait, err = x.q.waiting(); err != nil {
		return o, err
	}
	stale, consistent := x.q.has(paramStale), x.q.has(paramConsistent)
	if x.q.has(paramMaxStale) {
		v := x.q.get(paramMaxStale)
		// No answer keeps a bound of zero, and to drop the bound would be worse.
		if o.MaxStale, err = time.ParseDuration(v); err != nil || o.MaxStale <= 0 {
			return o, badRequest("Invalid max_stale: " + strconv.Quote(v) + " is not a duration above zero, like 5s")
		}
		stale = true
	}
	switch {
	case stale && consistent:
		return o, badRequest("Cannot specify ?stale with ?consistent, conflicting semantics.").advise("?consistent is for the newest data, ?stale for the nearest; leave one out")
	case stale:
		o.Mode = command.ReadStale
	case consistent:
		o.Mode = command.ReadConsistent
	}
	wanted := x.q.get(paramMinIndex)
	if wanted == "" {
		wanted = headerValue(x.r.Header, "X-Holdfast-Min-Index")
	}
	if wanted != "" {
		if o.MinRevision, err = strconv.ParseUint(wanted, 10, 64); err != nil {
			return o, badRequest("Invalid min_index: " + strconv.Quote(wanted) + " is not a number from 0 to 2^64-1")
		}
	}
	return o, nil
}

// pastRevision reads rev, the revision at which a read is to be evaluated, and
// settles o for it; 0 when it was not given.
func (x *exchange) pastRevision(o *command.ReadOptions) (uint64, error) {
	revision, err := x.q.countedNumber(paramRev)
	if err != nil || revision == 0 {
		return 0, err
	}
	// The state at a revision is the same on every node that has applied it, and
	// does not age. So there is no leader to ask and no staleness to bound,
	// whatever mode was asked for: this node answers once it has the revision. One
	// that never held a complete state refuses, as it does any stale read.
	o.Mode, o.MaxStale = command.ReadStale, 0
	o.MinRevision = max(o.MinRevision, revision)
	return revision, nil
}
