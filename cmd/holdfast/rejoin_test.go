package main

import (
	"os"
	"path/filepath"
	"testing"

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
