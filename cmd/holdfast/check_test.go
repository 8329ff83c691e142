package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/store"
)

// dataDir makes the data directory of a node that holds one key. stop closes it.
func dataDir(t *testing.T) (path string, stop func()) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "n1")
	d, err := store.OpenDir(path, store.NewIdentity("n1", "home"), nil)
	if err != nil {
		t.Fatal(err)
	}
	logs, err := d.OpenLogs(store.LogStoreWAL)
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.OpenState(store.StateConfig{Dir: path})
	if err != nil {
		t.Fatal(err)
	}
	b := s.Begin()
	b.Entry(1, 1, 1, time.Unix(1, 0))
	b.Put(command.Record{Key: "a", Value: []byte("needle"), CreateRevision: 1})
	b.Step()
	if err := b.Publish(); err != nil {
		t.Fatal(err)
	}
	return path, func() {
		t.Helper()
		if err := errors.Join(s.Close(), logs.Close(), d.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCheckTellsByItsStatusWhetherAllIsWell(t *testing.T) {
	dir, stop := dataDir(t)
	want := func(status int, out, errs string, args ...string) ran {
		t.Helper()
		r := cli(t, "", append([]string{"check"}, args...)...)
		if r.status != status || !strings.Contains(r.out, out) || !strings.Contains(r.err, errs) {
			t.Errorf("check %q: status %d, output\n%s%s", args, r.status, r.out, r.err)
		}
		return r
	}
	want(2, "", "is in use by process", dir)
	stop()
	want(0, "all is well", "", dir)
	want(2, "", "holds no data of a node", t.TempDir())
	want(2, "", "needs 1 argument")
	want(2, "", "has no flag --all", dir, "--all")

	state := filepath.Join(dir, "state.db")
	b, err := os.ReadFile(state)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(state, []byte(strings.ReplaceAll(string(b), "needle", "noodle")), 0o600); err != nil {
		t.Fatal(err)
	}
	want(1, "checksum of revision 1.0", "has 1 problem; ", dir)
	var report checkReport
	if err := json.Unmarshal([]byte(want(1, "", "", dir, "--json").out), &report); err != nil {
		t.Fatal(err)
	}
	if report.OK || report.Problems != 1 || report.Revision != 1 || len(report.Found) != 1 ||
		report.Found[0].File != "state.db" || report.Found[0].Table != "history" || report.Found[0].At != "revision 1.0" || report.Found[0].Hint == "" {
		t.Errorf("%+v", report)
	}
}
