package bench

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// answering is a connection to somebody who says text, in pieces of a size, and then goes.
func answering(text string, piece int) *Conn { return newConn(&script{rest: text, piece: piece}) }

func (c *Conn) get() error {
	_, err := c.Do([]byte("GET / HTTP/1.1\r\n\r\n"), time.Now().Add(10*time.Second))
	return err
}

func TestAnswersAreRead(t *testing.T) {
	for name, c := range map[string]struct {
		text   string
		status int
		body   string
		index  uint64
		closes bool
	}{
		"with a length":         {"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-Consul-Index: 5\r\n\r\ntrue", 200, "true", 5, false},
		"fields in other cases": {"HTTP/1.1 404 Not Found\r\ncontent-length:0\r\nx-consul-INDEX:7\r\n\r\n", 404, "", 7, false},
		"in chunks":             {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\nA\r\n0123456789\r\n0\r\n\r\n", 200, "ab0123456789", 0, false},
		"with a trailer":        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nA: b\r\n\r\n", 200, "x", 0, false},
		"until the end":         {"HTTP/1.1 200 OK\r\n\r\nall of this", 200, "all of this", 0, true},
		"the last one":          {"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx", 200, "x", 0, true},
		"of an old server":      {"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", 200, "x", 0, true},
		"without a body":        {"HTTP/1.1 204 No Content\r\n\r\n", 204, "", 0, false},
		"behind another":        {"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", 200, "x", 0, false},
	} {
		for _, piece := range []int{1, 3, 1000} {
			text := c.text
			if !c.closes {
				text += "HTTP/1.1 299 Next\r\nContent-Length: 0\r\n\r\n"
			}
			got := answering(text, piece)
			err := got.get()
			if err != nil || got.head.status != c.status || string(got.body) != c.body || got.Index != c.index || got.head.closes != c.closes {
				t.Errorf("%s, %d bytes at a time: %+v, body %q, %v", name, piece, got.head, got.body, err)
			}
			if err := got.get(); !c.closes && (err != nil || got.head.status != 299) {
				t.Errorf("%s, %d bytes at a time: the answer behind it: %+v, %v", name, piece, got.head, err)
			}
		}
	}
}

func TestBrokenAnswersAreErrors(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"nothing":                {"", "connection lost"},
		"half a head":            {"HTTP/1.1 200 OK\r\nContent-Le", "connection lost"},
		"half a body":            {"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntr", "connection lost"},
		"half a chunk":           {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", "connection lost"},
		"no last chunk":          {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", "connection lost"},
		"another protocol":       {"SSH-2.0-OpenSSH_9.9\r\n\r\n", "answer not understood"},
		"no status":              {"HTTP/1.1 abc OK\r\n\r\n", "answer not understood"},
		"a length that is none":  {"HTTP/1.1 200 OK\r\nContent-Length: 1x\r\n\r\n", "answer not understood"},
		"a length below 0":       {"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "answer not understood"},
		"a field without an end": {"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 5000) + "\r\n\r\n", "answer not understood"},
	} {
		got := answering(c.text, 1000)
		if err := got.get(); err == nil || troubleOf(err) != c.want {
			t.Errorf("%s: %+v, body %q, %v", name, got.head, got.body, err)
		}
	}
}

func TestAddresses(t *testing.T) {
	for given, want := range map[string]address{
		"127.0.0.1":             {host: "127.0.0.1:8500"},
		"127.0.0.1:1":           {host: "127.0.0.1:1"},
		"http://node.example/":  {host: "node.example:8500"},
		"https://node.example":  {host: "node.example:8500", tls: true},
		"[::1]:2":               {host: "[::1]:2"},
		"ftp://node.example":    {},
		"node.example/path":     {},
		"http://u@node.example": {},
		"":                      {},
	} {
		got, err := parseAddress(given, "8500")
		want.given = got.given
		if (err == nil) != (want.host != "") || err == nil && got != want {
			t.Errorf("%q: %+v, %v", given, got, err)
		}
	}
}

func TestNoAnswerInTime(t *testing.T) {
	near, far := net.Pipe()
	defer func() { _ = near.Close(); _ = far.Close() }()
	go func() { _, _ = io.Copy(io.Discard, far) }()
	_, err := newConn(near).Do([]byte("GET / HTTP/1.1\r\n\r\n"), time.Now().Add(10*time.Millisecond))
	if err == nil || troubleOf(err) != "no answer in time" {
		t.Error(err)
	}
	if got := troubleOf(errors.Join(&refusal{"503 no"})); got != "503 no" {
		t.Error(got)
	}
}
