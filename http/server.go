package http

import (
	"context"
	"errors"
	"log"
	"net"
	nethttp "net/http"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/hashicorp/go-hclog"

	"github.com/holdfast-db/holdfast/command"
)

// Node is what the API needs of the member it runs in.
type Node interface {
	// Propose decides a write, wherever the leader is, and waits some seconds
	// for one. The command's value is the node's from then on.
	Propose(ctx context.Context, c command.Command) (command.Result, error)
	// Read calls fn with a view that satisfies o. fn may run more than once
	// and starts afresh each time; its errors come back unchanged. Along with
	// an error, ReadInfo holds what is known.
	Read(ctx context.Context, o command.ReadOptions, fn func(command.View) error) (command.ReadInfo, error)
	// Export calls fn for all records under prefix exactly as they stood at
	// revision, in ascending order.
	Export(ctx context.Context, prefix string, revision uint64, fn func(command.Record) error) error
	// Status, Sites and ReplicaStatus answer from what the node knows, also
	// when it is cut off. The number Sites returns is the revision at which
	// the membership last changed.
	Status() command.NodeStatus
	Sites(ctx context.Context) ([]command.Site, uint64, error)
	ReplicaStatus() command.ReplicaStatus
}

// Config is how the API behaves. The zero value of each field is a sensible
// choice.
type Config struct {
	// Datacenter is the one name a client may give as dc; "dc1" when empty.
	// All nodes of a cluster must have the same.
	Datacenter string
	// Version is Holdfast's own version, shown to people.
	Version string

	// MaxValue is the largest value of a key in bytes. Terraform needs at least
	// the default, command.DefaultMaxValue. Larger values make larger log
	// entries, and so longer pauses for everyone else.
	MaxValue int64
	// MaxRecord bounds the JSON of one record of a bulk upload in bytes, which
	// is what an upload may make this node hold in memory several times over.
	// By default twice MaxValue and 64 KiB, room for base64 and the key.
	MaxRecord int64
	// MaxReply bounds the JSON of one listing in bytes, which is made in
	// memory; 256 MiB by default. /v1/bulk has no such bound.
	MaxReply int64
	// MaxHeaderBytes bounds request line and headers, and with them the length
	// of a key as it is escaped; 64 KiB by default.
	MaxHeaderBytes int

	// ReadHeaderTimeout is how long a client may take to send its headers;
	// 10 s by default.
	ReadHeaderTimeout time.Duration
	// BodyTimeout is how long the sender of a body may pause; 30 s by default.
	// A single value must also arrive at 64 KiB per BodyTimeout at least.
	BodyTimeout time.Duration
	// WriteTimeout is how long a client may take to accept a piece of a reply
	// (up to 256 KiB); 30 s by default.
	WriteTimeout time.Duration
	// IdleTimeout is how long a connection may be kept without a request;
	// 2 min by default.
	IdleTimeout time.Duration

	// OpenAPI is the description served at /v1/openapi.json.
	OpenAPI []byte
	// Metrics are shown at /metrics beside the API's own and the node's.
	Metrics []Metric
	// Log, already named for this part, receives what goes wrong inside;
	// requests are not logged.
	Log hclog.Logger
}

// Metric is one figure of another part of the process.
type Metric struct {
	// Name is the full Prometheus name, such as holdfast_store_keys.
	Name, Help string
	// Counter tells a figure that only grows from one that goes both ways.
	Counter bool
	// Value is called at each scrape; it must be quick and safe to call at
	// any time.
	Value func() float64
}

func (c *Config) fill() {
	fill(&c.Datacenter, "dc1")
	fill(&c.Version, "dev")
	fill(&c.MaxValue, command.DefaultMaxValue)
	fill(&c.MaxRecord, 2*c.MaxValue+64<<10)
	fill(&c.MaxReply, 256<<20)
	fill(&c.MaxHeaderBytes, 64<<10)
	fill(&c.ReadHeaderTimeout, 10*time.Second)
	fill(&c.BodyTimeout, 30*time.Second)
	fill(&c.WriteTimeout, 30*time.Second)
	fill(&c.IdleTimeout, 2*time.Minute)
	if c.Log == nil {
		c.Log = hclog.NewNullLogger()
	}
}

func fill[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Server is the HTTP API of one node.
type Server struct {
	cfg     Config
	node    Node
	log     hclog.Logger
	metrics *metrics
	engine  *gin.Engine
	server  *nethttp.Server

	// stopping is closed when Shutdown begins: uploads end then, and readyz
	// says no.
	stopping context.Context
	stop     context.CancelFunc
	// requests ends, with the contexts of all requests, when Shutdown's time
	// is up.
	requests context.Context
	abandon  context.CancelFunc
}

// New makes the API of n. It panics when two Metrics have one name, which is
// an error of the program.
func New(cfg Config, n Node) *Server {
	cfg.fill()
	s := &Server{cfg: cfg, node: n, log: cfg.Log}
	s.stopping, s.stop = context.WithCancel(context.Background())
	s.requests, s.abandon = context.WithCancel(context.Background())
	s.metrics = newMetrics(cfg.Metrics, n)
	s.engine = s.newEngine()
	s.server = &nethttp.Server{
		Handler:           s,
		ReadHeaderTimeout: cfg.ReadHeaderTimeout,
		WriteTimeout:      cfg.WriteTimeout,
		IdleTimeout:       cfg.IdleTimeout,
		MaxHeaderBytes:    cfg.MaxHeaderBytes,
		ErrorLog:          log.New(s.log.StandardWriter(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}), "", 0),
		BaseContext:       func(net.Listener) context.Context { return s.requests },
	}
	return s
}

// ServeHTTP answers one request. HEAD is answered like GET, without the body.
func (s *Server) ServeHTTP(w nethttp.ResponseWriter, r *nethttp.Request) {
	if r.Method == nethttp.MethodHead {
		r = r.WithContext(r.Context())
		r.Method = nethttp.MethodGet
	}
	s.engine.ServeHTTP(w, r)
}

// Serve answers requests that arrive at l until Shutdown, and returns nil
// then. It closes l.
func (s *Server) Serve(l net.Listener) error {
	if err := s.server.Serve(l); !errors.Is(err, nethttp.ErrServerClosed) {
		return err
	}
	return nil
}

// Shutdown stops accepting requests and waits for those under way. Uploads end
// with what was acknowledged so far. When ctx ends first, the remaining
// requests are abandoned, their connections closed, and ctx's error returned.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop()
	err := s.server.Shutdown(ctx)
	s.abandon()
	if err != nil {
		_ = s.server.Close() // the first error tells more
	}
	return err
}
