package agent

import (
	"context"
	"io"
	"net"
	"os"

	"github.com/hashicorp/go-hclog"

	"github.com/holdfast-db/holdfast/node"
)

// Host is what a node stands on. The zero value is this machine; tests put others in
// its place.
type Host struct {
	// Listen takes a port, for clients and for other nodes, and Dial reaches the node
	// port of another. Nil is TCP.
	Listen func(address string) (net.Listener, error)
	Dial   func(ctx context.Context, address string) (net.Conn, error)
	// Clock is the clock leases and staleness are judged by; nil is the host's.
	Clock node.Clock
	// Parts, when set, may put something between the node and its parts.
	Parts func(node.Parts) node.Parts
	// Log receives the log; nil is standard error.
	Log io.Writer
	// FaultSwitch, when set, is handed what cuts this node off from others, by tokens of
	// the transport, and is closed with the run. It has put the first cut in force when
	// it returns. A real node has none.
	FaultSwitch func(setCut func(tokens []string)) (io.Closer, error)
}

func (h *Host) listen(address string) (net.Listener, error) {
	if h.Listen != nil {
		return h.Listen(address)
	}
	return net.Listen("tcp", address)
}

func (h *Host) log() io.Writer {
	if h.Log != nil {
		return h.Log
	}
	return os.Stderr
}

// newLogger returns the node's logger, or that of the Raft library, which says
// for every heartbeat, and as an error, what the transport says once: that a peer is
// away or paused. What else it says again and again is shown a few times.
func newLogger(cfg Config, host Host, part string) hclog.Logger {
	o := &hclog.LoggerOptions{Name: cfg.Node, Level: cfg.LogLevel, JSONFormat: cfg.LogJSON, Output: host.log()}
	if part != "" {
		o.Name += "." + part
		o.Exclude = hclog.ExcludeFuncs{
			hclog.ExcludeByPrefix("failed to heartbeat to").Exclude,
			hclog.ExcludeByPrefix("failed to pipeline appendEntries").Exclude,
			new(repeats).exclude,
		}.Exclude
	}
	return hclog.New(o)
}
