package http

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	nethttp "net/http"
	"sync"
	"sync/atomic"
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
	// Watch returns a channel that is closed at the first change of t after the
	// call, and when the whole state is replaced: who reads next and then waits for
	// it misses nothing. stop must be called once.
	Watch(t command.Target) (changed <-chan struct{}, stop func())
	// Export calls fn for all records under prefix exactly as they stood at
	// revision, in ascending order.
	Export(ctx context.Context, prefix string, revision uint64, fn func(command.Record) error) error
	// Archive writes an archive of the state at one revision, which it tells begin,
	// to what that returns.
	Archive(ctx context.Context, begin func(revision uint64) io.Writer) error
	// Restore puts an archive in the place of the whole state, of all nodes, once all
	// of it has come and is verified, and returns the revision at which it did.
	Restore(ctx context.Context, archive io.Reader) (revision uint64, err error)
	// Status, Sites and ReplicaStatus answer from what the node knows, also
	// when it is cut off. The number Sites returns is the revision at which
	// the membership last changed.
	Status() command.NodeStatus
	Sites(ctx context.Context) ([]command.Site, uint64, error)
	ReplicaStatus() command.ReplicaStatus
	// RenewSession starts a session's time to live anew and returns the session, or
	// command.ErrSessionNotFound.
	RenewSession(ctx context.Context, id string) (command.Session, error)
	// Health is how the leader sees all members, and LocalHealth what this node has
	// of them by itself.
	Health(ctx context.Context) (command.Health, error)
	LocalHealth() (command.Health, error)
	// Replicas is how the leader sees each learner.
	Replicas(ctx context.Context) ([]command.Replica, error)
	// Pause stops the syncing of this node's copy, durably, and Resume starts it again:
	// command.ErrNotLearner on a node that votes.
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	// TransferLeader hands leadership to a voter by id or name, to any when empty.
	TransferLeader(ctx context.Context, to string) error
	// RemovePeer takes a member, by id or by node address, out for good.
	RemovePeer(ctx context.Context, id, address string) error
	// PromoteSite says what making a site the home would do, and with the text that
	// confirms just that has it done.
	PromoteSite(ctx context.Context, site, confirm string, force bool) (command.PromotionPlan, error)
}

// What Config has by default.
const (
	DefaultSessionTTLMin = 10 * time.Second
	DefaultOnceRetention = 15 * time.Minute
	DefaultOnceBytes     = 64 << 20
)

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

	// Linger is how long a node that stops still takes requests on the connections there
	// are, each answered with "Connection: close"; 100 ms by default. A request that the
	// client had sent when the stop began would find its connection closed without.
	Linger time.Duration

	// SessionTTLMin is the shortest TTL of a session other than none; 10 s by default.
	// A session is ended after twice its TTL without a renewal, so a short one must
	// survive what a client may have to wait for a new leader.
	SessionTTLMin time.Duration
	// OnceRetention is how long the result of a write with an idempotency key is
	// remembered; 15 min by default. OnceBytes bounds all that is remembered, on every
	// node; 64 MiB by default. Beyond it writes with keys are refused.
	OnceRetention time.Duration
	OnceBytes     int64

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
	fill(&c.Linger, 100*time.Millisecond)
	fill(&c.SessionTTLMin, DefaultSessionTTLMin)
	fill(&c.OnceRetention, DefaultOnceRetention)
	fill(&c.OnceBytes, DefaultOnceBytes)
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
	hot     hot
	feeds   *feedHub

	// stopping is closed when Shutdown begins: uploads end then, and readyz
	// says no.
	stopping   context.Context
	stop       context.CancelFunc
	leaderless leaderless
	// returned brings to net/http the connections that are hot no longer, and those of
	// queries that were parked. parking are the goroutines that hold the parked;
	// parkable is held to begin one, and to stop. coming are those that are back and
	// whose requests are not under way yet.
	returned returned
	parkable sync.Mutex
	parking  sync.WaitGroup
	coming   sync.WaitGroup
	serving  atomic.Bool // Serve was called
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
	s.returned = newReturned()
	s.feeds = newFeedHub(s)
	s.metrics = newMetrics(cfg.Metrics, n)
	s.hot = hot{answer: map[string]answerer{}, conns: map[*hotConn]struct{}{}}
	s.engine = s.newEngine()
	s.server = &nethttp.Server{
		Handler:           s,
		ReadHeaderTimeout: cfg.ReadHeaderTimeout,
		WriteTimeout:      cfg.WriteTimeout,
		IdleTimeout:       cfg.IdleTimeout,
		MaxHeaderBytes:    cfg.MaxHeaderBytes,
		ErrorLog:          log.New(s.log.StandardWriter(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}), "", 0),
		BaseContext:       func(net.Listener) context.Context { return s.requests },
		ConnContext:       withParked,
	}
	return s
}

// ServeHTTP answers one request. HEAD is answered like GET, without the body.
func (s *Server) ServeHTTP(w nethttp.ResponseWriter, r *nethttp.Request) {
	if r.Method == nethttp.MethodHead {
		r = r.WithContext(context.WithValue(r.Context(), headKey{}, true))
		r.Method = nethttp.MethodGet
	}
	s.engine.ServeHTTP(w, r)
}

// Serve answers requests that arrive at l until Shutdown, and returns nil
// then. It closes l.
func (s *Server) Serve(l net.Listener) error {
	go s.watchLeader()
	s.serving.Store(true)
	go func() {
		defer close(s.returned.served)
		_ = s.server.Serve(s.returned) // ends with Shutdown
	}()
	if err := s.server.Serve(hotListener{l, s}); !errors.Is(err, nethttp.ErrServerClosed) {
		return err
	}
	return nil
}

// Shutdown tells clients to go elsewhere with their next request, stops accepting requests
// after Config.Linger and waits for those under way. Blocking queries are answered as
// things are, uploads end with what was acknowledged so far. When ctx ends first, the
// remaining requests are abandoned, their connections closed, and ctx's error returned.
func (s *Server) Shutdown(ctx context.Context) error {
	s.parkable.Lock()
	s.stop() // nothing is parked any more
	s.parkable.Unlock()
	s.parking.Wait() // what was comes back for its answer
	s.awaitReturned(ctx)
	s.linger(ctx) // what has sent no request by now is dropped
	err := s.endHot(ctx)
	s.returned.end()
	if s.serving.Load() {
		<-s.returned.served
	}
	if serr := s.server.Shutdown(ctx); err == nil {
		err = serr
	}
	s.abandon()
	if err != nil {
		_ = s.server.Close() // the first error tells more
	}
	return err
}

func (s *Server) linger(ctx context.Context) {
	over := time.NewTimer(s.cfg.Linger)
	defer over.Stop()
	select {
	case <-over.C:
	case <-ctx.Done():
	}
}
