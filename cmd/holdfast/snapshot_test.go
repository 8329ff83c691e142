package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/store"
)

// archiveFile is a file with an archive of one key.
func archiveFile(t *testing.T) (path string, content []byte) {
	t.Helper()
	s, err := store.OpenState(store.StateConfig{Dir: t.TempDir(), MaxData: 1 << 28})
	if err != nil {
		t.Fatal(err)
	}
	b := s.Begin()
	b.Entry(1, 1, 0, time.Unix(1700000000, 0))
	b.SetCluster(command.Cluster{ID: "c1", Datacenter: "dc1"})
	b.Put(command.Record{Key: "a", Value: []byte("1"), CreateRevision: 1})
	b.Step()
	if err := b.Publish(); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := s.Archive(t.Context(), func(uint64) io.Writer { return &archive }); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "a.snap")
	if err := os.WriteFile(path, archive.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path, archive.Bytes()
}

func TestASnapshotIsSavedInspectedAndRestored(t *testing.T) {
	_, content := archiveFile(t)
	var asked, restored string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			b, _ := io.ReadAll(r.Body)
			restored = string(b)
			w.Header().Set("X-Consul-Index", "7")
			return
		}
		asked = r.URL.RawQuery
		_, _ = w.Write(content)
	}))
	defer s.Close()
	t.Setenv("HOLDFAST_HTTP_ADDR", s.URL)
	file := filepath.Join(t.TempDir(), "f.snap")
	if r := cli(t, "", "snapshot", "save", "--stale", file); r.status != 0 || !strings.HasPrefix(r.out, "saved 1 key and 0 sessions at index 1 to "+file) || asked != "stale=" {
		t.Errorf("%+v, asked %q", r, asked)
	}
	if b, err := os.ReadFile(file); err != nil || !bytes.Equal(b, content) {
		t.Errorf("%d bytes are saved of %d, %v", len(b), len(content), err)
	}
	r := cli(t, "", "snapshot", "inspect", "--json", file)
	var report archiveReport
	if err := json.Unmarshal([]byte(r.out), &report); err != nil || r.status != 0 || report.Keys != 1 || report.Revision != 1 || report.Cluster != "c1" || report.Meta.Index != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	if r := cli(t, "", "snapshot", "inspect", file); r.status != 0 || !strings.Contains(r.out, "Keys        1 (2 B)") {
		t.Errorf("%+v", r)
	}
	if r := cli(t, "", "snapshot", "restore", file); r.status != 0 || !strings.HasPrefix(r.out, "restored 1 key and 0 sessions of index 1, now index 7") || restored != string(content) {
		t.Errorf("%+v, %d bytes were sent", r, len(restored))
	}
}

func TestASnapshotThatIsNotWholeIsNeitherSavedNorSent(t *testing.T) {
	file, content := archiveFile(t)
	asked := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked++
		_, _ = w.Write(content[:len(content)-20])
	}))
	defer s.Close()
	t.Setenv("HOLDFAST_HTTP_ADDR", s.URL)
	cli(t, "", "snapshot", "save", file).refusal(t, "archive cannot be restored")
	if b, err := os.ReadFile(file); err != nil || !bytes.Equal(b, content) {
		t.Errorf("a failed save left %d bytes, %v", len(b), err)
	}
	if left, err := os.ReadDir(filepath.Dir(file)); err != nil || len(left) != 1 {
		t.Errorf("files are left: %v, %v", left, err)
	}
	bad := filepath.Join(t.TempDir(), "bad.snap")
	if err := os.WriteFile(bad, content[:100], 0o600); err != nil {
		t.Fatal(err)
	}
	asked = 0
	cli(t, "", "snapshot", "restore", bad).refusal(t, bad, "archive cannot be restored", "whole and unchanged")
	if asked != 0 {
		t.Error("a damaged archive was sent")
	}
	for status, args := range map[int][]string{1: {bad}, 2: {filepath.Join(t.TempDir(), "none")}} {
		if r := cli(t, "", append([]string{"snapshot", "inspect"}, args...)...); r.status != status || r.out != "" {
			t.Errorf("inspect %s: %+v", args, r)
		}
	}
	if r := cli(t, "", "snapshot", "inspect"); r.status != 2 {
		t.Errorf("%+v", r)
	}
}
