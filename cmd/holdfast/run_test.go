package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/store"
)

// lone is a cluster of one in this process.
type lone struct {
	t    *testing.T
	cfg  agentConfig
	stop func() error
}

func newLone(t *testing.T) *lone {
	t.Helper()
	port := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}
	cfg, r := parseAgent(t, "--node=n1", "--site=home", "--home", "--bootstrap-expect=1", "--log-level=error",
		"--data-dir", filepath.Join(t.TempDir(), "n1"), "--http", port(), "--raft", port())
	if r.status != 0 {
		t.Fatal(r.err)
	}
	return &lone{t: t, cfg: cfg}
}

func (l *lone) start() {
	ctx, cancel := context.WithCancel(l.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- runAgent(ctx, l.cfg) }()
	l.stop = func() error {
		cancel()
		return <-ended
	}
}

// request repeats one until it is answered with 200, and returns the answer.
func (l *lone) request(method, path, body string) string {
	l.t.Helper()
	var last string
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		req, err := http.NewRequestWithContext(l.t.Context(), method, "http://"+l.cfg.HTTP+path, strings.NewReader(body))
		if err != nil {
			l.t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			last = err.Error()
			continue
		}
		answer, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err == nil && res.StatusCode == http.StatusOK {
			return string(answer)
		}
		last = fmt.Sprintf("%d %s %v", res.StatusCode, answer, err)
	}
	l.t.Fatalf("%s %s was never answered: %s", method, path, last)
	return ""
}

// waitMember waits until the node has found itself to be a member.
func (l *lone) waitMember() {
	l.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		switch id, _, err := store.Inspect(l.cfg.DataDir); {
		case err == nil && id.Epoch > 0:
			return
		case time.Now().After(deadline):
			l.t.Fatalf("it never became a member: %+v, %v", id, err)
		}
	}
}

// damageState spoils what the state file says of itself.
func damageState(t *testing.T, dir string) {
	t.Helper()
	path := filepath.Join(dir, "state.db")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	spoilt := bytes.ReplaceAll(b, []byte(`"lineage":`), []byte(`"lineagE":`))
	if bytes.Equal(b, spoilt) {
		t.Fatal("nothing to damage")
	}
	if err := os.WriteFile(path, spoilt, 0o600); err != nil {
		t.Fatal(err)
	}
}

func setAside(t *testing.T, dir string) []string {
	t.Helper()
	kept, err := filepath.Glob(filepath.Join(dir, "state.db.damaged-*"))
	if err != nil {
		t.Fatal(err)
	}
	return kept
}

func TestADamagedStateIsMadeAgainFromTheLog(t *testing.T) {
	l := newLone(t)
	l.start()
	l.request("PUT", "/v1/kv/a", "1")
	for round := range 2 {
		if err := l.stop(); err != nil {
			t.Fatal(err)
		}
		damageState(t, l.cfg.DataDir)
		l.start()
		if v := l.request("GET", "/v1/kv/a?raw", ""); v != "1" {
			t.Errorf("round %d: a is %q", round, v)
		}
		if kept := setAside(t, l.cfg.DataDir); len(kept) != 1 {
			t.Errorf("round %d: set aside as %q, want one file", round, kept)
		}
	}
	if err := l.stop(); err != nil {
		t.Error(err)
	}
}

// Nobody else has the contents: then nothing is touched.
func TestADamagedStateThatCannotBeHadAgainIsLeftAlone(t *testing.T) {
	l := newLone(t)
	l.start()
	l.request("PUT", "/v1/kv/a", "1")
	if err := l.stop(); err != nil {
		t.Fatal(err)
	}
	id, _, err := store.Inspect(l.cfg.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := store.OpenDir(l.cfg.DataDir, id, nil)
	if err != nil {
		t.Fatal(err)
	}
	logs, err := dir.OpenLogs(l.cfg.LogStore)
	if err != nil {
		t.Fatal(err)
	}
	if err := logs.Log.DeleteRange(1, 1); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{logs.Close(), dir.Close()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	damageState(t, l.cfg.DataDir)
	before, err := os.ReadFile(filepath.Join(l.cfg.DataDir, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	err = runAgent(t.Context(), l.cfg)
	if err == nil || !strings.Contains(err.Error(), "is damaged") || !strings.Contains(err.Error(), "no address of another member") {
		t.Errorf("it ends with %v", err)
	}
	after, err := os.ReadFile(filepath.Join(l.cfg.DataDir, "state.db"))
	if err != nil || !bytes.Equal(before, after) || len(setAside(t, l.cfg.DataDir)) > 0 {
		t.Errorf("the damaged state was touched: %v", err)
	}
}

// Whoever belongs to the cluster has readers that need no cluster.
func TestAMemberThatStartsCutOffServesItsReadersAtOnce(t *testing.T) {
	l := newLone(t)
	l.start()
	l.request("PUT", "/v1/kv/a", "1")
	l.waitMember()
	if err := l.stop(); err != nil {
		t.Fatal(err)
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and never says a word
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	givenUp := make(chan struct{})
	go func() {
		defer close(givenUp)
		if c, err := silent.Accept(); err == nil {
			_, _ = io.Copy(io.Discard, c) // until the member gives it up
			_ = c.Close()
		}
	}()
	l.cfg.BootstrapExpect, l.cfg.Join = 0, []string{silent.Addr().String()}
	l.start()
	l.request("GET", "/v1/kv/a?stale", "")
	select {
	case <-givenUp:
		t.Error("the first read waited for a member that says nothing")
	default:
	}
	if err := l.stop(); err != nil {
		t.Error(err)
	}
}

func TestWhoMayNotStartIsToldBeforeAnythingIsWritten(t *testing.T) {
	l := newLone(t)
	l.start()
	l.request("PUT", "/v1/kv/a", "1")
	defer func() { _ = l.stop() }()
	other := newLone(t)
	other.cfg.Node, other.cfg.BootstrapExpect, other.cfg.Join = "n1", 0, []string{l.cfg.AdvertiseRaft}
	if err := runAgent(t.Context(), other.cfg); !strings.Contains(fmt.Sprint(err), command.ErrNameInUse.Message) {
		t.Errorf("a second n1 ends with %v", err)
	}
	if _, err := os.Stat(other.cfg.DataDir); !os.IsNotExist(err) {
		t.Errorf("it left a data directory: %v", err)
	}
}

// A member that was let in before is still told of what has changed about it.
func TestAMemberStartedForAnotherDatacenterEnds(t *testing.T) {
	l := newLone(t)
	l.start()
	l.request("PUT", "/v1/kv/a", "1")
	peer := newLone(t)
	peer.cfg.Node, peer.cfg.BootstrapExpect, peer.cfg.Join = "n2", 0, []string{l.cfg.AdvertiseRaft}
	peer.cfg.Role = command.RoleLearner
	defer func() { _ = l.stop() }()
	peer.start()
	peer.request("GET", "/v1/kv/a?consistent", "")
	peer.waitMember()
	if err := peer.stop(); err != nil {
		t.Fatal(err)
	}
	peer.cfg.Datacenter = "other"
	if err := runAgent(t.Context(), peer.cfg); !strings.Contains(fmt.Sprint(err), command.ErrWrongCluster.Message) {
		t.Errorf("it ends with %v", err)
	}
}
