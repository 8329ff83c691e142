package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// RaftServer is one server of the Raft configuration.
type RaftServer struct {
	ID      string
	Node    string // its name
	Address string // host:port of its node port
	Leader  bool
	Voter   bool
	// LastIndex is the last entry in its log, as the leader was told; 0 when it was
	// not.
	LastIndex uint64
}

// RaftConfiguration lists the servers, as the leader has them, or with Stale as
// the server that is asked has, which needs no leader.
func (c *Client) RaftConfiguration(ctx context.Context, opts ...ReadOption) ([]RaftServer, Meta, error) {
	var v struct{ Servers []RaftServer }
	meta, err := c.ask(ctx, read(opts).request("/v1/operator/raft/configuration"), &v)
	return v.Servers, meta, err
}

// TransferLeader hands leadership to the voter with that ID or name, or to the most
// complete one when to is empty. Requests wait meanwhile and do not fail. When it
// returns nil there is a new leader; command.ErrNoTarget says that nothing changed.
func (c *Client) TransferLeader(ctx context.Context, to string) (Meta, error) {
	q := url.Values{}
	if to != "" {
		q.Set("id", to)
	}
	a, err := c.do(ctx, request{method: http.MethodPost, path: "/v1/operator/raft/transfer-leader", query: q, write: true})
	return a.meta, err
}

// PromoteSite asks what making a site the home would do, since the site that is home is
// lost for good; with the plan's Confirm as confirm, it has exactly that done, and the
// answer says Started. Nothing does it by itself. The seed carries it out after that,
// which Sites shows. With force it is done though some of the voters at home, no majority,
// are reached. Errors, after which nothing has changed: command.ErrHomeReachable,
// command.ErrPlanChanged, command.ErrNoTarget.
func (c *Client) PromoteSite(ctx context.Context, site, confirm string, force bool) (command.PromotionPlan, Meta, error) {
	q := url.Values{"site": {site}}
	if confirm != "" {
		q.Set("confirm", confirm)
	}
	if force {
		q.Set("force", "")
	}
	var plan command.PromotionPlan
	meta, err := c.ask(ctx, request{method: http.MethodPost, path: "/v1/operator/promote-site", query: q, write: true}, &plan)
	return plan, meta, err
}

// RemovePeer takes the server with that ID out of the cluster for good: it cannot
// come back but as a new member, with an empty data directory. command.ErrNoTarget
// says that there is none, or that the others would be no majority.
func (c *Client) RemovePeer(ctx context.Context, id string) (Meta, error) {
	a, err := c.do(ctx, request{method: http.MethodDelete, path: "/v1/operator/raft/peer", query: url.Values{"id": {id}}, write: true})
	return a.meta, err
}

// Autopilot is the cluster's setting of that name.
type Autopilot struct {
	// CleanupDeadServers removes servers that have been dead for VoterCleanupTime,
	// voters and spares, or for LearnerCleanupTime; voters only down to MinQuorum, or to
	// three when that is 0.
	CleanupDeadServers bool
	// LastContactThreshold is how long a healthy server may be silent, beyond the
	// half second between its reports, and MaxTrailingLogs how many entries it may
	// lack.
	LastContactThreshold Duration
	MaxTrailingLogs      uint64
	MinQuorum            uint64
	// ServerStabilizationTime is how long a server must have been healthy before it
	// becomes a voter.
	ServerStabilizationTime Duration
	RedundancyZoneTag       string
	DisableUpgradeMigration bool
	UpgradeVersionTag       string
	// DeadServerTime is how long after its last report a voter is dead, and a spare
	// takes its place.
	DeadServerTime     Duration
	VoterCleanupTime   Duration
	LearnerCleanupTime Duration
	// ModifyIndex is the setting's revision, 0 while it was never set.
	CreateIndex uint64
	ModifyIndex uint64
}

// Duration is a time.Duration that is a string such as "200ms" in JSON.
type Duration time.Duration

// String implements fmt.Stringer.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// Autopilot returns the setting.
func (c *Client) Autopilot(ctx context.Context) (Autopilot, Meta, error) {
	var v Autopilot
	meta, err := c.get(ctx, "/v1/operator/autopilot/configuration", &v)
	return v, meta, err
}

// SetAutopilot changes the setting if its revision is still v.ModifyIndex, and
// reports whether it did.
func (c *Client) SetAutopilot(ctx context.Context, v Autopilot) (bool, Meta, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return false, Meta{}, err
	}
	var ok bool
	meta, err := c.ask(ctx, request{
		method: http.MethodPut, path: "/v1/operator/autopilot/configuration",
		query: url.Values{"cas": {strconv.FormatUint(v.ModifyIndex, 10)}}, body: body, kind: "application/json", write: true,
	}, &ok)
	return ok, meta, err
}

// Health is how the leader sees the servers.
type Health struct {
	Healthy          bool
	FailureTolerance int // voters that may fail before there is no majority
	Servers          []ServerHealth
}

// ServerHealth is how the leader sees one server.
type ServerHealth struct {
	ID, Name, Address   string
	SerfStatus          string // "alive" or "failed"
	Leader, Voter       bool
	LastContact         string // a Go duration, or "never"
	LastTerm, LastIndex uint64
	Healthy             bool
	StableSince         time.Time // since when Healthy is what it is
	Role                string    // "voter", "spare" or "learner": what it asked to be
	UnhealthyBecause    string    // empty when it is healthy
}

// Health returns how the leader sees the servers; that they are not healthy is no
// error.
func (c *Client) Health(ctx context.Context) (Health, Meta, error) {
	var v Health
	meta, err := c.ask(ctx, request{method: http.MethodGet, path: "/v1/operator/autopilot/health", also: http.StatusTooManyRequests}, &v)
	if err != nil {
		err = fmt.Errorf("health of the servers: %w", err)
	}
	return v, meta, err
}

// AutopilotState is what autopilot has come to about the servers.
type AutopilotState struct {
	Healthy          bool
	FailureTolerance int
	Leader           string   // id
	Voters           []string // ids
	Servers          map[string]ServerState
}

// ServerState is what autopilot has come to about one server.
type ServerState struct {
	ID, Name, Address   string
	NodeStatus          string // "alive" or "failed"
	Status              string // "leader", "voter" or "non-voter": what it is now
	NodeType            string // "voter", "spare" or "read-replica": what it is meant for
	LastContact         string // a Go duration, or "never"
	LastTerm, LastIndex uint64
	Healthy             bool
	StableSince         time.Time
	UnhealthyBecause    string
}

// AutopilotState returns what autopilot has come to about the servers.
func (c *Client) AutopilotState(ctx context.Context) (AutopilotState, Meta, error) {
	var v AutopilotState
	meta, err := c.get(ctx, "/v1/operator/autopilot/state", &v)
	return v, meta, err
}
