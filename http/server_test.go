package http

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	nethttp "net/http"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// listen serves s on a real port until the test ends.
func listen(t testing.TB, s *Server) (l net.Listener, base string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return l, "http://" + l.Addr().String()
}

// dial opens a connection that fails the test rather than hang.
func dial(t testing.TB, l net.Listener) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestRefusedUploadIsNotReset(t *testing.T) {
	s := newTestServer(t, newFakeNode())
	_, base := listen(t, s)
	body := strings.Repeat("v", 5<<20)
	for name, r := range map[string]io.Reader{"declared": strings.NewReader(body), "chunked": unsized(body)} {
		req, _ := nethttp.NewRequest("PUT", base+"/v1/kv/a", r)
		res, err := nethttp.DefaultClient.Do(req)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		text, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil || res.StatusCode != 413 || !strings.Contains(string(text), "is too large") {
			t.Errorf("%s: %d %q %v", name, res.StatusCode, text, err)
		}
	}
}

func TestRefusedUploadIsNotAskedFor(t *testing.T) {
	s := newTestServer(t, newFakeNode())
	l, _ := listen(t, s)
	c := dial(t, l)
	_, _ = io.WriteString(c, "PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 5000000\r\nExpect: 100-continue\r\n\r\n")
	res, err := nethttp.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || res.StatusCode != 413 {
		t.Fatalf("%+v %v", res, err)
	}
}

// TestClientThatDoesNotReadIsCutOff asks for much and takes nothing.
func TestClientThatDoesNotReadIsCutOff(t *testing.T) {
	n := newFakeNode()
	ended := make(chan error, 1)
	n.export = func(fn func(command.Record) error) error {
		r := command.Record{Key: "k", Value: make([]byte, 64<<10)}
		for range 10000 {
			if err := fn(r); err != nil {
				ended <- err
				return err
			}
		}
		ended <- nil
		return nil
	}
	n.revision = 1
	s := newTestServer(t, n, func(c *Config) { c.WriteTimeout = 100 * time.Millisecond })
	l, _ := listen(t, s)
	c := dial(t, l)
	_, _ = io.WriteString(c, "GET /v1/bulk/ HTTP/1.1\r\nHost: h\r\n\r\n")
	select {
	case err := <-ended:
		if err == nil {
			t.Error("all of it went into a client that read nothing")
		}
	case <-time.After(10 * time.Second):
		t.Error("still writing")
	}
}

func TestGoneClientEndsItsRequest(t *testing.T) {
	n := newFakeNode()
	began, ended := make(chan struct{}), make(chan error, 1)
	n.propose = func(ctx context.Context, _ command.Command) (command.Result, error) {
		close(began)
		<-ctx.Done()
		ended <- ctx.Err()
		return command.Result{}, ctx.Err()
	}
	l, _ := listen(t, newTestServer(t, n))
	c := dial(t, l)
	_, _ = io.WriteString(c, "PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nv")
	<-began
	_ = c.Close()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("the request goes on")
	}
}

func TestHeadersHaveALimit(t *testing.T) {
	_, base := listen(t, newTestServer(t, newFakeNode()))
	req, _ := nethttp.NewRequest("GET", base+"/v1/kv/a", nil)
	req.Header.Set("X-Long", strings.Repeat("x", 80<<10))
	res, err := nethttp.DefaultClient.Do(req)
	if err != nil || res.StatusCode != 431 {
		t.Fatalf("%+v %v", res, err)
	}
	_ = res.Body.Close()
	// The longest key fits, however it is escaped.
	res, err = nethttp.Get(base + "/v1/kv/" + strings.Repeat("%61", command.MaxKey))
	if err != nil || res.StatusCode != 404 {
		t.Fatalf("%+v %v", res, err)
	}
	_ = res.Body.Close()
}

func TestShutdownFinishesWhatIsUnderWay(t *testing.T) {
	n := newFakeNode()
	began, goOn := make(chan struct{}), make(chan struct{})
	n.propose = func(_ context.Context, c command.Command) (command.Result, error) {
		close(began)
		<-goOn
		return n.apply(c), nil
	}
	s := newTestServer(t, n)
	l, _ := listen(t, s)
	c := dial(t, l)
	_, _ = io.WriteString(c, "PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nv")
	<-began
	down := make(chan error, 1)
	go func() { down <- s.Shutdown(context.Background()) }()
	<-s.stopping.Done()
	want(t, ask(t, s, "GET", "/readyz", nil), 503, "node is stopping")
	close(goOn)
	res, err := nethttp.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || res.StatusCode != 200 {
		t.Errorf("%+v %v", res, err)
	}
	if err := <-down; err != nil {
		t.Error(err)
	}
}

func TestShutdownAbandonsWhatTakesTooLong(t *testing.T) {
	n := newFakeNode()
	began, ended := make(chan struct{}), make(chan struct{})
	n.propose = func(ctx context.Context, _ command.Command) (command.Result, error) {
		close(began)
		<-ctx.Done()
		close(ended)
		return command.Result{}, ctx.Err()
	}
	s := newTestServer(t, n)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	c := dial(t, l)
	_, _ = io.WriteString(c, "PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nv")
	<-began
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("shutdown: %v", err)
	}
	<-ended
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
}
