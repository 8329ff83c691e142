package clustertests

import (
	"bytes"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/internal/bench"
)

// system is a cluster with three voters, Holdfast or one of its peers, of which
// measurements are made. It runs with its defaults, each node a process of its own,
// until the test ends.
type system interface {
	target() bench.Target
	// addresses are where the nodes take requests, the voters first.
	addresses() []string
	// leader is the voter that leads, once all nodes are well and level.
	leader() int
	// put is a write at a node.
	put(node int, key, value string) *http.Request
	// canHandOver says whether the leader can be asked to let another voter lead.
	canHandOver() bool
	// take kills or pauses a voter, or asks the leader to hand over to another one;
	// give brings it back.
	take(voter, to int, how string)
	give(voter int, how string)
}

// product is a kind of system that can be started on this machine.
type product struct {
	name, version string // version may be empty
	start         func(t *testing.T) system
}

const ownName = "Holdfast"

// products are Holdfast with the nodes given, and the peers whose binaries are in
// bin/peers or in the PATH. absent says which are not, and why.
func products(specs []spec) (found []product, absent []string) {
	found = append(found, product{name: ownName, start: func(t *testing.T) system { return &ownSystem{startCluster(t, specs)} }})
	for _, p := range []struct {
		name, binary string
		start        func(t *testing.T, binary string) system
	}{
		{"etcd", "etcd", newEtcd},
		{"rqlite", "rqlited", newRqlite},
		{"Consul", "consul", newConsul},
	} {
		path, err := exec.LookPath(filepath.Join("..", "bin", "peers", p.binary))
		if err != nil {
			path, err = exec.LookPath(p.binary)
		}
		if err != nil {
			absent = append(absent, fmt.Sprintf("%s: %s is neither in bin/peers nor in the PATH", p.name, p.binary))
			continue
		}
		version := ""
		if info, err := buildinfo.ReadFile(path); err == nil && strings.HasPrefix(info.Main.Version, "v") {
			version = info.Main.Version
		}
		found = append(found, product{p.name, version, func(t *testing.T) system { return p.start(t, path) }})
	}
	return found, absent
}

// ownSystem is Holdfast.
type ownSystem struct{ *cluster }

func (*ownSystem) target() bench.Target { return bench.Holdfast }

func (s *ownSystem) addresses() []string {
	var all []string
	for _, n := range s.nodes {
		all = append(all, n.http)
	}
	return all
}

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

func (*ownSystem) canHandOver() bool { return true }

func (s *ownSystem) take(voter, to int, how string) {
	switch how {
	case "killed":
		s.must(s.nodes[voter].signal(syscall.SIGKILL, nil))
	case "paused":
		s.pause(s.nodes[voter])
	default:
		trade(s.t, request(s.t, http.MethodPost, "http://"+s.nodes[voter].http+"/v1/operator/raft/transfer-leader?id="+s.nodes[to].name, ""), nil)
	}
}

func (s *ownSystem) give(voter int, how string) {
	switch how {
	case "killed":
		s.must(s.nodes[voter].awaitEnd(10 * time.Second))
		s.start(s.nodes[voter])
	case "paused":
		s.resume(s.nodes[voter])
	}
}

// peers are three processes of another product; what sets one product apart from
// the others embeds it.
type peers struct {
	t       *testing.T
	binary  string
	dir     string
	args    [3][]string
	clients [3]string // host:port that requests are sent to
	ids     [3]string // as a request to hand over names them; known once there was a leader
	procs   [3]*exec.Cmd
}

// newPeers makes room for three nodes, whose args are to be set before run.
func newPeers(t *testing.T, binary string) *peers {
	dir, err := os.MkdirTemp(*keepFlag, "hf-peers-") // beside the data of our own clusters
	if err != nil {
		t.Fatal(err)
	}
	p := &peers{t: t, binary: binary, dir: dir}
	for i := range p.clients {
		p.clients[i] = freePort(t)
	}
	t.Cleanup(p.close)
	return p
}

func (p *peers) data(i int) string { return filepath.Join(p.dir, fmt.Sprint(i)) }

func (p *peers) log(i int) string { return filepath.Join(p.dir, fmt.Sprintf("%d.log", i)) }

func (p *peers) run() {
	for i := range p.procs {
		p.start(i)
	}
}

func (p *peers) start(i int) {
	log, err := os.OpenFile(p.log(i), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		p.t.Fatal(err)
	}
	defer log.Close() // the process has it, too
	cmd := exec.Command(p.binary, p.args[i]...)
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = log, log, dieWithParent()
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.procs[i] = cmd
}

func (p *peers) close() {
	for i, cmd := range p.procs {
		if cmd == nil {
			continue
		}
		_ = cmd.Process.Kill() // unless it has ended
		_ = cmd.Wait()
		if p.t.Failed() {
			p.t.Logf("end of %s:\n%s", p.log(i), lastLines(p.log(i), 12))
		}
	}
	if err := os.RemoveAll(p.dir); err != nil {
		p.t.Error(err)
	}
}

func (p *peers) addresses() []string { return p.clients[:] }

func (p *peers) take(voter, _ int, how string) {
	if how == "killed" {
		p.signal(voter, syscall.SIGKILL)
	} else {
		p.signal(voter, syscall.SIGSTOP)
	}
}

func (p *peers) give(voter int, how string) {
	switch how {
	case "killed":
		_ = p.procs[voter].Wait() // it says that it was killed
		p.start(voter)
	case "paused":
		p.signal(voter, syscall.SIGCONT)
	}
}

func (p *peers) signal(i int, sig syscall.Signal) {
	if err := p.procs[i].Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
}

func (p *peers) request(method string, node int, path, body string) *http.Request {
	return request(p.t, method, "http://"+p.clients[node]+path, body)
}

// member is what a node says of itself.
type member struct {
	id      string
	leads   bool
	applied uint64 // Raft index
}

// settled asks all nodes until one of them leads and all have applied as much, and
// returns who leads. A node that knows no leader has an error.
func (p *peers) settled(ask func(node int) (member, error)) int {
	var all [3]member
	var leader int
	var last error
	if !eventually(time.Minute, func() bool {
		leaders, level := 0, true
		for i := range all {
			if all[i], last = ask(i); last != nil {
				return false
			}
			if all[i].leads {
				leader = i
				leaders++
			}
			level = level && all[i].applied == all[0].applied
		}
		return leaders == 1 && level
	}) {
		p.t.Fatalf("%s: no leader that all follow: %+v, %v", p.binary, all, last)
	}
	for i, m := range all {
		p.ids[i] = m.id
	}
	return leader
}

// etcd is used by its HTTP gateway.
type etcd struct{ *peers }

func newEtcd(t *testing.T, binary string) system {
	e := etcd{newPeers(t, binary)}
	var raft [3]string
	var initial []string
	for i := range raft {
		raft[i] = "http://" + freePort(t)
		initial = append(initial, fmt.Sprintf("m%d=%s", i, raft[i]))
	}
	for i, client := range e.clients {
		client = "http://" + client
		e.args[i] = []string{
			"--name", fmt.Sprintf("m%d", i), "--data-dir", e.data(i), "--log-level", "error",
			"--listen-client-urls", client, "--advertise-client-urls", client,
			"--listen-peer-urls", raft[i], "--initial-advertise-peer-urls", raft[i],
			"--initial-cluster", strings.Join(initial, ","), "--initial-cluster-state", "new",
		}
	}
	e.run()
	return e
}

func (etcd) target() bench.Target { return bench.Etcd }

func (e etcd) leader() int {
	return e.settled(func(i int) (member, error) {
		var s struct {
			Header struct {
				ID string `json:"member_id"`
			}
			Leader           string
			RaftAppliedIndex uint64 `json:",string"`
		}
		err := trade(nil, e.request(http.MethodPost, i, "/v3/maintenance/status", "{}"), &s)
		if err == nil && (s.Leader == "" || s.Leader == "0") {
			err = errNoLeader
		}
		return member{s.Header.ID, s.Header.ID == s.Leader, s.RaftAppliedIndex}, err
	})
}

func (e etcd) put(node int, key, value string) *http.Request {
	b64 := base64.StdEncoding.EncodeToString
	return e.request(http.MethodPost, node, "/v3/kv/put", fmt.Sprintf(`{"key":%q,"value":%q}`, b64([]byte(key)), b64([]byte(value))))
}

func (etcd) canHandOver() bool { return true }

func (e etcd) take(voter, to int, how string) {
	if how == "handed over" {
		trade(e.t, e.request(http.MethodPost, voter, "/v3/maintenance/transfer-leadership", fmt.Sprintf(`{"targetID":%q}`, e.ids[to])), nil)
		return
	}
	e.peers.take(voter, to, how)
}

// rqlite keeps keys and values in a table.
type rqlite struct{ *peers }

func newRqlite(t *testing.T, binary string) system {
	r := rqlite{newPeers(t, binary)}
	raft := []string{freePort(t), freePort(t), freePort(t)}
	for i, client := range r.clients {
		r.args[i] = []string{
			"-node-id", fmt.Sprint(i), "-http-addr", client, "-raft-addr", raft[i],
			"-bootstrap-expect", "3", "-join", strings.Join(raft, ","), r.data(i),
		}
	}
	r.run()
	trade(t, r.request(http.MethodPost, r.leader(), "/db/execute", `["CREATE TABLE kv (key TEXT NOT NULL PRIMARY KEY, value TEXT)"]`), nil)
	return r
}

func (rqlite) target() bench.Target { return bench.Rqlite }

func (r rqlite) leader() int {
	return r.settled(func(i int) (member, error) {
		var s struct {
			Store struct {
				Leader struct {
					ID string `json:"node_id"`
				}
				Raft struct {
					State   string
					Applied uint64 `json:"applied_index"`
				}
			}
		}
		err := trade(nil, r.request(http.MethodGet, i, "/status", ""), &s)
		if err == nil && s.Store.Leader.ID == "" {
			err = errNoLeader
		}
		return member{fmt.Sprint(i), s.Store.Raft.State == "Leader", s.Store.Raft.Applied}, err
	})
}

func (r rqlite) put(node int, key, value string) *http.Request {
	req := r.request(http.MethodPost, node, "/db/execute", fmt.Sprintf(`[["INSERT OR REPLACE INTO kv(key, value) VALUES(?, ?)",%q,%q]]`, key, value))
	req.Header.Set("Content-Type", "application/json")
	return req
}

func (rqlite) canHandOver() bool { return false }

// consulServers is Consul, without agents beside its servers.
type consulServers struct{ *peers }

func newConsul(t *testing.T, binary string) system {
	c := consulServers{newPeers(t, binary)}
	serf := []string{freePort(t), freePort(t), freePort(t)}
	for i, client := range c.clients {
		c.args[i] = []string{
			"agent", "-server", "-bootstrap-expect", "3", "-node", fmt.Sprintf("m%d", i), "-bind", "127.0.0.1",
			"-data-dir", c.data(i), "-log-level", "error",
			"-hcl", fmt.Sprintf("ports { http = %s, server = %s, serf_lan = %s, serf_wan = -1, dns = -1, grpc = -1, grpc_tls = -1 }",
				port(client), port(freePort(t)), port(serf[i])),
			// By default it takes 200 connections from one address.
			"-hcl", "limits { http_max_conns_per_client = 1000 }",
			"-hcl", "disable_update_check = true",
		}
		for _, s := range serf {
			c.args[i] = append(c.args[i], "-retry-join", s)
		}
	}
	c.run()
	return c
}

func (consulServers) target() bench.Target { return bench.Consul }

func (c consulServers) leader() int {
	return c.settled(func(i int) (member, error) {
		var s struct {
			Config struct{ NodeID string }
			Stats  struct {
				Consul struct {
					Leader string `json:"leader_addr"`
				}
				Raft struct {
					State   string
					Applied uint64 `json:"applied_index,string"`
				}
			}
		}
		err := trade(nil, c.request(http.MethodGet, i, "/v1/agent/self", ""), &s)
		if err == nil && s.Stats.Consul.Leader == "" {
			err = errNoLeader
		}
		return member{s.Config.NodeID, s.Stats.Raft.State == "Leader", s.Stats.Raft.Applied}, err
	})
}

func (c consulServers) put(node int, key, value string) *http.Request {
	return c.request(http.MethodPut, node, "/v1/kv/"+key, value)
}

func (consulServers) canHandOver() bool { return true }

func (c consulServers) take(voter, to int, how string) {
	if how == "handed over" {
		trade(c.t, c.request(http.MethodPost, voter, "/v1/operator/raft/transfer-leader?id="+c.ids[to], ""), nil)
		return
	}
	c.peers.take(voter, to, how)
}

var errNoLeader = errors.New("it knows no leader")

// port is that of host:port.
func port(address string) string {
	_, p, err := net.SplitHostPort(address)
	if err != nil {
		panic(err) // freePort made it
	}
	return p
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
