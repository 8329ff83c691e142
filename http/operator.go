package http

import (
	"encoding/json"
	"errors"
	nethttp "net/http"
	"strconv"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// protocolVersion is what servers say of Raft's protocol.
const protocolVersion = "3"

// health is how the leader sees the members, or, with ?stale and no leader to be
// asked, what this node has of them.
func (x *exchange) health() (command.Health, error) {
	if x.q.has(paramStale) {
		return x.s.node.LocalHealth()
	}
	return x.s.node.Health(x.r.Context())
}

// raftServer is one server of GET /v1/operator/raft/configuration.
type raftServer struct {
	ID, Node, Address string
	Leader            bool
	ProtocolVersion   string
	Voter             bool
	LastIndex         uint64
}

func (s *Server) getRaftConfiguration(x *exchange) {
	h, err := x.health()
	if err != nil {
		x.fail(err)
		return
	}
	v := struct {
		Servers []raftServer
		Index   uint64
	}{Servers: []raftServer{}, Index: h.Configuration}
	for _, m := range h.Members {
		v.Servers = append(v.Servers, raftServer{
			ID: m.ID, Node: m.Name, Address: m.Address, Leader: m.Leader,
			ProtocolVersion: protocolVersion, Voter: m.Voter, LastIndex: m.LastIndex,
		})
	}
	x.replyValue(&v)
}

func (s *Server) deleteRaftPeer(x *exchange) {
	id, address := x.q.get(paramID), x.q.get(paramAddress)
	switch {
	case id == "" && address == "":
		x.fail(badRequest("Must specify either ?id with the server's ID or ?address with IP:port of peer to remove"))
		return
	case id != "" && address != "":
		x.fail(badRequest("Must specify only one of ?id or ?address"))
		return
	}
	if err := s.node.RemovePeer(x.r.Context(), id, address); err != nil {
		x.fail(err)
		return
	}
	x.replyEmpty(nethttp.StatusOK)
}

func (s *Server) transferLeader(x *exchange) {
	if err := s.node.TransferLeader(x.r.Context(), x.q.get(paramID)); err != nil {
		x.fail(err)
		return
	}
	x.replyValue(struct{ Success bool }{true})
}

// autopilot is the setting as the dialect writes it.
type autopilot struct {
	CleanupDeadServers      bool
	LastContactThreshold    duration
	MaxTrailingLogs         uint64
	MinQuorum               uint64
	ServerStabilizationTime duration
	RedundancyZoneTag       string
	DisableUpgradeMigration bool
	UpgradeVersionTag       string
	CreateIndex             uint64
	ModifyIndex             uint64
}

// duration is written as a Go duration, and read as one or as nanoseconds.
type duration time.Duration

// MarshalJSON implements json.Marshaler.
func (d duration) MarshalJSON() ([]byte, error) {
	return strconv.AppendQuote(nil, time.Duration(d).String()), nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (d *duration) UnmarshalJSON(b []byte) error {
	if b[0] != '"' {
		return json.Unmarshal(b, (*int64)(d))
	}
	var text string
	if err := json.Unmarshal(b, &text); err != nil {
		return err
	}
	v, err := time.ParseDuration(text)
	if err != nil {
		return errors.New(string(b) + " is not a duration like 200ms")
	}
	*d = duration(v)
	return nil
}

func (s *Server) getAutopilot(x *exchange) {
	opts, err := x.readOptions()
	if err != nil {
		x.fail(err)
		return
	}
	pilot := command.DefaultAutopilot
	var revision uint64
	info, err := s.node.Read(x.r.Context(), opts, func(v command.View) error {
		value, at, err := v.Setting(command.SettingAutopilot)
		if err != nil || at == 0 {
			return err
		}
		revision = at
		return json.Unmarshal(value, &pilot)
	})
	if err != nil {
		x.failRead(&info, err)
		return
	}
	x.replyValue(&autopilot{
		CleanupDeadServers: pilot.CleanupDeadServers, LastContactThreshold: duration(pilot.LastContactThreshold),
		MaxTrailingLogs: pilot.MaxTrailingLogs, MinQuorum: pilot.MinQuorum, ServerStabilizationTime: duration(pilot.ServerStabilizationTime),
		RedundancyZoneTag: pilot.RedundancyZoneTag, DisableUpgradeMigration: pilot.DisableUpgradeMigration, UpgradeVersionTag: pilot.UpgradeVersionTag,
		CreateIndex: revision, ModifyIndex: revision,
	})
}

// largestSetting is the largest body of a setting in bytes.
const largestSetting = 64 << 10

func (s *Server) putAutopilot(x *exchange) {
	body, err := x.body(largestSetting, func(sizes string) error {
		return &problem{
			status: nethttp.StatusRequestEntityTooLarge, code: codeTooLarge,
			text: "Autopilot configuration is too large (" + sizes + ")", hint: "send only the fields that GET lists",
		}
	})
	if err != nil {
		x.fail(err)
		return
	}
	// What is left out is as by default, as with the dialect's own server.
	def := command.DefaultAutopilot
	a := autopilot{
		LastContactThreshold: duration(def.LastContactThreshold), MaxTrailingLogs: def.MaxTrailingLogs,
		ServerStabilizationTime: duration(def.ServerStabilizationTime),
	}
	if err := decodeStrictly(body, &a); err != nil {
		x.fail(badRequest("Error parsing autopilot config: " + err.Error()))
		return
	}
	if a.LastContactThreshold < 0 || a.ServerStabilizationTime < 0 {
		x.fail(badRequest("Error parsing autopilot config: a duration is negative"))
		return
	}
	index, err := x.q.number(paramCAS)
	if err != nil {
		x.fail(err)
		return
	}
	value, err := json.Marshal(&command.Autopilot{
		CleanupDeadServers: a.CleanupDeadServers, LastContactThreshold: time.Duration(a.LastContactThreshold),
		MaxTrailingLogs: a.MaxTrailingLogs, MinQuorum: a.MinQuorum, ServerStabilizationTime: time.Duration(a.ServerStabilizationTime),
		RedundancyZoneTag: a.RedundancyZoneTag, DisableUpgradeMigration: a.DisableUpgradeMigration, UpgradeVersionTag: a.UpgradeVersionTag,
	})
	if err != nil {
		x.fail(err)
		return
	}
	x.decide(&command.SettingPut{Name: command.SettingAutopilot, Value: value, CAS: x.q.has(paramCAS), Index: index}, "")
}

// lastContact is the time since a member was heard, as the dialect writes it.
func lastContact(m *command.MemberHealth) string {
	if m.LastContact < 0 {
		return "never"
	}
	return m.LastContact.Round(time.Millisecond).String()
}

// serverHealth is one server of GET /v1/operator/autopilot/health.
type serverHealth struct {
	ID, Name, Address, SerfStatus, Version string
	Leader                                 bool
	LastContact                            string
	LastTerm, LastIndex                    uint64
	Healthy, Voter                         bool
	StableSince                            time.Time
}

// What members are called that the leader hears of, and that it does not.
const (
	statusAlive  = "alive"
	statusFailed = "failed"
)

// aliveWithin is how long after its last report a member still counts as alive.
const aliveWithin = 3 * time.Second

func aliveStatus(m *command.MemberHealth) string {
	if m.LastContact >= 0 && m.LastContact <= aliveWithin {
		return statusAlive
	}
	return statusFailed
}

func (s *Server) getAutopilotHealth(x *exchange) {
	h, err := s.node.Health(x.r.Context())
	if err != nil {
		x.fail(err)
		return
	}
	v := struct {
		Healthy          bool
		FailureTolerance int
		Servers          []serverHealth
	}{h.Healthy, h.FailureTolerance, []serverHealth{}}
	for i := range h.Members {
		m := &h.Members[i]
		v.Servers = append(v.Servers, serverHealth{
			ID: m.ID, Name: m.Name, Address: m.Address, SerfStatus: aliveStatus(m), Version: dialect,
			Leader: m.Leader, LastContact: lastContact(m), LastTerm: m.LastTerm, LastIndex: m.LastIndex,
			Healthy: m.Healthy, Voter: m.Voter, StableSince: m.StableSince.UTC().Truncate(time.Second),
		})
	}
	status := nethttp.StatusOK
	if !h.Healthy {
		status = nethttp.StatusTooManyRequests
	}
	x.replyStatus(status, &v)
}

// serverState is one server of GET /v1/operator/autopilot/state.
type serverState struct {
	ID, Name, Address, NodeStatus, Version string
	LastContact                            string
	LastTerm, LastIndex                    uint64
	Healthy                                bool
	StableSince                            time.Time
	Status                                 string
	Meta                                   map[string]string
	NodeType                               string
}

func (s *Server) getAutopilotState(x *exchange) {
	h, err := s.node.Health(x.r.Context())
	if err != nil {
		x.fail(err)
		return
	}
	v := struct {
		Healthy          bool
		FailureTolerance int
		Leader           string
		Voters           []string
		Servers          map[string]serverState
	}{h.Healthy, h.FailureTolerance, h.Leader, []string{}, map[string]serverState{}}
	for i := range h.Members {
		m := &h.Members[i]
		st := serverState{
			ID: m.ID, Name: m.Name, Address: m.Address, NodeStatus: aliveStatus(m), Version: dialect,
			LastContact: lastContact(m), LastTerm: m.LastTerm, LastIndex: m.LastIndex,
			Healthy: m.Healthy, StableSince: m.StableSince.UTC().Truncate(time.Second),
			Status: "non-voter", NodeType: "voter",
			Meta: map[string]string{"holdfast-site": m.Site, "holdfast-version": m.Version},
		}
		switch {
		case m.Leader:
			st.Status = "leader"
		case m.Voter:
			st.Status = "voter"
		}
		if m.Voter {
			v.Voters = append(v.Voters, m.ID)
		} else {
			st.NodeType = "read-replica"
		}
		v.Servers[m.ID] = st
	}
	x.replyValue(&v)
}

// getMembers is GET /v1/agent/members.
func (s *Server) getMembers(x *exchange) {
	sites, _, err := s.node.Sites(x.r.Context())
	if err != nil {
		x.fail(err)
		return
	}
	members := []agentMember{}
	for _, site := range sites {
		for _, sv := range site.Servers {
			m := agentMember{Name: sv.Name, Tags: map[string]string{
				"site": site.Name, "dc": s.cfg.Datacenter, "id": sv.ID, "role": string(sv.Role),
			}, Status: memberAlive}
			m.Addr, m.Port = splitAddress(sv.Address)
			if sv.State == "unreachable" {
				m.Status = memberFailed
			}
			members = append(members, m)
		}
	}
	x.replyValue(members)
}

// getDatacenters is GET /v1/catalog/datacenters: there is one.
func (s *Server) getDatacenters(x *exchange) { x.replyValue([]string{s.cfg.Datacenter}) }
