package clustertests

import (
	"flag"
	"fmt"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/internal/bench"
)

var (
	peersRounds  = flag.Int("peers-rounds", 3, "TestMeasurePeers: how often each system has its turn")
	peersTime    = flag.Duration("peers-time", 4*time.Second, "TestMeasurePeers: how long each load is measured")
	peersSystems = flag.String("peers-systems", "", "TestMeasurePeers: measure only these, such as `Holdfast,etcd`")
	peersLoads   = flag.String("peers-loads", "", "TestMeasurePeers: measure only loads whose names match this `regexp`")
)

// place is the part of a cluster that a load is sent to.
type place string

const (
	leaderPlace   place = "the leader"
	followerPlace place = "a follower"
	learnerPlace  place = "a learner" // Holdfast alone has them here
)

// peersLoad is one load of TestMeasurePeers.
type peersLoad struct {
	what        string
	op          bench.Op
	at          place
	connections []int
}

var peersLoadsAll = []peersLoad{
	{"writes", bench.Put, leaderPlace, []int{1, 64, 256}},
	{"writes", bench.Put, followerPlace, []int{64}},
	{"writes", bench.Put, learnerPlace, []int{64}},
	{"linearizable reads", bench.Consistent, leaderPlace, []int{1, 64, 256}},
	{"linearizable reads", bench.Consistent, learnerPlace, []int{64}},
	{"stale reads", bench.Stale, followerPlace, []int{1, 64, 256}},
	{"stale reads", bench.Stale, learnerPlace, []int{1, 64, 256}},
}

// What happens after kill -9 is a row each, too.
const (
	leaderKilled   = "the leader is killed: longest time without an acknowledged write"
	followerKilled = "a killed follower is started: time until it answers a linearizable read"
)

// TestMeasurePeers puts the same loads on Holdfast and on its peers, and writes
// what came of it beside each other: make bench-peers.
//
// Each round gives each system its turn, in a new cluster that has the machine to itself, so that
// what else changes on the machine meets all alike. Holdfast has two learners beside its
// three voters, whose work counts as its own.
func TestMeasurePeers(t *testing.T) {
	measured(t, "make bench-peers")
	chosen, err := regexp.Compile(*peersLoads)
	if err != nil {
		t.Fatal(err)
	}
	all, absent := products(threeSites)
	if *peersSystems != "" {
		wanted := strings.Split(*peersSystems, ",")
		all = slices.DeleteFunc(all, func(p product) bool { return !slices.Contains(wanted, p.name) })
		if len(all) < len(wanted) {
			t.Fatalf("-peers-systems %s: not all of them are there; absent: %q", *peersSystems, absent)
		}
		absent = nil
	}
	for _, a := range absent {
		t.Log("left out: ", a)
	}
	result := &comparison{Absent: absent, Method: fmt.Sprintf("%d processors (load included), %s; load average before %s; rounds: %d, of %v for each load, medians; %d-byte values, %d keys",
		runtime.NumCPU(), runtime.Version(), loadAverage(), *peersRounds, *peersTime, measureValue, measureKeys)}
	for _, p := range all {
		result.Systems = append(result.Systems, compared{p.name, p.version})
	}
	for round := range *peersRounds {
		for _, p := range all {
			t.Run(fmt.Sprintf("round %d/%s", round+1, p.name), func(t *testing.T) {
				turn := &peersTurn{t: t, name: p.name, system: p.start(t), seed: uint64(round + 1), chosen: chosen, result: result}
				turn.run()
			})
		}
	}
	if len(result.Rows) == 0 {
		t.Fatal("nothing was measured")
	}
	result.publication().publish(t)
}

// peersTurn is one system's turn in a round.
type peersTurn struct {
	t      *testing.T
	name   string
	system system
	seed   uint64
	chosen *regexp.Regexp
	result *comparison
}

func (p *peersTurn) run() {
	fill := p.config(bench.Put, p.system.leader(), 64)
	fill.Fill, fill.Count = true, 1
	p.bench(fill)
	for _, l := range peersLoadsAll {
		for _, connections := range l.connections {
			row := fmt.Sprintf("%s, %s, %d", l.what, l.at, connections)
			if !p.chosen.MatchString(row) {
				continue
			}
			if node, ok := p.nodeAt(l.at); ok {
				p.load(row, p.config(l.op, node, connections))
			}
		}
	}
	if p.chosen.MatchString(leaderKilled) {
		gap, _ := leaderGoes(p.t, p.system, "killed")
		p.result.add(leaderKilled, p.name, "interruption", millis(gap))
	}
	if p.chosen.MatchString(followerKilled) {
		p.result.add(followerKilled, p.name, "interruption", millis(p.restart()))
	}
}

// nodeAt is a node at a place, once all nodes are level.
func (p *peersTurn) nodeAt(at place) (node int, ok bool) {
	leader := p.system.leader()
	switch at {
	case leaderPlace:
		return leader, true
	case followerPlace:
		return (leader + 1) % 3, true
	default:
		return 3, len(p.system.addresses()) > 3
	}
}

// config is a load on one node, of which all nodes' processor time is measured.
func (p *peersTurn) config(op bench.Op, node, connections int) bench.Config {
	all := p.system.addresses()
	return bench.Config{
		Target: p.system.target(), Addresses: all[node : node+1], CPUOf: all, Connections: connections, Mix: bench.Mix{op: 1},
		Keys: measureKeys, Prefix: "bench/", Distribution: bench.Uniform, ValueSize: measureValue, Seed: p.seed,
		WarmUp: measureWarmUp, Duration: *peersTime, Timeout: 10 * time.Second,
	}
}

func (p *peersTurn) bench(cfg bench.Config) *bench.Result {
	p.t.Helper()
	res, err := bench.Run(p.t.Context(), cfg)
	if err != nil {
		p.t.Fatal(err)
	}
	return res
}

// load measures one load.
func (p *peersTurn) load(row string, cfg bench.Config) {
	res := p.bench(cfg)
	o := res.Operations[0]
	p.t.Logf("%s: %.0f/s, p50 %.2f ms, p99 %.2f ms", row, o.PerSecond, o.Milliseconds.P50, o.Milliseconds.P99)
	for _, failure := range failures(p.name+", "+row, o) {
		p.result.Failures = append(p.result.Failures, failure)
		if p.name == ownName {
			p.t.Error(failure)
		}
	}
	if o.Count == 0 {
		return
	}
	p.result.add(row, p.name, "throughput", o.PerSecond)
	p.result.add(row, p.name, "p50", o.Milliseconds.P50)
	p.result.add(row, p.name, "p99", o.Milliseconds.P99)
	if used := res.Server.MicrosecondsPerOperation; used != nil {
		p.result.add(row, p.name, "cpu", *used)
	} else {
		p.t.Logf("%s: processor time is not known: %v", row, res.Server.Problems)
	}
}

// restart is how long a follower that was killed takes from the start of its process to the
// first answer to a linearizable read that is sent to it.
func (p *peersTurn) restart() time.Duration {
	follower := (p.system.leader() + 1) % 3
	p.system.take(follower, 0, "killed")
	ask := p.config(bench.Consistent, follower, 1)
	ask.CPUOf, ask.WarmUp, ask.Count = nil, 0, 1
	began := time.Now()
	p.system.give(follower, "killed")
	for time.Since(began) < time.Minute {
		res, err := bench.Run(p.t.Context(), ask)
		if err == nil && res.Operations[0].Count == 1 {
			return time.Since(began)
		}
		time.Sleep(time.Millisecond) // what is measured is not asked without a pause
	}
	p.t.Fatalf("%s: a killed follower does not come back", p.name)
	return 0
}
