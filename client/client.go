package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// DefaultAddress is where a server listens unless told otherwise.
const DefaultAddress = "127.0.0.1:8500"

// Defaults for Config.
const (
	DefaultTimeout     = 15 * time.Second
	DefaultDialTimeout = 3 * time.Second
)

// Config says which servers a Client talks to and how patient it is.
type Config struct {
	// Addresses are the servers, as host:port or as URLs, the preferred one
	// first. Empty means DefaultAddress.
	Addresses []string
	// Token travels with every request. Empty sends none.
	Token string
	// Timeout bounds one try of an ordinary request at one server, and the
	// time a stream may stand still. A server waits up to 7 s for an election
	// by itself, so a shorter one gives up on requests that would succeed; a
	// longer one stays longer with a server that hangs. A read's own wait is
	// added to it.
	Timeout time.Duration
	// DialTimeout bounds the making of a connection. It is what an unreachable
	// server costs before the next one is tried.
	DialTimeout time.Duration
	// HTTP replaces the HTTP client; DialTimeout has no effect then. It must
	// not follow redirects of writes, since that turns a PUT into a GET.
	HTTP *http.Client
}

// Client talks to a cluster. Its methods may be called concurrently.
type Client struct {
	given   []server
	servers atomic.Pointer[[]server] // in the order they are asked in
	token   string
	timeout time.Duration
	http    *http.Client
	// at is the index of the server that answered last: where the next
	// request goes first.
	at atomic.Int64
}

// server is one address, as given and as the base of its URLs.
type server struct {
	address string
	base    url.URL
}

// New returns a client. It makes no connection; an error means that the
// configuration is unusable.
func New(cfg Config) (*Client, error) {
	if len(cfg.Addresses) == 0 {
		cfg.Addresses = []string{DefaultAddress}
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.DialTimeout <= 0 {
		cfg.DialTimeout = DefaultDialTimeout
	}
	if cfg.HTTP == nil {
		dialer := &net.Dialer{Timeout: cfg.DialTimeout, KeepAlive: 15 * time.Second}
		cfg.HTTP = &http.Client{
			Transport: &http.Transport{
				Proxy:               http.ProxyFromEnvironment,
				DialContext:         dialer.DialContext,
				TLSHandshakeTimeout: cfg.DialTimeout,
				MaxIdleConnsPerHost: 256,
				IdleConnTimeout:     90 * time.Second,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	c := &Client{token: cfg.Token, timeout: cfg.Timeout, http: cfg.HTTP}
	for _, a := range cfg.Addresses {
		s, err := parseServer(a)
		if err != nil {
			return nil, err
		}
		c.given = append(c.given, s)
	}
	c.servers.Store(&c.given)
	return c, nil
}

func parseServer(address string) (server, error) {
	raw := strings.TrimSpace(address)
	if !strings.Contains(raw, "://") {
		raw = "http://" + raw
	}
	u, err := url.Parse(raw)
	if err != nil || u.Hostname() == "" || (u.Scheme != "http" && u.Scheme != "https") ||
		strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
		return server{}, fmt.Errorf("%q is not a server address: it must be host:port or http(s)://host:port", address)
	}
	return server{address: strings.TrimSpace(address), base: url.URL{Scheme: u.Scheme, Host: u.Host}}, nil
}

// Addresses lists the servers as they were given.
func (c *Client) Addresses() []string { return addresses(c.given) }

func addresses(servers []server) []string {
	var as []string
	for _, s := range servers {
		as = append(as, s.address)
	}
	return as
}

// Close drops idle connections. Requests under way go on.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Meta says where an answer comes from and what it is worth.
type Meta struct {
	// Address is the server that answered, as given in Config.
	Address string
	// Index is a revision: of what was read, or the one a write made, or at
	// which it was decided when it changed nothing.
	Index uint64
	// Applied is the revision of the state that answered: the token to ask for
	// with MinIndex to never read anything older anywhere.
	Applied uint64
	// Oldest is the oldest revision that is kept; 0 in answers that are not
	// about history.
	Oldest uint64
	// Node and Site name the answering node.
	Node, Site string
	// Staleness bounds the age of the answer; valid only when StalenessKnown.
	Staleness      time.Duration
	StalenessKnown bool
	// FreshAsOf is, when the staleness is not known, the last wall-clock
	// moment at which the state was certified; zero when never.
	FreshAsOf time.Time
	// KnownLeader: the answering node knows a leader.
	KnownLeader bool
	// LastContact is the time since the answering node heard from the leader.
	LastContact time.Duration
	// AwaitTimeout: a write that was to await a site was done, and the site had not
	// applied it in time.
	AwaitTimeout bool
}

// request is what all endpoints have in common.
type request struct {
	method string
	path   string // unescaped
	query  url.Values
	body   []byte
	stream io.ReadSeeker // sent instead of body; nil when there is none
	accept string        // application/json when empty
	kind   string        // of the body's content; not sent when empty
	after  string        // the last event the client has; not sent when empty
	// write: a second try could do it twice, so there is one only if the first
	// certainly did nothing.
	write bool
	// once is the idempotency key of a write: with one it may be sent again.
	once string
	wait time.Duration // that the server was asked to wait
	also int           // a status from 300 on that is an answer all the same
}

// answer is a complete successful reply.
type answer struct {
	meta Meta
	body []byte
	next uint64 // where a list of changes goes on; 0 when it is whole
}

// do sends r to the servers in turn until one of them decides it, and reads
// the whole answer. A write with an idempotency key goes round them until its
// outcome is known or nothing can be reached.
func (c *Client) do(ctx context.Context, r request) (answer, error) {
	if r.once == "" {
		return c.round(ctx, r)
	}
	for {
		a, err := c.round(ctx, r)
		if !errors.Is(err, command.ErrOutcomeUnknown) || pause(ctx, leastRetry) != nil {
			return a, err
		}
	}
}

// ask is do with the answer decoded into v.
func (c *Client) ask(ctx context.Context, r request, v any) (Meta, error) {
	a, err := c.do(ctx, r)
	if err == nil {
		err = a.decode(v)
	}
	return a.meta, err
}

// pause waits for d, or until ctx ends, whose cause it returns.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// round sends r to the servers once around.
func (c *Client) round(ctx context.Context, r request) (answer, error) {
	var got answer
	err := c.each(ctx, r, func(s server) (sent bool, err error) {
		ctx, cancel := context.WithTimeout(ctx, c.timeout+r.wait)
		defer cancel()
		res, sent, err := c.send(ctx, s, r, nil)
		if err != nil {
			return sent, err
		}
		defer func() { _ = res.Body.Close() }()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			return true, fmt.Errorf("read the answer: %w", err)
		}
		got = answer{meta: parseMeta(s, res.Header), body: body, next: number(res.Header, "X-Holdfast-Next")}
		return true, nil
	})
	return got, err
}

// each tries the servers, the current one first, once around.
func (c *Client) each(ctx context.Context, r request, try func(server) (sent bool, err error)) error {
	var unreached UnreachableError
	servers := *c.servers.Load()
	first := int(c.at.Load()) % len(servers)
	var last error
	for i := range servers {
		n := (first + i) % len(servers)
		s := servers[n]
		sent, err := try(s)
		if err == nil {
			c.at.Store(int64(n))
			return nil
		}
		if ctx.Err() != nil {
			// The caller gave up; that is the cause, whatever came of it.
			if r.write && sent {
				return lostAnswer(s, context.Cause(ctx))
			}
			return context.Cause(ctx)
		}
		var named *Error
		if errors.As(err, &named) {
			if !worthAsking(named, r.write) {
				c.at.Store(int64(n))
				return err
			}
			last = err
			continue
		}
		if r.write && sent {
			c.at.CompareAndSwap(int64(n), int64((n+1)%len(servers)))
			return lostAnswer(s, err)
		}
		unreached.Tries = append(unreached.Tries, Try{Address: s.address, Err: err})
	}
	if last != nil {
		return last
	}
	return &unreached
}

// send makes one try. sent reports, with an error, whether the server may have
// seen the request. A reply with an error status is an *Error. The watchdog,
// if any, is told as the body goes out.
func (c *Client) send(ctx context.Context, s server, r request, dog *watchdog) (res *http.Response, sent bool, err error) {
	u := s.base
	u.Path = r.path
	u.RawQuery = r.query.Encode()
	// A request whose headers did not go out whole cannot have been acted on.
	var wrote atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { wrote.Store(true) }})
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), nil)
	if err != nil {
		return nil, false, err
	}
	if len(r.body) > 0 {
		req.ContentLength = int64(len(r.body))
		req.GetBody = func() (io.ReadCloser, error) {
			return io.NopCloser(watchedReader{bytes.NewReader(r.body), dog}), nil
		}
		req.Body, _ = req.GetBody()
	}
	if r.stream != nil {
		if req.ContentLength, err = r.stream.Seek(0, io.SeekEnd); err != nil {
			return nil, false, err
		}
		req.GetBody = func() (io.ReadCloser, error) {
			_, err := r.stream.Seek(0, io.SeekStart)
			return io.NopCloser(r.stream), err
		}
		if req.Body, err = req.GetBody(); err != nil {
			return nil, false, err
		}
	}
	accept := r.accept
	if accept == "" {
		accept = "application/json"
	}
	req.Header.Set("Accept", accept)
	if r.kind != "" {
		req.Header.Set("Content-Type", r.kind)
	}
	if r.once != "" {
		req.Header.Set("Idempotency-Key", r.once)
	}
	if r.after != "" {
		req.Header.Set("Last-Event-ID", r.after)
	}
	if c.token != "" {
		req.Header.Set("X-Consul-Token", c.token)
	}
	res, err = c.http.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err // the method and URL say nothing the caller does not know
		}
		return nil, wrote.Load(), err
	}
	if res.StatusCode >= 300 && res.StatusCode != r.also {
		err = readError(s, res)
		_ = res.Body.Close()
		return nil, true, err
	}
	return res, true, nil
}

// worthAsking reports whether another server may answer what this one refused.
// Nothing was done in any of these cases.
func worthAsking(err *Error, write bool) bool {
	for _, e := range []error{command.ErrNoLeader, command.ErrNotLeader, command.ErrStopping, command.ErrNotReady, command.ErrPaused} {
		if errors.Is(err, e) {
			return true
		}
	}
	return !write && (errors.Is(err, command.ErrTooStale) || errors.Is(err, command.ErrDamaged) || errors.Is(err, command.ErrDiverged))
}

func (a answer) decode(v any) error {
	if err := json.Unmarshal(a.body, v); err != nil {
		return fmt.Errorf("%s sent something that is not an answer of Holdfast: %w", a.meta.Address, err)
	}
	return nil
}
