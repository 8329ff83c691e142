package http

import (
	"bytes"
	"context"
	"fmt"
	"io"
	nethttp "net/http"
	"net/http/httptest"
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

// BenchmarkLoopback is a request over a kept connection, client included.
func BenchmarkLoopback(b *testing.B) {
	for _, row := range []struct {
		name, method string
		size         int
	}{{"GetKey", "GET", 0}, {"PutKey", "PUT", 256}} {
		b.Run(row.name, func(b *testing.B) {
			_, base := listen(b, newTestServer(b, newInstant()))
			client := &nethttp.Client{Transport: &nethttp.Transport{MaxIdleConnsPerHost: 64}}
			value := make([]byte, row.size)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					req, _ := nethttp.NewRequest(row.method, base+"/v1/kv/app/config/key", bytes.NewReader(value))
					res, err := client.Do(req)
					if err != nil {
						b.Error(err)
						return
					}
					_, _ = io.Copy(io.Discard, res.Body)
					_ = res.Body.Close()
				}
			})
			client.CloseIdleConnections()
		})
	}
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
