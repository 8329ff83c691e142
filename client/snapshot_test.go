package client

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/holdfast-db/holdfast/command"
)

func TestASnapshotIsWholeOrAnError(t *testing.T) {
	good := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if _, stale := r.URL.Query()["stale"]; r.URL.Path != "/v1/snapshot" || !stale {
			t.Errorf("asked %s", r.URL)
		}
		w.Header().Set("X-Consul-Index", "9")
		_, _ = io.WriteString(w, "archive")
	})
	r, meta, err := connect(t, closed(t), good).Snapshot(t.Context(), Stale())
	if err != nil || meta.Index != 9 {
		t.Fatalf("%+v, %v", meta, err)
	}
	if b, err := io.ReadAll(r); err != nil || string(b) != "archive" || r.Close() != nil {
		t.Errorf("%q, %v", b, err)
	}
	cut := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "arch")
		_ = http.NewResponseController(w).Flush()
		hangUp(w, r)
	})
	if r, _, err = connect(t, cut).Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(r); err == nil {
		t.Error("a snapshot that was cut off ended like a whole one")
	}
	_ = r.Close()
	if _, _, err := connect(t, serve(t, refuse(500, command.ErrNoLeader.Code, "none"))).Snapshot(t.Context()); !errors.Is(err, command.ErrNoLeader) {
		t.Error(err)
	}
}

func TestARestoreIsSentWholeToTheFirstServerThatTakesIt(t *testing.T) {
	archive := strings.Repeat("archive ", 100_000)
	got := ""
	good := serve(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got = string(b)
		w.Header().Set("X-Consul-Index", "12")
	})
	meta, err := connect(t, closed(t), serve(t, refuse(500, command.ErrNoLeader.Code, "none")), good).Restore(t.Context(), strings.NewReader(archive))
	if err != nil || meta.Index != 12 || got != archive {
		t.Errorf("%d of %d bytes arrived: %+v, %v", len(got), len(archive), meta, err)
	}
	got = ""
	bad := serve(t, refuse(500, command.ErrArchive.Code, "no"))
	if _, err := connect(t, bad, good).Restore(t.Context(), strings.NewReader(archive)); !errors.Is(err, command.ErrArchive) || got != "" {
		t.Errorf("after a refusal: %v, %d bytes went to another server", err, len(got))
	}
	if _, err := connect(t, serve(t, hangUp), good).Restore(t.Context(), strings.NewReader(archive)); !errors.Is(err, command.ErrOutcomeUnknown) || got != "" {
		t.Errorf("without an answer: %v, %d bytes went to another server", err, len(got))
	}
}
