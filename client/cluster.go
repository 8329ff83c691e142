package client

import (
	"context"
	"net/http"

	"github.com/holdfast-db/holdfast/command"
)

// Self is what a server says of itself: the part of /v1/agent/self that
// Holdfast fills.
type Self struct {
	Config struct {
		Datacenter string
		NodeName   string
		NodeID     string
		Server     bool
		Version    string // of the Consul dialect; Holdfast's own is in Meta
	}
	Member struct {
		Name string
		Addr string
		Port int
		Tags map[string]string
	}
	// Stats are named groups of figures, "raft" and "holdfast" among them.
	Stats map[string]map[string]string
	// Meta has "holdfast-version", "holdfast-site" and others.
	Meta map[string]string
}

// Self asks the server that answers about itself.
func (c *Client) Self(ctx context.Context) (Self, Meta, error) {
	var v Self
	meta, err := c.get(ctx, "/v1/agent/self", &v)
	return v, meta, err
}

// Sites lists the sites and their servers. Every node knows them, also one
// that is cut off.
func (c *Client) Sites(ctx context.Context) ([]command.Site, Meta, error) {
	var v []command.Site
	meta, err := c.get(ctx, "/v1/sites", &v)
	return v, meta, err
}

// Leader is the node-port address of the leader, empty when the server that
// answers knows none.
func (c *Client) Leader(ctx context.Context) (string, Meta, error) {
	var v string
	meta, err := c.get(ctx, "/v1/status/leader", &v)
	return v, meta, err
}

// Peers lists the node-port addresses of the voters.
func (c *Client) Peers(ctx context.Context) ([]string, Meta, error) {
	var v []string
	meta, err := c.get(ctx, "/v1/status/peers", &v)
	return v, meta, err
}

// ReplicaStatus asks the server that answers for the state of its copy.
func (c *Client) ReplicaStatus(ctx context.Context) (command.ReplicaStatus, Meta, error) {
	var v command.ReplicaStatus
	meta, err := c.get(ctx, "/v1/replica/status", &v)
	return v, meta, err
}

// PauseReplica stops the syncing of the copy of the server that answers, which must be
// a learner: command.ErrNotLearner. It goes on serving what it has, also after a
// restart, until ResumeReplica. Either returns how the copy is then.
func (c *Client) PauseReplica(ctx context.Context) (command.ReplicaStatus, Meta, error) {
	return c.orderReplica(ctx, "pause")
}

// ResumeReplica starts the syncing of a paused copy again.
func (c *Client) ResumeReplica(ctx context.Context) (command.ReplicaStatus, Meta, error) {
	return c.orderReplica(ctx, "resume")
}

func (c *Client) orderReplica(ctx context.Context, order string) (command.ReplicaStatus, Meta, error) {
	var v command.ReplicaStatus
	meta, err := c.ask(ctx, request{method: http.MethodPut, path: "/v1/replica/" + order, write: true}, &v)
	return v, meta, err
}

// Replicas is how the leader sees each learner; any server may be asked.
func (c *Client) Replicas(ctx context.Context) ([]command.Replica, Meta, error) {
	var v []command.Replica
	meta, err := c.get(ctx, "/v1/replicas", &v)
	return v, meta, err
}

// Ready reports whether the server that answers may serve. A nil error means
// yes; an *Error with status 503 says why not.
func (c *Client) Ready(ctx context.Context) error {
	_, err := c.do(ctx, request{method: http.MethodGet, path: "/readyz"})
	return err
}

func (c *Client) get(ctx context.Context, path string, v any) (Meta, error) {
	return c.ask(ctx, request{method: http.MethodGet, path: path}, v)
}
