package http

import (
	"io"
	nethttp "net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// hotReplySize is up to which size a reply is gathered, to be sent at once; what is
// longer is sent behind its head.
const hotReplySize = 16 << 10

// hotReply is the reply to a hot request, the same as net/http makes of it. One whose
// length no header declares is written by one call of Write. Hot replies are pooled
// with their buffers.
type hotReply struct {
	c       *hotConn
	header  nethttp.Header
	status  int
	written bool // the head cannot be changed any more
	begun   bool // the head is in out, or was sent
	last    bool // the connection is to be closed behind it
	length  int64
	sent    int64 // bytes of the body in out, or behind it
	out     hotBuffer
	err     error // of the connection
}

var hotReplies = sync.Pool{New: func() any {
	return &hotReply{header: nethttp.Header{}, out: make(hotBuffer, 0, usualBuffer)}
}}

func (w *hotReply) release() {
	clear(w.header)
	*w = hotReply{header: w.header, out: w.out[:0]}
	hotReplies.Put(w)
}

// hotBuffer gathers what is to be sent.
type hotBuffer []byte

func (b *hotBuffer) Write(p []byte) (int, error) {
	*b = append(*b, p...)
	return len(p), nil
}

func (b *hotBuffer) WriteString(s string) (int, error) {
	*b = append(*b, s...)
	return len(s), nil
}

// Header implements nethttp.ResponseWriter.
func (w *hotReply) Header() nethttp.Header { return w.header }

// Status is that of the reply, as far as it is known.
func (w *hotReply) Status() int {
	if w.status == 0 {
		return nethttp.StatusOK
	}
	return w.status
}

// Written reports whether the head cannot be changed any more.
func (w *hotReply) Written() bool { return w.written }

// WriteHeader implements nethttp.ResponseWriter.
func (w *hotReply) WriteHeader(status int) {
	if !w.written {
		w.status = status
	}
}

// WriteHeaderNow settles the head.
func (w *hotReply) WriteHeaderNow() { w.written = true }

// SetReadDeadline is about the body.
func (w *hotReply) SetReadDeadline(t time.Time) error {
	w.c.bodyBy = t
	return nil
}

// SetWriteDeadline is about the reply.
func (w *hotReply) SetWriteDeadline(t time.Time) error {
	w.c.writeBy = t
	return w.c.conn.SetWriteDeadline(t)
}

// Write implements io.Writer.
func (w *hotReply) Write(b []byte) (int, error) {
	w.begin(int64(len(b)))
	if w.sent += int64(len(b)); w.sent > w.length || !w.hasBody() {
		panic("http: a reply is longer than it was declared")
	}
	if len(w.out)+len(b) <= hotReplySize {
		return w.out.Write(b)
	}
	w.flush()
	w.send(b)
	return len(b), w.err
}

func (w *hotReply) hasBody() bool { return w.Status() != nethttp.StatusNotModified }

// begin makes the head, of a body of length bytes unless a header says otherwise.
func (w *hotReply) begin(length int64) {
	if w.begun {
		return
	}
	w.begun, w.written = true, true
	declared := headerValue(w.header, "Content-Length")
	if w.length = length; declared != "" {
		w.length, _ = strconv.ParseInt(declared, 10, 64)
	}
	w.last = headerValue(w.header, "Connection") == "close"
	broken := !w.last && w.c.discard() != nil
	b := append(w.out, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(w.Status()), 10)
	b = append(b, ' ')
	b = append(b, nethttp.StatusText(w.Status())...)
	b = append(b, "\r\n"...)
	w.out = b
	_ = w.header.Write(&w.out)
	b = append(w.out, "Date: "...)
	b = append(b, httpDate(time.Now())...)
	if declared == "" && w.hasBody() {
		b = append(b, "\r\nContent-Length: "...)
		b = strconv.AppendInt(b, length, 10)
	}
	if broken { // what comes next is no request
		w.last = true
		b = append(b, "\r\nConnection: close"...)
	}
	w.out = append(b, "\r\n\r\n"...)
}

// finish sends what was not sent yet, and reports whether the connection can be used
// for another request.
func (w *hotReply) finish() bool {
	w.begin(0)
	w.flush()
	return w.err == nil && !w.last && w.sent == w.length
}

func (w *hotReply) flush() {
	w.send(w.out)
	w.out = w.out[:0]
}

// send sends b. The client may take as long for it as x.begin leaves it.
func (w *hotReply) send(b []byte) {
	if limit := w.c.s.cfg.WriteTimeout; time.Until(w.c.writeBy) < limit-limit/4 {
		_ = w.SetWriteDeadline(time.Now().Add(limit))
	}
	if w.err == nil {
		_, w.err = w.c.conn.Write(b)
	}
}

// discard reads what its handler did not want of the body. There are clients that read
// no reply before all of their request is sent.
func (c *hotConn) discard() error {
	for c.unread > 0 {
		var scrap [512]byte
		if _, err := c.Read(scrap[:]); err != nil && err != io.EOF {
			return err
		}
	}
	return nil
}

// dated is the text of a second.
type dated struct {
	second int64
	text   string
}

var lastDate atomic.Pointer[dated]

// httpDate is the value of a Date header. It is made once a second.
func httpDate(now time.Time) string {
	d := lastDate.Load()
	if d == nil || d.second != now.Unix() {
		d = &dated{now.Unix(), now.UTC().Format(nethttp.TimeFormat)}
		lastDate.Store(d)
	}
	return d.text
}
