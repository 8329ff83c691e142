package clustertests

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"io"
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
)

var (
	etcdFlag   = flag.String("etcd", "etcd", "etcd `binary` to measure beside; without it Holdfast is measured alone")
	roundsFlag = flag.Int("measure-leader-rounds", 10, "how often TestMeasureLeader takes the leader away in each way")
)

// TestMeasureLeader prints for how long no write is acknowledged when the leader
// is killed, paused, or asked to hand over: make bench-leader. When an etcd binary is
// there, a cluster of it goes through the same on the same machine, in turns, with
// its defaults.
//
// The load is open: at each node that is left a write begins every 5 ms, whatever
// became of those before, so that a gap is the system's and not that of a client
// which waits for an answer that never comes.
func TestMeasureLeader(t *testing.T) {
	measured(t, "make bench-leader")
	systems := []system{newOwnSystem(t)}
	if path, err := exec.LookPath(*etcdFlag); err == nil {
		systems = append(systems, newEtcd(t, path))
	} else {
		t.Logf("Holdfast alone: %v", err)
	}
	r := &report{t: t, data: "a small write every 5 ms at each node that is left"}
	defer r.print()
	r.columns("system", "leader is", "median", "least", "most", "failed writes", "of")
	for _, how := range []string{"killed", "paused", "handed over"} {
		gaps := map[system][]time.Duration{}
		failed := map[system]int{}
		for range *roundsFlag {
			for _, s := range systems {
				gap, lost := leaderGoes(t, s, how)
				gaps[s], failed[s] = append(gaps[s], gap), failed[s]+lost
				t.Logf("%s, leader %s: %v without an acknowledged write, %d writes failed", s, how, gap, lost)
			}
		}
		for _, s := range systems {
			r.row(s, how, median(gaps[s]), slices.Min(gaps[s]), slices.Max(gaps[s]), failed[s], len(gaps[s]))
		}
	}
}

// system is a cluster of three whose leader goes.
type system interface {
	fmt.Stringer
	// leader is the node that leads, once all are well.
	leader() int
	// put is a write at a node.
	put(node int, key, value string) *http.Request
	// take takes the leader away, or asks it to hand over to another node; give
	// brings it back.
	take(leader, to int, how string)
	give(leader int, how string)
}

// leaderGoes measures one round: the longest time between two acknowledgements
// from just before the leader went, and how many writes failed. Writes at the
// leader itself count only when it hands over.
func leaderGoes(t *testing.T, s system, how string) (gap time.Duration, failed int) {
	leader := s.leader()
	var nodes []int
	for n := range 3 {
		if n != leader || how == "handed over" {
			nodes = append(nodes, n)
		}
	}
	load := startLoad(s, nodes)
	load.await(t, 100)
	at := time.Now()
	s.take(leader, (leader+1)%3, how)
	load.awaitAfter(t, at, 100)
	acks, failed := load.end()
	s.give(leader, how)
	return longestGap(acks, at), failed
}

// load writes at some nodes until it is ended.
type load struct {
	client *http.Client
	stop   chan struct{}
	wg     sync.WaitGroup

	mu     sync.Mutex
	acks   []time.Time // guarded by mu
	failed int         // guarded by mu
}

func startLoad(s system, nodes []int) *load {
	l := &load{stop: make(chan struct{}), client: &http.Client{
		Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 1000},
	}}
	for _, n := range nodes {
		l.wg.Go(func() {
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			for i := 0; ; i++ {
				select {
				case <-tick.C:
				case <-l.stop:
					return
				}
				r := s.put(n, fmt.Sprintf("leader/%d/%d", n, i%1000), time.Now().String())
				l.wg.Go(func() { l.write(r) })
			}
		})
	}
	return l
}

func (l *load) write(r *http.Request) {
	resp, err := l.client.Do(r)
	if err == nil {
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil || resp.StatusCode != http.StatusOK {
		l.failed++
		return
	}
	l.acks = append(l.acks, time.Now())
}

// await waits for n acknowledgements, awaitAfter for n after a moment.
func (l *load) await(t *testing.T, n int) { l.awaitAfter(t, time.Time{}, n) }

func (l *load) awaitAfter(t *testing.T, at time.Time, n int) {
	t.Helper()
	if !eventually(30*time.Second, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		after := 0
		for i := len(l.acks) - 1; i >= 0 && l.acks[i].After(at); i-- {
			after++
		}
		return after >= n
	}) {
		t.Fatal("no writes are acknowledged")
	}
}

// end waits for what is under way.
func (l *load) end() (acks []time.Time, failed int) {
	close(l.stop)
	l.wg.Wait()
	l.client.CloseIdleConnections()
	return l.acks, l.failed
}

// ownSystem is Holdfast.
type ownSystem struct{ *cluster }

func newOwnSystem(t *testing.T) *ownSystem { return &ownSystem{startCluster(t, voters)} }

func (*ownSystem) String() string { return "Holdfast" }

func (s *ownSystem) leader() int {
	for _, n := range s.nodes {
		s.waitReady(n)
	}
	s.waitLevel(30 * time.Second)
	return slices.Index(s.nodes, s.waitLeader())
}

func (s *ownSystem) put(node int, key, value string) *http.Request {
	return request(s.t, http.MethodPut, "http://"+s.nodes[node].http+"/v1/kv/"+key, value)
}

func (s *ownSystem) take(leader, to int, how string) {
	switch how {
	case "killed":
		s.must(s.nodes[leader].signal(syscall.SIGKILL, nil))
	case "paused":
		s.pause(s.nodes[leader])
	default:
		trade(s.t, request(s.t, http.MethodPost, "http://"+s.nodes[leader].http+"/v1/operator/raft/transfer-leader?id="+s.nodes[to].name, ""), nil)
	}
}

func (s *ownSystem) give(leader int, how string) {
	switch how {
	case "killed":
		s.must(s.nodes[leader].awaitEnd(10 * time.Second))
		s.start(s.nodes[leader])
	case "paused":
		s.resume(s.nodes[leader])
	}
}

// etcd is a cluster of etcd, used by its HTTP gateway.
type etcd struct {
	t       *testing.T
	path    string
	args    [3][]string
	clients [3]string
	ids     [3]string // as the gateway writes them
	procs   [3]*exec.Cmd
}

func newEtcd(t *testing.T, path string) *etcd {
	e := &etcd{t: t, path: path}
	dir := t.TempDir()
	var peers [3]string
	var initial []string
	for i := range e.clients {
		e.clients[i], peers[i] = "http://"+freePort(t), "http://"+freePort(t)
		initial = append(initial, fmt.Sprintf("m%d=%s", i, peers[i]))
	}
	for i := range e.args {
		e.args[i] = []string{
			"--name", fmt.Sprintf("m%d", i), "--data-dir", filepath.Join(dir, fmt.Sprint(i)), "--log-level", "error",
			"--listen-client-urls", e.clients[i], "--advertise-client-urls", e.clients[i],
			"--listen-peer-urls", peers[i], "--initial-advertise-peer-urls", peers[i],
			"--initial-cluster", strings.Join(initial, ","), "--initial-cluster-state", "new",
		}
		e.start(i)
	}
	t.Cleanup(func() {
		for _, p := range e.procs {
			p.Process.Kill()
			p.Wait()
		}
	})
	return e
}

func (e *etcd) start(i int) {
	e.procs[i] = exec.Command(e.path, e.args[i]...)
	e.procs[i].Stderr = os.Stderr
	e.procs[i].SysProcAttr = dieWithParent()
	if err := e.procs[i].Start(); err != nil {
		e.t.Fatal(err)
	}
}

func (*etcd) String() string { return "etcd" }

func (e *etcd) leader() int {
	leader := -1
	if !eventually(30*time.Second, func() bool {
		leader = -1
		var first, index string
		for i := range e.clients {
			var s struct {
				Header    struct{ Member_id string }
				Leader    string
				RaftIndex string
			}
			if trade(nil, request(e.t, http.MethodPost, e.clients[i]+"/v3/maintenance/status", "{}"), &s) != nil || s.Leader == "" || s.Leader == "0" {
				return false
			}
			if i == 0 {
				first, index = s.Leader, s.RaftIndex
			}
			if s.Leader != first || s.RaftIndex != index {
				return false
			}
			e.ids[i] = s.Header.Member_id
			if e.ids[i] == s.Leader {
				leader = i
			}
		}
		return leader >= 0
	}) {
		e.t.Fatal("etcd has no leader that all follow")
	}
	return leader
}

func (e *etcd) put(node int, key, value string) *http.Request {
	b64 := base64.StdEncoding.EncodeToString
	return request(e.t, http.MethodPost, e.clients[node]+"/v3/kv/put", fmt.Sprintf(`{"key":%q,"value":%q}`, b64([]byte(key)), b64([]byte(value))))
}

func (e *etcd) take(leader, to int, how string) {
	switch how {
	case "killed":
		e.signal(leader, syscall.SIGKILL)
	case "paused":
		e.signal(leader, syscall.SIGSTOP)
	default:
		trade(e.t, request(e.t, http.MethodPost, e.clients[leader]+"/v3/maintenance/transfer-leadership", fmt.Sprintf(`{"targetID":%q}`, e.ids[to])), nil)
	}
}

func (e *etcd) give(leader int, how string) {
	switch how {
	case "killed":
		e.procs[leader].Wait() // it says that it was killed
		e.start(leader)
	case "paused":
		e.signal(leader, syscall.SIGCONT)
	}
}

func (e *etcd) signal(i int, sig syscall.Signal) {
	if err := e.procs[i].Process.Signal(sig); err != nil {
		e.t.Fatal(err)
	}
}

func request(t testing.TB, method, url, body string) *http.Request {
	r, err := http.NewRequest(method, url, bytes.NewBufferString(body))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// trade sends a request and decodes its answer. With t an error ends the test.
func trade(t testing.TB, r *http.Request, into any) error {
	resp, err := (&http.Client{Timeout: 10 * time.Second}).Do(r)
	if err == nil {
		defer resp.Body.Close()
		var body []byte
		body, err = io.ReadAll(resp.Body)
		if resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: status %d: %s", r.URL, resp.StatusCode, body)
		} else if err == nil && into != nil {
			err = json.Unmarshal(body, into)
		}
	}
	if err != nil && t != nil {
		t.Fatal(err)
	}
	return err
}
