package http

import (
	"bufio"
	"context"
	"io"
	"net"
	nethttp "net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// These tests run in virtual time, over connections that live in memory, with
// the limits a real server has.

// pipes is a listener whose connections are made by dial.
type pipes struct {
	made   chan net.Conn
	closed context.Context
	close  context.CancelFunc
}

func newPipes() *pipes {
	p := &pipes{made: make(chan net.Conn)}
	p.closed, p.close = context.WithCancel(context.Background())
	return p
}

func (p *pipes) dial() net.Conn {
	ours, theirs := net.Pipe()
	p.made <- &halfClosing{Conn: theirs}
	return ours
}

// sendsNoMore is sent last by a client that goes on reading.
const sendsNoMore = "\x04"

// halfClosing is a server's end of a pipe whose client can end what it sends.
type halfClosing struct {
	net.Conn
	ended bool
}

func (c *halfClosing) Read(b []byte) (int, error) {
	if c.ended {
		return 0, io.EOF
	}
	n, err := c.Conn.Read(b)
	if c.ended = strings.HasSuffix(string(b[:n]), sendsNoMore); c.ended {
		n--
	}
	return n, err
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.made:
		return c, nil
	case <-p.closed.Done():
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.close(); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// inVirtualTime serves n and gives test a connection to it.
func inVirtualTime(t *testing.T, n Node, test func(t *testing.T, c net.Conn)) {
	synctest.Test(t, func(t *testing.T) {
		s, l := newTestServer(t, n), newPipes()
		served := make(chan error, 1)
		go func() { served <- s.Serve(l) }()
		c := l.dial()
		defer func() {
			_ = c.Close()
			if err := s.Shutdown(context.Background()); err != nil {
				t.Error(err)
			}
			if err := <-served; err != nil {
				t.Error(err)
			}
		}()
		test(t, c)
	})
}

func TestStalledRequestsAreCutOff(t *testing.T) {
	for _, row := range []struct {
		name, request, text string
		after               time.Duration
	}{
		{"value", "PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhalf", "HTTP/1.1 408", 30 * time.Second},
		{"chunked value", "PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", "HTTP/1.1 408", 30 * time.Second},
		{"bulk", "PUT /v1/bulk/ HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n{\"key\":", "HTTP/1.1 408", 30 * time.Second},
		{"bulk with progress", "PUT /v1/bulk/ HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n{\"key\":\"a\"}\n", `"status":408`, 30 * time.Second},
		{"headers", "GET /v1/kv/a HTTP/1.1\r\nHost:", "", 10 * time.Second},
		{"nothing", "", "", 10 * time.Second},
		{"body nobody reads", "DELETE /v1/kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhalf", "", 30 * time.Second},
		{"next request", "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n", "HTTP/1.1 200", 2 * time.Minute},
	} {
		t.Run(row.name, func(t *testing.T) {
			inVirtualTime(t, newFakeNode(), func(t *testing.T, c net.Conn) {
				began := time.Now()
				_, _ = io.WriteString(c, row.request)
				reply, err := io.ReadAll(c) // until the server closes
				if took := time.Since(began); err != nil || !strings.Contains(string(reply), row.text) || took < row.after || took > row.after+time.Second {
					t.Errorf("after %v: %q %v", took, reply, err)
				}
			})
		})
	}
}

// TestSlowUploadsThatMoveGoThrough sends with pauses shorter than the limit for
// much longer than the limit.
func TestSlowUploadsThatMoveGoThrough(t *testing.T) {
	for _, row := range []struct{ name, head, piece, reply string }{
		{"bulk", "PUT /v1/bulk/", `{"key":"a"}`, "\n" + `{"Done":20,"Index":20,"Errors":[]}` + "\n"},
		{"value", "PUT /v1/kv/a", strings.Repeat("v", 20<<10), "true"},
	} {
		t.Run(row.name, func(t *testing.T) {
			inVirtualTime(t, newFakeNode(), func(t *testing.T, c net.Conn) {
				go func() {
					w := bufio.NewWriter(c)
					_, _ = io.WriteString(w, row.head+" HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
					body := chunked{w}
					for range 20 {
						time.Sleep(7 * time.Second) // virtual
						body.send(row.piece)
					}
					body.send("")
				}()
				res, err := nethttp.ReadResponse(bufio.NewReader(c), nil)
				if err != nil {
					t.Fatal(err)
				}
				text, err := io.ReadAll(res.Body)
				if err != nil || res.StatusCode != 200 || !strings.HasSuffix(string(text), row.reply) {
					t.Errorf("%d %q %v", res.StatusCode, text, err)
				}
			})
		})
	}
}

// chunked sends a body in chunks; an empty one ends it.
type chunked struct{ w *bufio.Writer }

func (c chunked) send(s string) {
	const digits = "0123456789abcdef"
	var size []byte
	for n := len(s); n > 0 || len(size) == 0; n /= 16 {
		size = append([]byte{digits[n%16]}, size...)
	}
	_, _ = c.w.WriteString(string(size) + "\r\n" + s + "\r\n")
	_ = c.w.Flush()
}

// TestABrokenUploadSaysWhatWasWritten breaks the body off while a write is under way:
// the request ends with its body, but neither the write nor the answer does.
func TestABrokenUploadSaysWhatWasWritten(t *testing.T) {
	n := newFakeNode()
	inVirtualTime(t, n, func(t *testing.T, c net.Conn) {
		decided := make(chan struct{})
		n.propose = func(ctx context.Context, c command.Command) (command.Result, error) {
			select {
			case <-decided:
				return n.apply(c), nil
			case <-ctx.Done():
				return command.Result{}, ctx.Err()
			}
		}
		_, _ = io.WriteString(c, "PUT /v1/bulk/ HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n{\"key\":\"a\"}\n{"+sendsNoMore)
		synctest.Wait() // all that comes of the break has come
		close(decided)
		res, err := nethttp.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(res.Body) // behind its last line the connection is cut
		ps := lines(t, string(text))
		last := ps[len(ps)-1]
		if res.StatusCode != 200 || last.Done != 1 || len(last.Errors) != 1 ||
			last.Errors[0].Message != "Request body ended early: unexpected EOF" {
			t.Errorf("%d %q", res.StatusCode, text)
		}
	})
}

// TestValueThatTricklesIsCutOff sends a byte now and then, which would keep a
// connection busy for days.
func TestValueThatTricklesIsCutOff(t *testing.T) {
	inVirtualTime(t, newFakeNode(), func(t *testing.T, c net.Conn) {
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			_, _ = io.WriteString(c, "PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n")
			for {
				time.Sleep(time.Second) // virtual
				if _, err := io.WriteString(c, "v"); err != nil {
					return
				}
			}
		}()
		began := time.Now()
		res, err := nethttp.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || res.StatusCode != 408 || time.Since(began) > time.Minute {
			t.Errorf("after %v: %+v %v", time.Since(began), res, err)
		}
		_ = c.Close()
		<-gone
	})
}

// TestReplyAfterALongWait takes longer than any of the server's limits.
func TestReplyAfterALongWait(t *testing.T) {
	n := newFakeNode()
	n.records["a"] = command.Record{Key: "a"} // an empty body
	wait := func(ctx context.Context) {
		select {
		case <-time.After(5 * time.Minute): // virtual
		case <-ctx.Done():
			t.Error("the request was cancelled meanwhile")
		}
	}
	n.propose = func(ctx context.Context, c command.Command) (command.Result, error) {
		wait(ctx)
		return n.apply(c), nil
	}
	n.read = func(ctx context.Context, _ command.ReadOptions) error {
		wait(ctx)
		return nil
	}
	for name, request := range map[string]string{
		"put":  "PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nv",
		"bulk": "PUT /v1/bulk/ HTTP/1.1\r\nHost: h\r\nContent-Length: 11\r\n\r\n{\"key\":\"a\"}",
		"get":  "GET /v1/kv/a?raw HTTP/1.1\r\nHost: h\r\n\r\n",
		"none": "GET /v1/kv/none HTTP/1.1\r\nHost: h\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, n, func(t *testing.T, c net.Conn) {
				_, _ = io.WriteString(c, request)
				res, err := nethttp.ReadResponse(bufio.NewReader(c), nil)
				if err != nil || res.StatusCode != 200 && res.StatusCode != 404 {
					t.Fatalf("%+v %v", res, err)
				}
				_, _ = io.Copy(io.Discard, res.Body)
			})
		})
	}
}

// A client sends its next request when the node is told to stop, and cannot know.
func TestARequestThatMeetsTheStopIsAnsweredAndTheClientToldToGo(t *testing.T) {
	n := newFakeNode()
	n.apply(&command.Put{Key: "a", Value: []byte("v")})
	synctest.Test(t, func(t *testing.T) {
		s, l := newTestServer(t, n, func(cfg *Config) { cfg.Linger = 100 * time.Millisecond }), newPipes()
		served := make(chan error, 1)
		go func() { served <- s.Serve(l) }()
		busy, idle := l.dial(), l.dial()
		in, unasked := bufio.NewReader(busy), bufio.NewReader(idle)
		for c, in := range map[net.Conn]*bufio.Reader{busy: in, idle: unasked} {
			send(c, "GET /v1/kv/a?raw")
			if res, _ := answerOf(t, in, "GET"); res.Close {
				t.Error("a connection ends though nobody stops")
			}
		}
		began, down := time.Now(), make(chan error, 1)
		go func() { down <- s.Shutdown(context.Background()) }()
		<-s.stopping.Done()
		synctest.Wait()
		send(busy, "GET /v1/kv/a?raw")
		if res, body := answerOf(t, in, "GET"); res.StatusCode != 200 || body != "v" || !res.Close {
			t.Errorf("%d %q; the client is told to go: %v", res.StatusCode, body, res.Close)
		}
		for who, c := range map[string]io.Reader{"the client": in, "who asks for nothing": unasked} {
			if b, err := io.ReadAll(c); len(b) > 0 || err != nil {
				t.Errorf("%s got %q more, %v", who, b, err)
			}
		}
		if err := <-down; err != nil || time.Since(began) > time.Second {
			t.Errorf("stopped after %v: %v", time.Since(began), err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}
