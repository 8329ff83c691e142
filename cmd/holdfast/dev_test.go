package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// output is what a process writes while it is read.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// devRun is a running `holdfast dev`, a process of its own.
type devRun struct {
	t    *testing.T
	dir  string
	cmd  *exec.Cmd
	out  output
	errs output
	done chan struct{}
	args []string
}

// fivePorts finds five ports in a row that are free now.
func fivePorts(t *testing.T) int {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		first := l.Addr().(*net.TCPAddr).Port
		_ = l.Close()
		free := first+4 <= 65535
		for p := first; free && p < first+5; p++ {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p))
			if free = err == nil; free {
				_ = l.Close()
			}
		}
		if free {
			return first
		}
	}
	t.Fatal("no five free ports in a row")
	return 0
}

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "dev") // short enough for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func startDev(t *testing.T, dir string, more ...string) *devRun {
	t.Helper()
	d := &devRun{t: t, dir: dir, done: make(chan struct{})}
	d.args = append([]string{"dev", "--dir", dir}, more...)
	d.cmd = exec.Command(os.Args[0], d.args...)
	d.cmd.Env = append(os.Environ(), fakeAgents+"=1", "HOLDFAST_BOOTSTRAP_EXPECT=nonsense that the nodes must not see")
	d.cmd.Stdout, d.cmd.Stderr = &d.out, &d.errs
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = d.cmd.Wait(); close(d.done) }()
	t.Cleanup(func() {
		_ = d.cmd.Process.Kill()
		<-d.done
		if t.Failed() {
			t.Logf("dev wrote:\n%s%s", d.out.String(), d.errs.String())
		}
	})
	return d
}

func (d *devRun) wrote(text string) {
	d.t.Helper()
	eventually(d.t, fmt.Sprintf("dev writes %q", text), func() bool { return strings.Contains(d.out.String(), text) })
}

func (d *devRun) tell(args ...string) ran {
	d.t.Helper()
	return cli(d.t, "", append(append([]string{"dev"}, args...), "--dir", d.dir)...)
}

func (d *devRun) nodes() map[string]devNodeState {
	d.t.Helper()
	var all []devNodeState
	if r := d.tell("status", "--json"); json.Unmarshal([]byte(r.out), &all) != nil {
		d.t.Fatalf("%+v", r)
	}
	named := map[string]devNodeState{}
	for _, n := range all {
		named[n.Name] = n
	}
	return named
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

func TestDevRunsACluster(t *testing.T) {
	dir := filepath.Join(shortDir(t), "cluster")
	httpPort, raftPort := fivePorts(t), fivePorts(t)
	ports := []string{"--http-port", strconv.Itoa(httpPort), "--raft-port", strconv.Itoa(raftPort)}
	d := startDev(t, dir, ports...)
	d.wrote("Ctrl-C stops")

	// The table names every node with its address and process.
	nodes := d.nodes()
	for i, name := range []string{"n1", "n2", "n3", "e1", "w1"} {
		n := nodes[name]
		if n.URL != fmt.Sprintf("http://127.0.0.1:%d", httpPort+i) || !alive(n.PID) {
			t.Errorf("%+v", n)
		}
		if out := d.out.String(); !strings.Contains(out, n.URL) || !strings.Contains(out, strconv.Itoa(n.PID)) {
			t.Errorf("%s is not in the table", name)
		}
	}
	if s := nodes["n1"].State + nodes["n2"].State + nodes["e1"].State; s != "leaderfollowerlevel" {
		t.Errorf("states %s", s)
	}

	// A second one on the same directory is refused, whatever its ports.
	cli(t, "", "dev", "--dir", dir).refusal(t, "another holdfast dev runs the cluster in "+dir, "--dir")
	// Elsewhere it is refused for the ports, and leaves nothing behind.
	other := filepath.Join(filepath.Dir(dir), "other")
	cli(t, "", append([]string{"dev", "--dir", other}, ports...)...).refusal(t, fmt.Sprintf("port %d, where n1 would listen for clients, is in use", httpPort), "--http-port")
	if _, err := os.Stat(other); !os.IsNotExist(err) {
		t.Errorf("%s was made: %v", other, err)
	}

	// A cut is told to all nodes, and to those that start later.
	d.tell("cut", "east").success(t, "east is cut off from the other sites\n")
	d.wrote("e1 (east) is cut off, and goes on serving its copy")
	d.tell("cut", "east").success(t, "east was cut off already\n")
	d.tell("cut", "mars").refusal(t, `no site "mars"`, "home, east, west")
	d.tell("kill", "e1").success(t, fmt.Sprintf("e1 (pid %d) is killed\n", nodes["e1"].PID))
	d.wrote(fmt.Sprintf("e1 (pid %d) was ended by signal killed; holdfast dev start e1 brings it back", nodes["e1"].PID))
	if alive(nodes["e1"].PID) || d.nodes()["e1"].PID != 0 {
		t.Error("e1 still runs")
	}
	d.tell("kill", "e1").refusal(t, "e1 does not run", "dev start e1")
	if r := d.tell("start", "e1"); r.status != 0 || !strings.HasPrefix(r.out, "e1 runs again (pid ") {
		t.Errorf("%+v", r)
	}
	d.wrote("e1 (east) starts without contact to a leader, and serves the copy it has")
	d.tell("start", "e1").refusal(t, "e1 runs already")
	d.tell("start", "x9").refusal(t, `no node "x9"`)
	d.tell("heal", "east").success(t, "east can be reached again\n")
	d.wrote("e1 (east) is level again")
	d.tell("heal", "east").success(t, "east was not cut off\n")

	// A change of the leader is news; a node that ends by itself stays down.
	if err := os.WriteFile(filepath.Join(dir, "leader"), []byte("n2"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.wrote("n2 leads, ")
	if err := os.WriteFile(filepath.Join(dir, "n3.fails"), []byte("disk is gone; replace it"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.tell("kill", "n3")
	d.tell("start", "n3").refusal(t, "n3 ended: disk is gone; replace it")

	// Ctrl-C stops all.
	nodes = d.nodes()
	if err := d.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	<-d.done
	if code := d.cmd.ProcessState.ExitCode(); code != 0 || d.errs.String() != "" {
		t.Errorf("status %d, errors %q", code, d.errs.String())
	}
	for name, n := range nodes {
		if n.PID == 0 {
			continue
		}
		if alive(n.PID) {
			t.Errorf("%s still runs", name)
		}
		if log, err := os.ReadFile(n.Log); !strings.Contains(string(log), "stopped: ") {
			t.Errorf("%s was not stopped by a signal it could catch: %q, %v", name, log, err)
		}
	}
	d.tell("status").refusal(t, "no dev cluster runs in "+dir)

	// The next run finds its ports by itself and keeps those of the nodes.
	cli(t, "", "dev", "--dir", dir, "--raft-port", strconv.Itoa(raftPort+100)).refusal(t, fmt.Sprintf("--raft-port %d", raftPort))
	if err := os.Remove(filepath.Join(dir, "n3.fails")); err != nil {
		t.Fatal(err)
	}
	again := startDev(t, dir)
	again.wrote(fmt.Sprintf("http://127.0.0.1:%d", httpPort))
}

func TestNoNodeOutlivesDev(t *testing.T) {
	d := startDev(t, shortDir(t), "--http-port", strconv.Itoa(fivePorts(t)), "--raft-port", strconv.Itoa(fivePorts(t)))
	d.wrote("Ctrl-C stops")
	nodes := d.nodes()
	if err := d.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-d.done
	for name, n := range nodes {
		eventually(t, name+" has ended", func() bool { return ended(n.PID) })
	}
}

// ended also counts a process that nobody has waited for yet: what was orphaned
// waits for init.
func ended(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return !alive(pid)
	}
	_, after, _ := strings.Cut(string(b), ") ")
	return strings.HasPrefix(after, "Z") || strings.HasPrefix(after, "X")
}

func TestANodeThatFailsAtTheStartEndsDev(t *testing.T) {
	dir := shortDir(t)
	if err := os.WriteFile(filepath.Join(dir, devFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "w1.fails"), []byte("data directory is of a newer format; upgrade"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := startDev(t, dir, "--http-port", strconv.Itoa(fivePorts(t)), "--raft-port", strconv.Itoa(fivePorts(t)))
	<-d.done
	if d.cmd.ProcessState.ExitCode() != 1 || d.errs.String() != "holdfast: w1 ended: data directory is of a newer format; upgrade\n" {
		t.Errorf("status %d, %q", d.cmd.ProcessState.ExitCode(), d.errs.String())
	}
}

func TestBadDevFlagsAreRefused(t *testing.T) {
	full := shortDir(t)
	if err := os.WriteFile(filepath.Join(full, "thesis.doc"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for args, parts := range map[string][]string{
		"--http-port 0":                        {"--http-port 0", "5 ports", "give 1 to 65531"},
		"--raft-port 65535":                    {"--raft-port 65535"},
		"--http-port 9000 --raft-port 9003":    {"overlap"},
		"--dir " + full:                        {full, "other things than a dev cluster"},
		"--dir " + strings.Repeat("/long", 30): {"too long"},
	} {
		if !strings.Contains(args, "--dir") {
			args += " --dir " + filepath.Join(full, "new")
		}
		cli(t, "", append([]string{"dev"}, strings.Fields(args)...)...).refusal(t, parts...)
	}
	if entries, err := os.ReadDir(full); err != nil || len(entries) != 1 {
		t.Errorf("%v %v", entries, err)
	}
}

func TestTheAgentsOfDevAreWellFormed(t *testing.T) {
	cfg := devConfig{Dir: "/d", HTTPPort: 8500, RaftPort: 8300, LogStore: "wal", LogLevel: "info"}
	all := devLayout(cfg.HTTPPort, cfg.RaftPort)
	voters := 0
	for _, n := range all {
		var got agentConfig
		args := cfg.agentArgs(n, all)
		r := cliWith(t, func(_ context.Context, c agentConfig) error { got = c; return nil }, "", args...)
		if r.status != 0 {
			t.Fatalf("%s: %s", n.Name, r.err)
		}
		if got.Role == command.RoleVoter {
			voters++
		}
		wantJoin := 3
		if got.Home {
			wantJoin = 2
		}
		if got.Home != (n.Site == "home") || len(got.Join) != wantJoin || got.FaultSwitch != "/d/"+n.Name+".sock" || got.HTTP != n.HTTP {
			t.Errorf("%+v", got)
		}
	}
	if voters != 3 {
		t.Errorf("%d voters", voters)
	}
}

func TestTheWatcherTellsWhatIsNews(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	see := func(mode, status string) sight {
		return sight{status: command.ReplicaStatus{Running: true, Mode: mode, Status: status}}
	}
	silent := sight{err: fmt.Errorf("timeout")}
	type look struct {
		node string
		sight
	}
	many := func(n int, l look) (ls []look) {
		for range n {
			ls = append(ls, l)
		}
		return ls
	}
	level := look{"e1", see("learner", "level")}
	cut := look{"e1", see("learner", "cut-off")}
	back := look{"e1", see("learner", "catching-up")}
	leads := func(n string) look { return look{n, see("leader", "level")} }
	follows := func(n string) look { return look{n, see("voter", "level")} }
	caught := level
	caught.status.LastCatchUp = command.CatchUp{Kind: command.CatchUpLog, Records: 2, Bytes: 2048}
	for name, c := range map[string]struct {
		looks []look
		want  []string
	}{
		"nothing new":         {many(5, level), nil},
		"first leader":        {[]look{follows("n2"), leads("n1"), leads("n1")}, []string{"n1 leads"}},
		"failover":            {[]look{leads("n1"), follows("n1"), follows("n2"), leads("n2")}, []string{"n1 leads", "n2 leads, 200ms after n1 was lost"}},
		"new before old":      {[]look{leads("n1"), leads("n2"), leads("n1"), follows("n1")}, []string{"n1 leads", "n2 leads, taking over from n1"}},
		"cut and back":        {[]look{level, cut, cut, back, caught}, []string{"e1 (east) is cut off, and goes on serving its copy", "e1 (east) has contact again, and catches up", "e1 (east) is level again, by log: 2 records, 2.0 KiB"}},
		"short silence":       {append([]look{level}, many(patience-1, look{"e1", silent})...), nil},
		"silence":             {append(append([]look{level}, many(patience+2, look{"e1", silent})...), level), []string{"e1 does not answer: timeout", "e1 answers again"}},
		"silence at start":    {many(50, look{"e1", silent}), nil},
		"a start while cut":   {append(many(contactPatience+3, cut), back, back, level), []string{"e1 (east) starts without contact to a leader, and serves the copy it has", "e1 (east) has contact again, and catches up", "e1 (east) is level again"}},
		"an ordinary start":   {append(many(contactPatience-1, cut), back, level), nil},
		"ordinary catch-up":   {[]look{level, back, level}, nil},
		"a voter in election": {[]look{follows("n2"), {"n2", see("voter", "cut-off")}, follows("n2")}, nil},
		"fenced":              {[]look{follows("n2"), {"n2", see("voter", "fenced")}, {"n2", see("voter", "fenced")}}, []string{"n2 is fenced: another site has become home, and it no longer votes or leads"}},
		"failed":              {[]look{follows("n2"), {"n2", see("voter", "failed")}, {"n2", see("voter", "failed")}}, []string{"n2 has failed and no longer votes or leads; its log says why"}},
	} {
		t.Run(name, func(t *testing.T) {
			var news []string
			w := newWatcher(devLayout(1, 10), func(format string, args ...any) { news = append(news, fmt.Sprintf(format, args...)) })
			at := now
			for _, l := range c.looks {
				at = at.Add(100 * time.Millisecond)
				w.see(l.node, l.sight, at)
			}
			if got, want := strings.Join(news, "\n"), strings.Join(c.want, "\n"); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}
