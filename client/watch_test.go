package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// streaming serves each request with the next of its streams, and notes behind
// which event it was asked to go on.
type streaming struct {
	t       *testing.T
	streams []string
	asked   []string
}

func (s *streaming) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !strings.Contains(r.Header.Get("Accept"), "text/event-stream") {
		s.t.Errorf("asked for %q", r.Header.Get("Accept"))
	}
	s.asked = append(s.asked, r.URL.RequestURI()+" after "+r.Header.Get("Last-Event-ID"))
	if len(s.streams) == 0 {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	_, _ = io.WriteString(w, s.streams[0])
	s.streams = s.streams[1:]
}

// told is a put as a stream tells it.
func told(id string, index int) string {
	return fmt.Sprintf("id: %s\nevent: put\ndata: %s\n\n", id, put(index))
}

var errEnough = errors.New("enough")

// until collects the ids of events up to one.
func until(last string, ids *[]string) func(Event) error {
	return func(e Event) error {
		*ids = append(*ids, e.ID+" "+string(e.Op))
		if e.ID == last {
			return errEnough
		}
		return nil
	}
}

func TestAWatchGoesOnBehindTheLastEventAtTheNextServer(t *testing.T) {
	a := &streaming{t: t, streams: []string{
		":\nid: 7\n\n" + told("8.0", 8) + told("9.1", 9) + "id: 10.0\nevent: pu", // cut off inside an event
		told("14.0", 14) + told("15.0", 15),
	}}
	b := &streaming{t: t, streams: []string{
		told("10.0", 10) + ":\nid: 12\n\n", // the last place is that of a sign of life
	}}
	c := connect(t, closed(t), serve(t, a.ServeHTTP), serve(t, b.ServeHTTP))
	var got []string
	err := c.Watch(t.Context(), "k/", Start{From: 8}, until("15.0", &got), Stale())
	if !errors.Is(err, errEnough) || !slices.Equal(got, []string{"8.0 put", "9.1 put", "10.0 put", "14.0 put", "15.0 put"}) {
		t.Errorf("%v: %v", got, err)
	}
	if !slices.Equal(a.asked, []string{"/v1/changes/k/?from=8&stale= after ", "/v1/changes/k/?from=8&stale= after 12"}) ||
		!slices.Equal(b.asked, []string{"/v1/changes/k/?from=8&stale= after 9.1"}) {
		t.Errorf("%q %q", a.asked, b.asked)
	}
}

func TestAWatchListsWhatThereIsFirst(t *testing.T) {
	a := &streaming{t: t, streams: []string{
		":\n\n" + told("7@k", 3), // cut off in the list
		":\n\n",                  // and again
		strings.ReplaceAll(told("7@l", 5), "\n", "\r\n") + "event: sync\nid: 7\ndata: {\"Index\":\ndata: 7}\n\n" + told("8.0", 8),
	}}
	c := connect(t, serve(t, a.ServeHTTP))
	var got []string
	err := c.Watch(t.Context(), "", Start{Init: true}, until("8.0", &got))
	if !errors.Is(err, errEnough) || !slices.Equal(got, []string{"7@k put", "7@l put", "7 sync", "8.0 put"}) {
		t.Errorf("%v: %v", got, err)
	}
	if !slices.Equal(a.asked, []string{"/v1/changes/?init= after ", "/v1/changes/?init= after 7@k", "/v1/changes/?init= after 7@k"}) {
		t.Errorf("%q", a.asked)
	}
	var e Event
	long := strings.Repeat("A", 200_000)
	a.streams = []string{"id: 9.0\nevent: delete\ndata: {\"Index\":9,\"Op\":\"delete\",\"KV\":{\"Key\":\"k\"},\"Prev\":{\"Key\":\"k\",\"Value\":\"" + long + "\"}}\n\n"}
	err = c.Watch(t.Context(), "", Start{After: "8.0", Init: true}, func(got Event) error { e = got; return errEnough })
	if !errors.Is(err, errEnough) || e.Op != OpDelete || e.Index != 9 || e.Record.Key != "k" || e.Prev == nil || len(e.Prev.Value) != 150_000 {
		t.Errorf("%.200v %v", e, err)
	}
}

func TestAWatchEndsWhenHistoryDoes(t *testing.T) {
	a := &streaming{t: t, streams: []string{told("8.0", 8) + "id:\nevent: compacted\ndata: {\"Oldest\":17}\n\n"}}
	c := connect(t, serve(t, a.ServeHTTP))
	var got []string
	err := c.Watch(t.Context(), "", Start{From: 1}, until("", &got))
	var named *Error
	if !errors.Is(err, command.ErrCompacted) || !errors.As(err, &named) || named.Oldest != 17 || len(got) != 1 || !strings.Contains(err.Error(), "revision 8.0") {
		t.Errorf("%v %v", got, err)
	}
}

func TestAWatchThatCannotBeginSaysWhy(t *testing.T) {
	fn := func(Event) error { return nil }
	refused := connect(t, serve(t, refuse(400, "bad_request", "Invalid from")))
	if err := refused.Watch(t.Context(), "", Start{}, fn); err == nil || err.Error() != "Invalid from" {
		t.Error(err)
	}
	var none *UnreachableError
	if err := connect(t, closed(t)).Watch(t.Context(), "", Start{}, fn); !errors.As(err, &none) {
		t.Error(err)
	}
	if err := refused.Watch(t.Context(), "/k", Start{}, fn); err == nil || !strings.Contains(err.Error(), "slash") {
		t.Error(err)
	}
	garbage := &streaming{t: t, streams: []string{"id: 1.0\nevent: put\ndata: {\n\n"}}
	if err := connect(t, serve(t, garbage.ServeHTTP)).Watch(t.Context(), "", Start{}, fn); err == nil || len(garbage.asked) != 2 {
		t.Errorf("%v after %q", err, garbage.asked)
	}
}

// stream is a connection inside a bubble: a body that the test feeds.
type stream func(*http.Request) (*http.Response, error)

func (s stream) RoundTrip(r *http.Request) (*http.Response, error) { return s(r) }

// A watch lives through minutes in which no server answers, and notices one that
// says nothing any more.
func TestAWatchOutlivesServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		began := time.Now()
		var tries []time.Duration
		c, err := New(Config{Addresses: []string{"a"}, Timeout: 5 * time.Second, HTTP: &http.Client{Transport: stream(func(r *http.Request) (*http.Response, error) {
			now := time.Since(began)
			tries = append(tries, now)
			if now > 0 && now < 5*time.Minute {
				return nil, errors.New("nobody there")
			}
			body, feed := io.Pipe()
			context.AfterFunc(r.Context(), func() { feed.CloseWithError(r.Context().Err()) })
			go func() {
				_, _ = io.WriteString(feed, told(fmt.Sprintf("%d.0", len(tries)), 1))
			}()
			return &http.Response{StatusCode: 200, Header: http.Header{}, Body: body}, nil
		})}})
		if err != nil {
			t.Fatal(err)
		}
		events := 0
		err = c.Watch(ctx, "", Start{}, func(Event) error {
			if events++; events == 1 {
				time.Sleep(time.Hour) // its own time is not the server's
				began = time.Now().Add(-time.Nanosecond)
			} else {
				time.AfterFunc(time.Second, func() { cancel(errEnough) })
			}
			return nil
		})
		if !errors.Is(err, errEnough) || events != 2 {
			t.Errorf("%d events: %v", events, err)
		}
		// A sign of life is due every 15 s, and has 5 s to come.
		if tries[1] < 20*time.Second || tries[1] > 21*time.Second || len(tries) < 100 || len(tries) > 200 {
			t.Errorf("%d tries, the second after %v", len(tries), tries[1])
		}
	})
}
