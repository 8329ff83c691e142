package http

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	nethttp "net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// asks writes a request and returns the next answer.
func asks(t *testing.T, c net.Conn, in *bufio.Reader, request string, headers ...string) (*nethttp.Response, string) {
	t.Helper()
	send(c, request, headers...)
	return answerOf(t, in, request)
}

func send(c net.Conn, request string, headers ...string) {
	_, _ = io.WriteString(c, request+" HTTP/1.1\r\nHost: h\r\n"+strings.Join(append(headers, "\r\n"), "\r\n"))
}

func answerOf(t *testing.T, in *bufio.Reader, request string) (*nethttp.Response, string) {
	t.Helper()
	method, _, _ := strings.Cut(request, " ")
	res, err := nethttp.ReadResponse(in, &nethttp.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(body)
}

// park lets a query that was sent sleep until it is parked: then the request of its
// first look has ended for net/http, while the client still waits.
func park(t *testing.T, n *fakeNode, send func()) {
	t.Helper()
	var first context.Context
	n.mu.Lock()
	n.read = func(ctx context.Context, _ command.ReadOptions) error {
		if first == nil {
			first = ctx
		}
		return nil
	}
	n.mu.Unlock()
	send()
	time.Sleep(2 * parkAfter)
	synctest.Wait()
	if first == nil || first.Err() == nil {
		t.Fatal("the query is not parked")
	}
}

func TestAParkedQueryIsAnsweredAsIfItHadSlept(t *testing.T) {
	n := newFakeNode()
	n.apply(&command.Put{Key: "a b", Value: []byte("old")})
	inVirtualTime(t, n, func(t *testing.T, c net.Conn) {
		in := bufio.NewReader(c)
		for i := range 3 { // one connection may be parked again and again
			query := fmt.Sprintf("GET /v1/kv/a%%20b?raw&index=%d&wait=1m", n.revision)
			park(t, n, func() { send(c, query, "X-Holdfast-Min-Index: 1", "Accept: x, application/json") })
			n.apply(&command.Put{Key: "other"})
			synctest.Wait()
			value := fmt.Sprint("new", i)
			n.apply(&command.Put{Key: "a b", Value: []byte(value)})
			at := time.Now()
			res, body := answerOf(t, in, query)
			if res.StatusCode != 200 || body != value || res.Header.Get("X-Consul-Index") != fmt.Sprint(n.revision) || time.Since(at) > 0 {
				t.Errorf("%d %q after %v, %v", res.StatusCode, body, time.Since(at), res.Header)
			}
			if n.asked.MinRevision != 1 {
				t.Error("a header was lost")
			}
			if res, _ := asks(t, c, in, "GET /v1/kv/none?index=x"); res.StatusCode != 400 {
				t.Errorf("the request behind it: %d", res.StatusCode)
			}
		}
	})
}

func TestAParkedQueryEndsWhenItsTimeIsUp(t *testing.T) {
	n := newFakeNode()
	n.apply(&command.Put{Key: "a", Value: []byte("v")})
	inVirtualTime(t, n, func(t *testing.T, c net.Conn) {
		in := bufio.NewReader(c)
		for range 2 {
			began := time.Now()
			park(t, n, func() { send(c, "GET /v1/kv/a?raw&index=1&wait=160s") })
			res, body := answerOf(t, in, "GET")
			if took := time.Since(began); res.StatusCode != 200 || body != "v" || took < 160*time.Second || took > 170*time.Second {
				t.Errorf("%d %q after %v", res.StatusCode, body, took)
			}
		}
	})
}

func TestARestoreAnswersAParkedQuery(t *testing.T) {
	n := newFakeNode()
	n.apply(&command.Put{Key: "a", Value: []byte("v")})
	inVirtualTime(t, n, func(t *testing.T, c net.Conn) {
		park(t, n, func() { send(c, "GET /v1/kv/a?raw&index=1") })
		n.mu.Lock()
		n.revision, n.oldest = 2, 2
		n.wake(func(command.Target) bool { return true })
		n.mu.Unlock()
		began := time.Now()
		if res, body := answerOf(t, bufio.NewReader(c), "GET"); res.StatusCode != 200 || body != "v" || time.Since(began) > 0 {
			t.Errorf("%d %q after %v", res.StatusCode, body, time.Since(began))
		}
	})
}

func TestAParkedQueryEndsWithItsClient(t *testing.T) {
	n := newFakeNode()
	n.apply(&command.Put{Key: "a"})
	inVirtualTime(t, n, func(t *testing.T, c net.Conn) {
		park(t, n, func() { send(c, "GET /v1/kv/a?index=1") })
		_ = c.Close()
		synctest.Wait()
		n.mu.Lock()
		defer n.mu.Unlock()
		if len(n.watching) != 0 {
			t.Error("a client that is gone is still waited for")
		}
	})
}

func TestAServerThatStopsAnswersWhatIsParked(t *testing.T) {
	n := newFakeNode()
	n.apply(&command.Put{Key: "a", Value: []byte("v")})
	synctest.Test(t, func(t *testing.T) {
		s, l := newTestServer(t, n), newPipes()
		served := make(chan error, 1)
		go func() { served <- s.Serve(l) }()
		c := l.dial()
		park(t, n, func() { send(c, "GET /v1/kv/a?raw&index=1") })
		began := time.Now()
		down := make(chan error, 1)
		go func() { down <- s.Shutdown(context.Background()) }()
		in := bufio.NewReader(c)
		if res, body := answerOf(t, in, "GET"); res.StatusCode != 200 || body != "v" || res.Header.Get("X-Consul-Index") != "1" {
			t.Errorf("%d %q, %v", res.StatusCode, body, res.Header)
		}
		if err := <-down; err != nil || time.Since(began) > time.Second {
			t.Errorf("stopped after %v: %v", time.Since(began), err)
		}
		if b, err := io.ReadAll(in); len(b) > 0 || err != nil {
			t.Errorf("the client got %q more, %v", b, err)
		}
		if err := <-served; err != nil || len(n.watching) != 0 {
			t.Errorf("%v; %d watches are left", err, len(n.watching))
		}
	})
}

func TestAClientThatDoesNotWaitForAParkedQueryGetsItsAnswersInOrder(t *testing.T) {
	for name, padding := range map[string]int{"short": 0, "longer than a buffer of net/http": 4020} {
		for _, together := range []bool{false, true} {
			n := newFakeNode()
			n.apply(&command.Put{Key: "a", Value: []byte("old")})
			n.apply(&command.Put{Key: "b", Value: []byte("second")})
			inVirtualTime(t, n, func(t *testing.T, c net.Conn) {
				first, second := "GET /v1/kv/a?raw&index=1 HTTP/1.1\r\nHost: h\r\nX-Padding: "+strings.Repeat("x", padding), "GET /v1/kv/b?raw"
				park(t, n, func() {
					if _, _ = io.WriteString(c, first+"\r\n\r\n"); together {
						go send(c, second)
					}
				})
				if !together {
					go send(c, second)
				}
				time.Sleep(20 * parkAfter)
				n.mu.Lock()
				n.wake(func(command.Target) bool { return true }) // for nothing: it is parked again
				n.mu.Unlock()
				time.Sleep(20 * parkAfter)
				go n.apply(&command.Put{Key: "a", Value: []byte("first")})
				in := bufio.NewReader(c)
				for _, want := range []string{"first", "second"} {
					if res, body := answerOf(t, in, "GET"); res.StatusCode != 200 || body != want {
						t.Errorf("%s: %d %q; want %q", name, res.StatusCode, body, want)
					}
				}
			})
		}
	}
}

// What could not be said again as it was sleeps where it is.
func TestALongWaitAnswersHEADWithoutABody(t *testing.T) {
	n := newFakeNode()
	n.apply(&command.Put{Key: "a", Value: []byte("v")})
	inVirtualTime(t, n, func(t *testing.T, c net.Conn) {
		in := bufio.NewReader(c)
		for _, request := range []string{"HEAD /v1/kv/a?index=1&wait=1m", "GET /v1/kv/a?raw"} {
			if res, body := asks(t, c, in, request); res.StatusCode != 200 || strings.HasPrefix(request, "HEAD") != (body == "") {
				t.Errorf("%s: %d %q", request, res.StatusCode, body)
			}
		}
	})
}

// A node that is cut off cannot say that nothing has changed.
func TestABlockingQueryThatNeedsTheLeaderEndsWithoutOne(t *testing.T) {
	for _, row := range []struct {
		query, state string
		ends         bool
	}{
		{"index=1&wait=1m", "Follower", true},
		{"index=1&wait=1m&consistent", "Candidate", true},
		{"index=1&wait=1m&stale", "Follower", false},
		{"index=1&wait=1m", "Learner", false},
	} {
		for _, parked := range []bool{false, true} {
			n := newFakeNode()
			n.apply(&command.Put{Key: "a"})
			inVirtualTime(t, n, func(t *testing.T, c net.Conn) {
				began := time.Now()
				if send := func() { send(c, "GET /v1/kv/a?"+row.query) }; parked {
					park(t, n, send)
				} else {
					send()
				}
				n.mu.Lock()
				n.status.Leader, n.status.State = "", row.state
				looks := 0
				n.read = func(context.Context, command.ReadOptions) error {
					if looks++; row.ends {
						return command.ErrNoLeader
					}
					return nil
				}
				n.mu.Unlock()
				res, body := answerOf(t, bufio.NewReader(c), "GET")
				switch took := time.Since(began); {
				case row.ends && (res.StatusCode != 500 || body != "No cluster leader" || took > 20*time.Second):
					t.Errorf("%s: %d %q after %v", row.query, res.StatusCode, body, took)
				case !row.ends && (res.StatusCode != 200 || took < time.Minute || looks > 3):
					t.Errorf("%s: %d %q after %v and %d looks", row.query, res.StatusCode, body, took, looks)
				}
			})
		}
	}
}

func TestABlockingQuerySleepsThroughAnElection(t *testing.T) {
	n := newFakeNode()
	n.apply(&command.Put{Key: "a"})
	inVirtualTime(t, n, func(t *testing.T, c net.Conn) {
		looks := 0
		n.read = func(context.Context, command.ReadOptions) error { looks++; return nil }
		send(c, "GET /v1/kv/a?index=1&wait=1m")
		for _, leader := range []string{"", "n2", "", "n1"} {
			n.mu.Lock()
			n.status.Leader = leader
			n.mu.Unlock()
			time.Sleep(leaderlessAfter - 1100*time.Millisecond)
		}
		synctest.Wait()
		n.mu.Lock()
		if looks != 1 {
			t.Errorf("%d looks", looks)
		}
		n.mu.Unlock()
		answerOf(t, bufio.NewReader(c), "GET")
	})
}
