package http

import (
	"errors"
	"io"
	nethttp "net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/holdfast-db/holdfast/command"
)

func TestAnArchiveIsSentOnceTheLeaderIsConfirmed(t *testing.T) {
	n := newFakeNode()
	n.archive = func(begin func(uint64) io.Writer) error {
		_, err := io.WriteString(begin(7), "archive")
		return err
	}
	s := newTestServer(t, n)
	w := ask(t, s, "GET", "/v1/snapshot", nil)
	want(t, w, 200, "archive")
	wantHeaders(t, w, "X-Consul-Index", "7", "X-Consul-KnownLeader", "true", "X-Consul-LastContact", "0", "X-Holdfast-Applied", "7", "Content-Type", "application/x-gzip")
	if n.asked.Mode != command.ReadConsistent {
		t.Errorf("read mode %v", n.asked.Mode)
	}
	want(t, ask(t, s, "GET", "/v1/snapshot?stale", nil), 200, "archive")
	if n.asked.Mode != command.ReadStale {
		t.Errorf("read mode %v with stale", n.asked.Mode)
	}
	want(t, ask(t, s, "GET", "/v1/snapshot?dc=elsewhere", nil), 500, "No path to datacenter")

	n.archive = func(func(uint64) io.Writer) error { return command.ErrDamaged }
	want(t, ask(t, s, "GET", "/v1/snapshot", nil), 500, command.ErrDamaged.Error())
}

// A client must not take part of an archive for all of it.
func TestAnArchiveThatBreaksOffCutsTheConnection(t *testing.T) {
	n := newFakeNode()
	n.archive = func(begin func(uint64) io.Writer) error {
		_, _ = io.WriteString(begin(7), strings.Repeat("x", 100_000))
		return errors.New("the disk is gone")
	}
	srv := httptest.NewServer(newTestServer(t, n))
	defer srv.Close()
	res, err := nethttp.Get(srv.URL + "/v1/snapshot")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err == nil {
		t.Errorf("%d bytes ended like a whole archive", len(b))
	}
}

func TestARestoreAnswersWithItsRevisionOrTheReasonWhyNot(t *testing.T) {
	n := newFakeNode()
	var got string
	n.restore = func(archive io.Reader) (uint64, error) {
		b, err := io.ReadAll(archive)
		got = string(b)
		return 12, err
	}
	s := newTestServer(t, n)
	w := ask(t, s, "PUT", "/v1/snapshot", "archive")
	want(t, w, 200, "")
	wantHeaders(t, w, "X-Consul-Index", "12")
	if got != "archive" {
		t.Errorf("the node was given %q", got)
	}
	n.restore = func(archive io.Reader) (uint64, error) {
		_, err := io.ReadFull(archive, make([]byte, 3))
		return 0, errors.Join(command.ErrArchive.With("no gzip"), err)
	}
	w = ask(t, s, "PUT", "/v1/snapshot", "bad archive", "Accept", "application/json")
	want(t, w, 500, `{"error":"invalid_archive","message":"archive cannot be restored: no gzip","hint":"`+command.ErrArchive.Hint+`"}`)

	// What breaks the upload is told as what it is.
	n.restore = func(archive io.Reader) (uint64, error) {
		_, err := io.ReadAll(archive)
		return 0, err
	}
	w = ask(t, s, "PUT", "/v1/snapshot", io.MultiReader(strings.NewReader("arch"), brokenReader{}))
	if w.Code != 400 || !strings.HasPrefix(w.Body.String(), "Request body ended early") {
		t.Errorf("%d %q", w.Code, w.Body)
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }
