package http

import (
	"encoding/json"
	"errors"
	nethttp "net/http"
	"strconv"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// autopilot is the setting as the dialect writes it, and below UpgradeVersionTag what
// only Holdfast has.
type autopilot struct {
	CleanupDeadServers      bool
	LastContactThreshold    duration
	MaxTrailingLogs         uint64
	MinQuorum               uint64
	ServerStabilizationTime duration
	RedundancyZoneTag       string
	DisableUpgradeMigration bool
	UpgradeVersionTag       string
	DeadServerTime          duration
	VoterCleanupTime        duration
	LearnerCleanupTime      duration
	CreateIndex             uint64
	ModifyIndex             uint64
}

// autopilotOf is a setting that was made at a revision, 0 when it never was.
func autopilotOf(a *command.Autopilot, revision uint64) autopilot {
	return autopilot{
		CleanupDeadServers: a.CleanupDeadServers, LastContactThreshold: duration(a.LastContactThreshold),
		MaxTrailingLogs: a.MaxTrailingLogs, MinQuorum: a.MinQuorum, ServerStabilizationTime: duration(a.ServerStabilizationTime),
		RedundancyZoneTag: a.RedundancyZoneTag, DisableUpgradeMigration: a.DisableUpgradeMigration, UpgradeVersionTag: a.UpgradeVersionTag,
		DeadServerTime: duration(a.DeadServerTime), VoterCleanupTime: duration(a.VoterCleanupTime), LearnerCleanupTime: duration(a.LearnerCleanupTime),
		CreateIndex: revision, ModifyIndex: revision,
	}
}

// setting is what is stored of it.
func (a *autopilot) setting() command.Autopilot {
	return command.Autopilot{
		CleanupDeadServers: a.CleanupDeadServers, LastContactThreshold: time.Duration(a.LastContactThreshold),
		MaxTrailingLogs: a.MaxTrailingLogs, MinQuorum: a.MinQuorum, ServerStabilizationTime: time.Duration(a.ServerStabilizationTime),
		RedundancyZoneTag: a.RedundancyZoneTag, DisableUpgradeMigration: a.DisableUpgradeMigration, UpgradeVersionTag: a.UpgradeVersionTag,
		DeadServerTime: time.Duration(a.DeadServerTime), VoterCleanupTime: time.Duration(a.VoterCleanupTime), LearnerCleanupTime: time.Duration(a.LearnerCleanupTime),
	}
}

// check says what is wrong with the setting. Members report twice a second, so one
// that was not heard for less than shortestDead may be well.
func (a *autopilot) check() error {
	const shortestDead = duration(time.Second)
	switch {
	case a.LastContactThreshold < 0 || a.ServerStabilizationTime < 0:
		return errors.New("a duration is negative")
	case min(a.DeadServerTime, a.VoterCleanupTime, a.LearnerCleanupTime) < shortestDead:
		return errors.New("DeadServerTime, VoterCleanupTime and LearnerCleanupTime are at least 1s")
	}
	return nil
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
	pilot, info, err := s.readAutopilot(x, opts)
	if err != nil {
		x.failRead(&info, err)
		return
	}
	x.replyValue(&pilot)
}

func (s *Server) readAutopilot(x *exchange, opts command.ReadOptions) (autopilot, command.ReadInfo, error) {
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
	return autopilotOf(&pilot, revision), info, err
}

// largestSetting is the largest body of a setting in bytes.
const largestSetting = 64 << 10

func (s *Server) putAutopilot(x *exchange) {
	body, err := x.body(largestSetting, func(sizes string) error {
		return tooLarge("Autopilot configuration is too large ("+sizes+")", "send only the fields that GET lists")
	})
	if err != nil {
		x.fail(err)
		return
	}
	now, info, err := s.readAutopilot(x, command.ReadOptions{})
	if err != nil {
		x.failRead(&info, err)
		return
	}
	// What is left out is as by default, as with the dialect's own server; but what its
	// tools do not know, and so always leave out, stays as it is.
	a := autopilotOf(&command.DefaultAutopilot, 0)
	a.DeadServerTime, a.VoterCleanupTime, a.LearnerCleanupTime = now.DeadServerTime, now.VoterCleanupTime, now.LearnerCleanupTime
	if err := decodeStrictly(body, &a); err != nil {
		x.fail(badRequest("Error parsing autopilot config: " + err.Error()))
		return
	}
	if err := a.check(); err != nil {
		x.fail(badRequest("Error parsing autopilot config: " + err.Error()))
		return
	}
	index, err := x.q.number(paramCAS)
	if err != nil {
		x.fail(err)
		return
	}
	value, err := json.Marshal(a.setting())
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

// serverFacts is what health and state both say of a server.
type serverFacts struct {
	ID, Name, Address, Version string
	LastContact                string
	LastTerm, LastIndex        uint64
	Healthy                    bool
	StableSince                time.Time
	// Role and UnhealthyBecause are Holdfast's own.
	Role             command.Role
	UnhealthyBecause string `json:",omitempty"`
}

func factsOf(m *command.MemberHealth) serverFacts {
	return serverFacts{
		ID: m.ID, Name: m.Name, Address: m.Address, Version: dialect,
		LastContact: lastContact(m), LastTerm: m.LastTerm, LastIndex: m.LastIndex,
		Healthy: m.Healthy, StableSince: m.StableSince.UTC().Truncate(time.Second),
		Role: m.Role, UnhealthyBecause: m.UnhealthyBecause,
	}
}

// serverHealth is one server of GET /v1/operator/autopilot/health.
type serverHealth struct {
	serverFacts
	SerfStatus    string
	Leader, Voter bool
}

// What members are called that the leader hears of, and that it does not.
const (
	statusAlive  = "alive"
	statusFailed = "failed"
)

func aliveStatus(m *command.MemberHealth) string {
	if m.LastContact >= 0 && m.LastContact <= command.SilentAfter {
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
		v.Servers = append(v.Servers, serverHealth{factsOf(m), aliveStatus(m), m.Leader, m.Voter})
	}
	status := nethttp.StatusOK
	if !h.Healthy {
		status = nethttp.StatusTooManyRequests
	}
	x.replyStatus(status, &v)
}

// serverState is one server of GET /v1/operator/autopilot/state.
type serverState struct {
	serverFacts
	NodeStatus string
	Status     string
	Meta       map[string]string
	NodeType   string
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
			serverFacts: factsOf(m), NodeStatus: aliveStatus(m), Status: "non-voter", NodeType: nodeType(m.Role),
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
		}
		v.Servers[m.ID] = st
	}
	x.replyValue(&v)
}

// nodeType is what a member of a role is meant for, as the dialect calls it.
func nodeType(r command.Role) string {
	if r == command.RoleLearner {
		return "read-replica"
	}
	return string(r)
}
