package bench

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-db/holdfast/internal/problem"
)

// Config says what load is put on which servers.
type Config struct {
	Target Target
	// Addresses are the servers that the connections are spread over, host:port or a URL. The port
	// may be left away if it is the usual one.
	Addresses []string
	// Token is sent with each request; empty sends none.
	Token string
	// Connections is how many there are, and so how many requests can be under way.
	Connections int
	// Rate is how many requests are due per second, of all connections together; 0 for a closed loop.
	Rate float64
	// Mix is which kinds of requests are made.
	Mix Mix
	// TxnOps is how many keys each Txn sets.
	TxnOps int
	// Keys is how many there are, and Prefix what their names begin with.
	Keys         int
	Prefix       string
	Distribution Distribution
	// ValueSize is in bytes, at least 8: each write has a value of its own.
	ValueSize int
	// Fill writes each key once before the load begins.
	Fill bool
	// Seed fixes the requests of each connection.
	Seed uint64
	// WarmUp is how long there is load before it is measured; then for Duration,
	// or until there were Count requests, if that is above 0.
	WarmUp, Duration time.Duration
	Count            int
	// Timeout is how long a request may take.
	Timeout time.Duration
	// Watchers is how many clients wait for changes beside the load, each of one key, the most
	// popular first, over a connection of its own. WatchBy may be empty for what the target does best.
	Watchers int
	WatchBy  WatchBy
	// CPUOf are servers whose processor time counts; nil for Addresses.
	CPUOf []string
	// Progress is called once a second while there is load; nil if nobody looks.
	Progress func(Moment)
}

// check refuses what cannot be, and puts in what was left open.
func (cfg *Config) check() error {
	p, known := products[cfg.Target]
	if !known {
		return problem.Refuse("give one of "+strings.Join(Targets(), ", "), "--target %q is not known", cfg.Target)
	}
	switch {
	case cfg.Connections < 1 || cfg.Connections > maxConnections:
		return problem.Refuse(fmt.Sprintf("give 1 to %d", maxConnections), "--connections %d is out of range", cfg.Connections)
	case cfg.Rate < 0 || math.IsNaN(cfg.Rate) || math.IsInf(cfg.Rate, 0):
		return problem.Refuse("give requests per second, or leave it out for as many as the servers answer", "--rate %v is no rate", cfg.Rate)
	case cfg.Keys < 1 || cfg.Keys > maxKeys:
		return problem.Refuse(fmt.Sprintf("give 1 to %d", maxKeys), "--keys %d is out of range", cfg.Keys)
	case cfg.ValueSize < leastValue:
		return problem.Refuse("give 8 or more", "--value-size %d leaves no room for what tells one write from another", cfg.ValueSize)
	case cfg.Mix[Txn] > 0 && (cfg.TxnOps < 1 || cfg.TxnOps > min(p.largestTxn, cfg.Keys)):
		return problem.Refuse(fmt.Sprintf("give 1 to %d", min(p.largestTxn, cfg.Keys)), "--txn-ops %d is out of range for %s and %d keys", cfg.TxnOps, cfg.Target, cfg.Keys)
	case !slices.Contains(Distributions(), string(cfg.Distribution)):
		return problem.Refuse("give one of "+strings.Join(Distributions(), ", "), "--distribution %q is not known", cfg.Distribution)
	case cfg.WarmUp < 0:
		return problem.Refuse("give a duration such as 1s, or 0s for none", "--warm-up %v is negative", cfg.WarmUp)
	case cfg.Timeout <= 0:
		return problem.Refuse("give a duration such as 10s", "--timeout %v is not a time to wait", cfg.Timeout)
	case cfg.Count < 0:
		return problem.Refuse("give 1 or more", "--count %d is negative", cfg.Count)
	case cfg.Count == 0 && cfg.Duration <= 0:
		return problem.Refuse("give a duration such as 10s", "--duration %v measures nothing", cfg.Duration)
	case strings.Trim(cfg.Prefix, keyLetters) != "" || strings.HasPrefix(cfg.Prefix, "/"):
		return problem.Refuse("use letters, digits and - _ . /, and begin with another one than /", "--prefix %q is not one that all targets can have", cfg.Prefix)
	case cfg.Watchers < 0 || cfg.Watchers > maxConnections:
		return problem.Refuse(fmt.Sprintf("give 0 to %d", maxConnections), "--watchers %d is out of range", cfg.Watchers)
	}
	weights := 0
	for _, weight := range cfg.Mix {
		weights += weight
	}
	if weights < 1 {
		return problem.Refuse("give at least one kind of requests a weight above 0", "--mix asks for nothing")
	}
	if cfg.Watchers > 0 {
		if len(p.watches) == 0 {
			return problem.Refuse("leave --watchers out", "%s has nothing to wait for changes with", cfg.Target)
		}
		if cfg.WatchBy == "" {
			cfg.WatchBy = p.watches[0]
		}
		if !slices.Contains(p.watches, cfg.WatchBy) {
			return problem.Refuse(fmt.Sprintf("leave --watch-by out, or give %s", p.watches[0]), "%s has no watches by %q", cfg.Target, cfg.WatchBy)
		}
		if cfg.Mix[Put]+cfg.Mix[Txn] == 0 {
			return problem.Refuse("add put to --mix", "--watchers wait for changes, and --mix makes none")
		}
	}
	return nil
}

const keyLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./"

// run is a run under way. Moments are counted from its start.
type run struct {
	cfg     Config
	product product
	servers []address
	load    *workload
	seen    *record
	acks    *acks // nil without watchers
	start   time.Time
	base    time.Duration // when the load began

	// What was due between begin and end is measured. Both are math.MaxInt64 until they are known.
	begin, end atomic.Int64
	left       atomic.Int64       // with Count: what is still to be measured
	turns      chan time.Duration // in an open loop, when requests are due
	over       chan struct{}      // closed at the end
	unsent     int64              // set by pace, to be read when the connections have ended
}

func (r *run) now() time.Duration { return time.Since(r.start) }

// Run puts the load on the servers and returns what came of it. When ctx ends earlier, the
// result is that of the time until then; before anything was measured, there is none.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	r := &run{
		cfg: cfg, product: products[cfg.Target], start: time.Now(),
		load: &workload{
			seed: cfg.Seed, prefix: cfg.Prefix, keys: uint64(cfg.Keys), distribution: cfg.Distribution,
			valueSize: cfg.ValueSize, txnOps: cfg.TxnOps, mix: cfg.Mix,
		},
		seen: newRecord(cfg.Mix, cfg.Watchers > 0),
		over: make(chan struct{}),
	}
	r.begin.Store(math.MaxInt64)
	r.end.Store(math.MaxInt64)
	r.left.Store(int64(cfg.Count))
	r.load.prepare()
	var err error
	if r.servers, err = r.addresses(cfg.Addresses); err != nil {
		return nil, err
	}
	measured := r.servers
	if len(cfg.CPUOf) > 0 {
		if measured, err = r.addresses(cfg.CPUOf); err != nil {
			return nil, err
		}
	}
	for _, a := range r.servers {
		if err := r.greet(a); err != nil {
			return nil, err
		}
	}
	if err := r.prepare(ctx); err != nil {
		return nil, err
	}
	return r.measure(ctx, measured)
}

func (r *run) addresses(given []string) (list []address, err error) {
	for _, g := range given {
		a, err := parseAddress(g, r.product.port)
		if err != nil {
			return nil, problem.Refuse("give host:port or http(s)://host:port", "%w", err)
		}
		list = append(list, a)
	}
	return list, nil
}

// greet makes sure that a server is there and is what it is taken for.
func (r *run) greet(a address) error {
	deadline := time.Now().Add(r.cfg.Timeout)
	c, err := dial(a, deadline)
	if err != nil {
		return problem.Refuse("start it, or name one that runs with --http-addr", "no server answers at %s: %s", a.given, troubleOf(err))
	}
	defer func() { _ = c.Close() }()
	var m message
	_, err = c.Do(m.request("GET", r.product.hello, fields(a.host, r.product.tokenField, r.cfg.Token)), deadline)
	if err == nil && !bytes.Contains(c.body, []byte(r.product.helloHas)) {
		err = &refusal{trouble(c.head.status, c.body)}
	}
	if err != nil {
		return problem.Refuse("check --http-addr and --target", "what answers at %s is not %s: GET %s: %w", a.given, r.cfg.Target, r.product.hello, err)
	}
	return nil
}

// fillers is how many connections at least write all keys: one alone would take long.
const fillers = 64

// prepare makes what the load needs to be there.
func (r *run) prepare(ctx context.Context) error {
	if r.product.setup {
		p := r.peer(0)
		defer p.close()
		if v := p.send(ctx, p.dialect.setup(), &request{op: Put}, r.cfg.Timeout); v.trouble != "" {
			return problem.Refuse("see why the server refuses it", "%s cannot be prepared: %s", r.cfg.Target, v.trouble)
		}
	}
	if !r.cfg.Fill {
		return nil
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var next atomic.Uint64
	var all sync.WaitGroup
	for i := range min(max(r.cfg.Connections, fillers), r.cfg.Keys) {
		all.Go(func() {
			p, s := r.peer(i), r.load.fillStream()
			defer p.close()
			for ctx.Err() == nil {
				n := next.Add(1) - 1
				if n >= r.load.keys {
					return
				}
				if v := p.do(ctx, s.put(n), r.cfg.Timeout); v.trouble != "" && ctx.Err() == nil {
					stop(problem.Refuse("see why the server refuses it, or leave them as they are with --fill=false", "%d keys cannot be written before the load begins: %s: %s", r.cfg.Keys, p.at.given, v.trouble))
				}
			}
		})
	}
	all.Wait()
	return context.Cause(ctx)
}

// measure is the load, and what is seen of it.
func (r *run) measure(ctx context.Context, measured []address) (*Result, error) {
	servers, problems := metersOf(measured, r.product, r.cfg.Token)
	watching, stopWatching := context.WithCancel(ctx)
	var watchers sync.WaitGroup
	defer watchers.Wait()
	defer stopWatching()
	if err := r.startWatchers(watching, &watchers); err != nil {
		return nil, err
	}
	self := meters{processMeter(os.Getpid())}
	before, selfBefore := servers.read(), self.read()
	r.base = r.now()
	if r.cfg.WarmUp == 0 {
		r.measureFrom(r.base) // so that no request goes uncounted
	}
	var connections sync.WaitGroup
	if r.cfg.Rate > 0 {
		r.turns = make(chan time.Duration)
		connections.Go(func() { r.pace(ctx) })
	}
	for i := range r.cfg.Connections {
		connections.Go(func() { r.connection(ctx, i) })
	}
	ended := make(chan struct{})
	go func() { connections.Wait(); close(ended) }()

	every := time.NewTicker(time.Second)
	defer every.Stop()
	if r.cfg.WarmUp > 0 {
		r.await(r.cfg.WarmUp, every, ended, ctx.Done())
		if ctx.Err() != nil {
			<-ended
			return nil, ctx.Err()
		}
		before, selfBefore = servers.read(), self.read()
		r.measureFrom(r.now())
	}
	length := r.cfg.Duration
	if r.cfg.Count > 0 {
		length = math.MaxInt64
	}
	r.await(length, every, ended, ctx.Done())
	began, finished := time.Duration(r.begin.Load()), r.now()
	if r.cfg.Count == 0 && ctx.Err() == nil {
		finished = began + r.cfg.Duration
	}
	r.end.Store(int64(finished))
	after, selfAfter := servers.read(), self.read()
	close(r.over)
	<-ended
	stopWatching()
	res := r.result(finished - began)
	res.Interrupted = ctx.Err() != nil
	perSecond := r.seen.perSecond(res.Seconds)
	res.Server, res.Client = cpuOf(before, after, perSecond, problems), cpuOf(selfBefore, selfAfter, perSecond, nil)
	return res, nil
}

// result is what was seen in so long a time.
func (r *run) result(measured time.Duration) *Result {
	cfg, seconds := &r.cfg, measured.Seconds()
	res := &Result{
		Target: cfg.Target, Addresses: cfg.Addresses, Connections: cfg.Connections, Rate: cfg.Rate,
		Keys: cfg.Keys, Distribution: cfg.Distribution, ValueSize: cfg.ValueSize,
		Watchers: cfg.Watchers, WatchBy: cfg.WatchBy, Seed: cfg.Seed,
		Seconds: seconds, Operations: r.seen.operations(seconds), Unsent: r.unsent,
	}
	if cfg.Mix[Txn] > 0 {
		res.TxnOps = cfg.TxnOps
	}
	return res
}

// measureFrom begins what is measured.
func (r *run) measureFrom(now time.Duration) {
	if r.cfg.Count == 0 {
		r.end.Store(int64(now + r.cfg.Duration))
	}
	r.begin.Store(int64(now))
}

// await waits for a time, or until something else ends it, and tells how it is going.
func (r *run) await(d time.Duration, every *time.Ticker, ends ...<-chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	last := r.now()
	for {
		select {
		case <-timer.C:
			return
		case <-ends[0]:
			return
		case <-ends[1]:
			return
		case <-every.C:
			if r.cfg.Progress == nil {
				continue
			}
			now := r.now()
			m := r.seen.look(now - last)
			m.Elapsed, m.WarmingUp = now-r.base, r.begin.Load() == math.MaxInt64
			r.cfg.Progress(m)
			last = now
		}
	}
}
