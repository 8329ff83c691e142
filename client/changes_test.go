package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// page is one reply of changes: the request it is for, and what it says.
type page struct{ request, next, body string }

// pages serves replies in their order; the answering state has revision 9.
func pages(t *testing.T, replies ...page) *Client {
	t.Helper()
	t.Cleanup(func() {
		if len(replies) > 0 {
			t.Errorf("never asked for %s", replies[0].request)
		}
	})
	return connect(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		if len(replies) == 0 || r.URL.RequestURI() != replies[0].request {
			t.Errorf("asked for %s, %d replies are left", r.URL.RequestURI(), len(replies))
			return
		}
		w.Header().Set("X-Consul-Index", "8")
		w.Header().Set("X-Holdfast-Applied", "9")
		w.Header().Set("X-Holdfast-Oldest", "2")
		if next := replies[0].next; next != "" {
			w.Header().Set("X-Holdfast-Next", next)
		}
		_, _ = io.WriteString(w, replies[0].body)
		replies = replies[1:]
	}))
}

// put is the JSON of a change.
func put(index int) string {
	return fmt.Sprintf(`{"Index":%d,"Op":"put","KV":{"Key":"k","Value":"djE=","CreateIndex":1,"ModifyIndex":%d}}`, index, index)
}

func indexes(cs []Change) string {
	var is []string
	for _, c := range cs {
		is = append(is, fmt.Sprint(c.Index))
	}
	return strings.Join(is, " ")
}

func TestChangesAreWholeRecords(t *testing.T) {
	c := pages(t, page{"/v1/changes/a/?from=1&limit=10000", "10", `[
		{"Index":3,"Op":"lock","KV":{"LockIndex":1,"Key":"a/b","Flags":3304740253564472344,"Value":"aGk=","CreateIndex":2,"ModifyIndex":3,"Session":"s"},
		 "Prev":{"LockIndex":0,"Key":"a/b","Flags":0,"Value":null,"CreateIndex":2,"ModifyIndex":2},"Time":"2026-01-02T03:04:05.5Z"},
		{"Index":8,"Op":"delete","KV":{"LockIndex":0,"Key":"a/c","Flags":0,"Value":null,"CreateIndex":0,"ModifyIndex":8}}]`})
	var got []Change
	next, meta, err := c.Changes(t.Context(), "a/", Span{From: 1}, func(c Change) error { got = append(got, c); return nil })
	if err != nil || next != 10 || meta.Applied != 9 || meta.Oldest != 2 || len(got) != 2 {
		t.Fatalf("%d %+v %v: %+v", next, meta, err, got)
	}
	first := got[0]
	if first.Op != OpLock || !first.Time.Equal(time.Date(2026, 1, 2, 3, 4, 5, 5e8, time.UTC)) || first.Prev == nil || first.Prev.ModifyRevision != 2 ||
		fmt.Sprint(first.Record) != fmt.Sprint(command.Record{Key: "a/b", Value: []byte("hi"), Flags: 3304740253564472344, LockIndex: 1, Session: "s", CreateRevision: 2, ModifyRevision: 3}) {
		t.Errorf("%+v", first)
	}
	if last := got[1]; last.Op != OpDelete || last.Prev != nil || !last.Time.IsZero() || last.Record.Key != "a/c" {
		t.Errorf("%+v", last)
	}
}

func TestChangesGoOnUntilTheNodeHasNoMore(t *testing.T) {
	c := pages(t,
		page{"/v1/changes/?from=1&limit=10000&wait=1m0s", "4", "[" + put(1) + "," + put(3) + "]"},
		page{"/v1/changes/?from=4&limit=10000", "7", "[]"},
		page{"/v1/changes/?from=7&limit=10000", "10", "[" + put(9) + "]"},
	)
	var got []Change
	next, _, err := c.Changes(t.Context(), "", Span{From: 1}, func(c Change) error { got = append(got, c); return nil }, Wait(time.Minute))
	if err != nil || next != 10 || indexes(got) != "1 3 9" {
		t.Errorf("%s, next %d, %v", indexes(got), next, err)
	}
}

func TestChangesEndWhereTheyAreToldTo(t *testing.T) {
	all := func(Change) error { return nil }
	c := pages(t,
		page{"/v1/changes/?from=2&limit=10000&to=5", "4", "[" + put(3) + "]"},
		page{"/v1/changes/?from=4&limit=10000&to=5", "6", "[]"},
	)
	if next, _, err := c.Changes(t.Context(), "", Span{From: 2, To: 5}, all); err != nil || next != 6 {
		t.Errorf("to: next %d, %v", next, err)
	}
	c = pages(t,
		page{"/v1/changes/?from=2&limit=3", "4", "[" + put(3) + "]"},
		page{"/v1/changes/?from=4&limit=2", "6", "[" + put(4) + "," + put(5) + "," + put(5) + "]"},
	)
	if next, _, err := c.Changes(t.Context(), "", Span{From: 2, Limit: 3}, all); err != nil || next != 6 {
		t.Errorf("limit: next %d, %v", next, err)
	}
	// An index that was not taken in comes again.
	c = pages(t, page{"/v1/changes/?from=1&limit=10000", "10", "[" + put(3) + "," + put(5) + "," + put(5) + "]"})
	enough, seen := errors.New("enough"), 0
	next, _, err := c.Changes(t.Context(), "", Span{From: 1}, func(Change) error {
		if seen++; seen == 3 {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) || next != 5 {
		t.Errorf("a callback that fails: next %d, %v", next, err)
	}
}

func TestHistoryIsPutTogetherFromItsReplies(t *testing.T) {
	c := pages(t,
		page{"/v1/history/a/b?limit=10000", "5", "[" + put(8) + "," + put(6) + "]"},
		page{"/v1/history/a/b?limit=10000&to=5", "", "[" + put(5) + "]"},
	)
	got, meta, err := c.History(t.Context(), "a/b", Span{})
	if err != nil || indexes(got) != "8 6 5" || meta.Index != 8 || meta.Oldest != 2 {
		t.Errorf("%s %+v %v", indexes(got), meta, err)
	}
	c = pages(t, page{"/v1/history/a/b?from=3&limit=2", "5", "[" + put(8) + "," + put(6) + "]"})
	if got, _, err := c.History(t.Context(), "a/b", Span{From: 3, Limit: 2}); err != nil || indexes(got) != "8 6" {
		t.Errorf("%s %v", indexes(got), err)
	}
	none := connect(t, serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Consul-Index", "4")
		w.WriteHeader(http.StatusNotFound)
	}))
	if _, meta, err := none.History(t.Context(), "k", Span{}); !errors.Is(err, command.ErrKeyNotFound) || meta.Index != 4 {
		t.Errorf("%+v %v", meta, err)
	}
}

func TestCompactedRevisionsTellTheOldest(t *testing.T) {
	c := connect(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Holdfast-Oldest", "17")
		refuse(http.StatusGone, "compacted", "revision has been compacted")(w, r)
	}))
	for name, call := range map[string]func(context.Context) error{
		"get":     func(ctx context.Context) error { _, _, err := c.Get(ctx, "k", AtRevision(3, 0)); return err },
		"changes": func(ctx context.Context) error { _, _, err := c.Changes(ctx, "", Span{From: 3}, nil); return err },
		"export": func(ctx context.Context) error {
			_, err := c.Export(ctx, "", nil, AtRevision(3, 0))
			return err
		},
	} {
		var named *Error
		if err := call(t.Context()); !errors.Is(err, command.ErrCompacted) || !errors.As(err, &named) || named.Oldest != 17 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestKeysOfChangesAreNotRenamed(t *testing.T) {
	c := connect(t, closed(t))
	if _, _, err := c.History(t.Context(), "/k", Span{}); err == nil || strings.Contains(err.Error(), "no server") {
		t.Errorf("history: %v", err)
	}
	if next, _, err := c.Changes(t.Context(), "/k", Span{From: 7}, nil); err == nil || strings.Contains(err.Error(), "no server") || next != 7 {
		t.Errorf("changes: %d %v", next, err)
	}
}
