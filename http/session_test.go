package http

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// created is the session that a create proposed.
func created(t testing.TB, n *fakeNode) command.Session {
	t.Helper()
	if len(n.proposed) != 1 {
		t.Fatalf("proposed %+v", n.proposed)
	}
	c := n.proposed[0]
	if once, ok := c.(*command.Once); ok {
		c = once.Command
	}
	return c.(*command.SessionCreate).Session
}

var uuid = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[48][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)

func TestASessionIsCreatedAsItsBodySays(t *testing.T) {
	usual := command.Session{Node: "n1", LockDelay: 15 * time.Second, Behavior: command.BehaviorRelease, NodeChecks: []string{"serfHealth"}}
	with := func(change func(*command.Session)) command.Session {
		s := usual
		change(&s)
		return s
	}
	delay := func(d time.Duration) command.Session {
		return with(func(s *command.Session) { s.LockDelay = d })
	}
	checks := func(names ...string) command.Session {
		return with(func(s *command.Session) { s.NodeChecks = names })
	}
	for body, exp := range map[string]command.Session{
		"":                                    usual,
		"{}":                                  usual,
		`null`:                                usual,
		`{"Unknown":{"a":[1]}}`:               usual,
		`{"Namespace":"default"}`:             usual,
		`{"LockDelay":"15s"}`:                 delay(15 * time.Second),
		`{"lockdelay":"5000ms"}`:              delay(5 * time.Second),
		`{"LockDelay":"0.001s"}`:              delay(time.Millisecond),
		`{"LockDelay":15}`:                    delay(15 * time.Second),
		`{"LockDelay":0.5}`:                   delay(500 * time.Millisecond),
		`{"LockDelay":999}`:                   delay(time.Minute),
		`{"LockDelay":1000}`:                  delay(time.Microsecond),
		`{"LockDelay":15000000000}`:           delay(15 * time.Second),
		`{"LockDelay":"7ns"}`:                 delay(7 * time.Second),
		`{"LockDelay":"5m"}`:                  delay(time.Minute),
		`{"LockDelay":1e300}`:                 delay(time.Minute),
		`{"LockDelay":"0s"}`:                  delay(0),
		`{"LockDelay":0}`:                     delay(0),
		`{"LockDelay":null}`:                  usual,
		`{"NodeChecks":[]}`:                   checks(),
		`{"Checks":[]}`:                       checks(),
		`{"Checks":["a","b"]}`:                checks("a", "b"),
		`{"NodeChecks":["a"],"Checks":["b"]}`: checks("a"),
		`{"NodeChecks":null}`:                 usual,
		`{"name":"lock","NODE":"other","behavior":"delete","ttl":"15s"}`: with(func(s *command.Session) {
			s.Name, s.Node, s.Behavior, s.TTL = "lock", "other", command.BehaviorDelete, "15s"
		}),
		`{"TTL":"0s"}`:  with(func(s *command.Session) { s.TTL = "0s" }),
		`{"TTL":"10s"}`: with(func(s *command.Session) { s.TTL = "10s" }),
		`{"TTL":"24h"}`: with(func(s *command.Session) { s.TTL = "24h" }),
		`{"ServiceChecks":[ {"ID":"web", "Namespace":""} ]}`: with(func(s *command.Session) {
			s.ServiceChecks = json.RawMessage(`[{"ID":"web","Namespace":""}]`)
		}),
	} {
		n := newFakeNode()
		n.propose = decides(command.Result{OK: true, Revision: 8})
		w := ask(t, newTestServer(t, n), "PUT", "/v1/session/create", body)
		if w.Code != 200 {
			t.Errorf("%s: %d %q", body, w.Code, w.Body)
			continue
		}
		got := created(t, n)
		if !uuid.MatchString(got.ID) || w.Body.String() != `{"ID":"`+got.ID+`"}` {
			t.Errorf("%s: answered %s for %q", body, w.Body, got.ID)
		}
		exp.ID = got.ID
		if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", exp) {
			t.Errorf("%s:\n%+v, want\n%+v", body, got, exp)
		}
		wantHeaders(t, w, "X-Consul-Index", "8")
	}
}

func TestASessionThatCannotBeIsRefused(t *testing.T) {
	for body, exp := range map[string]struct {
		status int
		text   string
	}{
		`{`:                         {400, "Request decode failed: "},
		`[]`:                        {400, "Request decode failed: "},
		`{} {}`:                     {400, "Request decode failed: "},
		`{"Name":1}`:                {400, "Request decode failed: "},
		`{"Name":"` + "\xff" + `"}`: {400, "Request decode failed: it is not valid UTF-8"},
		`{"LockDelay":"15"}`:        {400, "Request decode failed: LockDelay: "},
		`{"LockDelay":"-1s"}`:       {400, "Request decode failed: LockDelay: "},
		`{"LockDelay":-1}`:          {400, "Request decode failed: LockDelay: "},
		`{"LockDelay":true}`:        {400, "Request decode failed: LockDelay: "},
		`{"LockDelay":{}}`:          {400, "Request decode failed: LockDelay: "},
		`{"LockDelay":1e999}`:       {400, "Request decode failed: LockDelay: "},
		`{"TTL":15}`:                {400, "Request decode failed: "},
		`{"NodeChecks":"a"}`:        {400, "Request decode failed: "},
		`{"ServiceChecks":{}}`:      {400, "Request decode failed: "},
		`{"Namespace":"other"}`:     {400, `Invalid Namespace: "other" does not exist here`},
		`{"Partition":"other"}`:     {400, `Invalid Partition: "other" does not exist here`},
		`{"Behavior":"x"}`:          {500, "Invalid Behavior setting 'x'"},
		`{"TTL":"9.999s"}`:          {500, "Invalid Session TTL '9.999s', must be between 10s and 24h0m0s"},
		`{"TTL":"24h1ns"}`:          {500, "Invalid Session TTL"},
		`{"TTL":"-15s"}`:            {500, "Invalid Session TTL"},
		`{"TTL":"15"}`:              {500, "Invalid Session TTL '15': "},
		`{"Name":"` + strings.Repeat("n", 64<<10) + `"}`: {413, "Session is too large (65547 > 65536 bytes)"},
	} {
		n := newFakeNode()
		w := ask(t, newTestServer(t, n), "PUT", "/v1/session/create", body)
		if w.Code != exp.status || !strings.HasPrefix(w.Body.String(), exp.text) || len(n.proposed) > 0 {
			t.Errorf("%.60s: %d %q, proposed %v", body, w.Code, w.Body, n.proposed)
		}
	}
	n := newFakeNode()
	w := ask(t, newTestServer(t, n), "PUT", "/v1/session/create", unsized(strings.Repeat(" ", 64<<10)+"{}"))
	want(t, w, 413, "Session is too large (more than 65536 bytes)")
}

func TestTheShortestTTLIsASetting(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n, func(c *Config) { c.SessionTTLMin = time.Second })
	if w := ask(t, s, "PUT", "/v1/session/create", `{"TTL":"1s"}`); w.Code != 200 {
		t.Errorf("%d %q", w.Code, w.Body)
	}
	if w := ask(t, s, "PUT", "/v1/session/create", `{"TTL":"999ms"}`); w.Code != 500 {
		t.Errorf("%d %q", w.Code, w.Body)
	}
	var self struct {
		Config struct{ SessionTTLMin time.Duration }
	}
	if err := json.Unmarshal(ask(t, s, "GET", "/v1/agent/self", nil).Body.Bytes(), &self); err != nil || self.Config.SessionTTLMin != time.Second {
		t.Errorf("agent/self says %v, %v", self.Config.SessionTTLMin, err)
	}
}

func TestSessionIDsAreDrawnAnew(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		n := newFakeNode()
		ask(t, newTestServer(t, n), "PUT", "/v1/session/create", nil)
		seen[created(t, n).ID] = true
	}
	if len(seen) != 100 {
		t.Errorf("100 sessions have %d ids", len(seen))
	}
}

// TestARepeatedCreateNamesTheFirstSession: the id is the same through any node, and
// no other request of the same key, no other key and no other cluster has it.
func TestARepeatedCreateNamesTheFirstSession(t *testing.T) {
	create := func(node, cluster, key, body string) command.Session {
		n := newFakeNode()
		n.status.Name, n.status.Cluster.ID = node, cluster
		if w := ask(t, newTestServer(t, n), "PUT", "/v1/session/create", body, "Idempotency-Key", key); w.Code != 200 {
			t.Fatalf("%d %q", w.Code, w.Body)
		}
		return created(t, n)
	}
	first := create("n1", "c", "k1", `{"Name":"a"}`)
	if !uuid.MatchString(first.ID) || first.Node != "n1" {
		t.Errorf("created %+v", first)
	}
	if again := create("n2", "c", "k1", ` {"name":"a", "TTL":""}`); again.ID != first.ID {
		t.Errorf("a repeat through another node gives %s, not %s", again.ID, first.ID)
	}
	for what, other := range map[string]command.Session{
		"key":     create("n1", "c", "k2", `{"Name":"a"}`),
		"request": create("n1", "c", "k1", `{"Name":"b"}`),
		"cluster": create("n1", "d", "k1", `{"Name":"a"}`),
	} {
		if other.ID == first.ID {
			t.Errorf("another %s gives the same session", what)
		}
	}
}

func TestDestroySaysTrueAlsoForAnUnknownSession(t *testing.T) {
	n := newFakeNode()
	n.propose = decides(command.Result{OK: true, Revision: 9})
	w := ask(t, newTestServer(t, n), "PUT", "/v1/session/destroy/s1?pretty", nil)
	want(t, w, 200, "true\n")
	wantHeaders(t, w, "X-Consul-Index", "9")
	if c := n.proposed[0].(*command.SessionDestroy); c.ID != "s1" {
		t.Errorf("proposed %+v", c)
	}
}

func TestRenewGivesTheSessionOr404(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	want(t, ask(t, s, "PUT", "/v1/session/renew/s1", nil), 404, "Session id 's1' not found")
	n.renew = func(id string) (command.Session, error) {
		return command.Session{ID: id, TTL: "15s", Behavior: command.BehaviorRelease, CreateRevision: 4}, nil
	}
	want(t, ask(t, s, "PUT", "/v1/session/renew/s1", nil), 200, `[{"ID":"s1","Name":"","Node":"","LockDelay":0,"Behavior":"release","TTL":"15s",`+
		`"NodeChecks":[],"ServiceChecks":null,"CreateIndex":4,"ModifyIndex":4}]`)
	n.renew = func(string) (command.Session, error) { return command.Session{}, command.ErrNoLeader }
	want(t, ask(t, s, "PUT", "/v1/session/renew/s1", nil), 500, "No cluster leader")
	if len(n.proposed) > 0 {
		t.Errorf("proposed %+v", n.proposed)
	}
}

func TestSessionPathsNeedASession(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	for _, row := range []struct{ method, target, text string }{
		{"PUT", "/v1/session/destroy", "Missing session"},
		{"PUT", "/v1/session/destroy/", "Missing session"},
		{"PUT", "/v1/session/renew", "Missing session"},
		{"PUT", "/v1/session/renew/", "Missing session"},
		{"GET", "/v1/session/info", "Missing session"},
		{"GET", "/v1/session/info/", "Missing session"},
		{"GET", "/v1/session/node/", "Missing node name"},
		{"GET", "/v1/session/info/" + strings.Repeat("s", 129), "Session id is too long (129 > 128 bytes)"},
		{"PUT", "/v1/session/destroy/" + strings.Repeat("s", 129), "Session id is too long (129 > 128 bytes)"},
	} {
		want(t, ask(t, s, row.method, row.target, nil), 400, row.text)
	}
	if len(n.proposed) > 0 {
		t.Errorf("proposed %+v", n.proposed)
	}
}

func TestSessionReadsHaveOneIndexAndAreNeverNull(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	for _, target := range []string{"/v1/session/list", "/v1/session/info/s1", "/v1/session/node/n1"} {
		w := ask(t, s, "GET", target, nil)
		want(t, w, 200, "[]")
		wantHeaders(t, w, "X-Consul-Index", "1", "X-Consul-KnownLeader", "true", "X-Consul-LastContact", "0", "X-Holdfast-Node", "n1")
	}
	n.ended = 31
	n.sessions = []command.Session{
		{ID: "s1", Name: `a "lock"`, Node: "n1", LockDelay: 15 * time.Second, Behavior: command.BehaviorDelete, TTL: "15s",
			NodeChecks: []string{"serfHealth", "x"}, ServiceChecks: json.RawMessage(`[{"ID":"web"}]`), CreateRevision: 30},
		{ID: "s2", Node: "n2", Behavior: command.BehaviorRelease, CreateRevision: 31},
	}
	first := `{"ID":"s1","Name":"a \"lock\"","Node":"n1","LockDelay":15000000000,"Behavior":"delete","TTL":"15s",` +
		`"NodeChecks":["serfHealth","x"],"ServiceChecks":[{"ID":"web"}],"CreateIndex":30,"ModifyIndex":30}`
	second := `{"ID":"s2","Name":"","Node":"n2","LockDelay":0,"Behavior":"release","TTL":"","NodeChecks":[],"ServiceChecks":null,"CreateIndex":31,"ModifyIndex":31}`
	for target, body := range map[string]string{
		"/v1/session/list":         "[" + first + "," + second + "]",
		"/v1/session/info/s2":      "[" + second + "]",
		"/v1/session/info/none":    "[]",
		"/v1/session/node/n1":      "[" + first + "]",
		"/v1/session/node/none":    "[]",
		"/v1/session/list?index=5": "[" + first + "," + second + "]",
	} {
		w := ask(t, s, "GET", target, nil)
		want(t, w, 200, body)
		wantHeaders(t, w, "X-Consul-Index", "31")
	}
	ask(t, s, "GET", "/v1/session/list?stale", nil)
	if n.asked.Mode != command.ReadStale {
		t.Errorf("asked for mode %d", n.asked.Mode)
	}
	n.read = func(context.Context, command.ReadOptions) error { return errors.New("broken") }
	if w := ask(t, s, "GET", "/v1/session/list", nil); w.Code != 500 {
		t.Errorf("%d %q", w.Code, w.Body)
	}
}

func TestSessionReadsBlockUntilASessionComesOrGoes(t *testing.T) {
	for _, target := range []string{"/v1/session/list", "/v1/session/info/s1", "/v1/session/node/n1"} {
		synctest.Test(t, func(t *testing.T) {
			n := newFakeNode()
			n.ended = 5
			s := newTestServer(t, n)
			done := make(chan *struct{ body, index string })
			go func() {
				w := ask(t, s, "GET", target+"?index=5&wait=1m", nil)
				done <- &struct{ body, index string }{w.Body.String(), w.Header().Get("X-Consul-Index")}
			}()
			synctest.Wait()
			select {
			case r := <-done:
				t.Fatalf("%s answered %+v before anything happened", target, r)
			default:
			}
			began := time.Now()
			n.mu.Lock()
			n.ended, n.sessions = 6, []command.Session{{ID: "s1", Node: "n1", CreateRevision: 6}}
			n.wake(func(t command.Target) bool { return t.Kind == command.TargetSessions })
			n.mu.Unlock()
			if r := <-done; r.index != "6" || !strings.Contains(r.body, `"s1"`) || time.Since(began) != 0 {
				t.Errorf("%s: %+v after %v", target, r, time.Since(began))
			}
		})
	}
}

func FuzzSessionBody(f *testing.F) {
	for _, seed := range []string{
		"", "{}", `{"LockDelay":"15s","TTL":"10s","Behavior":"delete","NodeChecks":[],"ServiceChecks":[{"ID":"a"}]}`,
		`{"lockdelay":1e3}`, `{"LockDelay":-1}`, `{"TTL":"` + "\xff" + `"}`, `[]`, `{"Checks":["a"]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		n := newFakeNode()
		w := ask(t, newTestServer(t, n), "PUT", "/v1/session/create", string(body))
		if w.Code != 200 {
			if w.Code != 400 && w.Code != 413 && (w.Code != 500 || !strings.HasPrefix(w.Body.String(), "Invalid ")) || len(n.proposed) > 0 {
				t.Errorf("%d %q, proposed %+v", w.Code, w.Body, n.proposed)
			}
			return
		}
		// What is proposed comes out of the log as it went in, and can be shown.
		session := created(t, n)
		if session.LockDelay < 0 || session.LockDelay > time.Minute {
			t.Errorf("lock-delay %v", session.LockDelay)
		}
		if ttl := session.Lifetime(); ttl != 0 && (ttl < 10*time.Second || ttl > 24*time.Hour) {
			t.Errorf("TTL %v", ttl)
		}
		c, _, err := command.Decode(command.Append(nil, &command.SessionCreate{Session: session}))
		if err != nil {
			t.Fatal(err)
		}
		stored := c.(*command.SessionCreate).Session
		if !json.Valid(appendSession(nil, &stored)) {
			t.Errorf("shown as %s", appendSession(nil, &stored))
		}
	})
}
