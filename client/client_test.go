package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// serve starts a server that ends with the test.
func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

// closed is an address at which nothing listens.
func closed(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// hangUp ends the connection without an answer.
func hangUp(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

func refuse(status int, code, message string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, `{"error":%q,"message":%q,"hint":"do better"}`, code, message)
	}
}

func answerWith(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, body)
	}
}

func connect(t *testing.T, addresses ...string) *Client {
	t.Helper()
	c, err := New(Config{Addresses: addresses, Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestGetReturnsTheRecordAndWhatItIsWorth(t *testing.T) {
	c := connect(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != "GET" || r.URL.Path != "/v1/kv/a/b" || r.Header.Get("Accept") != "application/json" {
			t.Errorf("%s %s, Accept %q", r.Method, r.URL, r.Header.Get("Accept"))
		}
		h := w.Header()
		h.Set("X-Consul-Index", "7")
		h.Set("X-Consul-KnownLeader", "true")
		h.Set("X-Consul-LastContact", "12")
		h.Set("X-Holdfast-Node", "e1")
		h.Set("X-Holdfast-Site", "east")
		h.Set("X-Holdfast-Applied", "9")
		h.Set("X-Holdfast-Staleness", "34")
		_, _ = io.WriteString(w, `[{"LockIndex":2,"Key":"a/b","Flags":3304740253564472344,"Value":"aGk=","CreateIndex":5,"ModifyIndex":7,"Session":"s"}]`)
	}))
	rec, meta, err := c.Get(t.Context(), "a/b")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(rec), fmt.Sprint(command.Record{
		Key: "a/b", Value: []byte("hi"), Flags: 3304740253564472344, LockIndex: 2, Session: "s", CreateRevision: 5, ModifyRevision: 7,
	}); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	want := Meta{
		Address: c.Addresses()[0], Index: 7, Applied: 9, Node: "e1", Site: "east",
		Staleness: 34 * time.Millisecond, StalenessKnown: true, KnownLeader: true, LastContact: 12 * time.Millisecond,
	}
	if meta != want {
		t.Errorf("meta\ngot  %+v\nwant %+v", meta, want)
	}
}

func TestUnknownStalenessKeepsTheLastCertifiedMoment(t *testing.T) {
	c := connect(t, serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Consul-Index", "1")
		w.Header().Set("X-Holdfast-Staleness", "unknown")
		w.Header().Set("X-Holdfast-Fresh-As-Of", "2026-01-02T03:04:05Z")
		_, _ = io.WriteString(w, `["k"]`)
	}))
	_, meta, err := c.Keys(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	if meta.StalenessKnown || !meta.FreshAsOf.Equal(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)) {
		t.Errorf("meta %+v", meta)
	}
}

func TestAMissingKeyIsToldFromAMissingServer(t *testing.T) {
	missing := connect(t, serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Consul-Index", "4")
		w.WriteHeader(http.StatusNotFound)
	}))
	_, meta, err := missing.Get(t.Context(), "k")
	if !errors.Is(err, command.ErrKeyNotFound) || meta.Index != 4 {
		t.Errorf("get: %v, meta %+v", err, meta)
	}
	if records, meta, err := missing.List(t.Context(), "k"); err != nil || len(records) != 0 || meta.Index != 4 {
		t.Errorf("list: %v %v %+v", records, err, meta)
	}
	if keys, _, err := missing.Keys(t.Context(), "k", ""); err != nil || len(keys) != 0 {
		t.Errorf("keys: %v %v", keys, err)
	}

	other := connect(t, serve(t, http.NotFound))
	var named *Error
	if _, _, err := other.Get(t.Context(), "k"); errors.Is(err, command.ErrKeyNotFound) || !errors.As(err, &named) || named.Status != 404 {
		t.Errorf("get from some other server: %v", err)
	}
}

func TestKeysReachTheServerUnchanged(t *testing.T) {
	got := make(chan string, 1)
	c := connect(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		got <- strings.TrimPrefix(r.URL.Path, "/v1/kv/")
		_, _ = io.WriteString(w, "true")
	}))
	for _, key := range []string{"a", "a/", "a//b", "a b+c", "50%", "a%2Fb", "q?x=1#y", "ü/日本", "a;b&c", "../x"} {
		if _, _, err := c.Put(t.Context(), key, nil); err != nil {
			t.Fatal(err)
		}
		if g := <-got; g != key {
			t.Errorf("key %q arrived as %q", key, g)
		}
	}
	if _, _, err := c.Put(t.Context(), "/a", nil); err == nil {
		t.Error("a key that the server would rename was sent")
	}
}

func TestOptionsBecomeParameters(t *testing.T) {
	queries := make(chan string, 1)
	c := connect(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		queries <- r.URL.RawQuery
		if r.Method == "GET" {
			_, _ = io.WriteString(w, "[]")
			return
		}
		_, _ = io.WriteString(w, "true")
	}))
	ctx := t.Context()
	for want, call := range map[string]func(){
		"consistent=":                           func() { _, _, _ = c.Get(ctx, "k", Consistent()) },
		"recurse=&stale=":                       func() { _, _, _ = c.List(ctx, "k", Stale()) },
		"keys=&max_stale=5s&separator=a&stale=": func() { _, _, _ = c.Keys(ctx, "k", "a", MaxStale(5*time.Second)) },
		"min_index=9&wait=2s":                   func() { _, _, _ = c.Get(ctx, "k", MinIndex(9, 2*time.Second)) },
		"rev=4":                                 func() { _, _, _ = c.Get(ctx, "k", AtRevision(4, 0)) },
		"recurse=&rev=4&wait=2s":                func() { _, _, _ = c.List(ctx, "k", AtRevision(4, 2*time.Second)) },
		"keys=&rev=4":                           func() { _, _, _ = c.Keys(ctx, "k", "", AtRevision(4, 0)) },
		"limit=10000&stale=":                    func() { _, _, _ = c.History(ctx, "k", Span{}, Stale()) },
		"from=2&limit=3&to=9":                   func() { _, _, _ = c.History(ctx, "k", Span{From: 2, To: 9, Limit: 3}) },
		"from=2&limit=10000&wait=1m0s":          func() { _, _, _ = c.Changes(ctx, "k", Span{From: 2}, nil, Wait(time.Minute)) },
		"cas=0&flags=18446744073709551615":      func() { _, _, _ = c.Put(ctx, "k", nil, CAS(0), Flags(1<<64-1)) },
		"cas=3":                                 func() { _, _, _ = c.Delete(ctx, "k", CAS(3)) },
		"recurse=":                              func() { _, _ = c.DeleteTree(ctx, "k") },
	} {
		call()
		if got := <-queries; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestAFailedConditionIsNoError(t *testing.T) {
	c := connect(t, serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Consul-Index", "12")
		_, _ = io.WriteString(w, "false")
	}))
	ok, meta, err := c.Put(t.Context(), "k", []byte("v"), CAS(1))
	if ok || err != nil || meta.Index != 12 {
		t.Errorf("%v %+v %v", ok, meta, err)
	}
}

func TestErrorsMatchTheirSentinels(t *testing.T) {
	for _, want := range []*command.Error{
		command.ErrNoLeader, command.ErrOutcomeUnknown, command.ErrTooStale, command.ErrRevisionNotReached,
		command.ErrCompacted, command.ErrNotReady, command.ErrInvalidSession,
	} {
		c := connect(t, serve(t, refuse(500, want.Code, "some words")))
		_, _, err := c.Get(t.Context(), "k")
		var named *Error
		if !errors.Is(err, want) || !errors.As(err, &named) || named.Hint != "do better" || err.Error() != "some words" {
			t.Errorf("%s: %v", want.Code, err)
		}
	}
}

func TestPlainTextErrorsKeepTheirText(t *testing.T) {
	c := connect(t, serve(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "bad\n gateway", http.StatusBadGateway) }))
	_, _, err := c.Get(t.Context(), "k")
	var named *Error
	if !errors.As(err, &named) || named.Status != 502 || err.Error() != "bad gateway" {
		t.Errorf("%v", err)
	}
}

func TestReadsGoOnToTheNextServer(t *testing.T) {
	var stuck atomic.Int32
	hang := serve(t, func(_ http.ResponseWriter, r *http.Request) { stuck.Add(1); <-r.Context().Done() })
	good := serve(t, answerWith(`["k"]`))
	for name, first := range map[string]string{
		"refused":   closed(t),
		"hung up":   serve(t, hangUp),
		"no leader": serve(t, refuse(500, "no_leader", "No cluster leader")),
		"too stale": serve(t, refuse(503, "too_stale", "too old")),
		"diverged":  serve(t, refuse(503, "diverged", "contents differ")),
		"silent":    hang,
	} {
		t.Run(name, func(t *testing.T) {
			c := connect(t, first, good)
			c.timeout = 200 * time.Millisecond
			for range 2 {
				_, meta, err := c.Keys(t.Context(), "", "")
				if err != nil || meta.Address != good {
					t.Fatalf("%v, from %s", err, meta.Address)
				}
			}
		})
	}
	if n := stuck.Load(); n != 1 {
		t.Errorf("the silent server was asked %d times: the client should stay with the one that answers", n)
	}
}

func TestWritesGoOnOnlyWhenNothingWasWritten(t *testing.T) {
	for name, c := range map[string]struct {
		first   string
		goesOn  bool
		unknown bool
	}{
		"refused":         {first: closed(t), goesOn: true},
		"no leader":       {first: serve(t, refuse(500, "no_leader", "No cluster leader")), goesOn: true},
		"stopping":        {first: serve(t, refuse(500, "stopping", "node is stopping")), goesOn: true},
		"hung up":         {first: serve(t, hangUp), unknown: true},
		"outcome unknown": {first: serve(t, refuse(500, "outcome_unknown", "lost")), unknown: true},
		"too large":       {first: serve(t, refuse(413, "too_large", "value is too large"))},
	} {
		t.Run(name, func(t *testing.T) {
			var writes atomic.Int32
			second := serve(t, func(w http.ResponseWriter, _ *http.Request) { writes.Add(1); _, _ = io.WriteString(w, "true") })
			ok, _, err := connect(t, c.first, second).Put(t.Context(), "k", []byte("v"))
			if ok != c.goesOn || (writes.Load() == 1) != c.goesOn {
				t.Errorf("ok %v, %d writes at the second server, error %v", ok, writes.Load(), err)
			}
			if got := errors.Is(err, command.ErrOutcomeUnknown); got != c.unknown {
				t.Errorf("outcome unknown: %v (%v)", got, err)
			}
		})
	}
}

func TestEveryUnreachableServerIsNamed(t *testing.T) {
	a, b := closed(t), closed(t)
	_, _, err := connect(t, a, b).Put(t.Context(), "k", nil)
	var un *UnreachableError
	if !errors.As(err, &un) || len(un.Tries) != 2 || !strings.Contains(err.Error(), a) || !strings.Contains(err.Error(), b) {
		t.Errorf("%v", err)
	}
}

func TestACancelledCallReturnsTheCallersReason(t *testing.T) {
	entered := make(chan struct{})
	c := connect(t, serve(t, func(_ http.ResponseWriter, r *http.Request) { close(entered); <-r.Context().Done() }))
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	go func() { <-entered; cancel(why) }()
	if _, _, err := c.Get(ctx, "k"); !errors.Is(err, why) {
		t.Errorf("%v", err)
	}
}

func TestUnusableAddressesAreRefused(t *testing.T) {
	for _, a := range []string{"", "ftp://h:1", "http://h:1/v1", "http://u:p@h:1", ":8500", "h:1?x"} {
		if _, err := New(Config{Addresses: []string{a}}); err == nil {
			t.Errorf("%q was accepted", a)
		}
	}
}

func TestClusterCalls(t *testing.T) {
	c := connect(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, map[string]string{
			"/v1/sites":          `[{"Name":"home","Home":true,"Servers":[{"ID":"n1-x","Name":"n1","Role":"voter","Lag":{"Entries":3}}]}]`,
			"/v1/status/leader":  `"127.0.0.1:8300"`,
			"/v1/status/peers":   `["127.0.0.1:8300"]`,
			"/v1/replica/status": `{"Running":true,"Mode":"learner","Status":"cut-off","Staleness":-1}`,
			"/v1/agent/self":     `{"Config":{"NodeName":"n1"},"Stats":{"raft":{"state":"Leader"}}}`,
			"/readyz":            "ok",
		}[r.URL.Path])
	}))
	ctx := t.Context()
	if v, _, err := c.Sites(ctx); err != nil || len(v) != 1 || v[0].Servers[0].Lag.Entries != 3 {
		t.Errorf("sites %+v %v", v, err)
	}
	if v, _, err := c.Leader(ctx); err != nil || v != "127.0.0.1:8300" {
		t.Errorf("leader %q %v", v, err)
	}
	if v, _, err := c.Peers(ctx); err != nil || len(v) != 1 {
		t.Errorf("peers %q %v", v, err)
	}
	if v, _, err := c.ReplicaStatus(ctx); err != nil || v.Status != "cut-off" || v.Staleness != -1 {
		t.Errorf("replica %+v %v", v, err)
	}
	if v, _, err := c.Self(ctx); err != nil || v.Config.NodeName != "n1" || v.Stats["raft"]["state"] != "Leader" {
		t.Errorf("self %+v %v", v, err)
	}
	if err := c.Ready(ctx); err != nil {
		t.Errorf("ready: %v", err)
	}
}
