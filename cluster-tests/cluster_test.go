package clustertests

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/workload"
	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/internal/fakeclock"
)

var (
	measureFlag = flag.Bool("measure", false, "run TestMeasure (make bench)")
	composeFlag = flag.Bool("compose", false, "run TestCompose (make compose-test)")
)

// binary is the program under test, built on first use: tests of the judges
// and of the import map need none. HOLDFAST_BINARY names one that exists.
var binary = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("HOLDFAST_BINARY"); path != "" {
		return path, nil
	}
	return build("holdfast")
})

// buildDir holds the binaries of this run; TestMain removes it.
var buildDir string

// build compiles cmd/holdfast into buildDir under the given name.
func build(name string, flags ...string) (string, error) {
	path := filepath.Join(buildDir, name)
	args := append([]string{"build", "-o", path}, flags...)
	if raceDetector {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, "../cmd/holdfast")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", strings.Join(cmd.Args[1:], " "), err, out)
	}
	return path, nil
}

func TestMain(m *testing.M) {
	flag.Parse()
	dir, err := os.MkdirTemp("", "hf-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	buildDir = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// ports hands out TCP ports below the range from which the kernel takes ports
// for outgoing connections, so that a stopped node finds its own free again.
var ports = struct {
	sync.Mutex
	next int
}{next: 12000 + rand.IntN(15000)}

func freePort(t testing.TB) string {
	t.Helper()
	ports.Lock()
	defer ports.Unlock()
	for range 1000 {
		ports.next++
		addr := fmt.Sprintf("127.0.0.1:%d", ports.next)
		if l, err := net.Listen("tcp", addr); err == nil {
			l.Close()
			return addr
		}
	}
	t.Fatal("no free port among a thousand")
	return ""
}

// spec is what a node is started as.
type spec struct {
	name, site string
	home       bool
	role       command.Role
}

// threeSites is the cluster most scenes use; voters is home alone.
var (
	voters = []spec{
		{"n1", "home", true, command.RoleVoter},
		{"n2", "home", true, command.RoleVoter},
		{"n3", "home", true, command.RoleVoter},
	}
	threeSites = append(slices.Clone(voters),
		spec{"e1", "east", false, command.RoleLearner},
		spec{"w1", "west", false, command.RoleLearner})
)

// cluster is a set of nodes, each a process of its own. Its methods fail the
// test by themselves. They may be called from several goroutines, but not two
// of them for one node.
type cluster struct {
	t      testing.TB
	dir    string // everything of this cluster: data, logs, fault switches
	bin    string
	env    []string
	extra  []string          // further flags of every agent
	disks  map[string]string // where the data of a node lies, if not in dir
	lab    *lab              // the network its nodes are hosts of; nil for loopback
	clocks bool              // each node has a clock of its own
	// spoiled: it runs with a bug that was found, and need not come to rest.
	spoiled bool
	nodes   []*node

	mu  sync.Mutex
	cut map[*node][]string // what the fault switches are set to
}

// node is one member and, while it runs, its process.
type node struct {
	spec
	http, raft string // addresses
	data       string
	log        string // file; all runs of the node append to it
	fault      string // path of the fault switch's socket
	args       []string
	gone       bool             // removed from the cluster, and not admitted again yet
	clock      *fakeclock.Clock // nil: that of the machine

	mu      sync.Mutex
	proc    *os.Process
	ended   chan struct{} // closed when the process is gone
	state   *os.ProcessState
	meant   bool     // the test itself ended the process
	stopped bool     // SIGSTOP
	died    []string // how it ended when nobody meant it to
	// A process that starts on a disk that is ill may refuse to, in one line, until then.
	illUntil time.Time
}

func (n *node) String() string { return n.name }

// learner says whether the node may answer from its own copy: a spare may.
func (n *node) learner() bool { return n.role != command.RoleVoter }

// option changes a cluster before its nodes are made.
type option func(*cluster)

// withLogStore runs all nodes on that log store.
func withLogStore(kind string) option {
	return func(c *cluster) { c.extra = append(c.extra, "--log-store", kind) }
}

// withBinary runs all nodes from another binary, with more environment.
func withBinary(path string, env ...string) option {
	return func(c *cluster) { c.bin, c.env = path, env }
}

// newCluster prepares nodes without starting them.
func newCluster(t testing.TB, specs []spec, opts ...option) *cluster {
	t.Helper()
	// The paths of sockets must be short: t.TempDir's are not.
	dir, err := os.MkdirTemp(*keepFlag, "hf-")
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, dir: dir}
	for _, o := range opts {
		o(c)
	}
	if c.bin == "" {
		if c.bin, err = binary(); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range specs {
		n := &node{
			spec:  s,
			data:  filepath.Join(dir, s.name),
			log:   filepath.Join(dir, s.name+".log"),
			fault: filepath.Join(dir, s.name+".sock"),
		}
		if c.lab != nil {
			n.http, n.raft = c.lab.addresses(s.name)
		} else {
			n.http, n.raft = freePort(t), freePort(t)
		}
		if c.clocks {
			n.clock = fakeclock.New(t)
		}
		c.nodes = append(c.nodes, n)
	}
	for _, n := range c.nodes {
		if disk, ok := c.disks[n.name]; ok {
			n.data = filepath.Join(disk, "data")
		}
		n.args = c.agentArgs(n)
	}
	t.Cleanup(c.close)
	return c
}

// agentArgs is the command line of a node.
func (c *cluster) agentArgs(n *node) []string {
	args := []string{"agent", "--node", n.name, "--site", n.site, "--role", string(n.role),
		"--data-dir", n.data, "--http", n.http, "--raft", n.raft, "--fault-switch", n.fault}
	if n.home {
		args = append(args, "--home")
	}
	if n.role == command.RoleVoter {
		args = append(args, "--bootstrap-expect", fmt.Sprint(len(c.voters())))
	}
	for _, o := range c.nodes {
		if o != n && o.role == command.RoleVoter {
			args = append(args, "--join", o.raft)
		}
	}
	return append(args, c.extra...)
}

// startCluster starts a cluster and waits until every node is ready and all
// are level. When the test ends it is inspected and taken down.
func startCluster(t testing.TB, specs []spec, opts ...option) *cluster {
	t.Helper()
	c := newCluster(t, specs, opts...)
	for _, n := range c.nodes {
		c.start(n)
	}
	for _, n := range c.nodes {
		c.waitReady(n)
	}
	c.waitLevel(30 * time.Second)
	return c
}

func (c *cluster) voters() []*node {
	return slices.DeleteFunc(slices.Clone(c.nodes), (*node).learner)
}

func (c *cluster) learners() []*node {
	return slices.DeleteFunc(slices.Clone(c.nodes), func(n *node) bool { return !n.learner() })
}

func (c *cluster) node(name string) *node {
	c.t.Helper()
	for _, n := range c.nodes {
		if n.name == name {
			return n
		}
	}
	c.t.Fatalf("no node %q in this cluster", name)
	return nil
}

// others are all nodes but those named.
func (c *cluster) others(but ...*node) []*node {
	return slices.DeleteFunc(slices.Clone(c.nodes), func(n *node) bool { return slices.Contains(but, n) })
}

// must fails the test of an order that failed.
func (c *cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// start runs the node's process. While there is a cut, the node is behind it
// from its first packet: see setCut.
func (c *cluster) start(n *node) { c.t.Helper(); c.must(c.launch(n)) }

// launch is start. As all orders that do not fail the test by themselves, it may be
// called by faults that act beside it.
func (c *cluster) launch(n *node) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.proc != nil {
		return fmt.Errorf("%s runs already", n)
	}
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	fmt.Fprintf(log, "--- start: %s\n", strings.Join(n.args, " "))
	program, args := c.bin, n.args
	if c.lab != nil {
		program, args = c.lab.command(n.name, program, args) // which becomes the program
	}
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), c.env...)
	cmd.SysProcAttr = dieWithParent()
	run := cmd.Start
	if n.clock != nil {
		run = func() error {
			return withTimerSlack(func() error { return n.clock.Start(cmd, c.bin) })
		}
	}
	if err := run(); err != nil {
		log.Close()
		return fmt.Errorf("start %s: %w", n, err)
	}
	ended := make(chan struct{})
	n.proc, n.ended, n.meant, n.stopped, n.state = cmd.Process, ended, false, false, nil
	go func() {
		cmd.Wait() // the state says all
		log.Close()
		n.mu.Lock()
		n.proc, n.state = nil, cmd.ProcessState
		if !n.meant && !n.refused() {
			n.died = append(n.died, n.state.String())
		}
		n.mu.Unlock()
		close(ended)
	}()
	return nil
}

// refused says whether the process that ended refused to start, as it may on an ill
// disk; mu is held.
func (n *node) refused() bool {
	return time.Now().Before(n.illUntil) && n.state.ExitCode() == 1 && strings.HasPrefix(lastLines(n.log, 1), "holdfast: ")
}

// running says whether the node's process is there.
func (n *node) running() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.proc != nil
}

// signal sends sig to the node's process. note, when given, changes the node's
// marks under its lock; a signal without one is meant to end the process.
func (n *node) signal(sig syscall.Signal, note func()) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.proc == nil {
		return fmt.Errorf("%s does not run: it cannot take signal %v", n, sig)
	}
	if note != nil {
		note()
	} else {
		n.meant = true
	}
	if err := n.proc.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %v to %s: %w", sig, n, err)
	}
	return nil
}

// awaitEnd waits until the node's process is gone.
func (n *node) awaitEnd(within time.Duration) error {
	n.mu.Lock()
	ended := n.ended
	n.mu.Unlock()
	select {
	case <-ended:
		return nil
	case <-time.After(within):
		return fmt.Errorf("%s did not end within %v", n, within)
	}
}

// kill is kill -9 of all named nodes at once, a process crash: what the kernel
// was given stays.
func (c *cluster) kill(nodes ...*node) { c.t.Helper(); c.must(kill(nodes...)) }

func kill(nodes ...*node) error {
	for _, n := range nodes {
		if err := n.signal(syscall.SIGKILL, nil); err != nil {
			return err
		}
	}
	for _, n := range nodes {
		if err := n.awaitEnd(10 * time.Second); err != nil {
			return err
		}
	}
	return nil
}

// stop ends the node gracefully.
func (c *cluster) stop(n *node) {
	c.t.Helper()
	if err := n.stop(); err != nil {
		c.t.Error(err)
	}
}

func (n *node) stop() error {
	if err := n.signal(syscall.SIGTERM, nil); err != nil {
		return err
	}
	if err := n.awaitEnd(20 * time.Second); err != nil {
		return err
	}
	if code := n.state.ExitCode(); code != 0 {
		return fmt.Errorf("%s ended with status %d after SIGTERM", n, code)
	}
	return nil
}

// pause freezes the process, resume lets it go on, and wakes its host.
func (c *cluster) pause(n *node) { c.t.Helper(); c.must(n.pause()) }

func (n *node) pause() error { return n.signal(syscall.SIGSTOP, func() { n.stopped = true }) }

func (c *cluster) resume(n *node) { c.t.Helper(); c.must(c.unpause(n)) }

func (c *cluster) unpause(n *node) error {
	if n.clock != nil {
		n.clock.Wake()
	}
	if err := n.signal(syscall.SIGCONT, func() { n.stopped = false }); err != nil {
		return err
	}
	c.mu.Lock()
	cut := c.cut[n]
	c.mu.Unlock()
	return n.setSwitch(cut) // it may have missed an order
}

// cutOff silences all traffic over the edge of each named site ("east") or
// node ("node:n1"), for all nodes, running or started later.
func (c *cluster) cutOff(tokens ...string) {
	c.t.Helper()
	cut := map[*node][]string{}
	for _, n := range c.nodes {
		cut[n] = tokens
	}
	c.setCut(cut)
}

// split silences all traffic between the named nodes and all others. On either side
// everything goes on.
func (c *cluster) split(side ...*node) {
	c.t.Helper()
	cut := map[*node][]string{}
	for _, n := range c.nodes {
		far := side
		if slices.Contains(side, n) {
			far = c.others(side...)
		}
		for _, o := range far {
			cut[n] = append(cut[n], "node:"+o.name)
		}
	}
	c.setCut(cut)
}

// heal joins everything again.
func (c *cluster) heal() {
	c.t.Helper()
	c.setCut(nil)
}

func (c *cluster) setCut(cut map[*node][]string) { c.t.Helper(); c.must(c.throw(cut)) }

// throw sets the fault switches of all nodes.
func (c *cluster) throw(cut map[*node][]string) error {
	c.mu.Lock()
	c.cut = cut
	c.mu.Unlock()
	for _, n := range c.nodes {
		tokens := cut[n]
		// What a node reads when it starts.
		if err := os.WriteFile(n.fault+".cut", order(tokens), 0o644); err != nil {
			return err
		}
	}
	var wg sync.WaitGroup
	errs := make([]error, len(c.nodes))
	for i, n := range c.nodes {
		n.mu.Lock()
		reachable := n.proc != nil && !n.stopped
		n.mu.Unlock()
		if reachable {
			wg.Go(func() { errs[i] = n.setSwitch(cut[n]) })
		}
	}
	wg.Wait()
	return errors.Join(errs...)
}

// order is the line that tells a fault switch what is cut.
func order(tokens []string) []byte {
	line, err := json.Marshal(map[string][]string{"cut": append([]string{}, tokens...)})
	if err != nil {
		panic(err) // strings always marshal
	}
	return append(line, '\n')
}

// setSwitch gives an order to a running node's fault switch and awaits its
// answer. A process that has just started gets time to open the socket.
func (n *node) setSwitch(tokens []string) error {
	throw := func() error {
		conn, err := net.DialTimeout("unix", n.fault, time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return err
		}
		if _, err := conn.Write(order(tokens)); err != nil {
			return err
		}
		var answer struct {
			OK    bool
			Error string
		}
		if err := json.NewDecoder(conn).Decode(&answer); err != nil {
			return err
		}
		if !answer.OK {
			return errors.New(answer.Error)
		}
		return nil
	}
	var last error
	if !eventually(10*time.Second, func() bool { last = throw(); return last == nil || !n.running() }) {
		return fmt.Errorf("fault switch of %s: %w", n, last)
	}
	return nil
}

// eventually tries cond until it holds, for at most within.
func eventually(within time.Duration, cond func() bool) bool {
	deadline := time.Now().Add(within)
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		if cond() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(pause)
	}
}

// wait fails the test when cond does not hold within the time.
func (c *cluster) wait(within time.Duration, what string, cond func() bool) {
	c.t.Helper()
	if !eventually(within, cond) {
		c.t.Fatalf("not within %v: %s\n%s", within, what, c.table())
	}
}

// waitReady waits until the node says that it may serve.
func (c *cluster) waitReady(n *node) {
	c.t.Helper()
	c.wait(30*time.Second, n.name+" is ready", func() bool {
		if !n.running() {
			c.t.Fatalf("%s ended while it was to become ready", n)
		}
		ok, _ := n.ready()
		return ok
	})
}

// ready is what a node says of itself at /readyz.
func (n *node) ready() (ok bool, why string) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	code, body, err := get(ctx, n, "/readyz")
	return err == nil && code == http.StatusOK, string(body)
}

// metric is a figure of a node; false when it has none of that name.
func (n *node) metric(name string) (value string, ok bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_, body, err := get(ctx, n, "/metrics")
	if err != nil {
		return "", false
	}
	for line := range strings.Lines(string(body)) {
		if rest, found := strings.CutPrefix(line, name+" "); found {
			return strings.TrimSpace(rest), true
		}
	}
	return "", false
}

// status asks the node what it is; false when it does not answer.
func (n *node) status() (command.ReplicaStatus, bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	return n.statusIn(ctx)
}

func (n *node) statusIn(ctx context.Context) (command.ReplicaStatus, bool) {
	var s command.ReplicaStatus
	code, body, err := get(ctx, n, "/v1/replica/status")
	if err != nil || code != http.StatusOK || json.Unmarshal(body, &s) != nil {
		return s, false
	}
	return s, true
}

// waitLeader waits until one of the nodes leads and has shown it by a
// consistent read, and returns it.
func (c *cluster) waitLeader(among ...*node) *node {
	c.t.Helper()
	if len(among) == 0 {
		among = c.voters()
	}
	var leader *node
	c.wait(20*time.Second, fmt.Sprintf("one of %v leads", among), func() bool {
		for _, n := range among {
			if s, ok := n.status(); !ok || s.Mode != "leader" {
				continue
			}
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			code, _, err := get(ctx, n, "/v1/kv/none?consistent")
			cancel()
			if err == nil && (code == http.StatusOK || code == http.StatusNotFound) {
				leader = n
				return true
			}
		}
		return false
	})
	return leader
}

// waitLevel waits until the nodes (all that run, when none is named) stand at
// one revision with one lineage, and returns their common status. One revision
// with two lineages is divergence and fails the test at once.
func (c *cluster) waitLevel(within time.Duration, nodes ...*node) workload.Status {
	c.t.Helper()
	if len(nodes) == 0 {
		nodes = slices.DeleteFunc(slices.Clone(c.nodes), func(n *node) bool { return !n.running() })
	}
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	var apis []*workload.Node
	for _, n := range nodes {
		apis = append(apis, n.api())
	}
	s, err := workload.Level(ctx, apis)
	if err != nil {
		c.t.Fatalf("%v\n%s", err, c.table())
	}
	return s
}

// table shows every node for the output of a failed test.
func (c *cluster) table() string {
	var b strings.Builder
	c.mu.Lock()
	for _, n := range c.nodes {
		if tokens := c.cut[n]; len(tokens) > 0 {
			fmt.Fprintf(&b, "cut at %s: %q\n", n, tokens)
		}
	}
	c.mu.Unlock()
	for _, n := range c.nodes {
		if !n.running() {
			fmt.Fprintf(&b, "  %-4s not running\n", n)
			continue
		}
		s, ok := n.status()
		if !ok {
			fmt.Fprintf(&b, "  %-4s runs, no answer\n", n)
			continue
		}
		fmt.Fprintf(&b, "  %-4s %-8s %-12s revision %-8d lineage %s  raft index %-8d staleness %d ms  failed probes %d\n",
			n, s.Mode, s.Status, s.Applied, s.Lineage, s.AppliedIndex, s.Staleness, s.FailedRequests)
	}
	return b.String()
}

// close is the inspection at the end of every scene, and the end of all
// processes.
func (c *cluster) close() {
	defer c.endAll()
	if c.t.Failed() {
		c.t.Logf("state at the end:\n%s", c.table())
		return
	}
	for _, n := range c.nodes {
		n.mu.Lock()
		ended, stopped := n.state != nil && !n.meant, n.stopped
		n.mu.Unlock()
		if ended {
			c.t.Errorf("%s ended by itself: %v", n, n.state)
			return
		}
		if stopped {
			c.resume(n)
		}
	}
	if !c.spoiled {
		c.inspect()
	}
}

// inspect heals the cluster, starts what does not run and demands that all
// nodes come to one revision with one lineage.
func (c *cluster) inspect() {
	c.t.Helper()
	if !slices.ContainsFunc(c.nodes, (*node).running) {
		return // never started: a test of refusals
	}
	c.heal()
	for _, n := range c.nodes {
		if !n.running() {
			c.start(n)
		}
	}
	for _, n := range c.nodes {
		c.waitReady(n)
	}
	c.waitLevel(60 * time.Second)
}

// endAll kills all processes, looks for panics and keeps what a failed test
// left.
func (c *cluster) endAll() {
	for _, n := range c.nodes {
		n.mu.Lock()
		proc, ended := n.proc, n.ended
		n.meant = true
		n.mu.Unlock()
		if proc != nil {
			proc.Kill()
			<-ended
		}
	}
	for _, n := range c.nodes {
		if line := findPanic(n.log); line != "" {
			c.t.Errorf("%s logged %q", n, line)
		}
	}
	if !c.t.Failed() {
		os.RemoveAll(c.dir)
		return
	}
	c.t.Logf("logs and data are kept in %s", c.dir)
	for _, n := range c.nodes {
		if tail := lastLines(n.log, 12); tail != "" {
			c.t.Logf("end of %s:\n%s", n.log, tail)
		}
	}
}

// findPanic returns the first line of a log that tells of a crash or of a data
// race; empty when there is none.
func findPanic(log string) string {
	f, err := os.Open(log)
	if err != nil {
		return ""
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		for _, sign := range []string{"panic: ", "fatal error: ", "WARNING: DATA RACE", "unexpected fault address"} {
			if strings.HasPrefix(lines.Text(), sign) {
				return lines.Text()
			}
		}
	}
	return ""
}

func lastLines(file string, n int) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	lines := bytes.Split(bytes.TrimRight(b, "\n"), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-n):], []byte("\n")))
}

// run executes the binary with a client's command line and returns its output.
func (c *cluster) run(within time.Duration, n *node, args ...string) (stdout, stderr string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.bin, args...)
	cmd.Env = append(os.Environ(), "HOLDFAST_HTTP_ADDR="+n.http)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// onLogStores runs the i-th of several scenes on the log stores in turn, so that each has
// its share; with -long on both. (TestJepsen draws the log store of every cluster.)
func onLogStores(t *testing.T, i int, name string, scene func(t *testing.T, o option)) {
	kinds := []string{"wal", "boltdb"}
	if !*longFlag {
		kinds = kinds[i%2 : i%2+1]
	}
	for _, kind := range kinds {
		t.Run(name+"/"+kind, func(t *testing.T) { scene(t, withLogStore(kind)) })
	}
}

// wipe removes the data of a node that does not run.
func (c *cluster) wipe(n *node) {
	c.t.Helper()
	if n.running() {
		c.t.Fatalf("%s runs: its data cannot be removed", n)
	}
	if err := os.RemoveAll(n.data); err != nil {
		c.t.Fatal(err)
	}
}
