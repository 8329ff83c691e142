package http

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

func TestStatusIsTheFormOfConsul(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	w := ask(t, s, "GET", "/v1/status/leader", nil)
	want(t, w, 200, `"10.0.0.1:8300"`)
	wantHeaders(t, w, "X-Consul-Index", "", "Content-Type", "application/json")
	want(t, ask(t, s, "GET", "/v1/status/peers", nil), 200, `["10.0.0.1:8300"]`)
	n.status.LeaderRaftAddr, n.status.VoterRaftAddrs = "", nil
	want(t, ask(t, s, "GET", "/v1/status/leader", nil), 200, `""`)
	want(t, ask(t, s, "GET", "/v1/status/peers", nil), 200, `[]`)
}

func TestSelfHasWhatClientsLookFor(t *testing.T) {
	n := newFakeNode()
	w := ask(t, newTestServer(t, n, func(c *Config) { c.Version = "0.9.1" }), "GET", "/v1/agent/self", nil)
	var v struct {
		Config struct {
			NodeName, Datacenter, Version string
			Server                        bool
			SessionTTLMin                 int64
		}
		Coord  any
		Member struct {
			Addr         string
			Port, Status int
		}
		Stats map[string]map[string]string
		Meta  map[string]string
	}
	if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil || w.Code != 200 {
		t.Fatalf("%d %s: %v", w.Code, w.Body, err)
	}
	if v.Config.NodeName != "n1" || v.Config.Datacenter != "dc1" || v.Config.Version != "1.22.0" || !v.Config.Server || v.Config.SessionTTLMin != 10e9 ||
		v.Member.Addr != "10.0.0.1" || v.Member.Port != 8300 || v.Member.Status != 1 || v.Stats["raft"]["state"] != "Leader" ||
		v.Stats["raft"]["applied_index"] != "17" || v.Meta["holdfast-version"] != "0.9.1" {
		t.Errorf("%s", w.Body)
	}
	if !strings.Contains(w.Body.String(), `"DebugConfig":{},"Coord":null`) {
		t.Errorf("%s", w.Body)
	}
}

func TestSitesComeFromTheMembership(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	want(t, ask(t, s, "GET", "/v1/sites", nil), 200, "[]")
	n.sites = []command.Site{
		{Name: "home", Home: true, Leader: true, Servers: []command.Server{{ID: "n1-00", Name: "n1", Voter: true, Role: command.RoleVoter, LastContact: "0s", Lag: command.Lag{ETA: -1}}}},
		{Name: "east"},
	}
	w := ask(t, s, "GET", "/v1/sites?index=3&wait=1s", nil)
	wantHeaders(t, w, "X-Consul-Index", "4", "X-Consul-KnownLeader", "true", "X-Consul-LastContact", "0", "X-Holdfast-Node", "n1", "X-Holdfast-Applied", "0")
	var sites []command.Site
	if err := json.Unmarshal(w.Body.Bytes(), &sites); err != nil || len(sites) != 2 || sites[0].Servers[0].Name != "n1" {
		t.Errorf("%s: %v", w.Body, err)
	}
	if !strings.Contains(w.Body.String(), `{"Name":"east","Home":false,"Leader":false,"Servers":[]}`) {
		t.Errorf("%s", w.Body)
	}
}

func TestReplicaStatusIsTheNodesOwn(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	if body := ask(t, s, "GET", "/v1/replica/status", nil).Body.String(); !strings.Contains(body, `"Diverged":0,"Damaged":[]`) {
		t.Errorf("a sound copy says %s", body)
	}
	n.replica = command.ReplicaStatus{
		Running: true, Mode: "learner", Status: "diverged", FailedRequests: 4, SecondsSinceLastSuccess: 9, Staleness: -1, Diverged: 12,
		Damaged: []command.Damage{{Table: "history", From: "7.0", To: "9.2", Problem: "checksum", Found: time.Unix(1700000000, 0).UTC()}},
	}
	w := ask(t, s, "GET", "/v1/replica/status", nil)
	var got command.ReplicaStatus
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || !reflect.DeepEqual(got, n.replica) {
		t.Errorf("%s: %v", w.Body, err)
	}
}

func TestACopyIsPausedAndResumed(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	for _, c := range []struct {
		order   string
		running bool
		status  string
	}{{"pause", false, "paused"}, {"resume", true, "level"}} {
		w := ask(t, s, "PUT", "/v1/replica/"+c.order, nil)
		var got command.ReplicaStatus
		if err := json.Unmarshal(w.Body.Bytes(), &got); w.Code != 200 || err != nil || got.Running != c.running || got.Status != c.status {
			t.Errorf("%s: %d %s: %v", c.order, w.Code, w.Body, err)
		}
	}
	n.refuse = command.ErrNotLearner.With("n1 votes")
	want(t, ask(t, s, "PUT", "/v1/replica/pause", nil), 409, "only a learner can be paused: n1 votes")
	if w := ask(t, s, "GET", "/v1/replica/pause", nil); w.Code != 405 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestReplicasAreTheLeadersRowsAndMetrics(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	want(t, ask(t, s, "GET", "/v1/replicas", nil), 200, "[]")
	n.learners = []command.Replica{{
		ID: "e1-00", Name: "e1", Site: "east", Status: "paused", LastSeenTimestamp: "2026-01-02T03:04:05Z", LastRequest: "probe",
		RemoteAddress: "10.0.1.1", RemotePort: 4711, TransferredEntries: 5, TransferredBytes: 600, SnapshotsSent: 1, DeltasSent: 2,
		Applied: 7, AppliedIndex: 17, Lag: command.Lag{Entries: 3, Bytes: 99, Seconds: 1.5, ETA: -1},
		Log: command.LogPlace{First: 2, Distance: 16, Used: 0.9, ExpiresIn: 60, Warning: true},
	}}
	w := ask(t, s, "GET", "/v1/replicas", nil)
	var got []command.Replica
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || !reflect.DeepEqual(got, n.learners) {
		t.Errorf("%s: %v", w.Body, err)
	}
	text := ask(t, s, "GET", "/metrics", nil).Body.String()
	for _, line := range []string{
		`holdfast_learner_lag_entries{learner="e1",site="east"} 3`,
		`holdfast_learner_lag_bytes{learner="e1",site="east"} 99`,
		`holdfast_learner_lag_seconds{learner="e1",site="east"} 1.5`,
		`holdfast_learner_log_used_ratio{learner="e1",site="east"} 0.9`,
		`holdfast_learner_log_expires_seconds{learner="e1",site="east"} 60`,
		`holdfast_learner_status{learner="e1",site="east",status="paused"} 1`,
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("there is no %s", line)
		}
	}
	n.status.State = "Follower"
	if text := ask(t, s, "GET", "/metrics", nil).Body.String(); strings.Contains(text, "holdfast_learner_") {
		t.Error("a follower speaks for learners")
	}
	n.refuse = command.ErrPaused
	want(t, ask(t, s, "GET", "/v1/replicas", nil), 503, "this copy is paused")
}

func TestHealthAndReadiness(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	want(t, ask(t, s, "GET", "/healthz", nil), 200, "ok\n")
	want(t, ask(t, s, "GET", "/readyz", nil), 200, "ready\n")
	n.status.Ready, n.status.NotReadyBecause = false, "no leader is known"
	want(t, ask(t, s, "GET", "/readyz", nil), 503, "no leader is known")
	want(t, ask(t, s, "GET", "/healthz?dc=elsewhere", nil), 200, "ok\n")
	w := ask(t, s, "GET", "/readyz", nil, "Accept", "application/json")
	if !strings.Contains(w.Body.String(), `"error":"not_ready"`) {
		t.Errorf("%s", w.Body)
	}
}

func TestMetricsShowRequestsNodeAndOthers(t *testing.T) {
	n := newFakeNode()
	n.replica = command.ReplicaStatus{Mode: "learner", Status: "level", Staleness: 1500, SecondsSinceLastSuccess: -1, LastCatchUp: command.CatchUp{Kind: command.CopyDelta, Bytes: 9},
		Diverged: 12, Damaged: make([]command.Damage, 3)}
	s := newTestServer(t, n, func(c *Config) {
		c.Metrics = []Metric{
			{Name: "holdfast_store_keys", Help: "Keys.", Value: func() float64 { return 12 }},
			{Name: "holdfast_store_flushes_total", Help: "Flushes.", Counter: true, Value: func() float64 { return 3 }},
		}
	})
	ask(t, s, "PUT", "/v1/kv/a/b", "v")
	ask(t, s, "GET", "/v1/kv/none", nil)
	ask(t, s, "GET", "/nowhere", nil)
	text := ask(t, s, "GET", "/metrics", nil).Body.String()
	for _, line := range []string{
		`holdfast_http_request_seconds_count{code="200",method="PUT",route="/v1/kv/*key"} 1`,
		`holdfast_http_request_seconds_count{code="404",method="GET",route="/v1/kv/*key"} 1`,
		`holdfast_http_request_seconds_count{code="404",method="any",route="none"} 1`,
		`holdfast_http_requests_in_flight 1`,
		`holdfast_raft_leader 1`,
		`holdfast_raft_applied_index 17`,
		`holdfast_revision 1`,
		`holdfast_start_time_seconds 1.7e+09`,
		`holdfast_replica_status{mode="learner",status="level"} 1`,
		`holdfast_replica_staleness_seconds 1.5`,
		`holdfast_replica_last_catch_up_bytes{kind="delta"} 9`,
		`holdfast_replica_diverged 1`,
		`holdfast_damaged_ranges 3`,
		`holdfast_store_keys 12`,
		`# TYPE holdfast_store_flushes_total counter`,
		`go_goroutines `,
		`process_`,
	} {
		if !strings.Contains(text, "\n"+line) {
			t.Errorf("missing %s", line)
		}
	}
	if strings.Contains(text, "holdfast_replica_last_success_seconds") {
		t.Error("a probe that never succeeded has a time")
	}
}

func TestPageIsServedWithItsParts(t *testing.T) {
	s := newTestServer(t, newFakeNode())
	for path, kind := range map[string]string{"/ui/": "text/html", "/ui/index.html": "text/html", "/ui/app.js": "text/javascript", "/ui/style.css": "text/css"} {
		w := ask(t, s, "GET", path, nil)
		if w.Code != 200 || !strings.HasPrefix(w.Header().Get("Content-Type"), kind) || !strings.Contains(w.Header().Get("Content-Security-Policy"), "default-src 'none'") {
			t.Errorf("%s: %d %v", path, w.Code, w.Header())
		}
		if body := w.Body.String(); strings.Contains(body, "http://") || strings.Contains(body, "https://") {
			t.Errorf("%s loads or names something elsewhere", path)
		}
	}
	for path, accept := range map[string]string{"/": "text/html,application/xhtml+xml", "/ui": "*/*"} {
		w := ask(t, s, "GET", path, nil, "Accept", accept)
		want(t, w, 302, "")
		wantHeaders(t, w, "Location", "/ui/")
	}
	for _, path := range []string{"/", "/ui/none", "/ui/../server.go", "/ui/ui.go", "/ui//"} {
		if w := ask(t, s, "GET", path, nil, "Accept", "*/*"); w.Code != 404 {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
}
