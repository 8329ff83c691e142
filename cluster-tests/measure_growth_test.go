package clustertests

import (
	"cmp"
	"encoding/base64"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/client"
	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/internal/bench"
)

var (
	growthRounds = flag.Int("growth-rounds", 1, "TestMeasureGrowth: how often everything is measured")
	growthTime   = flag.Duration("growth-time", 3*time.Second, "TestMeasureGrowth: how long each load is measured")
	growthChosen = flag.String("growth-dims", "", "TestMeasureGrowth: measure only points, such as `keys 10000`, that match this regexp")
)

// setting is what a load of TestMeasureGrowth meets, and how much of it there is.
type setting struct{ keys, value, connections, learners, watchers int }

// growthBase is what stays as it is while one thing grows.
var growthBase = setting{keys: measureKeys, value: measureValue, connections: 64, learners: 2}

// growthLoad is a load that is put on the cluster at each point of a dimension.
type growthLoad struct {
	name string
	op   bench.Op
	at   place
	by   bench.WatchBy // how watchers are told
	rate float64       // per second; 0: as many as are answered
}

var (
	writesAndReads = []growthLoad{
		{name: "writes, the leader", op: bench.Put, at: leaderPlace},
		{name: "stale reads, a follower", op: bench.Stale, at: followerPlace},
		{name: "consistent reads, the leader", op: bench.Consistent, at: leaderPlace},
	}
	watchedWrites = []growthLoad{
		{name: "writes, streams", op: bench.Put, at: leaderPlace, by: bench.WatchStream},
		{name: "writes, blocking queries", op: bench.Put, at: leaderPlace, by: bench.WatchQuery},
		{name: "500 writes/s, streams", op: bench.Put, at: leaderPlace, by: bench.WatchStream, rate: 500},
		{name: "500 writes/s, blocking queries", op: bench.Put, at: leaderPlace, by: bench.WatchQuery, rate: 500},
	}
)

// mostFill bounds what large values take in all: each node writes them twice.
const mostFill = 64 << 20

// growthDim is one thing that grows.
type growthDim struct {
	name, note string
	points     []int
	point      func(int) string // how readers see it
	set        func(s *setting, to int)
	loads      []growthLoad
	fresh      bool // each point has a new cluster
	zipf       bool // keys are not equally popular
}

func plain(n int) string { return grouped(fmt.Sprint(n)) }

var growthDims = []growthDim{
	{
		name: "keys", note: "One cluster, filled further by bulk import.",
		points: []int{10_000, 100_000, 1_000_000, 5_000_000}, point: plain, loads: writesAndReads,
		set: func(s *setting, n int) { s.keys = n },
	},
	{
		name: "values", note: "A new cluster for each size; as many keys as take 64 MiB, if that is fewer: 4,096 at 16 KiB, 256 at 256 KiB.",
		points: []int{64, 1 << 10, 16 << 10, 64 << 10, 256 << 10}, point: byteCount, loads: writesAndReads, fresh: true,
		set: func(s *setting, n int) { s.value, s.keys = n, min(s.keys, mostFill/n) },
	},
	{
		name: "connections", note: "Each has one request under way.",
		points: []int{1, 4, 16, 64, 256, 1024}, point: plain, loads: writesAndReads,
		set: func(s *setting, n int) { s.connections = n },
	},
	{
		name: "learners", note: "Each is a process of its own on the same machine, and level with the voters before it is measured.",
		points: []int{0, 2, 10, 50}, point: plain, loads: writesAndReads,
		set: func(s *setting, n int) { s.learners = n },
	},
	{
		name: "watchers", note: "Each waits at the leader for changes of a key of its own, the most popular ones first, over a connection of its own; the popularity of keys follows Zipf's law. " +
			"The delay is from the acknowledgement of a write to the moment a watcher knows of it, 0 if it did before.",
		points: []int{0, 1, 100, 1000, 10_000}, point: plain, loads: watchedWrites, zipf: true,
		set: func(s *setting, n int) { s.watchers = n },
	},
}

func byteCount(n int) string {
	if n < 1<<10 {
		return fmt.Sprint(n, " B")
	}
	return fmt.Sprint(n>>10, " KiB")
}

// TestMeasureGrowth measures one load after the other while one thing grows and everything else stays as
// it is, and writes what came of it: make bench-growth.
//
// A point that cannot be measured is named in the result, with the reason, and so are requests that failed.
func TestMeasureGrowth(t *testing.T) {
	measured(t, "make bench-growth")
	chosen, err := regexp.Compile(*growthChosen)
	if err != nil {
		t.Fatal(err)
	}
	result := &growth{Method: fmt.Sprintf("%d processors (load included), %s; load average before %s; rounds: %d, of %v for each load, medians. "+
		"Unless it is what grows: three voters and %d learners, each a process of its own, %s keys, %d-byte values, %d connections in a closed loop, no watchers; processor time is that of all nodes",
		runtime.NumCPU(), runtime.Version(), loadAverage(), *growthRounds, *growthTime,
		growthBase.learners, plain(growthBase.keys), growthBase.value, growthBase.connections)}
	for round := range *growthRounds {
		for _, d := range growthDims {
			points := slices.DeleteFunc(slices.Clone(d.points), func(n int) bool { return !chosen.MatchString(fmt.Sprint(d.name, " ", n)) })
			perCluster := max(len(points), 1)
			if d.fresh {
				perCluster = 1
			}
			for some := range slices.Chunk(points, perCluster) {
				t.Run(fmt.Sprintf("round %d/%s %d", round+1, d.name, some[0]), func(t *testing.T) {
					growOn(t, &d, some, uint64(round+1), result.dimension(&d))
				})
			}
		}
	}
	if len(result.Dimensions) == 0 {
		t.Fatal("nothing was measured")
	}
	result.publication().publish(t)
}

// growthTurn measures some points of a dimension on one cluster.
type growthTurn struct {
	t      testing.TB
	c      *cluster
	dim    *growthDim
	seed   uint64
	filled int // keys that are there
	result *grownDim
}

// growOn measures points, in ascending order, on a new cluster.
func growOn(t *testing.T, d *growthDim, points []int, seed uint64, result *grownDim) {
	heard := &hearing{TB: t}
	measuring := 0 // index of the point
	defer func() {
		if why := heard.first(); why != "" {
			for _, n := range points[measuring:] {
				result.trouble("%s %s: not measured, or not all of it: %s", d.name, d.point(n), why)
			}
		}
	}()
	settings := make([]setting, len(points))
	most := 0
	for i, n := range points {
		settings[i] = growthBase
		d.set(&settings[i], n)
		most = max(most, settings[i].learners)
	}
	g := &growthTurn{t: heard, c: newCluster(heard, withLearners(most)), dim: d, seed: seed, result: result}
	for measuring < len(points) {
		g.point(points[measuring], settings[measuring])
		measuring++
	}
}

// withLearners are three voters, and learners at two sites.
func withLearners(learners int) []spec {
	all := slices.Clone(voters)
	for i := range learners {
		all = append(all, spec{fmt.Sprintf("l%02d", i+1), []string{"east", "west"}[i%2], false, command.RoleLearner})
	}
	return all
}

// point brings the cluster to what the setting says, and measures all loads there.
func (g *growthTurn) point(n int, s setting) {
	name, began := g.dim.point(n), time.Now()
	// New nodes join before there is more to be copied, and all at once.
	for _, m := range g.c.nodes[:len(g.c.voters())+s.learners] {
		if !m.running() {
			g.c.start(m)
		}
	}
	nodes := g.running()
	for _, m := range nodes {
		g.c.waitReady(m)
	}
	leader := g.c.waitLeader()
	if s.keys > g.filled {
		if err := g.c.importPairs(g.t.Context(), leader, growthPairs(g.filled, s.keys, s.value)); err != nil {
			g.t.Fatalf("fill: %v", err)
		}
		g.filled = s.keys
	}
	g.c.waitLevel(2*time.Minute, nodes...)
	used, rests := g.rest(nodes)
	g.t.Logf("%s %s: there after %.1f s; at rest the nodes use %.0f ms of a processor per second", g.dim.name, name, time.Since(began).Seconds(), used)
	if !rests {
		g.result.trouble("%s %s: before the loads the nodes still used %.0f ms of a processor per second", g.dim.name, name, used)
	}
	p := g.result.point(name, float64(n))
	p.add(atRest, "idle", used)
	// Writes are last: what they leave to be done is waited for before the next point.
	for _, l := range slices.Backward(g.dim.loads) {
		g.load(p, l, s, nodes)
	}
}

// rest waits until the nodes have written down, and dropped, what came before. It returns the processor time that
// they use all together, in milliseconds per second; false when they go on working.
func (g *growthTurn) rest(nodes []*node) (used float64, rests bool) {
	const look = time.Second
	total := func() (sum time.Duration) {
		for _, n := range nodes {
			sum += g.c.processorTime(n)
		}
		return sum
	}
	before, at := total(), time.Now()
	rests = eventually(time.Minute, func() bool {
		time.Sleep(look) // what is measured is not disturbed by looking
		after, now := total(), time.Now()
		used = millis(after-before) / now.Sub(at).Seconds()
		before, at = after, now
		return used <= restful+restfulEach*float64(len(nodes))
	})
	return used, rests
}

// A cluster at rest may use so many milliseconds of a processor per second, and so many more for each node: twice what
// nodes were seen to use for their signs of life on a machine with much else to do.
const (
	restful     = 100
	restfulEach = 50
)

func (g *growthTurn) running() []*node {
	return slices.DeleteFunc(slices.Clone(g.c.nodes), func(n *node) bool { return !n.running() })
}

// load measures one load at a point, once all nodes are level.
func (g *growthTurn) load(p *grownPoint, l growthLoad, s setting, nodes []*node) {
	g.c.waitLevel(2*time.Minute, nodes...)
	leader := g.c.waitLeader()
	at := leader
	if l.at == followerPlace {
		at = without(g.c.voters(), leader)[0]
	}
	cfg := bench.Config{
		Target: bench.Holdfast, Addresses: []string{at.http}, Connections: s.connections, Rate: l.rate, Mix: bench.Mix{l.op: 1},
		Keys: s.keys, Prefix: growthPrefix, Distribution: bench.Uniform, ValueSize: s.value, Seed: g.seed,
		Watchers: s.watchers, WatchBy: l.by, WarmUp: measureWarmUp, Duration: *growthTime, Timeout: 30 * time.Second,
	}
	for _, n := range nodes {
		cfg.CPUOf = append(cfg.CPUOf, n.http)
	}
	if g.dim.zipf {
		cfg.Distribution = bench.Zipf
	}
	what := fmt.Sprintf("%s %s, %s", g.dim.name, p.Name, l.name)
	res, err := bench.Run(g.t.Context(), cfg)
	if err != nil {
		g.result.trouble("%s: not measured: %v", what, err)
		g.t.Logf("%s: not measured: %v", what, err)
		return
	}
	g.keep(p, l.name, what, res)
	if s, ok := leader.status(); !ok || s.Mode != "leader" {
		g.result.trouble("%s: leadership moved meanwhile", what)
	}
}

// keep takes the figures of a result over.
func (g *growthTurn) keep(p *grownPoint, load, what string, res *bench.Result) {
	failed := int64(0)
	for _, o := range res.Operations {
		of := what
		if o.Name == watchedOp {
			of += ", watchers"
		}
		for _, f := range failures(of, o) {
			g.result.trouble("%s", f)
		}
		for n := range maps.Values(o.Errors) {
			failed += n
		}
	}
	if res.Unsent > 0 {
		g.result.trouble("%s: %d requests were due and could not be sent", what, res.Unsent)
	}
	o := res.Operations[0]
	g.t.Logf("%s: %.0f/s, p50 %.2f ms, p99 %.2f ms, %d failed", what, o.PerSecond, o.Milliseconds.P50, o.Milliseconds.P99, failed)
	p.add(load, "failed", float64(failed))
	if o.Count == 0 {
		g.result.trouble("%s: not measured: no request was carried out", what)
		return
	}
	p.add(load, "throughput", o.PerSecond)
	p.add(load, "p50", o.Milliseconds.P50)
	p.add(load, "p99", o.Milliseconds.P99)
	if g.dim.name == "values" {
		p.add(load, "megabytes", o.PerSecond*float64(res.ValueSize)/1e6)
	}
	if used := res.Server.MicrosecondsPerOperation; used != nil {
		p.add(load, "cpu", *used)
	} else {
		g.result.trouble("%s: the processor time is not known: %s", what, strings.Join(res.Server.Problems, "; "))
	}
	i := slices.IndexFunc(res.Operations, func(o bench.Operation) bool { return o.Name == watchedOp })
	if i < 0 {
		return
	}
	told := res.Operations[i]
	p.add(load, "told", told.PerSecond)
	if told.Count == 0 {
		g.result.trouble("%s: no watcher was told of anything", what)
		return
	}
	p.add(load, "told-p50", told.Milliseconds.P50)
	p.add(load, "told-p99", told.Milliseconds.P99)
}

// watchedOp is what package bench calls what watchers were told.
const watchedOp = "watch"

// growthPrefix is what keys begin with.
const growthPrefix = "bench/"

// growthPairs are the keys of package bench from one number on up to another, with values that do not compress better
// than its.
func growthPairs(from, to, size int) func(yield func(client.Pair, error) bool) {
	raw := make([]byte, (size+1<<18)*3/4+3)
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range raw {
		raw[i] = byte(rng.Uint32())
	}
	text := base64.RawURLEncoding.AppendEncode(nil, raw)
	return func(yield func(client.Pair, error) bool) {
		for i := from; i < to; i++ {
			begin := rng.IntN(len(text) - size)
			if !yield(client.Pair{Key: fmt.Sprintf("%s%010d", growthPrefix, i), Value: text[begin : begin+size]}, nil) {
				return
			}
		}
	}
}

// hearing is a test that remembers what made it fail.
type hearing struct {
	testing.TB
	mu   sync.Mutex
	said string
}

func (h *hearing) hear(s string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.said = cmp.Or(h.said, s)
}

// first is the first line of the first failure; empty when there is none.
func (h *hearing) first() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	line, _, _ := strings.Cut(strings.TrimSpace(h.said), "\n")
	return line
}

func (h *hearing) Error(args ...any) {
	h.Helper()
	h.hear(fmt.Sprint(args...))
	h.TB.Error(args...)
}

func (h *hearing) Errorf(format string, args ...any) {
	h.Helper()
	h.hear(fmt.Sprintf(format, args...))
	h.TB.Errorf(format, args...)
}

func (h *hearing) Fatal(args ...any) {
	h.Helper()
	h.hear(fmt.Sprint(args...))
	h.TB.Fatal(args...)
}

func (h *hearing) Fatalf(format string, args ...any) {
	h.Helper()
	h.hear(fmt.Sprintf(format, args...))
	h.TB.Fatalf(format, args...)
}
