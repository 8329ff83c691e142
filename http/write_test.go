package http

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

func TestEntityTagsAreConditionsOfWrites(t *testing.T) {
	for _, row := range []struct {
		method, target string
		headers        []string
		status         int
		body           string
		proposed       command.Command
	}{
		{"PUT", "a", []string{"If-Match", `"1"`}, 200, "true", &command.Put{Key: "a", Mode: command.PutCAS, Index: 1}},
		{"PUT", "a", []string{"If-Match", `"9"`}, 412, "false", &command.Put{Key: "a", Mode: command.PutCAS, Index: 9}},
		{"PUT", "a?strict", []string{"If-Match", `"9"`}, 412, "false", &command.Put{Key: "a", Mode: command.PutCAS, Index: 9}},
		{"PUT", "a", []string{"If-None-Match", "*"}, 412, "false", &command.Put{Key: "a", Mode: command.PutCAS}},
		{"PUT", "new?flags=3", []string{"If-None-Match", "*"}, 200, "true", &command.Put{Key: "new", Mode: command.PutCAS, Flags: 3}},
		{"PUT", "new", []string{"If-Match", `"18446744073709551615"`}, 412, "false", &command.Put{Key: "new", Mode: command.PutCAS, Index: 1<<64 - 1}},
		{"DELETE", "a", []string{"If-Match", `"1"`}, 200, "true", &command.Delete{Key: "a", CAS: true, Index: 1}},
		{"DELETE", "a", []string{"If-Match", `"9"`}, 412, "false", &command.Delete{Key: "a", CAS: true, Index: 9}},
		{"DELETE", "a", []string{"If-None-Match", "*"}, 412, "false", &command.Delete{Key: "a", CAS: true}},
		{"DELETE", "none", []string{"If-Match", `"9"`}, 200, "true", &command.Delete{Key: "none", CAS: true, Index: 9}},
		// strict changes the status alone.
		{"PUT", "a?cas=9&strict", nil, 409, "false", &command.Put{Key: "a", Mode: command.PutCAS, Index: 9}},
		{"PUT", "a?cas=1&strict", nil, 200, "true", &command.Put{Key: "a", Mode: command.PutCAS, Index: 1}},
		{"PUT", "a?release=s&strict", nil, 409, "false", &command.Put{Key: "a", Mode: command.PutRelease, Session: "s"}},
		{"DELETE", "a?cas=9&strict=false", nil, 409, "false", &command.Delete{Key: "a", CAS: true, Index: 9}},
		{"PUT", "a?cas=9", nil, 200, "false", &command.Put{Key: "a", Mode: command.PutCAS, Index: 9}},
	} {
		n := newFakeNode()
		n.apply(&command.Put{Key: "a", Value: []byte("x")})
		w := ask(t, newTestServer(t, n), row.method, "/v1/kv/"+row.target, nil, row.headers...)
		if w.Code != row.status || w.Body.String() != row.body || w.Header().Get("X-Consul-Index") == "" {
			t.Errorf("%s %s %v: %d %q %v", row.method, row.target, row.headers, w.Code, w.Body, w.Header())
		}
		if len(n.proposed) != 1 || !reflect.DeepEqual(n.proposed[0], row.proposed) {
			t.Errorf("%s %s %v: proposed %+v", row.method, row.target, row.headers, n.proposed)
		}
	}
}

func TestConditionsThatCannotBeMeantAreRefused(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	for _, row := range []struct {
		method, target, header, value, text string
	}{
		{"PUT", "a", "If-Match", `1`, "Invalid If-Match: "},
		{"PUT", "a", "If-Match", `"1`, "Invalid If-Match: "},
		{"PUT", "a", "If-Match", `W/"1"`, "Invalid If-Match: "},
		{"PUT", "a", "If-Match", `"0"`, "Invalid If-Match: "},
		{"PUT", "a", "If-Match", `""`, "Invalid If-Match: "},
		{"PUT", "a", "If-Match", ``, "Invalid If-Match: "},
		{"PUT", "a", "If-Match", `*`, "Invalid If-Match: "},
		{"PUT", "a", "If-Match", `"1", "2"`, "Invalid If-Match: "},
		{"PUT", "a", "If-Match", `"18446744073709551616"`, "Invalid If-Match: "},
		{"PUT", "a", "If-None-Match", `"1"`, "Invalid If-None-Match: "},
		{"DELETE", "a", "If-None-Match", `"1"`, "Invalid If-None-Match: "},
		{"PUT", "a?cas=1", "If-Match", `"1"`, "Conflicting flags: "},
		{"PUT", "a?acquire=s", "If-None-Match", `*`, "Conflicting flags: "},
		{"DELETE", "a?cas=1", "If-Match", `"1"`, "Conflicting flags: "},
		{"DELETE", "a?recurse", "If-Match", `"1"`, "Conflicting flags: "},
	} {
		w := ask(t, s, row.method, "/v1/kv/"+row.target, nil, row.header, row.value)
		if w.Code != 400 || !strings.HasPrefix(w.Body.String(), row.text) {
			t.Errorf("%s %s %s %s: %d %q", row.method, row.target, row.header, row.value, w.Code, w.Body)
		}
	}
	w := ask(t, s, "PUT", "/v1/kv/a", nil, "If-Match", `"1"`, "If-None-Match", "*")
	want(t, w, 400, "Conflicting conditions: only one of If-Match and If-None-Match may be given, once")
	if len(n.proposed) > 0 {
		t.Errorf("proposed %+v", n.proposed)
	}
}

func TestAnUnknownSessionIsToldInTheWordsOfLockClients(t *testing.T) {
	n := newFakeNode()
	n.propose = decides(command.Result{Err: command.ErrInvalidSession.With("elsewhere")})
	s := newTestServer(t, n)
	want(t, ask(t, s, "PUT", "/v1/kv/a?acquire=s1", "x"), 500, `invalid session "s1"`)
	want(t, ask(t, s, "PUT", "/v1/kv/a?acquire=s1", "x", "Idempotency-Key", "k"), 500, `invalid session "s1"`)
}

// onceOf asks with an idempotency key and gives what was proposed.
func onceOf(t *testing.T, method, target, body string, headers ...string) *command.Once {
	t.Helper()
	n := newFakeNode()
	n.propose = decides(command.Result{OK: true, Revision: 1, Txn: &command.TxnResult{}})
	w := ask(t, newTestServer(t, n), method, target, body, append(headers, "Idempotency-Key", "key-1")...)
	if w.Code != 200 || len(n.proposed) != 1 {
		t.Fatalf("%s %s: %d %q, proposed %+v", method, target, w.Code, w.Body, n.proposed)
	}
	return n.proposed[0].(*command.Once)
}

func TestAnIdempotencyKeyMakesAWriteHappenOnce(t *testing.T) {
	once := onceOf(t, "PUT", "/v1/kv/a?flags=7", "v")
	exp := &command.Once{Key: "key-1", Request: once.Request, Retention: 15 * time.Minute, Limit: 64 << 20,
		Command: &command.Put{Key: "a", Value: []byte("v"), Flags: 7}}
	if !reflect.DeepEqual(once, exp) || once.Request == [16]byte{} {
		t.Errorf("proposed %+v", once)
	}

	// A repeat is one however it is spelled and whatever its answer is to look like;
	// anything else is another request.
	if same := onceOf(t, "PUT", "/v1/kv//%61?flags=07&wait=1s&pretty&strict&x=y", "v", "X-Other", "1"); same.Request != once.Request {
		t.Error("a repeat counts as another request")
	}
	seen := map[[16]byte]string{once.Request: "the first"}
	for name, other := range map[string]*command.Once{
		"value":   onceOf(t, "PUT", "/v1/kv/a?flags=7", "w"),
		"flags":   onceOf(t, "PUT", "/v1/kv/a?flags=8", "v"),
		"key":     onceOf(t, "PUT", "/v1/kv/b?flags=7", "v"),
		"cas":     onceOf(t, "PUT", "/v1/kv/a?flags=7&cas=0", "v"),
		"acquire": onceOf(t, "PUT", "/v1/kv/a?flags=7&acquire=s", "v"),
		"release": onceOf(t, "PUT", "/v1/kv/a?flags=7&release=s", "v"),
		"delete":  onceOf(t, "DELETE", "/v1/kv/a", ""),
		"cas 1":   onceOf(t, "DELETE", "/v1/kv/a?cas=1", ""),
		"tree":    onceOf(t, "DELETE", "/v1/kv/a?recurse", ""),
		"txn":     onceOf(t, "PUT", "/v1/txn", `[{"KV":{"Verb":"set","Key":"a","Value":"dg==","Flags":7}}]`),
		"session": onceOf(t, "PUT", "/v1/session/create", ""),
	} {
		if before, ok := seen[other.Request]; ok {
			t.Errorf("%s and %s count as one request", name, before)
		}
		seen[other.Request] = name
	}
}

func TestIdempotencyIsConfigured(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n, func(c *Config) { c.OnceRetention, c.OnceBytes = time.Hour, 1<<20 })
	ask(t, s, "PUT", "/v1/kv/a", "v", "Idempotency-Key", "k")
	if once := n.proposed[0].(*command.Once); once.Retention != time.Hour || once.Limit != 1<<20 {
		t.Errorf("proposed %+v", once)
	}
}

func TestIdempotencyKeysArePrintableAndShort(t *testing.T) {
	n := newFakeNode()
	n.propose = decides(command.Result{OK: true, Revision: 1})
	s := newTestServer(t, n)
	for c := range 256 {
		n.proposed = nil
		w := ask(t, s, "PUT", "/v1/kv/a", "v", "Idempotency-Key", "k"+string([]byte{byte(c)})+"k")
		if printable := c >= ' ' && c <= '~'; printable != (w.Code == 200 && len(n.proposed) == 1) || !printable && (w.Code != 400 || len(n.proposed) > 0) {
			t.Errorf("byte %d: %d %q, proposed %v", c, w.Code, w.Body, n.proposed)
		}
	}
	n.proposed = nil
	for _, key := range []string{"", strings.Repeat("k", 129)} {
		for _, target := range []string{"/v1/kv/a", "/v1/session/create"} {
			want(t, ask(t, s, "PUT", target, "", "Idempotency-Key", key), 400, "Invalid Idempotency-Key: it must be 1 to 128 printable ASCII characters")
		}
	}
	if len(n.proposed) > 0 {
		t.Errorf("proposed %+v", n.proposed)
	}
	if w := ask(t, s, "PUT", "/v1/kv/a", "", "Idempotency-Key", strings.Repeat("k", 128)); w.Code != 200 {
		t.Errorf("%d %q", w.Code, w.Body)
	}
}

func TestRefusedRepeatsHaveTheirStatus(t *testing.T) {
	for err, status := range map[*command.Error]int{command.ErrKeyReused: 422, command.ErrOnceFull: 429, command.ErrCompacted: 410} {
		n := newFakeNode()
		n.propose = decides(command.Result{Err: err})
		s := newTestServer(t, n)
		for target, body := range map[string]string{
			"/v1/kv/a": "v", "/v1/txn": `[{"KV":{"Verb":"delete","Key":"a"}}]`, "/v1/session/create": "{}",
		} {
			want(t, ask(t, s, "PUT", target, body, "Idempotency-Key", "k"), status, err.Message)
		}
	}
}

// sitesAt are two sites whose servers have applied some revisions.
func sitesAt(home, east1, east2 uint64) []command.Site {
	return []command.Site{
		{Name: "home", Servers: []command.Server{{ID: "n1", Applied: home}}},
		{Name: "east", Servers: []command.Server{{ID: "e1", Applied: east1}, {ID: "e2", Applied: east2}}},
	}
}

func (n *fakeNode) setSites(sites []command.Site) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sites = sites
}

func TestAWriteWaitsForTheSitesItNames(t *testing.T) {
	for _, row := range []struct {
		name          string
		await         string
		before, after []command.Site // after a second
		took          time.Duration
		outcome       string // X-Holdfast-Await
	}{
		{"there already", "site:east", sitesAt(1, 1, 1), nil, 0, ""},
		{"all there already", "all", sitesAt(1, 1, 2), nil, 0, ""},
		{"a site that follows", "site:east", sitesAt(1, 0, 1), sitesAt(1, 1, 1), time.Second, ""},
		{"another site does not count", "site:home", sitesAt(1, 0, 0), nil, 0, ""},
		{"all that follow", "all", sitesAt(0, 0, 0), sitesAt(1, 1, 1), time.Second, ""},
		{"one server is missing", "site:east", sitesAt(1, 1, 0), sitesAt(1, 2, 0), 5 * time.Second, "timeout"},
		{"one site is missing", "all", sitesAt(1, 0, 0), sitesAt(1, 0, 0), 5 * time.Second, "timeout"},
		{"as long as asked", "all&wait=90s", sitesAt(1, 0, 0), sitesAt(1, 0, 0), 90 * time.Second, "timeout"},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newFakeNode()
				n.setSites(row.before)
				if row.after != nil {
					time.AfterFunc(time.Second, func() { n.setSites(row.after) })
				}
				began := time.Now()
				w := ask(t, newTestServer(t, n), "PUT", "/v1/kv/a?await="+row.await, "v")
				want(t, w, 200, "true")
				wantHeaders(t, w, "X-Consul-Index", "1", "X-Holdfast-Await", row.outcome)
				if took := time.Since(began); took < row.took || took > row.took+lookEvery {
					t.Errorf("answered after %v", took)
				}
			})
		})
	}
}

func TestEveryKindOfWriteCanWaitForSites(t *testing.T) {
	for _, row := range []struct{ method, target, body, reply string }{
		{"PUT", "/v1/kv/a?cas=9&", "v", "false"},
		{"DELETE", "/v1/kv/a?", "", "true"},
		{"PUT", "/v1/txn?", `[{"KV":{"Verb":"set","Key":"a"}}]`, `{"Results":[],"Errors":null}`},
		{"PUT", "/v1/session/destroy/s1?", "", "true"},
		{"PUT", "/v1/session/create?", "", ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			n := newFakeNode()
			n.setSites(sitesAt(7, 7, 6))
			n.propose = decides(command.Result{OK: row.reply != "false", Revision: 7, Txn: &command.TxnResult{}})
			w := ask(t, newTestServer(t, n), row.method, row.target+"await=all&wait=1s", row.body)
			if w.Code != 200 || row.reply != "" && w.Body.String() != row.reply {
				t.Errorf("%s: %d %q", row.target, w.Code, w.Body)
			}
			wantHeaders(t, w, "X-Consul-Index", "7", "X-Holdfast-Await", "timeout")
		})
	}
}

func TestSitesThatCannotBeAwaitedAreToldBeforeTheWrite(t *testing.T) {
	n := newFakeNode()
	n.sites = sitesAt(9, 9, 9)
	s := newTestServer(t, n)
	for query, exp := range map[string]struct {
		status int
		text   string
	}{
		"await=site:nowhere":   {404, `No such site: "nowhere"`},
		"await=site:":          {400, "Invalid await: "},
		"await=east":           {400, "Invalid await: "},
		"await":                {400, "Invalid await: "},
		"await=all&wait=later": {400, "Invalid wait time"},
	} {
		for _, target := range []string{"/v1/kv/a?", "/v1/session/create?", "/v1/session/destroy/s?"} {
			w := ask(t, s, "PUT", target+query, nil)
			if w.Code != exp.status || !strings.HasPrefix(w.Body.String(), exp.text) {
				t.Errorf("%s%s: %d %q", target, query, w.Code, w.Body)
			}
		}
	}
	if len(n.proposed) > 0 {
		t.Errorf("proposed %+v", n.proposed)
	}
	want(t, ask(t, s, "PUT", "/v1/kv/a?wait=later", nil), 200, "true") // means nothing there
}

func TestAStoppingServerAnswersWritesThatWaitForSites(t *testing.T) {
	n := newFakeNode()
	n.sites = sitesAt(1, 0, 0)
	s := newTestServer(t, n)
	s.stop()
	w := ask(t, s, "PUT", "/v1/kv/a?await=all&wait=10m", "v")
	want(t, w, 200, "true")
	wantHeaders(t, w, "X-Holdfast-Await", "timeout")
	want(t, ask(t, s, "GET", "/v1/sites/east/applied?index=5&wait=10m", nil), 500, "node is stopping")
}

func TestHowFarASiteIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNode()
		n.setSites(sitesAt(5, 4, 3))
		s := newTestServer(t, n)
		reply := `{"Site":"east","Applied":3,"Servers":{"e1":4,"e2":3}}`
		want(t, ask(t, s, "GET", "/v1/sites/east/applied", nil), 200, reply)
		want(t, ask(t, s, "GET", "/v1/sites/east/applied?index=3", nil), 200, reply)

		began := time.Now()
		w := ask(t, s, "GET", "/v1/sites/east/applied?index=4&wait=2s", nil)
		want(t, w, 504, "revision was not reached in time: revision 4, the servers of site east have 3")
		wantHeaders(t, w, "X-Holdfast-Node", "n1", "X-Consul-KnownLeader", "true")
		if took := time.Since(began); took != 2*time.Second {
			t.Errorf("answered after %v", took)
		}
		time.AfterFunc(time.Second, func() { n.setSites(sitesAt(5, 4, 5)) })
		want(t, ask(t, s, "GET", "/v1/sites/east/applied?index=4", nil), 200, `{"Site":"east","Applied":4,"Servers":{"e1":4,"e2":5}}`)

		want(t, ask(t, s, "GET", "/v1/sites/nowhere/applied?index=1", nil), 404, `No such site: "nowhere"`)
		want(t, ask(t, s, "GET", "/v1/sites/east/applied?index=x", nil), 400, "Invalid index")
		want(t, ask(t, s, "GET", "/v1/sites/east/applied?wait=x", nil), 400, "Invalid wait time")

		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if _, err := s.awaitSite(ctx, "east", 9, time.Hour); fmt.Sprint(err) != "context canceled" {
			t.Errorf("a client that went away: %v", err)
		}
	})
}

func TestEveryByteInAKeyIsKeptOrRefused(t *testing.T) {
	for c := range 256 {
		key := "k" + string([]byte{byte(c)}) + "k"
		for _, method := range []string{"PUT", "DELETE"} {
			n := newFakeNode()
			w := ask(t, newTestServer(t, n), method, fmt.Sprintf("/v1/kv/k%%%02xk", c), nil)
			if valid := c >= ' ' && c < 0x7f; !valid {
				if w.Code != 400 || len(n.proposed) > 0 {
					t.Errorf("%s %q: %d %q, proposed %+v", method, key, w.Code, w.Body, n.proposed)
				}
				continue
			}
			var got string
			switch c := n.proposed[0].(type) {
			case *command.Put:
				got = c.Key
			case *command.Delete:
				got = c.Key
			}
			if w.Code != 200 || got != key {
				t.Errorf("%s %q: %d, proposed for %q", method, key, w.Code, got)
			}
		}
	}
}
