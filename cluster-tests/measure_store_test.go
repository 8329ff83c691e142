package clustertests

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"iter"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/client"
	"github.com/holdfast-db/holdfast/cluster-tests/workload"
	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/internal/bench"
)

var (
	measureSizes  = flag.String("measure-keys", "1000000,5000000", "TestMeasureStore: numbers of keys, the first one where one is enough")
	measureRounds = flag.Int("measure-rounds", 3, "TestMeasureStore: how often what is cheap is repeated")
	measureLoad   = flag.Duration("measure-load", 20*time.Second, "TestMeasureStore: how long each load lasts")
)

const (
	storeValue       = 256 // bytes
	storeConnections = 64
)

// growthSizes are those of the growth table, as far as they are not above the
// largest of -measure-keys.
var growthSizes = []int{100_000, 300_000, 1_000_000, 2_000_000, 5_000_000}

// Limits of history that are never reached, and such that nearly every change
// that is overwritten is dropped soon.
var (
	keepHistory = []string{"--history-age", "1000h", "--history-changes", "1000000000", "--history-bytes", "1024GiB"}
	dropHistory = []string{"--history-age", "1s", "--history-changes", "1000"}
)

// TestMeasureStore prints what the state costs in time, memory and disk as it
// grows, as tables in Markdown: make bench-store. Each part is a subtest.
func TestMeasureStore(t *testing.T) {
	measured(t, "make bench-store")
	var sizes []int
	for s := range strings.SplitSeq(*measureSizes, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1000 {
			t.Fatalf("-measure-keys: %q is no number of keys, which is at least 1000", s)
		}
		sizes = append(sizes, n)
	}
	for _, part := range []struct {
		name  string
		sizes []int
		run   func(*testing.T, *report, int)
	}{
		{"restart", sizes, measureRestart},
		{"memory", sizes, measureMemory},
		{"memory-cluster", sizes, measureClusterMemory},
		{"catch-up", sizes[:1], measureCatchUp},
		{"copy", sizes[:1], measureCopy},
		{"delta", sizes[:1], measureDelta},
		{"compaction", sizes[:1], measureCompaction},
		{"rewrite", sizes[:1], measureRewrite},
		{"growth", slices.DeleteFunc(slices.Clone(growthSizes), func(n int) bool { return n > slices.Max(sizes) }), measureGrowth},
	} {
		t.Run(part.name, func(t *testing.T) {
			r := &report{t: t}
			defer r.print()
			for _, keys := range part.sizes {
				if !t.Run(fmt.Sprint(keys), func(t *testing.T) { part.run(t, r, keys) }) {
					return
				}
			}
		})
	}
}

// withFlags gives all nodes further flags.
func withFlags(flags ...string) option {
	return func(c *cluster) { c.extra = append(c.extra, flags...) }
}

// shortLog keeps so little log that who was away needs the state itself. The
// default log store keeps whole files of 64 MiB, whatever it is told.
var shortLog = []string{"--log-retention", "64KiB", "--log-store", "boltdb"}

var (
	loneVoter  = []spec{{"n1", "home", true, command.RoleVoter}}
	eastOne    = spec{"e1", "east", false, command.RoleLearner}
	andLearner = func(s []spec) []spec { return append(slices.Clone(s), eastOne) }
)

// startVoters starts the voters of a cluster, whose learners stay out, and
// returns the leader.
func startVoters(t *testing.T, specs []spec, opts ...option) (*cluster, *node) {
	t.Helper()
	c := newCluster(t, specs, opts...)
	for _, n := range c.voters() {
		c.start(n)
	}
	return c, c.waitLeader()
}

// again stops a node that works alone and starts it with further flags.
func (c *cluster) again(n *node, flags ...string) {
	c.t.Helper()
	c.stop(n)
	n.args = append(c.agentArgs(n), flags...)
	c.start(n)
	c.waitLeader(n)
}

// storeKey is the i-th key: a thousand prefixes, which take keys in turn.
func storeKey(i int) string { return fmt.Sprintf("app/%03d/setting/%07d", i%1000, i) }

// appendStoreValue appends what a key is set to: the key, so that an answer can
// be judged, and a number, so that each write changes something.
func appendStoreValue(b []byte, i int, version uint64) []byte {
	start := len(b)
	b = fmt.Appendf(b, "%s#%020d#", storeKey(i), version)
	for len(b) < start+storeValue {
		b = append(b, "0123456789abcdef"[len(b)&15])
	}
	return b
}

// versions numbers all writes of this process.
var versions atomic.Uint64

// fill sets all keys below the number and returns how long it took.
func (c *cluster) fill(n *node, keys int) time.Duration {
	c.t.Helper()
	began := time.Now()
	if err := c.upload(context.Background(), n, keys, func(i int) int { return i }); err != nil {
		c.t.Fatal(err)
	}
	return time.Since(began)
}

// upload sets count keys, of which key names the i-th, as fast as it goes, through
// the node while it leads.
func (c *cluster) upload(ctx context.Context, n *node, count int, key func(i int) int) error {
	return c.importPairs(ctx, n, func(yield func(client.Pair, error) bool) {
		for i := range count {
			k := key(i)
			if !yield(client.Pair{Key: storeKey(k), Value: appendStoreValue(nil, k, versions.Add(1))}, nil) {
				return
			}
		}
	})
}

// importPairs writes in bulk, through the node while it leads.
func (c *cluster) importPairs(ctx context.Context, n *node, pairs iter.Seq2[client.Pair, error]) error {
	addresses := []string{n.http}
	for _, v := range without(c.voters(), n) {
		addresses = append(addresses, v.http)
	}
	to, err := client.New(client.Config{Addresses: addresses})
	if err != nil {
		return err
	}
	defer to.Close()
	// Large batches: between two there is a pause for the client's own work.
	options := client.ImportOptions{BatchBytes: 32 << 20, BatchRecords: 100_000}
	_, err = to.Import(ctx, pairs, options)
	return err
}

// overwrite makes requests that set keys drawn at random from all below keys.
func overwrite(keys int) func(connection, i int) []byte {
	return func(int, int) []byte { return overwriteKey(rand.IntN(keys)) }
}

func overwriteKey(i int) []byte {
	b := make([]byte, 0, storeValue+128)
	b = fmt.Appendf(b, "PUT /v1/kv/%s HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n", storeKey(i), storeValue)
	return appendStoreValue(b, i, versions.Add(1))
}

// readAny makes requests that get keys drawn at random from all below keys.
func readAny(keys int) func(connection, i int) []byte {
	return func(int, int) []byte { return getRequest(storeKey(rand.IntN(keys)), "stale") }
}

// exactly ends the load after that many requests.
func exactly(count int, request func(connection, i int) []byte) func(connection, i int) []byte {
	var made atomic.Int64
	return func(connection, i int) []byte {
		if made.Add(1) > int64(count) {
			return nil
		}
		return request(connection, i)
	}
}

// mustDrive is drive for as long as -measure-load says.
func mustDrive(t *testing.T, connections int, n *node, request func(connection, i int) []byte) figures {
	t.Helper()
	f, err := drive(*measureLoad, connections, []*node{n}, request)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// firstRead starts a node that has all keys below the number and returns the
// time from the start of its process to its first answer from its own state.
// Four readers go on a little longer: never may a key be reported missing.
func (c *cluster) firstRead(n *node, keys int) time.Duration {
	c.t.Helper()
	const beyond = 300 * time.Millisecond
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var first atomic.Int64 // nanoseconds since the start
	var wrong atomic.Pointer[string]
	var readers sync.WaitGroup
	began := time.Now()
	c.start(n)
	for range 4 {
		readers.Go(func() {
			for ctx.Err() == nil && n.running() {
				key := storeKey(rand.IntN(keys))
				status, value, err := get(ctx, n, workload.Key(key)+"?stale&raw")
				switch since := time.Since(began); {
				case err != nil || status == http.StatusServiceUnavailable:
					time.Sleep(time.Millisecond) // not there yet
				case status != http.StatusOK || !bytes.HasPrefix(value, []byte(key+"#")):
					text := fmt.Sprintf("%v after its start %s answered %d %.80q for %s", since, n, status, value, key)
					wrong.CompareAndSwap(nil, &text)
					return
				case !first.CompareAndSwap(0, int64(since)) && since > time.Duration(first.Load())+beyond:
					return
				}
			}
		})
	}
	readers.Wait()
	if text := wrong.Load(); text != nil {
		c.t.Fatal(*text)
	}
	if first.Load() == 0 {
		c.t.Fatalf("%s served nothing", n)
	}
	return time.Duration(first.Load())
}

func measureRestart(t *testing.T, r *report, keys int) {
	r.columns("keys", "node", "killed", "first local read, median", "best", "worst")
	c, n1 := startVoters(t, andLearner(loneVoter))
	e1 := c.node("e1")
	c.fill(n1, keys)
	c.start(e1)
	c.wait(5*time.Minute, "e1 is level", func() bool {
		a, ok := n1.status()
		b, ok2 := e1.status()
		return ok && ok2 && a.Applied == b.Applied
	})
	times := func(node, killed string, once func() time.Duration) {
		var took []time.Duration
		for range *measureRounds {
			took = append(took, once())
		}
		r.row(keys, node, killed, median(took), slices.Min(took), slices.Max(took))
	}
	// underWrites runs fn while keys drawn at random are overwritten at the voter:
	// by 64 connections, or in bulk, which leaves the most to be applied again.
	underWrites := func(bulk bool, fn func()) {
		ctx, cancel := context.WithCancel(context.Background())
		var writes sync.WaitGroup
		writes.Go(func() { // errors: fn may kill the voter
			if bulk {
				_ = c.upload(ctx, n1, math.MaxInt, func(int) int { return rand.IntN(keys) })
				return
			}
			until := func(connection, i int) []byte {
				if ctx.Err() != nil {
					return nil
				}
				return overwrite(keys)(connection, i)
			}
			_, _ = drive(time.Minute, storeConnections, []*node{n1}, until)
		})
		time.Sleep(*measureLoad / 2)
		fn()
		cancel()
		writes.Wait()
	}
	killed := func(bulk bool) string {
		if bulk {
			return "under bulk writes"
		}
		return "under writes"
	}
	times("voter", "at rest", func() time.Duration {
		c.kill(n1)
		return c.firstRead(n1, keys)
	})
	for _, bulk := range []bool{false, true} {
		times("voter", killed(bulk), func() time.Duration {
			c.waitLeader()
			underWrites(bulk, func() { c.kill(n1) })
			return c.firstRead(n1, keys)
		})
	}
	c.waitLeader()
	times("learner, cut off", "at rest", func() time.Duration {
		c.cutOff("east")
		c.kill(e1)
		return c.firstRead(e1, keys)
	})
	for _, bulk := range []bool{false, true} {
		times("learner, cut off", killed(bulk), func() time.Duration {
			c.heal()
			c.waitLevel(time.Minute)
			underWrites(bulk, func() { c.cutOff("east"); c.kill(e1) })
			return c.firstRead(e1, keys)
		})
	}
	c.heal()
}

// memory watches the anonymous memory of a process: its heap and stacks,
// without the mapped state file.
type memory struct {
	pid        int
	mu         sync.Mutex
	last, most int64 // bytes; guarded by mu
	stop       chan struct{}
	stopped    sync.WaitGroup
}

// watchMemory samples the node's memory every 20 ms until the test ends.
func (c *cluster) watchMemory(n *node) *memory {
	c.t.Helper()
	n.mu.Lock()
	m := &memory{pid: n.proc.Pid, stop: make(chan struct{})}
	n.mu.Unlock()
	if m.sample() == 0 {
		c.t.Fatalf("there is no RssAnon of process %d: this needs Linux", m.pid)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	m.stopped.Go(func() {
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				m.sample()
			case <-m.stop:
				return
			}
		}
	})
	c.t.Cleanup(func() { close(m.stop); m.stopped.Wait() })
	return m
}

func (m *memory) sample() int64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.pid)) // empty once the process is gone
	_, rest, _ := bytes.Cut(b, []byte("RssAnon:"))
	kib, _, _ := bytes.Cut(bytes.TrimSpace(rest), []byte(" "))
	v, err := strconv.ParseInt(string(kib), 10, 64)
	if err != nil {
		return 0
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last = v << 10
	m.most = max(m.most, m.last)
	return m.last
}

// phase returns the most and the last since the phase before, and begins
// another.
func (m *memory) phase() (most, last mebibytes) {
	m.mu.Lock()
	defer m.mu.Unlock()
	most, last = mebibytes(m.most), mebibytes(m.last)
	m.most = m.last
	return most, last
}

func measureMemory(t *testing.T, r *report, keys int) {
	r.columns("keys", "phase", "most MiB", "last MiB", "per second", "p99")
	c, n1 := startVoters(t, loneVoter)
	m := c.watchMemory(n1)
	row := func(phase string, rate float64, p99 time.Duration) {
		most, last := m.phase()
		r.row(keys, phase, most, last, rate, p99)
	}
	took := c.fill(n1, keys)
	row("bulk load", float64(keys)/took.Seconds(), 0)
	rest := func() { time.Sleep(*measureLoad / 2) }
	rest()
	row("at rest", 0, 0)
	f := mustDrive(t, storeConnections, n1, overwrite(keys))
	row("overwrites", f.rate, f.p99)
	rest()
	row("at rest", 0, 0)
	f = mustDrive(t, storeConnections, n1, readAny(keys))
	row("reads", f.rate, f.p99)
	// The most that can change at once, spread over all of the file.
	const burst = 500_000
	began := time.Now()
	if err := c.upload(context.Background(), n1, burst, func(int) int { return rand.IntN(keys) }); err != nil {
		t.Fatal(err)
	}
	row("bulk overwrites", burst/time.Since(began).Seconds(), 0)
	rest()
	row("at rest", 0, 0)
	c.kill(n1)
	c.start(n1)
	c.waitLeader()
	m = c.watchMemory(n1)
	rest()
	row("started again", 0, 0)
	f = mustDrive(t, storeConnections, n1, overwrite(keys))
	row("overwrites after that", f.rate, f.p99)
}

func measureClusterMemory(t *testing.T, r *report, keys int) {
	r.columns("keys", "phase", "node", "most MiB", "last MiB")
	// With the default log store. Four nodes and the load share the processors:
	// the leader shall stay all the same.
	c, leader := startVoters(t, andLearner(voters), withFlags(append(shortLog[:2:2], "--raft-multiplier", "5")...))
	follower := without(c.voters(), leader)[0]
	lm, fm := c.watchMemory(leader), c.watchMemory(follower)
	row := func(phase, node string, m *memory) {
		most, last := m.phase()
		r.row(keys, phase, node, most, last)
	}
	c.fill(leader, keys)
	row("bulk load", "leader", lm)
	row("bulk load", "follower", fm)
	mustDrive(t, storeConnections, leader, overwrite(keys))
	row("overwrites", "leader", lm)
	row("overwrites", "follower", fm)

	e1 := c.node("e1")
	c.shedLog(leader)
	var writes sync.WaitGroup
	writes.Go(func() { // ends by itself
		if _, err := drive(*measureLoad, storeConnections, []*node{leader}, overwrite(keys)); err != nil {
			t.Error(err)
		}
	})
	c.start(e1)
	em := c.watchMemory(e1)
	writes.Wait()
	c.waitLevel(5*time.Minute, leader, e1)
	if how := c.caughtUp(e1); how.Kind != command.CopyFull {
		t.Fatalf("the learner got level by %+v, not by a full copy: it takes more keys", how)
	}
	row("a learner takes a full copy under overwrites", "leader", lm)
	row("a learner takes a full copy under overwrites", "follower", fm)
	row("a learner takes a full copy under overwrites", "learner", em)
}

// levelAfterStart starts a node and returns the time from the start of its
// process until it holds what the leader held at that moment.
func (c *cluster) levelAfterStart(n, leader *node) time.Duration {
	c.t.Helper()
	goal, ok := leader.status()
	if !ok {
		c.t.Fatalf("%s does not answer", leader)
	}
	began := time.Now()
	c.start(n)
	for ; ; time.Sleep(5 * time.Millisecond) {
		s, ok := n.status()
		switch {
		case ok && s.AppliedIndex >= goal.AppliedIndex && s.Applied >= goal.Applied:
			return time.Since(began)
		case !n.running() || time.Since(began) > 10*time.Minute:
			c.t.Fatalf("%s did not get level\n%s", n, c.table())
		}
	}
}

// processorTime is what a node's process has used so far. Unlike the time that
// passes, it does not depend on what else the machine does.
func (c *cluster) processorTime(n *node) time.Duration {
	c.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.proc == nil {
		c.t.Fatalf("%s does not run", n)
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.proc.Pid))
	if err != nil {
		c.t.Fatal(err)
	}
	// After the name, which may hold anything: state is field 3, the user's and
	// the kernel's share are fields 14 and 15, in ticks of 10 ms.
	var ticks int
	for _, f := range bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])[11:13] {
		v, err := strconv.Atoi(string(f))
		if err != nil {
			c.t.Fatal(err)
		}
		ticks += v
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

func measureCatchUp(t *testing.T, r *report, keys int) {
	r.columns("keys", "missed", "level after start, median", "best", "worst", "processor time", "kinds")
	c, leader := startVoters(t, voters)
	c.fill(leader, keys)
	c.waitLevel(time.Minute)
	follower := without(c.voters(), leader)[0]
	large := bytes.Repeat([]byte("0123456789abcdef"), 1<<10)
	for _, m := range []struct {
		name    string
		count   int
		request func(connection, i int) []byte
	}{
		{"nothing", 0, overwrite(keys)},
		{"200,000 writes of 256 B", 200_000, overwrite(keys)},
		{"20,000 writes of 16 KiB", 20_000, func(int, int) []byte {
			version := versions.Add(1)
			copy(large, fmt.Sprintf("%020d", version))
			return putRequest(fmt.Sprintf("large/%05d", version%1000), large)
		}},
	} {
		var took, used []time.Duration
		var kinds []string
		for range *measureRounds {
			c.stop(follower)
			if m.count > 0 {
				if _, err := drive(5*time.Minute, 256, []*node{leader}, exactly(m.count, m.request)); err != nil {
					t.Fatal(err)
				}
			}
			took = append(took, c.levelAfterStart(follower, leader))
			used = append(used, c.processorTime(follower))
			s, _ := follower.status()
			kinds = append(kinds, s.LastCatchUp.Kind)
			c.waitLevel(time.Minute)
		}
		r.row(keys, m.name, median(took), slices.Min(took), slices.Max(took), median(used), strings.Join(kinds, " "))
	}
}

// logical is the size in bytes of that many keys and their values.
func logical(keys int) float64 { return float64(keys) * float64(len(storeKey(0))+storeValue) }

// freshCopy wipes the learner, starts it, and returns how it got level.
func (c *cluster) freshCopy(e, leader *node) (command.CatchUp, time.Duration) {
	c.t.Helper()
	c.wipe(e)
	took := c.levelAfterStart(e, leader)
	s := c.caughtUp(e)
	if s.Kind != command.CopyFull {
		c.t.Fatalf("%s got level by %+v, not by a full copy", e, s)
	}
	return s, took
}

// caughtUp waits until a node says how it got level.
func (c *cluster) caughtUp(n *node) (how command.CatchUp) {
	c.t.Helper()
	c.wait(30*time.Second, fmt.Sprintf("%s says how it got level", n), func() bool {
		s, ok := n.status()
		how = s.LastCatchUp
		return ok && how.Kind != ""
	})
	return how
}

func measureCopy(t *testing.T, r *report, keys int) {
	r.columns("keys", "logical MB", "copy MB", "copied in", "logical MB/s", "level after start", "receiver's processor time", "state file MiB: sender", "receiver")
	c, n1 := startVoters(t, andLearner(loneVoter), withFlags(shortLog...))
	e1 := c.node("e1")
	c.fill(n1, keys)
	c.shedLog(n1)
	for range *measureRounds {
		copied, level := c.freshCopy(e1, n1)
		r.row(keys, logical(keys)/1e6, float64(copied.Bytes)/1e6, seconds(copied.Seconds), logical(keys)/1e6/copied.Seconds, level, c.processorTime(e1), stateFile(n1), stateFile(e1))
		c.stop(e1)
	}
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// stateFile is the size of a node's state file, 0 when it is being replaced.
func stateFile(n *node) mebibytes {
	info, err := os.Stat(filepath.Join(n.data, "state.db"))
	if err != nil {
		return 0
	}
	return mebibytes(info.Size())
}

// compacted is what Raft logs when it drops the front of its log.
var compacted = regexp.MustCompile(`compacting logs: .*to=(\d+)`)

// shedLog makes a node that keeps a short log drop all that it holds now: what
// is kept is counted in entries, so it takes entries to push the others out.
func (c *cluster) shedLog(n *node) {
	c.t.Helper()
	s, ok := n.status()
	if !ok {
		c.t.Fatalf("%s does not answer", n)
	}
	pad := exactly(1000, func(int, int) []byte { return putRequest("pad", fmt.Append(nil, versions.Add(1))) })
	if _, err := drive(time.Minute, 1, []*node{n}, pad); err != nil {
		c.t.Fatal(err)
	}
	c.wait(time.Minute, fmt.Sprintf("%s drops its log up to %d", n, s.AppliedIndex), func() bool {
		text, err := os.ReadFile(n.log)
		if err != nil {
			c.t.Fatal(err)
		}
		for _, m := range compacted.FindAllSubmatch(text, -1) {
			if to, _ := strconv.ParseUint(string(m[1]), 10, 64); to >= s.AppliedIndex {
				return true
			}
		}
		return false
	})
}

func measureDelta(t *testing.T, r *report, keys int) {
	r.columns("keys", "changed", "kind", "records", "bytes", "seconds", "level after start", "of the bytes", "times faster")
	c, n1 := startVoters(t, andLearner(loneVoter), withFlags(shortLog...))
	e1 := c.node("e1")
	c.fill(n1, keys)
	c.shedLog(n1)
	c.freshCopy(e1, n1)
	for range *measureRounds {
		c.stop(e1)
		// One per cent of the keys, each once.
		var next atomic.Int64
		changed := keys / 100
		request := exactly(changed, func(int, int) []byte { return overwriteKey(int(next.Add(1)) * 97 % keys) })
		if _, err := drive(5*time.Minute, storeConnections, []*node{n1}, request); err != nil {
			t.Fatal(err)
		}
		c.shedLog(n1)
		took := c.levelAfterStart(e1, n1)
		part := c.caughtUp(e1)
		c.stop(e1)
		whole, wholeTook := c.freshCopy(e1, n1)
		r.row(keys, changed, part.Kind, part.Records, part.Bytes, fmt.Sprintf("%.3f", part.Seconds), took,
			fmt.Sprintf("%.1f%%", 100*float64(part.Bytes)/float64(whole.Bytes)), fmt.Sprintf("%.1f", whole.Seconds/part.Seconds))
		r.row(keys, changed, whole.Kind, whole.Records, whole.Bytes, fmt.Sprintf("%.3f", whole.Seconds), wholeTook, "", "")
	}
}

// measureCompaction compares writes with history being dropped all the time
// against writes with none dropped: two clusters of one voter, of which one
// works and the other is stopped, in turn.
func measureCompaction(t *testing.T, r *report, keys int) {
	r.columns("keys", "connections", "history", "per second", "p50", "p99", "p99.9", "longest", "file MiB")
	keeping, k1 := startVoters(t, loneVoter, withFlags(keepHistory...))
	dropping, d1 := startVoters(t, loneVoter, withFlags(dropHistory...))
	both := []struct {
		what string
		c    *cluster
		n    *node
	}{{"kept", keeping, k1}, {"dropped", dropping, d1}}
	for _, x := range both {
		x.c.fill(x.n, keys)
		x.c.pause(x.n)
	}
	for _, connections := range []int{1, storeConnections} {
		tails := map[string][]time.Duration{}
		for round := range *measureRounds {
			for i := range both {
				x := both[(round+i)%2]
				x.c.resume(x.n)
				x.c.waitLeader()
				f := mustDrive(t, connections, x.n, overwrite(keys))
				x.c.pause(x.n)
				r.row(keys, connections, x.what, f.rate, f.p50, f.p99, f.p999, f.most, stateFile(x.n))
				tails[x.what] = append(tails[x.what], f.p999)
			}
		}
		r.row(keys, connections, "ratio of the median p99.9", "", "", "",
			fmt.Sprintf("%.2f", float64(median(tails["dropped"]))/float64(median(tails["kept"]))), "", "")
	}
}

// measureRewrite compares writes while the file is rewritten, after most keys
// were deleted, with writes before.
func measureRewrite(t *testing.T, r *report, keys int) {
	r.columns("keys", "phase", "per second", "p50", "p99", "p99.9", "longest", "file MiB")
	c, n1 := startVoters(t, loneVoter, withFlags(dropHistory...))
	c.fill(n1, keys)
	row := func(phase string, f figures) {
		r.row(keys, phase, f.rate, f.p50, f.p99, f.p999, f.most, stateFile(n1))
	}
	const left = 100 // of a thousand prefixes
	few := func(int, int) []byte { return overwriteKey(rand.IntN(keys/1000)*1000 + rand.IntN(left)) }
	row("all keys", mustDrive(t, storeConnections, n1, few))
	for p := left; p < 1000; p++ {
		if w := remove(n1, fmt.Sprintf("app/%03d/", p), "recurse"); !w.ok {
			t.Fatalf("%+v", w)
		}
	}
	// The records that are superfluous now are dropped bit by bit, beside the writes;
	// the file is rewritten once half of it is free.
	for round, came := 0, false; ; round++ {
		before := stateFile(n1)
		f := mustDrive(t, storeConnections, n1, few)
		now := stateFile(n1)
		switch {
		case now < before/4*3:
			row("the small file comes", f)
			came = true
		case came:
			row("after it", f)
			return
		default:
			row("after deletion", f)
		}
		if round == 40 {
			t.Errorf("the file is not rewritten: %d MiB", now>>20)
			return
		}
	}
}

// measureGrowth shows what each further key costs.
func measureGrowth(t *testing.T, r *report, keys int) {
	r.columns("keys", "bulk load /s", "overwrites /s", "p99", "gets /s", "p99", "first read after kill -9",
		"at rest MiB", "under overwrites MiB", "file MiB", "full copy MB/s")
	c, n1 := startVoters(t, andLearner(loneVoter))
	e1 := c.node("e1")
	loaded := c.fill(n1, keys)
	c.again(n1, shortLog...)
	c.shedLog(n1)
	copied, _ := c.freshCopy(e1, n1)
	c.stop(e1)
	c.again(n1)
	size := stateFile(n1)
	m := c.watchMemory(n1)
	time.Sleep(*measureLoad / 2)
	_, rest := m.phase()
	writes := mustDrive(t, storeConnections, n1, overwrite(keys))
	most, _ := m.phase()
	reads := mustDrive(t, storeConnections, n1, readAny(keys))
	var restarts []time.Duration
	for range *measureRounds {
		c.kill(n1)
		restarts = append(restarts, c.firstRead(n1, keys))
	}
	r.row(keys, float64(keys)/loaded.Seconds(), writes.rate, writes.p99, reads.rate, reads.p99, median(restarts),
		rest, most, size, logical(keys)/1e6/copied.Seconds)
}

// A load of a fixed number of requests ends with the last of them.
func TestDriveEndsWhenRequestsRunOut(t *testing.T) {
	var served atomic.Int64
	n := &node{http: answering(t, func() { served.Add(1) })}
	_, err := drive(time.Hour, 8, []*node{n}, exactly(1000, func(int, int) []byte { return getRequest("k", "stale") }))
	if err != nil || served.Load() != 1000 {
		t.Fatalf("%d requests served, %v; want 1000", served.Load(), err)
	}
	n = &node{http: answering(t, nil)}
	if _, err := drive(time.Hour, 1, []*node{n}, func(int, int) []byte { return getRequest("k", "stale") }); err == nil {
		t.Error("an answer of 500 was no error")
	}
}

// answering serves 200 to each request after calling seen; 500 without it.
func answering(t *testing.T, seen func()) string {
	t.Helper()
	addr := freePort(t)
	s := &http.Server{Addr: addr, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if seen == nil {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		seen()
	})}
	ended := make(chan error, 1)
	go func() { ended <- s.ListenAndServe() }()
	t.Cleanup(func() {
		s.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	if !eventually(5*time.Second, func() bool {
		c, err := bench.Dial(addr, dialTimeout)
		if err == nil {
			c.Close()
		}
		return err == nil
	}) {
		t.Fatal("the server does not listen")
	}
	return addr
}
