package http

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	nethttp "net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// blocking runs test in virtual time, with a server over a node that holds a/1, a/2
// and b/1, of the revisions 1 to 3. No watch may be left of it.
func blocking(t *testing.T, test func(t *testing.T, n *fakeNode, s *Server)) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNode()
		s := newTestServer(t, n)
		for _, key := range []string{"a/1", "a/2", "b/1"} {
			ask(t, s, "PUT", "/v1/kv/"+key, "x")
		}
		test(t, n, s)
		if len(n.watching) > 0 {
			t.Errorf("watches are left: %v", n.watching)
		}
	})
}

// blocked is a read that was begun.
type blocked struct {
	reply  chan *httptest.ResponseRecorder
	cancel context.CancelFunc
}

func begin(s *Server, target string, headers ...string) blocked {
	b := blocked{reply: make(chan *httptest.ResponseRecorder, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	b.cancel = cancel
	r := httptest.NewRequestWithContext(ctx, "GET", target, nil)
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	go func() {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		b.reply <- w
	}()
	synctest.Wait()
	return b
}

// sleeps checks that there is no answer yet.
func (b blocked) sleeps(t *testing.T) {
	t.Helper()
	synctest.Wait()
	select {
	case w := <-b.reply:
		t.Fatalf("it was answered: %d %q, index %s", w.Code, w.Body, w.Header().Get("X-Consul-Index"))
	default:
	}
}

// answered returns the answer, which must be there.
func (b blocked) answered(t *testing.T) *httptest.ResponseRecorder {
	t.Helper()
	synctest.Wait()
	select {
	case w := <-b.reply:
		b.cancel()
		return w
	default:
		t.Fatal("it sleeps on")
		return nil
	}
}

func TestABlockingQueryAnswersAtTheFirstChangeOfWhatItReads(t *testing.T) {
	for _, row := range []struct {
		target        string
		elsewhere     string // changes nothing that it reads
		method, at    string // does
		status        int
		index, answer string // answer is part of the body
	}{
		{"/v1/kv/a/1?index=1", "b/1", "PUT", "a/1", 200, "5", `"ModifyIndex":5`},
		{"/v1/kv/a/1?index=1&stale", "a/11", "PUT", "a/1", 200, "5", `"ModifyIndex":5`},
		{"/v1/kv/a/1?index=1&raw", "b/1", "PUT", "a/1", 200, "5", "new"},
		{"/v1/kv/a/1?index=1", "b/1", "DELETE", "a/1", 404, "5", ""},
		{"/v1/kv/none?index=3", "b/1", "PUT", "none", 200, "5", `"CreateIndex":5`},
		{"/v1/kv/a/?recurse&index=2", "b/1", "PUT", "a/3", 200, "5", `"Key":"a/3"`},
		{"/v1/kv/a/?recurse&index=2", "a", "DELETE", "a/2", 200, "5", `[{"LockIndex":0,"Key":"a/1","Flags":0,"Value":"eA==","CreateIndex":1,"ModifyIndex":1}]`},
		{"/v1/kv/a/?recurse&index=2", "b/1", "DELETE", "a/?recurse", 404, "5", ""},
		{"/v1/kv/none/?recurse&index=3", "b/1", "PUT", "none/1", 200, "5", `"Key":"none/1"`},
		{"/v1/kv/a/?keys&index=2", "b/1", "PUT", "a/2", 200, "5", `["a/1","a/2"]`},
		{"/v1/kv/?keys&separator=/&index=4", "", "PUT", "a/2", 200, "4", `["a/","b/"]`},
		{"/v1/kv/?recurse&index=4", "", "PUT", "c", 200, "4", `"Key":"c"`},
	} {
		t.Run(row.target, func(t *testing.T) {
			blocking(t, func(t *testing.T, n *fakeNode, s *Server) {
				if row.elsewhere == "" { // of everything there is no elsewhere
					row.target = strings.Replace(row.target, "index=4", "index=3", 1)
				}
				b := begin(s, row.target)
				b.sleeps(t)
				if row.elsewhere != "" {
					ask(t, s, "PUT", "/v1/kv/"+row.elsewhere, "x")
					b.sleeps(t)
				}
				ask(t, s, row.method, "/v1/kv/"+row.at, "new")
				w := b.answered(t)
				if w.Code != row.status || w.Header().Get("X-Consul-Index") != row.index || !strings.Contains(w.Body.String(), row.answer) {
					t.Errorf("%d, index %s, %s", w.Code, w.Header().Get("X-Consul-Index"), w.Body)
				}
			})
		})
	}
}

func TestABlockingQueryAnswersAtOnceWhenItsIndexIsPassed(t *testing.T) {
	for target, index := range map[string]string{
		"/v1/kv/a/2?index=1":          "2",
		"/v1/kv/a/?recurse&index=1":   "2",
		"/v1/kv/a/?keys&index=1":      "2",
		"/v1/kv/?keys&index=2":        "3",
		"/v1/kv/none?index=2":         "3", // any key may have been this one
		"/v1/kv/none?recurse&index=2": "3",
		"/v1/kv/a/2?index=0":          "2",
		"/v1/kv/a/2?index=":           "2",
	} {
		blocking(t, func(t *testing.T, n *fakeNode, s *Server) {
			wantHeaders(t, begin(s, target).answered(t), "X-Consul-Index", index)
		})
	}
}

func TestABlockingQueryOnAMissingKeySleepsThroughChangesElsewhere(t *testing.T) {
	blocking(t, func(t *testing.T, n *fakeNode, s *Server) {
		b := begin(s, "/v1/kv/none?index=3&wait=1m")
		for range 10 {
			ask(t, s, "PUT", "/v1/kv/a/1", "x")
			b.sleeps(t)
		}
		time.Sleep(2 * time.Minute)
		w := b.answered(t)
		want(t, w, 404, "")
		wantHeaders(t, w, "X-Consul-Index", "13")
	})
}

func TestABlockingQueryEndsWhenItsTimeIsUp(t *testing.T) {
	for query, wait := range map[string]time.Duration{
		"":                    5 * time.Minute,
		"&wait=10s":           10 * time.Second,
		"&wait=2.8389308452s": 2838930845,
		"&wait=0":             5 * time.Minute,
		"&wait=-1s":           5 * time.Minute,
		"&wait=1ns":           1,
		"&wait=24h":           10 * time.Minute,
	} {
		blocking(t, func(t *testing.T, n *fakeNode, s *Server) {
			began := time.Now()
			b := begin(s, "/v1/kv/a/2?index=2"+query)
			w := <-b.reply
			if took := time.Since(began); took < wait || took > wait+wait/16 {
				t.Errorf("%q took %v", query, took)
			}
			b.cancel()
			wantHeaders(t, w, "X-Consul-Index", "2")
			if es := entries(t, w); len(es) != 1 || es[0].Key != "a/2" || string(es[0].Value) != "x" {
				t.Errorf("%+v", es)
			}
		})
	}
}

// It would be no use to tell a client what is older than what it knows.
func TestAnIndexOfTheFutureBlocksThroughChanges(t *testing.T) {
	blocking(t, func(t *testing.T, n *fakeNode, s *Server) {
		b := begin(s, "/v1/kv/a/1?index=6&wait=1m")
		for range 3 {
			ask(t, s, "PUT", "/v1/kv/a/1", "x")
			b.sleeps(t)
		}
		ask(t, s, "PUT", "/v1/kv/a/1", "x")
		wantHeaders(t, b.answered(t), "X-Consul-Index", "7")

		b = begin(s, "/v1/kv/a/1?index=100&wait=1m")
		time.Sleep(2 * time.Minute)
		wantHeaders(t, b.answered(t), "X-Consul-Index", "7")
	})
}

// What a blocking query says is as good as any answer in its mode: each look is a
// read of its own, the last one too.
func TestEachLookOfABlockingQueryIsReadAnew(t *testing.T) {
	for _, row := range []struct {
		query string
		want  command.ReadMode
	}{{"", command.ReadDefault}, {"&consistent", command.ReadConsistent}, {"&stale", command.ReadStale}} {
		blocking(t, func(t *testing.T, n *fakeNode, s *Server) {
			looks, lost := 0, error(nil)
			n.read = func(_ context.Context, o command.ReadOptions) error {
				if o.Mode != row.want {
					t.Errorf("read with %+v", o)
				}
				looks++
				return lost
			}
			b := begin(s, "/v1/kv/a/1?index=4&wait=1m"+row.query)
			ask(t, s, "PUT", "/v1/kv/a/1", "x")
			b.sleeps(t)
			if looks != 2 {
				t.Errorf("%d looks", looks)
			}
			n.mu.Lock()
			lost = command.ErrNoLeader
			n.mu.Unlock()
			time.Sleep(2 * time.Minute)
			want(t, b.answered(t), 500, "No cluster leader")
		})
	}
}

// A node that stops has its clients ask another one: what waits is answered as things
// are, as when the wait is over.
func TestABlockingQueryIsAnsweredWhenTheServerStopsAndEndsWithItsClient(t *testing.T) {
	blocking(t, func(t *testing.T, n *fakeNode, s *Server) {
		gone := begin(s, "/v1/kv/a/1?index=3")
		gone.cancel()
		gone.answered(t)
		if len(n.watching) != 0 {
			t.Error("a client that is gone is still waited for")
		}
		key, sites := begin(s, "/v1/kv/a/1?index=3"), begin(s, "/v1/sites?index=4")
		if err := s.Shutdown(context.Background()); err != nil {
			t.Fatal(err)
		}
		for _, b := range []blocked{key, sites} {
			if w := b.answered(t); w.Code != 200 || w.Header().Get("X-Consul-Index") == "" {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		}
	})
}

func TestABlockingQueryThatNeedsALeaderFailsAtOnceWhenTheServerStopsWithoutOne(t *testing.T) {
	blocking(t, func(t *testing.T, n *fakeNode, s *Server) {
		b := begin(s, "/v1/kv/a/1?index=3")
		n.mu.Lock()
		n.status.Leader = ""
		n.mu.Unlock()
		if err := s.Shutdown(context.Background()); err != nil {
			t.Fatal(err)
		}
		want(t, b.answered(t), 500, command.ErrStopping.Message)
	})
}

// After a restore an index says nothing of what a client knew before.
func TestARestoreAnswersEveryBlockingQuery(t *testing.T) {
	blocking(t, func(t *testing.T, n *fakeNode, s *Server) {
		var all []blocked
		for _, target := range []string{"a/1?index=3", "none?index=3", "a/?recurse&index=3", "?keys&index=3"} {
			all = append(all, begin(s, "/v1/kv/"+target))
		}
		n.mu.Lock()
		n.records = map[string]command.Record{"a/1": {Key: "a/1", Value: []byte("restored"), CreateRevision: 1, ModifyRevision: 1}}
		n.kv, n.deleted, n.history = 1, map[string]uint64{}, nil
		n.revision, n.oldest = 4, 4
		n.wake(func(command.Target) bool { return true })
		n.mu.Unlock()
		for i, status := range []int{200, 404, 200, 200} {
			if w := all[i].answered(t); w.Code != status || status == 200 && w.Body.Len() == 0 {
				t.Errorf("%d: %d %q", i, w.Code, w.Body)
			}
		}
	})
}

func TestThePastDoesNotBlock(t *testing.T) {
	blocking(t, func(t *testing.T, n *fakeNode, s *Server) {
		wantHeaders(t, begin(s, "/v1/kv/a/1?rev=2&index=9").answered(t), "X-Consul-Index", "1")
		wantHeaders(t, begin(s, "/v1/kv/a/?recurse&rev=2&index=9").answered(t), "X-Consul-Index", "2")
	})
}

func TestTheSitesBlockUntilTheMembershipChanges(t *testing.T) {
	blocking(t, func(t *testing.T, n *fakeNode, s *Server) {
		b := begin(s, "/v1/sites?index=4") // which is the fake's
		ask(t, s, "PUT", "/v1/kv/a/1", "x")
		b.sleeps(t)
		n.mu.Lock()
		n.membersAt, n.sites = 5, []command.Site{{Name: "east"}}
		n.wake(func(t command.Target) bool { return t.Kind == command.TargetMembers })
		n.mu.Unlock()
		w := b.answered(t)
		wantHeaders(t, w, "X-Consul-Index", "5")
		if !strings.Contains(w.Body.String(), `"Name":"east"`) {
			t.Error(w.Body)
		}
		b = begin(s, "/v1/sites?index=5&wait=10s")
		time.Sleep(time.Minute)
		wantHeaders(t, b.answered(t), "X-Consul-Index", "5")
	})
}

// Over a connection, a wait may be longer than any of the server's limits, and the
// answer after it long.
func TestABlockingQueryOutlastsTheServersLimits(t *testing.T) {
	n := newFakeNode()
	inVirtualTime(t, n, func(t *testing.T, c net.Conn) {
		for i := range 100 {
			n.apply(&command.Put{Key: fmt.Sprint("a/", i), Value: make([]byte, 10_000)})
		}
		in := bufio.NewReader(c)
		for _, query := range []string{"index=100&wait=10m", "index=100"} {
			began := time.Now()
			_, _ = io.WriteString(c, "GET /v1/kv/a/?recurse&"+query+" HTTP/1.1\r\nHost: h\r\n\r\n")
			if !strings.Contains(query, "wait") {
				time.AfterFunc(time.Minute, func() { n.apply(&command.Put{Key: "a/0"}) })
			}
			res, err := nethttp.ReadResponse(in, nil)
			if err != nil || res.StatusCode != 200 {
				t.Fatalf("%+v %v", res, err)
			}
			size, err := io.Copy(io.Discard, res.Body)
			if err != nil || size < 1_300_000 || time.Since(began) < time.Minute {
				t.Errorf("%d bytes after %v, %v", size, time.Since(began), err)
			}
		}
	})
}
