package http

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	nethttp "net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// instant is a node that costs nothing, to show what the API costs.
type instant struct {
	*fakeNode
	record command.Record
}

func newInstant() *instant {
	return &instant{newFakeNode(), command.Record{Key: "app/config/key", Value: bytes.Repeat([]byte("v"), 256), CreateRevision: 1000, ModifyRevision: 123456}}
}

func (n *instant) Propose(context.Context, command.Command) (command.Result, error) {
	return command.Result{OK: true, Revision: 123457}, nil
}

func (n *instant) Read(_ context.Context, _ command.ReadOptions, fn func(command.View) error) (command.ReadInfo, error) {
	return n.info, fn(instantView{n: n})
}

type instantView struct {
	command.View
	n *instant
}

func (v instantView) Get(string) (command.Record, error) { return v.n.record, nil }

// sink is a ResponseWriter that costs nothing but its header's map.
type sink struct {
	header nethttp.Header
	status int
}

func (s *sink) Header() nethttp.Header      { return s.header }
func (s *sink) Write(b []byte) (int, error) { return len(b), nil }
func (s *sink) WriteHeader(status int)      { s.status = status }

// Connections have deadlines.
func (s *sink) SetReadDeadline(time.Time) error  { return nil }
func (s *sink) SetWriteDeadline(time.Time) error { return nil }

func (s *sink) reset()                         { clear(s.header); s.status = 0 }
func (s *sink) check(b *testing.B, status int) { b.Helper(); checkStatus(b, s.status, status) }

func checkStatus(b *testing.B, got, want int) {
	b.Helper()
	if got != want {
		b.Fatalf("status %d", got)
	}
}

// BenchmarkHandler is the API alone: routing, parsing, headers, JSON.
func BenchmarkHandler(b *testing.B) {
	for _, row := range []struct {
		name, method, target string
		size                 int
	}{
		{"GetKey", "GET", "/v1/kv/app/config/key", 0},
		{"GetKeyStale", "GET", "/v1/kv/app/config/key?stale&max_stale=5s", 0},
		{"GetKeyRaw", "GET", "/v1/kv/app/config/key?raw", 0},
		{"PutKey", "PUT", "/v1/kv/app/config/key", 256},
		{"PutKeyCAS", "PUT", "/v1/kv/app/config/key?cas=123456&flags=42", 256},
	} {
		b.Run(row.name, func(b *testing.B) {
			s := newTestServer(b, newInstant())
			body := bytes.NewReader(make([]byte, row.size))
			req := httptest.NewRequest(row.method, row.target, body)
			w := &sink{header: nethttp.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				_, _ = body.Seek(0, io.SeekStart)
				w.reset()
				s.ServeHTTP(w, req)
			}
			w.check(b, 200)
		})
	}
}

// BenchmarkLoopback is a request over a kept connection, as a hot one and as net/http
// serves it, with a client that costs no more than its system calls.
func BenchmarkLoopback(b *testing.B) {
	for _, row := range []struct{ name, method, target, body string }{
		{"GetKey", "GET", "/v1/kv/app/config/key", ""},
		{"GetKeyStale", "GET", "/v1/kv/app/config/key?stale", ""},
		{"GetKeyConsistent", "GET", "/v1/kv/app/config/key?consistent", ""},
		{"PutKey", "PUT", "/v1/kv/app/config/key", strings.Repeat("v", 256)},
	} {
		for _, server := range []struct{ name, field string }{{"hot", ""}, {"net-http", "X-Unknown: 1\r\n"}} {
			b.Run(row.name+"/"+server.name, func(b *testing.B) {
				l, _ := listen(b, newTestServer(b, newInstant()))
				request := fmt.Appendf(nil, "%s %s HTTP/1.1\r\nHost: localhost\r\nUser-Agent: bench\r\nAccept: application/json\r\nAccept-Encoding: gzip\r\n%sContent-Length: %d\r\n\r\n%s",
					row.method, row.target, server.field, len(row.body), row.body)
				c := dial(b, l)
				_ = c.SetDeadline(time.Time{})
				_, _ = c.Write(request)
				first, err := nethttp.ReadResponse(bufio.NewReader(c), nil)
				if err != nil {
					b.Fatal(err)
				}
				checkStatus(b, first.StatusCode, 200)
				_, _ = c.Write(request)
				reply := make([]byte, 4096) // larger than any
				size, err := c.Read(reply)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportAllocs()
				before := processorTime()
				for b.Loop() {
					if _, err = c.Write(request); err == nil {
						_, err = io.ReadFull(c, reply[:size])
					}
					if err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64((processorTime()-before).Nanoseconds())/float64(b.N), "cpu-ns/op")
			})
		}
	}
}

// BenchmarkIdle is a connection on which a request was made, and which is kept: its
// memory, both ends included.
func BenchmarkIdle(b *testing.B) {
	for _, server := range []struct{ name, field string }{{"hot", ""}, {"net-http", "X-Unknown: 1\r\n"}} {
		b.Run(server.name, func(b *testing.B) {
			l, _ := listen(b, newTestServer(b, newInstant()))
			request := "GET /v1/kv/app/config/key HTTP/1.1\r\nHost: h\r\n" + server.field + "\r\n"
			reply := make([]byte, 4096)
			before := memoryInUse()
			for b.Loop() {
				c := dial(b, l)
				_, _ = io.WriteString(c, request)
				if _, err := c.Read(reply); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(memoryInUse()-before)/float64(b.N), "bytes/conn")
		})
	}
}

// memoryInUse is that of heap and stacks.
func memoryInUse() int64 {
	var m runtime.MemStats
	for range 3 { // what pools hold is given up, and stacks shrink
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// processorTime is what this process has used.
func processorTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkBulk is the taking apart of an upload, in bytes of JSON.
func BenchmarkBulk(b *testing.B) {
	var body bytes.Buffer
	for i := range 1000 {
		r := command.Record{Key: fmt.Sprintf("debian/package-%d/1.0", i), Value: bytes.Repeat([]byte{byte(i)}, 1500)}
		body.Write(append(appendPair(nil, &r), '\n'))
	}
	s := newTestServer(b, newInstant())
	b.SetBytes(int64(body.Len()))
	b.ReportAllocs()
	for b.Loop() {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest("PUT", "/v1/bulk/", bytes.NewReader(body.Bytes())))
		checkStatus(b, w.Code, 200)
	}
}
