package bench

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/internal/problem"
)

// config is a small closed loop on a server.
func config(target Target, url string) Config {
	return Config{
		Target: target, Addresses: []string{url}, Connections: 4, Mix: Mix{Put: 1, Get: 1, Stale: 1, Consistent: 1, Txn: 1}, TxnOps: 3,
		Keys: 20, Prefix: "bench/", Distribution: Uniform, ValueSize: 16, Fill: true, Seed: 1, Count: 400, Timeout: 10 * time.Second,
	}
}

// result runs a configuration that must work.
func result(t *testing.T, cfg Config) *Result {
	t.Helper()
	res, err := Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// row is one kind of requests in a result.
func (r *Result) row(name string) Operation {
	for _, o := range r.Operations {
		if o.Name == name {
			return o
		}
	}
	return Operation{}
}

func TestEachTargetIsAskedInItsOwnWords(t *testing.T) {
	for _, name := range Targets() {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, Target(name), nil)
			cfg := config(Target(name), f.url)
			res := result(t, cfg)
			all := res.row(AllRow)
			if all.Count != 400 || len(all.Errors) > 0 || all.OutcomeUnknown != 0 || all.PerSecond <= 0 || all.Milliseconds.Max <= 0 {
				t.Errorf("%+v", all)
			}
			asked := map[string]int64{}
			for op := range cfg.Mix {
				asked[op.String()] = res.row(op.String()).Count
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			if len(f.values) != cfg.Keys {
				t.Errorf("%d keys were written; want %d", len(f.values), cfg.Keys)
			}
			if got, want := int64(f.asked["put"]), asked["put"]+int64(cfg.Keys); got != want {
				t.Errorf("%d puts came; want %d", got, want)
			}
			if got, want := int64(f.asked["get"]), asked["get"]+asked["stale"]+asked["consistent"]; got != want {
				t.Errorf("%d reads came; want %d", got, want)
			}
			if int64(f.asked["stale"]) != asked["stale"] || asked["stale"] == 0 {
				t.Errorf("%d stale reads came; want %d", f.asked["stale"], asked["stale"])
			}
			if Target(name) != Etcd && int64(f.asked["consistent"]) != asked["consistent"] { // its reads without a mode are
				t.Errorf("%d consistent reads came; want %d", f.asked["consistent"], asked["consistent"])
			}
			if int64(f.asked["txn"]) != asked["txn"] || f.asked["keys of txn"] != 3*f.asked["txn"] {
				t.Errorf("%d transactions of %d keys came; want %d", f.asked["txn"], f.asked["keys of txn"], asked["txn"])
			}
		})
	}
}

func TestMissingKeysAreErrors(t *testing.T) {
	for _, name := range Targets() {
		cfg := config(Target(name), newFake(t, Target(name), nil).url)
		cfg.Mix, cfg.Fill, cfg.Count = Mix{Get: 1}, false, 10
		if got := result(t, cfg).row("get"); got.Count != 0 || got.Errors[noSuchKey] != 10 || got.OutcomeUnknown != 0 {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// Requests that were due while the server stalled are charged with what was left of the stall.
func TestAnOpenLoopChargesAStallToAllRequestsThatWereDue(t *testing.T) {
	const stall = 300 * time.Millisecond
	var asked atomic.Int64
	f := newFake(t, Holdfast, func(http.ResponseWriter, *http.Request) bool {
		if asked.Add(1) == 100 {
			time.Sleep(stall) // it is what is tested
		}
		return false
	})
	cfg := config(Holdfast, f.url)
	cfg.Mix, cfg.Fill, cfg.Connections, cfg.Rate, cfg.Count = Mix{Put: 1}, false, 1, 1000, 600
	put := result(t, cfg).row("put")
	// Of 600 requests some 200 were due in the first 200 ms of the stall.
	if put.Count != 600 || put.Milliseconds.Max < 300 || put.Milliseconds.P90 < 100 {
		t.Errorf("%+v", put)
	}
	// A closed loop shows one slow request.
	asked.Store(0)
	cfg.Rate = 0
	if closed := result(t, cfg).row("put").Milliseconds; closed.Max < 300 || closed.P90 >= put.Milliseconds.P90 {
		t.Errorf("closed loop: %+v, open loop: %+v", closed, put.Milliseconds)
	}
}

// What was due and could not be sent is counted: nothing that was due gets lost.
func TestAnOpenLoopCountsWhatItCouldNotSend(t *testing.T) {
	release := make(chan struct{})
	f := newFake(t, Holdfast, func(http.ResponseWriter, *http.Request) bool { <-release; return false })
	cfg := config(Holdfast, f.url)
	cfg.Mix, cfg.Fill, cfg.Connections, cfg.Rate, cfg.Count, cfg.Duration = Mix{Put: 1}, false, 2, 1000, 0, 300*time.Millisecond
	time.AfterFunc(2*cfg.Duration, func() { close(release) })
	res := result(t, cfg)
	if sum := res.row("put").Count + res.Unsent; res.Unsent < 290 || sum < 299 || sum > 301 {
		t.Errorf("%d carried out, %d not sent; want 300 in all", res.row("put").Count, res.Unsent)
	}
}

func TestErrorsAreToldApart(t *testing.T) {
	for name, c := range map[string]struct {
		target  Target
		answer  func(w http.ResponseWriter)
		want    string
		unknown bool
	}{
		"no leader": {Holdfast, problemWith(500, `{"error":"no_leader","message":"No cluster leader"}`), "500 no_leader", false},
		"in doubt":  {Holdfast, problemWith(500, `{"error":"outcome_unknown","message":"?"}`), "500 outcome_unknown", true},
		"a proxy":   {Holdfast, problemWith(502, "Bad Gateway\n"), "502 Bad Gateway", true},
		"too large": {Consul, problemWith(413, "Value is too large"), "413 Value is too large", false},
		"consul":    {Consul, problemWith(500, "No cluster leader"), "500 No cluster leader", false},
		"consul's doubt": {Consul, problemWith(500, "rpc error making call: leadership lost while committing log"),
			"500 rpc error making call: leadership lost while committing log", true},
		"etcd":          {Etcd, problemWith(503, `{"code":14, "message":"etcdserver: no leader"}`), "503 etcdserver: no leader", false},
		"etcd's doubt":  {Etcd, problemWith(503, `{"code":14, "message":"etcdserver: request timed out"}`), "503 etcdserver: request timed out", true},
		"rqlite":        {Rqlite, problemWith(503, "leader not found"), "503 leader not found", false},
		"a statement":   {Rqlite, problemWith(200, `{"results":[{"error":"no such table: bench"}]}`), "200 no such table: bench", false},
		"a lost answer": {Holdfast, hangUp, "connection lost", true},
	} {
		t.Run(name, func(t *testing.T) {
			var setup atomic.Bool
			f := newFake(t, c.target, func(w http.ResponseWriter, _ *http.Request) bool {
				if c.target == Rqlite && setup.CompareAndSwap(false, true) {
					return false
				}
				c.answer(w)
				return true
			})
			cfg := config(c.target, f.url)
			cfg.Mix, cfg.Fill, cfg.Connections, cfg.Count = Mix{Put: 1}, false, 1, 2
			got := result(t, cfg).row("put")
			unknown := int64(0)
			if c.unknown {
				unknown = 2
			}
			if got.Count != 0 || got.Errors[c.want] != 2 || got.OutcomeUnknown != unknown {
				t.Errorf("%+v", got)
			}
		})
	}
}

func problemWith(status int, text string) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, text)
	}
}

func hangUp(w http.ResponseWriter) {
	if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
		_ = c.Close()
	}
}

func TestAStatusAloneAcknowledgesNoWrite(t *testing.T) {
	for target, answers := range map[Target]struct{ done, refused string }{
		Holdfast: {"true", "false"},
		Consul:   {"true", "false"},
		Rqlite:   {`{"results":[{"last_insert_id":1,"rows_affected":1}]}`, `{"results":[],"error":"leader is gone"}`},
		Etcd:     {`{"header":{"revision":"2"}}`, ""},
	} {
		if !target.Acknowledges(200, []byte(answers.done)) || target.Acknowledges(503, []byte(answers.done)) {
			t.Errorf("%s: %s is an acknowledgement with status 200, and not with 503", target, answers.done)
		}
		if answers.refused != "" && target.Acknowledges(200, []byte(answers.refused)) {
			t.Errorf("%s: %s is taken for an acknowledgement", target, answers.refused)
		}
	}
}

func TestWatchersAreToldOfWrites(t *testing.T) {
	for name, c := range map[string]struct {
		target Target
		by     WatchBy
	}{
		"holdfast stream": {Holdfast, ""}, "holdfast query": {Holdfast, WatchQuery}, "consul": {Consul, ""}, "etcd": {Etcd, ""},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, c.target, nil)
			cfg := config(c.target, f.url)
			cfg.Mix, cfg.Keys, cfg.Watchers, cfg.WatchBy, cfg.Count = Mix{Put: 1}, 2, 3, c.by, 400
			res := result(t, cfg)
			// Notices may be on their way when the run ends, and a query sees only the last of several changes.
			if watch := res.row(watchRow); watch.Count == 0 || watch.Count > 3*400 || len(watch.Errors) > 0 {
				t.Errorf("%+v", watch)
			}
		})
	}
}

// The load begins when the last watcher waits, also when there are more than come at once.
func TestLoadBeginsWhenAllWatchersWait(t *testing.T) {
	const many = 2*arriving + 3
	var came atomic.Int64
	written := make(chan int, 1) // how many waited when the first write came
	f := newFake(t, Holdfast, nil)
	f.watched = func() {
		if came.Add(1) == many { // the last one takes its time
			select {
			case n := <-written:
				written <- n
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	f.before = func(http.ResponseWriter, *http.Request) bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		select {
		case written <- f.asked["watch"]:
		default:
		}
		return false
	}
	cfg := config(Holdfast, f.url)
	cfg.Mix, cfg.Keys, cfg.Watchers, cfg.Count, cfg.Fill = Mix{Put: 1}, many, many, 50, false
	res := result(t, cfg)
	if n := <-written; n != many || len(res.row(watchRow).Errors) > 0 {
		t.Errorf("%d watchers waited at the first write, want %d: %+v", n, many, res.row(watchRow))
	}
}

// Of what a watcher is told, only what was written counts, not what was there before.
func TestNoticesTellWhatWasWritten(t *testing.T) {
	for piece, c := range map[string]struct {
		target Target
		by     WatchBy
		want   string
	}{
		`data: {"Op":"put","KV":{"Key":"k","Value":"bmV3"},"Prev":{"Key":"k","Value":"b2xk"}}`: {Holdfast, WatchStream, "new"},
		"id: 1.0": {Holdfast, WatchStream, ""},
		`data: {"Op":"delete","KV":{"Key":"k","Value":null}}`:                                                      {Holdfast, WatchStream, ""},
		`[{"Key":"k","Flags":0,"Value":"bmV3"}]`:                                                                   {Consul, WatchQuery, "new"},
		`{"result":{"header":{},"created":true}}`:                                                                  {Etcd, WatchStream, ""},
		`{"result":{"events":[{"kv":{"key":"aw==", "value":"bmV3"}}, {"kv":{"key":"aw==","value": "bmV3ZXI="}}]}}`: {Etcd, WatchStream, "new newer"},
	} {
		got := products[c.target].dialect("").written(c.by, []byte(piece))
		if text := string(bytes.Join(got, []byte(" "))); text != c.want {
			t.Errorf("%s: %q; want %q", piece, text, c.want)
		}
	}
}

func TestDelaysOfNotices(t *testing.T) {
	a := newAcks(2)
	m := mark{conn: 1, count: 5}
	if _, known := a.delay(m, 10); known {
		t.Error("the delay of a write that never was is known")
	}
	a.begin(m)
	if d, known := a.delay(m, 10); !known || d != 0 {
		t.Errorf("seen before it was acknowledged: %v, %v", d, known)
	}
	a.acknowledged(m, 20)
	if d, known := a.delay(m, 50); !known || d != 30 {
		t.Errorf("seen 30 ns after it was acknowledged: %v, %v", d, known)
	}
	if d, known := a.delay(m, 10); !known || d != 0 {
		t.Errorf("seen before the acknowledgement was noted: %v, %v", d, known)
	}
	later := mark{conn: 1, count: 5 + uint32(len(a.of[1].newest))}
	a.begin(later)
	a.acknowledged(later, 100)
	if _, known := a.delay(m, 110); known {
		t.Error("the delay of a write of long ago is known")
	}
	if _, known := a.delay(mark{conn: fillConnection}, 10); known {
		t.Error("the delay of a write that filled is known")
	}
}

func TestProcessorTime(t *testing.T) {
	f := newFake(t, Holdfast, nil)
	cfg := config(Holdfast, f.url)
	cfg.Count, cfg.Duration, cfg.WarmUp = 0, 500*time.Millisecond, 10*time.Millisecond
	res := result(t, cfg)
	each := res.Server.MicrosecondsPerOperation
	if each == nil {
		t.Fatal(res.Server.Problems)
	}
	// It says that it uses half a processor.
	if busy := *each * res.row(AllRow).PerSecond / 1e6; busy < 0.4 || busy > 0.6 {
		t.Errorf("%.3f processors are busy; want 0.5", busy)
	}
	cfg.CPUOf = []string{f.url, "127.0.0.1:1"}
	if res := result(t, cfg); res.Server.MicrosecondsPerOperation != nil || len(res.Server.Problems) != 1 {
		t.Errorf("%+v: of one server nothing is known", res.Server)
	}
}

func TestTheProcessBehindAPort(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc")
	}
	for _, at := range []string{"127.0.0.1:0", "[::1]:0", ":0"} {
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Logf("%s: %v", at, err) // a machine without IPv6
			continue
		}
		host := l.Addr().String()
		if at == ":0" {
			_, port, _ := net.SplitHostPort(host)
			host = "127.0.0.1:" + port
		}
		if pid, err := processAt(host); err != nil || pid != os.Getpid() {
			t.Errorf("%s: process %d, %v", host, pid, err)
		}
		_ = l.Close()
		if pid, err := processAt(host); err == nil {
			t.Errorf("%s: process %d, though nobody listens", host, pid)
		}
	}
	used, err := processTime(os.Getpid())
	if err != nil || used > time.Hour {
		t.Errorf("%v, %v", used, err)
	}
}

func TestARunThatIsInterrupted(t *testing.T) {
	var once sync.Once
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	f := newFake(t, Holdfast, nil)
	cfg := config(Holdfast, f.url)
	cfg.Count, cfg.Duration = 0, time.Hour
	cfg.Progress = func(m Moment) {
		if !m.WarmingUp {
			once.Do(stop)
		}
	}
	res, err := Run(ctx, cfg)
	if err != nil || !res.Interrupted || res.Seconds > 60 || res.row(AllRow).Count == 0 {
		t.Errorf("%+v, %v", res, err)
	}
	cfg.WarmUp = time.Hour
	ctx, stop = context.WithCancel(t.Context())
	cfg.Progress = func(Moment) { stop() }
	if res, err := Run(ctx, cfg); !errors.Is(err, context.Canceled) {
		t.Errorf("before anything was measured: %+v, %v", res, err)
	}
}

func TestWhatCannotBeIsRefused(t *testing.T) {
	f := newFake(t, Holdfast, nil)
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = nobody.Close()
	for want, change := range map[string]func(*Config){
		"no server answers at " + nobody.Addr().String() + ": connection refused": func(c *Config) { c.Addresses = []string{nobody.Addr().String()} },
		"is not etcd":                   func(c *Config) { c.Target = Etcd },
		"--target":                      func(c *Config) { c.Target = "redis" },
		"is not a server address":       func(c *Config) { c.Addresses = []string{"ftp://x"} },
		"--connections 0":               func(c *Config) { c.Connections = 0 },
		"--connections 70000":           func(c *Config) { c.Connections = 70000 },
		"--rate -1":                     func(c *Config) { c.Rate = -1 },
		"--keys 0":                      func(c *Config) { c.Keys = 0 },
		"--value-size 7":                func(c *Config) { c.ValueSize = 7 },
		"--txn-ops 21":                  func(c *Config) { c.TxnOps = 21 },
		"--txn-ops 65":                  func(c *Config) { c.Target, c.TxnOps, c.Keys = Consul, 65, 1000 },
		`--distribution "pareto"`:       func(c *Config) { c.Distribution = "pareto" },
		"--warm-up -1s":                 func(c *Config) { c.WarmUp = -time.Second },
		"--timeout 0s":                  func(c *Config) { c.Timeout = 0 },
		"--duration 0s":                 func(c *Config) { c.Count = 0 },
		`--prefix "a b"`:                func(c *Config) { c.Prefix = "a b" },
		`--prefix "/a"`:                 func(c *Config) { c.Prefix = "/a" },
		"--mix asks for nothing":        func(c *Config) { c.Mix = Mix{Put: 0} },
		"rqlite has nothing to wait":    func(c *Config) { c.Target, c.Watchers = Rqlite, 1 },
		`consul has no watches by "str`: func(c *Config) { c.Target, c.Watchers, c.WatchBy = Consul, 1, WatchStream },
		"--watchers wait for changes":   func(c *Config) { c.Watchers, c.Mix = 1, Mix{Get: 1} },
		"20 keys cannot be written befo": func(c *Config) {
			f.before = func(w http.ResponseWriter, _ *http.Request) bool { problemWith(507, "full")(w); return true }
		},
	} {
		cfg := config(Holdfast, f.url)
		f.setBefore(nil)
		change(&cfg)
		_, err := Run(t.Context(), cfg)
		var p *problem.Problem
		if !errors.As(err, &p) || !strings.Contains(p.Cause, want) || p.Remedy == "" {
			t.Errorf("%v; want %q and a remedy", err, want)
		}
	}
}
