package http

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	nethttp "net/http"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/holdfast-db/holdfast/command"
)

// script is a connection whose client sends all it has to say, piece by piece, and then
// no more.
type script struct {
	mu     sync.Mutex
	input  []byte
	piece  int // bytes per read
	output bytes.Buffer
	over   chan struct{} // closed with the connection
	close  func()
}

func newScript(input []byte, piece int) *script {
	c := &script{input: input, piece: piece, over: make(chan struct{})}
	c.close = sync.OnceFunc(func() { close(c.over) })
	return c
}

func (c *script) Read(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.input) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), c.piece)], c.input)
	c.input = c.input[n:]
	return n, nil
}

func (c *script) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.output.Write(b)
}

func (c *script) Close() error                     { c.close(); return nil }
func (c *script) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *script) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *script) SetDeadline(time.Time) error      { return nil }
func (c *script) SetReadDeadline(time.Time) error  { return nil }
func (c *script) SetWriteDeadline(time.Time) error { return nil }

var dates = regexp.MustCompile(`\r\nDate: [A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT\r\n`)

// played is what comes of a script: all that the client got, and all that was written.
type played struct {
	output   string
	proposed []command.Command
	asked    command.ReadOptions
}

// play has a server serve a script. By itself it begins with the loop of hot requests;
// plain leaves all to net/http. Runs in a bubble.
func play(t *testing.T, input []byte, piece int, plain bool) (p played) {
	n := newFakeNode()
	n.apply(&command.Put{Key: "a", Value: []byte("value")})
	n.apply(&command.Put{Key: "long", Value: bytes.Repeat([]byte("v"), 20<<10)})
	n.apply(&command.Put{Key: "medium", Value: bytes.Repeat([]byte("v"), 3<<10)})
	n.propose = func(_ context.Context, c command.Command) (command.Result, error) {
		if put, ok := c.(*command.Put); ok && put.Key == "panic" {
			panic("on purpose")
		}
		return n.apply(c), nil
	}
	s := newTestServer(t, n, func(cfg *Config) { cfg.Log = hclog.NewNullLogger() })
	l := newPipes()
	served := make(chan error, 1)
	go func() {
		if plain {
			served <- s.server.Serve(l)
			return
		}
		served <- s.Serve(l)
	}()
	c := newScript(bytes.Clone(input), piece)
	l.made <- c
	<-c.over
	_ = s.Shutdown(context.Background())
	<-served
	synctest.Wait()
	return played{dates.ReplaceAllString(c.output.String(), "\r\nDate: some\r\n"), n.proposed, n.asked}
}

// differs says how the answers to a script differ from net/http's.
func differs(t *testing.T, input []byte, piece int) string {
	var got, want played
	synctest.Test(t, func(t *testing.T) { want = play(t, input, 4096, true) })
	synctest.Test(t, func(t *testing.T) { got = play(t, input, piece, false) })
	switch {
	case got.output != want.output:
		return fmt.Sprintf("got\n%q\nand of net/http\n%q", got.output, want.output)
	case !reflect.DeepEqual(got.proposed, want.proposed):
		return fmt.Sprintf("proposed %+v\nand by net/http %+v", got.proposed, want.proposed)
	case got.asked != want.asked:
		return fmt.Sprintf("asked %+v\nand by net/http %+v", got.asked, want.asked)
	}
	return ""
}

// sent are requests as clients and those who mean harm send them.
var sent = []struct {
	hot     bool // the first of them is
	request string
}{
	{true, "GET /v1/kv/a HTTP/1.1\r\nHost: h\r\n\r\n"},
	{true, "GET /v1/kv/a?raw HTTP/1.1\r\nhost: h\r\nUser-Agent: curl/8\r\nAccept: */*\r\n\r\n"},
	{true, "GET /v1/kv/a?stale&max_stale=5s&dc=dc1&pretty HTTP/1.1\r\nHost: [::1]:8500\r\nConnection: Keep-Alive\r\n\r\n"},
	{true, "GET /v1/kv/a?consistent&min_index=1 HTTP/1.1\r\nHost: h\r\n\r\n"},
	{true, "GET /v1/kv/a?rev=1 HTTP/1.1\r\nHost: h\r\nX-Holdfast-Min-Index:\t2 \r\n\r\n"},
	{true, "GET /v1/kv/none HTTP/1.1\r\nHost: h\r\n\r\n"},
	{true, "GET /v1/kv/long?raw HTTP/1.1\r\nHost: h\r\n\r\n"},
	{true, "GET /v1/kv/medium HTTP/1.1\r\nHost: h\r\n\r\n"},
	{true, "GET /v1/kv/a HTTP/1.1\r\nHost: h\r\nIf-None-Match: \"1\"\r\n\r\n"},
	{true, "GET /v1/kv/a HTTP/1.1\r\nHost: h\r\nIf-None-Match: \"7\"\r\nIf-None-Match: *\r\n\r\n"},
	{true, "GET /v1/kv/a?stale&consistent HTTP/1.1\r\nHost: h\r\nAccept: application/json\r\n\r\n"},
	{true, "GET /v1/kv/a?dc=other HTTP/1.1\r\nHost: h\r\n\r\n"},
	{true, "GET /v1/kv/a?wait=x HTTP/1.1\r\nHost: h\r\n\r\n"},
	{true, "GET /v1/kv/ HTTP/1.1\r\nHost: h\r\n\r\n"},
	{true, "GET /v1/kv//a//?raw?raw&&=&raw=1;x HTTP/1.1\r\nHost: h\r\n\r\n"},
	{true, "GET /v1/kv/../kv/a HTTP/1.1\r\nHost: h\r\n\r\n"},
	{true, "GET /v1/kv/:key*/\"<>|{}^`\\ HTTP/1.1\r\nHost: h\r\n\r\n"},
	{true, "GET /v1/kv/" + strings.Repeat("k", 3000) + " HTTP/1.1\r\nHost: h\r\n\r\n"},
	{true, "GET /v1/kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"},
	{true, "GET /v1/kv/a HTTP/1.1\r\nHost: h\r\nX-Consul-Namespace: other\r\n\r\n"},
	{true, "PUT /v1/kv/b HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nnew"},
	{true, "PUT /v1/kv/b HTTP/1.1\r\nHost: h\r\n\r\n"},
	{true, "PUT /v1/kv/a?cas=1&flags=42 HTTP/1.1\r\nHost: h\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nnew"},
	{true, "PUT /v1/kv/a?cas=9&strict HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nnew"},
	{true, "PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nIf-Match: \"9\"\r\nContent-Length: 3\r\n\r\nnew"},
	{true, "PUT /v1/kv/a?cas=x HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nnew"},
	{true, "PUT /v1/kv/a?cas=x HTTP/1.1\r\nHost: h\r\nContent-Length: 60000\r\n\r\n" + strings.Repeat("v", 60000)},
	{true, "PUT /v1/kv/a?cas=x HTTP/1.1\r\nHost: h\r\nContent-Length: 60000\r\n\r\nshort"},
	{true, "PUT /v1/kv/a?acquire=some-session HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nnew"},
	{true, "PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nIdempotency-Key: one\r\nContent-Length: 3\r\n\r\nnew"},
	{true, "PUT /v1/kv/panic HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nnew"},
	{true, "PUT /v1/kv/b HTTP/1.1\r\nHost: h\r\nContent-Length: 65536\r\n\r\n" + strings.Repeat("v", 65536)},
	{true, "PUT /v1/kv/b HTTP/1.1\r\nHost: h\r\nContent-Length: 200\r\n\r\nshort"},
	{true, "DELETE /v1/kv/a?cas=1 HTTP/1.1\r\nHost: h\r\n\r\n"},
	{true, "DELETE /v1/kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"},
	{true, strings.Repeat("GET /v1/kv/a?raw HTTP/1.1\r\nHost: h\r\n\r\nPUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nnew", 200)},
	{true, "GET /v1/kv/a HTTP/1.1\r\nHost: h\r\n\r\nGET /healthz HTTP/1.1\r\nHost: h\r\n\r\nGET /v1/kv/a HTTP/1.1\r\nHost: h\r\n\r\n"},
	{true, "GET /v1/kv/a HTTP/1.1\r\nHost: h\r\n\r\nGET /v1/kv/a HTTP/1.1\r\nHost"},
	{true, "GET /v1/kv/a HTTP/1.1\r\nHost: h\r\n\r\n\r\n"},

	// What is not hot.
	{false, ""},
	{false, "GET /v1/kv/a"},
	{false, "\r\nGET /v1/kv/a HTTP/1.1\r\nHost: h\r\n\r\n"},
	{false, "GET /v1/kv/a?index=x HTTP/1.1\r\nHost: h\r\n\r\n"},
	{false, "GET /v1/kv/?recurse HTTP/1.1\r\nHost: h\r\n\r\n"},
	{false, "GET /v1/kv/?%72ecurse HTTP/1.1\r\nHost: h\r\n\r\n"},
	{false, "GET /v1/kv/?keys&separator=/ HTTP/1.1\r\nHost: h\r\n\r\n"},
	{false, "DELETE /v1/kv/?recurse HTTP/1.1\r\nHost: h\r\n\r\n"},
	{false, "HEAD /v1/kv/a HTTP/1.1\r\nHost: h\r\n\r\n"},
	{false, "POST /v1/kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nnew"},
	{false, "OPTIONS /v1/kv/a HTTP/1.1\r\nHost: h\r\n\r\n"},
	{false, "get /v1/kv/a HTTP/1.1\r\nHost: h\r\n\r\n"},
	{false, "GET /v1/kv HTTP/1.1\r\nHost: h\r\n\r\n"},
	{false, "GET /v1/status/leader HTTP/1.1\r\nHost: h\r\n\r\n"},
	{false, "GET http://h/v1/kv/a HTTP/1.1\r\nHost: other\r\n\r\n"},
	{false, "GET //v1/kv/a HTTP/1.1\r\nHost: h\r\n\r\n"},
	{false, "GET /v1/kv/%61 HTTP/1.1\r\nHost: h\r\n\r\n"},
	{false, "GET /v1/kv/a%2Fb HTTP/1.1\r\nHost: h\r\n\r\n"},
	{false, "GET /v1/kv/a%00 HTTP/1.1\r\nHost: h\r\n\r\n"},
	{false, "GET /v1/kv/a%zz HTTP/1.1\r\nHost: h\r\n\r\n"},
	{false, "GET /v1/kv/a#b HTTP/1.1\r\nHost: h\r\n\r\n"},
	{false, "GET /v1/kv/\xc3\xa4 HTTP/1.1\r\nHost: h\r\n\r\n"},
	{false, "GET /v1/kv/a\x00 HTTP/1.1\r\nHost: h\r\n\r\n"},
	{false, "GET /v1/kv/a b HTTP/1.1\r\nHost: h\r\n\r\n"},
	{false, "GET  /v1/kv/a HTTP/1.1\r\nHost: h\r\n\r\n"},
	{false, "GET\t/v1/kv/a HTTP/1.1\r\nHost: h\r\n\r\n"},
	{false, "GET /v1/kv/a HTTP/1.1 \r\nHost: h\r\n\r\n"},
	{false, "GET /v1/kv/a HTTP/1.0\r\nHost: h\r\n\r\n"},
	{false, "GET /v1/kv/a HTTP/2.0\r\nHost: h\r\n\r\n"},
	{false, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
	{false, "GET /v1/kv/a\r\n\r\n"},
	{false, "GET /v1/kv/a HTTP/1.1\nHost: h\n\n"},
	{false, "GET /v1/kv/a HTTP/1.1\r\nHost: h\n\r\n"},
	{false, "GET /v1/kv/a HTTP/1.1\r\nHost: h\r\n\n"},
	{false, "GET /v1/kv/a HTTP/1.1\r\nHost: h\rX: y\r\n\r\n"},
	{false, "GET /v1/kv/a HTTP/1.1\r\n\r\n"},
	{false, "GET /v1/kv/a HTTP/1.1\r\nHost:\r\n\r\n"},
	{false, "GET /v1/kv/a HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n"},
	{false, "GET /v1/kv/a HTTP/1.1\r\nHost: h h\r\n\r\n"},
	{false, "GET /v1/kv/a HTTP/1.1\r\nHost : h\r\n\r\n"},
	{false, "GET /v1/kv/a HTTP/1.1\r\n Host: h\r\n\r\n"},
	{false, "GET /v1/kv/a HTTP/1.1\r\nHost: h\r\nAccept: a\r\n b\r\n\r\n"},
	{false, "GET /v1/kv/a HTTP/1.1\r\nHost: h\r\nAccept: \x01\r\n\r\n"},
	{false, "GET /v1/kv/a HTTP/1.1\r\nHost: h\r\nAccept\r\n\r\n"},
	{false, "GET /v1/kv/a HTTP/1.1\r\nHost: h\r\n: x\r\n\r\n"},
	{false, "GET /v1/kv/a HTTP/1.1\r\nHost: h\r\nX-Unknown: 1\r\n\r\n"},
	{false, "GET /v1/kv/a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"},
	{false, "GET /v1/kv/a HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, close\r\n\r\n"},
	{false, "GET /v1/kv/a HTTP/1.1\r\nHost: h\r\nConnection: keep-alive\r\nConnection: close\r\n\r\n"},
	{false, "GET /v1/kv/a HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"},
	{false, "GET /v1/kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nnew"},
	{false, "GET /v1/kv/a HTTP/1.1\r\nHost: h\r\nAccept: " + strings.Repeat("x", 5000) + "\r\n\r\n"},
	{false, "GET /v1/kv/a HTTP/1.1\r\nHost: h\r\nAccept: " + strings.Repeat("x", 80<<10) + "\r\n\r\n"},
	{false, "DELETE /v1/kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nnew"},
	{false, "PUT /v1/kv/b HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nnew"},
	{false, "PUT /v1/kv/b HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nnew"},
	{false, "PUT /v1/kv/b HTTP/1.1\r\nHost: h\r\nContent-Length: 3, 3\r\n\r\nnew"},
	{false, "PUT /v1/kv/b HTTP/1.1\r\nHost: h\r\nContent-Length: +3\r\n\r\nnew"},
	{false, "PUT /v1/kv/b HTTP/1.1\r\nHost: h\r\nContent-Length: -3\r\n\r\nnew"},
	{false, "PUT /v1/kv/b HTTP/1.1\r\nHost: h\r\nContent-Length: 03\r\n\r\nnew"},
	{false, "PUT /v1/kv/b HTTP/1.1\r\nHost: h\r\nContent-Length: 0x3\r\n\r\nnew"},
	{false, "PUT /v1/kv/b HTTP/1.1\r\nHost: h\r\nContent-Length:\r\n\r\nnew"},
	{false, "PUT /v1/kv/b HTTP/1.1\r\nHost: h\r\nContent-Length: 18446744073709551617\r\n\r\nnew"},
	{false, "PUT /v1/kv/b HTTP/1.1\r\nHost: h\r\nContent-Length: 65537\r\n\r\n" + strings.Repeat("v", 65537)},
	{false, "PUT /v1/kv/b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nnew\r\n0\r\n\r\n"},
	{false, "PUT /v1/kv/b HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nnew\r\n0\r\n\r\n"},
	{false, "PUT /v1/kv/b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\nContent-Length: 3\r\n\r\nnew"},
	{false, "PUT /v1/kv/b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding : chunked\r\nContent-Length: 3\r\n\r\nnew"},
	{false, "PUT /v1/kv/b HTTP/1.1\r\nHost: h\r\nTransfer_Encoding: chunked\r\nContent-Length: 3\r\n\r\nnew"},
	{false, "PUT /v1/kv/b HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nnew"},
	{false, "PUT /v1/kv/b HTTP/1.1\r\nHost: h\r\nExpect: more\r\nContent-Length: 3\r\n\r\nnew"},
	{false, "PUT /v1/kv/b?await=all HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nnew"},
}

// probe is sent behind each, to see whether the connection can still be used.
const probe = "GET /v1/kv/a?raw&probe HTTP/1.1\r\nHost: h\r\n\r\n"

func TestHotRequestsAreAnsweredAsByNetHTTP(t *testing.T) {
	for _, row := range sent {
		name := row.request[:min(len(row.request), 120)]
		for _, tail := range []string{"", probe, "BAD\r\n\r\n"} {
			if diff := differs(t, []byte(row.request+tail), 4096); diff != "" {
				t.Errorf("%q and %q: %s", name, tail, diff)
			}
		}
		for _, piece := range []int{1, 7, 1460} {
			if len(row.request) > 300*piece {
				continue
			}
			if diff := differs(t, []byte(row.request+probe), piece); diff != "" {
				t.Errorf("%q in pieces of %d: %s", name, piece, diff)
			}
		}
		var h hotHead
		if _, f := h.parse([]byte(row.request[:min(len(row.request), hotHeadSize)])); (f == fits) != row.hot {
			t.Errorf("%q: hot is %v", name, f == fits)
		}
	}
}

func FuzzHotRequestsAreAnsweredAsByNetHTTP(f *testing.F) {
	for _, row := range sent {
		f.Add([]byte(row.request+probe), uint16(4096))
	}
	f.Add([]byte("PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nnew"+probe), uint16(10))
	f.Fuzz(func(t *testing.T, input []byte, piece uint16) {
		// What other requests are told may be of the moment.
		for _, other := range []string{"/metrics", "/v1/agent", "/v1/replica", "stream", "index", "wait"} {
			if bytes.Contains(input, []byte(other)) {
				t.Skip()
			}
		}
		if diff := differs(t, input, max(1, int(piece))); diff != "" {
			t.Errorf("%q in pieces of %d: %s", input, piece, diff)
		}
	})
}

func TestAHotConnectionHasAnIdleTimeout(t *testing.T) {
	n := newFakeNode()
	inVirtualTime(t, n, func(t *testing.T, c net.Conn) {
		in := bufio.NewReader(c)
		for range 5 { // longer than the timeout in all
			asks(t, c, in, "GET /v1/kv/a")
			time.Sleep(50 * time.Second)
		}
		began := time.Now().Add(-50 * time.Second)
		if b, err := in.ReadByte(); err != io.EOF || time.Since(began) != 2*time.Minute {
			t.Errorf("%q %v after %v", b, err, time.Since(began))
		}
	})
}

func TestAHotConnectionIsClosedWhenAHeadIsNotFinished(t *testing.T) {
	inVirtualTime(t, newFakeNode(), func(t *testing.T, c net.Conn) {
		in := bufio.NewReader(c)
		asks(t, c, in, "GET /v1/kv/a")
		time.Sleep(time.Minute)
		_, _ = io.WriteString(c, "GET /v1/kv/a HTTP/1.1\r\nHo")
		began := time.Now()
		if b, err := in.ReadByte(); err != io.EOF || time.Since(began) != 10*time.Second {
			t.Errorf("%q %v after %v", b, err, time.Since(began))
		}
	})
}

// slowly has each write of n take d, or until its client is gone.
func slowly(n *fakeNode, d time.Duration) (ended chan error) {
	ended = make(chan error, 9)
	n.propose = func(ctx context.Context, c command.Command) (res command.Result, err error) {
		select {
		case <-time.After(d):
			res = n.apply(c)
		case <-ctx.Done():
			err = ctx.Err()
		}
		ended <- err
		return res, err
	}
	return ended
}

const putA = "PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nv"

func TestAHotRequestEndsSoonAfterItsClient(t *testing.T) {
	n := newFakeNode()
	inVirtualTime(t, n, func(t *testing.T, c net.Conn) {
		ended := slowly(n, time.Minute)
		_, _ = io.WriteString(c, putA)
		_ = c.Close()
		began := time.Now()
		if err := <-ended; err == nil || time.Since(began) > lookAfter {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

// A connection that was looked at is as good as before, and what came meanwhile is not
// lost.
func TestRequestsBehindASlowHotOneAreAnsweredInOrder(t *testing.T) {
	n := newFakeNode()
	inVirtualTime(t, n, func(t *testing.T, c net.Conn) {
		slowly(n, 3*lookAfter)
		in := bufio.NewReader(c)
		for _, pause := range []time.Duration{0, lookAfter / 2, 2 * lookAfter, 4 * lookAfter, time.Minute} {
			go func() {
				_, _ = io.WriteString(c, putA)
				time.Sleep(pause)
				_, _ = io.WriteString(c, "GET /v1/kv/a?raw HTTP/1.1\r\nHost: h\r\n\r\nGET /v1/kv/none HTTP/1.1\r\nHost: h\r\n\r\n")
			}()
			for i, want := range []int{200, 200, 404} {
				if res, body := answerOf(t, in, "GET"); res.StatusCode != want {
					t.Errorf("answer %d with a pause of %v: %d %q", i, pause, res.StatusCode, body)
				}
			}
		}
	})
}

func TestAClientThatDoesNotTakeAHotReplyIsCutOff(t *testing.T) {
	n := newFakeNode()
	inVirtualTime(t, n, func(t *testing.T, c net.Conn) {
		in := bufio.NewReader(c)
		asks(t, c, in, "GET /v1/kv/a")
		time.Sleep(time.Minute)
		send(c, "GET /v1/kv/a")
		began := time.Now()
		time.Sleep(40 * time.Second)
		if b, err := in.ReadByte(); err != io.EOF || time.Since(began) > time.Minute {
			t.Errorf("%q %v after %v", b, err, time.Since(began))
		}
	})
}

// The end of a node is told to those that are busy with it, in whatever they ask for.
func TestAHotConnectionCanAskForAnythingWhileTheNodeLingers(t *testing.T) {
	n := newFakeNode()
	synctest.Test(t, func(t *testing.T) {
		s, l := newTestServer(t, n, func(cfg *Config) { cfg.Linger = 100 * time.Millisecond }), newPipes()
		served := make(chan error, 1)
		go func() { served <- s.Serve(l) }()
		c := l.dial()
		in := bufio.NewReader(c)
		asks(t, c, in, "GET /v1/kv/a")
		down := make(chan error, 1)
		go func() { down <- s.Shutdown(context.Background()) }()
		<-s.stopping.Done()
		synctest.Wait()
		if res, body := asks(t, c, in, "GET /readyz"); res.StatusCode != 503 || !res.Close {
			t.Errorf("%d %q, the last: %v", res.StatusCode, body, res.Close)
		}
		if err := <-down; err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

func TestAServerThatEndsWaitsForHotRequestsAndTakesNoMore(t *testing.T) {
	n := newFakeNode()
	synctest.Test(t, func(t *testing.T) {
		slowly(n, 2*time.Second)
		s, l := newTestServer(t, n), newPipes()
		served := make(chan error, 1)
		go func() { served <- s.Serve(l) }()
		busy, idle := l.dial(), l.dial()
		_, _ = io.WriteString(busy, putA)
		began, down := time.Now(), make(chan error, 1)
		go func() { down <- s.Shutdown(context.Background()) }()
		time.Sleep(time.Second)
		if b, err := io.ReadAll(idle); len(b) > 0 || err != nil {
			t.Errorf("an idle connection got %q, %v", b, err)
		}
		if b, err := io.ReadAll(l.dial()); len(b) > 0 || err != nil {
			t.Errorf("a late connection got %q, %v", b, err)
		}
		in := bufio.NewReader(busy)
		if res, body := answerOf(t, in, "PUT"); res.StatusCode != 200 || body != "true" {
			t.Errorf("%d %q", res.StatusCode, body)
		}
		if _, err := in.ReadByte(); err != io.EOF {
			t.Error("the connection is left open")
		}
		if err := <-down; err != nil || time.Since(began) > 3*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

func TestTheDateOfRepliesMovesOn(t *testing.T) {
	inVirtualTime(t, newFakeNode(), func(t *testing.T, c net.Conn) {
		in := bufio.NewReader(c)
		for range 3 {
			now := time.Now().UTC().Format(nethttp.TimeFormat)
			if res, _ := asks(t, c, in, "GET /v1/kv/a"); res.Header.Get("Date") != now {
				t.Errorf("%s at %s", res.Header.Get("Date"), now)
			}
			time.Sleep(time.Second)
		}
	})
}
