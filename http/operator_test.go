package http

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

func testHealth() command.Health {
	since := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	return command.Health{
		Healthy: true, FailureTolerance: 1, Leader: "n1-00", Configuration: 7,
		Members: []command.MemberHealth{
			{ID: "e1-00", Name: "e1", Site: "east", Role: command.RoleLearner, Address: "10.0.1.1:8300", Version: "0.9", LastContact: 250 * time.Millisecond, LastTerm: 3, LastIndex: 16, Healthy: true, StableSince: since},
			{ID: "n1-00", Name: "n1", Site: "home", Role: command.RoleVoter, Address: "10.0.0.1:8300", Version: "0.9", Voter: true, Leader: true, LastTerm: 3, LastIndex: 17, Healthy: true, StableSince: since},
			{ID: "n2-00", Name: "n2", Site: "home", Role: command.RoleVoter, Address: "10.0.0.2:8300", Version: "0.9", Voter: true, LastContact: -1, StableSince: since, UnhealthyBecause: "it is silent"},
			{ID: "s1-00", Name: "s1", Site: "home", Role: command.RoleSpare, Address: "10.0.0.3:8300", Version: "0.9", LastTerm: 3, LastIndex: 17, Healthy: true, StableSince: since},
		},
	}
}

func TestTheRaftConfigurationIsInTheFormOfConsul(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	n.health = testHealth()
	want(t, ask(t, s, "GET", "/v1/operator/raft/configuration", nil), 200,
		`{"Servers":[`+
			`{"ID":"e1-00","Node":"e1","Address":"10.0.1.1:8300","Leader":false,"ProtocolVersion":"3","Voter":false,"LastIndex":16},`+
			`{"ID":"n1-00","Node":"n1","Address":"10.0.0.1:8300","Leader":true,"ProtocolVersion":"3","Voter":true,"LastIndex":17},`+
			`{"ID":"n2-00","Node":"n2","Address":"10.0.0.2:8300","Leader":false,"ProtocolVersion":"3","Voter":true,"LastIndex":0},`+
			`{"ID":"s1-00","Node":"s1","Address":"10.0.0.3:8300","Leader":false,"ProtocolVersion":"3","Voter":false,"LastIndex":17}],"Index":7}`)
	n.refuse = command.ErrNoLeader
	want(t, ask(t, s, "GET", "/v1/operator/raft/configuration", nil), 500, "No cluster leader")
	want(t, ask(t, s, "GET", "/v1/operator/raft/configuration?stale", nil), 200, `{"Servers":[],"Index":0}`)
}

func TestAPeerIsRemovedByIDOrByAddressAndNotByBoth(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	for _, q := range []string{"", "?id=", "?id=a&address=b"} {
		if w := ask(t, s, "DELETE", "/v1/operator/raft/peer"+q, nil); w.Code != 400 {
			t.Errorf("%q: %d %s", q, w.Code, w.Body)
		}
	}
	want(t, ask(t, s, "DELETE", "/v1/operator/raft/peer?id=n2-00", nil), 200, "")
	want(t, ask(t, s, "DELETE", "/v1/operator/raft/peer?address=10.0.0.2:8300", nil), 200, "")
	if !slices.Equal(n.operated, []string{"remove n2-00|", "remove |10.0.0.2:8300"}) {
		t.Errorf("%q", n.operated)
	}
	n.refuse = command.ErrNoTarget.With("id %q was not found in the Raft configuration", "x")
	want(t, ask(t, s, "DELETE", "/v1/operator/raft/peer?id=x", nil), 500, `id "x" was not found in the Raft configuration`)
}

func TestLeadershipIsHandedToWhomTheOperatorNames(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	want(t, ask(t, s, "POST", "/v1/operator/raft/transfer-leader", nil), 200, `{"Success":true}`)
	want(t, ask(t, s, "POST", "/v1/operator/raft/transfer-leader?id=n2", nil), 200, `{"Success":true}`)
	if !slices.Equal(n.operated, []string{"transfer ", "transfer n2"}) {
		t.Errorf("%q", n.operated)
	}
	n.refuse = command.ErrNoTarget.With("e1 is not a voter")
	want(t, ask(t, s, "POST", "/v1/operator/raft/transfer-leader?id=e1", nil), 500, "e1 is not a voter")
	if w := ask(t, s, "GET", "/v1/operator/raft/transfer-leader", nil); w.Code != 405 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestASiteIsPromotedOnlyByTheConfirmationOfAPlan(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	if w := ask(t, s, "POST", "/v1/operator/promote-site", nil); w.Code != 400 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	var plan command.PromotionPlan
	w := ask(t, s, "POST", "/v1/operator/promote-site?site=east", nil)
	for _, list := range []string{"Unreachable", "HomeReached", "Reaches"} {
		if !strings.Contains(w.Body.String(), `"`+list+`":[]`) {
			t.Errorf("%s is no empty list: %s", list, w.Body)
		}
	}
	if err := json.Unmarshal(w.Body.Bytes(), &plan); err != nil || w.Code != 200 || plan.Started {
		t.Fatalf("%d %s, %v", w.Code, w.Body, err)
	}
	w = ask(t, s, "POST", "/v1/operator/promote-site?force&site=east&confirm="+plan.Confirm, nil)
	if err := json.Unmarshal(w.Body.Bytes(), &plan); err != nil || w.Code != 200 || !plan.Started {
		t.Fatalf("%d %s, %v", w.Code, w.Body, err)
	}
	if !slices.Equal(n.operated, []string{"promote east||false", "promote east|east-at-7-epoch-2|true"}) {
		t.Errorf("%q", n.operated)
	}
	for _, err := range []*command.Error{command.ErrHomeReachable, command.ErrPlanChanged} {
		n.refuse = err.With("because")
		if w := ask(t, s, "POST", "/v1/operator/promote-site?site=east&confirm=x", nil); w.Code != 409 || !strings.Contains(w.Body.String(), "because") {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	}
}

func TestAnUnhealthyClusterAnswers429WithTheSameBody(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	n.health = testHealth()
	well := ask(t, s, "GET", "/v1/operator/autopilot/health", nil)
	n.health.Healthy = false
	ill := ask(t, s, "GET", "/v1/operator/autopilot/health", nil)
	if well.Code != 200 || ill.Code != 429 || strings.Replace(well.Body.String(), `"Healthy":true`, `"Healthy":false`, 1) != ill.Body.String() {
		t.Errorf("%d %s\n%d %s", well.Code, well.Body, ill.Code, ill.Body)
	}
	for _, part := range []string{
		`"FailureTolerance":1`,
		`"Version":"1.22.0","LastContact":"250ms","LastTerm":3,"LastIndex":16,"Healthy":true,"StableSince":"2026-01-02T03:04:05Z","Role":"learner","SerfStatus":"alive","Leader":false,"Voter":false`,
		`"LastContact":"never","LastTerm":0,"LastIndex":0,"Healthy":false,"StableSince":"2026-01-02T03:04:05Z","Role":"voter","UnhealthyBecause":"it is silent","SerfStatus":"failed","Leader":false`,
	} {
		if !strings.Contains(well.Body.String(), part) {
			t.Errorf("%s\nlacks %s", well.Body, part)
		}
	}
}

func TestTheStateOfAutopilotNamesLeaderAndVoters(t *testing.T) {
	n := newFakeNode()
	n.health = testHealth()
	var v struct {
		Healthy bool
		Leader  string
		Voters  []string
		Servers map[string]struct{ Name, NodeStatus, Status, NodeType, LastContact, UnhealthyBecause string }
	}
	w := ask(t, newTestServer(t, n), "GET", "/v1/operator/autopilot/state", nil)
	if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil || w.Code != 200 {
		t.Fatalf("%d %s: %v", w.Code, w.Body, err)
	}
	if !v.Healthy || v.Leader != "n1-00" || !slices.Equal(v.Voters, []string{"n1-00", "n2-00"}) ||
		v.Servers["n1-00"].Status != "leader" || v.Servers["n2-00"].Status != "voter" || v.Servers["e1-00"].Status != "non-voter" ||
		v.Servers["n1-00"].NodeType != "voter" || v.Servers["s1-00"].NodeType != "spare" || v.Servers["e1-00"].NodeType != "read-replica" ||
		v.Servers["n2-00"].NodeStatus != "failed" || v.Servers["n2-00"].UnhealthyBecause != "it is silent" || v.Servers["e1-00"].LastContact != "250ms" {
		t.Errorf("%s", w.Body)
	}
}

func TestTheSettingOfAutopilotIsKeptAndGuarded(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	const path = "/v1/operator/autopilot/configuration"
	want(t, ask(t, s, "GET", path, nil), 200,
		`{"CleanupDeadServers":false,"LastContactThreshold":"200ms","MaxTrailingLogs":250,"MinQuorum":0,"ServerStabilizationTime":"0s",`+
			`"RedundancyZoneTag":"","DisableUpgradeMigration":false,"UpgradeVersionTag":"",`+
			`"DeadServerTime":"10s","VoterCleanupTime":"15m0s","LearnerCleanupTime":"72h0m0s","CreateIndex":0,"ModifyIndex":0}`)
	for body, fault := range map[string]string{
		`{"Unknown":1}`:                  "unknown field",
		`{"LastContactThreshold":"fast"`: "",
		`{"LastContactThreshold":"-1s"}`: "negative",
		`{"MaxTrailingLogs":-1}`:         "",
		`{"DeadServerTime":"10ms"}`:      "at least 1s",
		`{"LearnerCleanupTime":"0s"}`:    "at least 1s",
		``:                               "",
	} {
		if w := ask(t, s, "PUT", path, body); w.Code != 400 || !strings.Contains(w.Body.String(), "Error parsing autopilot config") || !strings.Contains(w.Body.String(), fault) {
			t.Errorf("%s: %d %s", body, w.Code, w.Body)
		}
	}
	if w := ask(t, s, "PUT", path, strings.Repeat(" ", largestSetting+1)); w.Code != 413 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	var broken firstRead
	want(t, ask(t, s, "PUT", path, &broken), 400, "Request body ended early: unexpected EOF")
	if len(n.proposed) > 0 {
		t.Fatalf("proposed %+v", n.proposed)
	}
	n.propose = func(_ context.Context, c command.Command) (command.Result, error) {
		return command.Result{OK: c.(*command.SettingPut).Index == 5, Revision: 9}, nil
	}
	want(t, ask(t, s, "PUT", path+"?cas=5", `{"LastContactThreshold":"1s","MaxTrailingLogs":18446744073709551615,"ModifyIndex":5}`), 200, "true")
	want(t, ask(t, s, "PUT", path+"?cas=4", `{}`), 200, "false")
	put := n.proposed[0].(*command.SettingPut)
	var pilot command.Autopilot
	if err := json.Unmarshal(put.Value, &pilot); err != nil || put.Name != command.SettingAutopilot || !put.CAS ||
		pilot.LastContactThreshold != time.Second || pilot.MaxTrailingLogs != 1<<64-1 {
		t.Errorf("%+v %s %v", put, put.Value, err)
	}
}

// Consul's own tools read the setting, change what they know, and write that back.
func TestWhatOtherToolsDoNotKnowOfTheSettingStaysAsItIs(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	n.setting = []byte(`{"DeadServerTime":60000000000,"VoterCleanupTime":3600000000000,"MinQuorum":5}`)
	n.propose = func(context.Context, command.Command) (command.Result, error) {
		return command.Result{OK: true, Revision: 9}, nil
	}
	want(t, ask(t, s, "PUT", "/v1/operator/autopilot/configuration", `{"CleanupDeadServers":true}`), 200, "true")
	var pilot command.Autopilot
	if err := json.Unmarshal(n.proposed[0].(*command.SettingPut).Value, &pilot); err != nil || !pilot.CleanupDeadServers || pilot.MinQuorum != 0 ||
		pilot.DeadServerTime != time.Minute || pilot.VoterCleanupTime != time.Hour || pilot.LearnerCleanupTime != 72*time.Hour {
		t.Errorf("%+v, %v", pilot, err)
	}
}

func TestMembersAndDatacentersAreWhatAgentsShow(t *testing.T) {
	n := newFakeNode()
	s := newTestServer(t, n)
	n.sites = []command.Site{
		{Name: "home", Servers: []command.Server{{ID: "n1-00", Name: "n1", Address: "10.0.0.1:8300", State: "leader", Role: command.RoleVoter}}},
		{Name: "east", Servers: []command.Server{{ID: "e1-00", Name: "e1", Address: "10.0.0.2:8300", State: "unreachable", Role: command.RoleLearner}}},
	}
	n1 := `{"Name":"n1","Addr":"10.0.0.1","Port":8300,"Tags":{"build":"1.22.0","dc":"dc1","id":"n1-00","role":"consul","site":"home","vsn":"2"},"Status":1}`
	want(t, ask(t, s, "GET", "/v1/agent/members", nil), 200, `[`+n1+
		`,{"Name":"e1","Addr":"10.0.0.2","Port":8300,"Tags":{"build":"1.22.0","dc":"dc1","id":"e1-00","read_replica":"1","role":"consul","site":"east","vsn":"2"},"Status":4}]`)
	if self := ask(t, s, "GET", "/v1/agent/self", nil); !strings.Contains(self.Body.String(), `"Member":`+n1) {
		t.Errorf("the node itself: %s", self.Body)
	}
	want(t, ask(t, s, "GET", "/v1/catalog/datacenters", nil), 200, `["dc1"]`)
}

// Setting is that of the node, at revision 5.
func (v fakeView) Setting(string) ([]byte, uint64, error) {
	if v.n.setting == nil {
		return nil, 0, nil
	}
	return v.n.setting, 5, nil
}
