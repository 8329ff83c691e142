package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/store"
)

func TestRejoinTouchesNothingUnlessAnotherSiteBecameHome(t *testing.T) {
	l := newLone(t)
	l.start()
	defer func() { _ = l.stop() }()
	l.request("PUT", "/v1/kv/a", "1")
	l.waitMember()
	member, _, err := store.Inspect(l.cfg.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	path, stop := dataDir(t)
	stop()
	rejoin := func(args ...string) ran {
		return cli(t, "", append([]string{"rejoin", "--data-dir", path, "--join", l.cfg.AdvertiseRaft}, args...)...)
	}
	cli(t, "", "rejoin", "--join", l.cfg.AdvertiseRaft).refusal(t, "--data-dir is missing")
	cli(t, "", "rejoin", "--data-dir", path).refusal(t, "--join is missing")
	rejoin().refusal(t, "belongs to no cluster")
	setCluster := func(id string, epoch uint64) {
		t.Helper()
		own, _, err := store.Inspect(path)
		if err != nil {
			t.Fatal(err)
		}
		d, err := store.OpenDir(path, own, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.SetCluster(id, epoch); err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	setCluster(member.ClusterID, 1)
	rejoin().refusal(t, "no other site has become home")
	cli(t, "", "rejoin", "--data-dir", path, "--join", "127.0.0.1:1").refusal(t, "connection refused")
	if _, err := os.Stat(filepath.Join(path, "state.db")); err != nil {
		t.Error(err)
	}
	if id, ok, err := store.Inspect(path); !ok || err != nil || id.Emptied {
		t.Errorf("%+v, %v, %v", id, ok, err)
	}
}

// Two sites were promoted, each without the other. What one of the homes has of its own
// can be set aside, though both live in the same epoch.
func TestRejoinBringsBackOneOfTwoHomesOfTheSameEpoch(t *testing.T) {
	l := newLone(t)
	l.start()
	l.request("PUT", "/v1/kv/a", "1")
	l.waitMember()
	if err := l.stop(); err != nil {
		t.Fatal(err)
	}
	promoted := func(dir string) {
		t.Helper()
		id, _, err := store.Inspect(dir)
		if err != nil {
			t.Fatal(err)
		}
		d, err := store.OpenDir(dir, id, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.SetPromotion(&command.Promotion{Epoch: 2, Sealed: true}); err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	other := &lone{t: t, cfg: l.cfg}
	other.cfg.DataDir = filepath.Join(t.TempDir(), "other")
	if err := os.CopyFS(other.cfg.DataDir, os.DirFS(l.cfg.DataDir)); err != nil {
		t.Fatal(err)
	}
	promoted(other.cfg.DataDir)
	other.start()
	other.request("PUT", "/v1/kv/a", "of the other home")
	if err := other.stop(); err != nil {
		t.Fatal(err)
	}
	promoted(l.cfg.DataDir)
	l.start()
	defer func() { _ = l.stop() }()
	l.request("PUT", "/v1/kv/a", "of the home that stays")

	out := filepath.Join(t.TempDir(), "aside.jsonl")
	ran := cli(t, "", "rejoin", "--data-dir", other.cfg.DataDir, "--join", l.cfg.AdvertiseRaft, "--out", out, "--json")
	var r rejoinReport
	if err := json.Unmarshal([]byte(ran.out), &r); err != nil {
		t.Fatal(ran.err)
	}
	if r.Epoch != 2 || r.Changes != 1 || r.Common >= 1<<32 {
		t.Errorf("%+v", r)
	}
	if lines, err := os.ReadFile(out); err != nil || strings.Count(string(lines), "\n") != 1 || !strings.Contains(string(lines), "b2YgdGhlIG90aGVyIGhvbWU=") {
		t.Errorf("set aside: %s, %v", lines, err)
	}
	if _, ok, err := store.Inspect(other.cfg.DataDir); ok || err != nil {
		t.Errorf("the directory still has an identity: %v, %v", ok, err)
	}
}
