package http

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	nethttp "net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// tap is a client of a feed inside a bubble. While held, it takes nothing.
type tap struct {
	t      testing.TB
	header nethttp.Header
	status int
	cancel context.CancelFunc
	done   chan struct{} // closed when the stream has ended
	cut    bool          // it was broken off

	mu    sync.Mutex
	got   bytes.Buffer
	piece int // the largest
	held  chan struct{}
}

func (p *tap) Header() nethttp.Header { return p.header }
func (p *tap) WriteHeader(status int) { p.status = status }
func (p *tap) Flush()                 {}

func (p *tap) Write(b []byte) (int, error) {
	p.mu.Lock()
	held := p.held
	p.mu.Unlock()
	if held != nil {
		<-held
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.piece = max(p.piece, len(b))
	return p.got.Write(b)
}

func (p *tap) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.held)
	p.held = nil
}

// follow opens a feed and waits until it is at rest.
func follow(t testing.TB, s *Server, target string, headers ...string) *tap {
	t.Helper()
	return openTap(t, s, nil, target, headers)
}

// followHeld opens a feed whose client takes nothing until it is released.
func followHeld(t testing.TB, s *Server, target string) *tap {
	t.Helper()
	return openTap(t, s, make(chan struct{}), target, nil)
}

func openTap(t testing.TB, s *Server, held chan struct{}, target string, headers []string) *tap {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	p := &tap{t: t, header: nethttp.Header{}, cancel: cancel, done: make(chan struct{}), held: held}
	r := httptest.NewRequest("GET", "/v1/changes/"+target, nil).WithContext(ctx)
	r.Header.Set("Accept", "text/event-stream")
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	go func() {
		defer close(p.done)
		defer func() { p.cut = recover() != nil }()
		s.ServeHTTP(p, r)
	}()
	synctest.Wait()
	return p
}

// close ends the stream from the client's side.
func (p *tap) close() {
	p.cancel()
	<-p.done
}

func (p *tap) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// event is one server-sent event as clients see it; reset says that its id is empty.
type event struct {
	id, name, data string
	reset          bool
}

// take returns what came since the last call: everything when the bubble is at
// rest. Signs of life without an event are left out, but for their ids.
func (p *tap) take() (events []event) {
	p.t.Helper()
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	events = parseEvents(p.t, p.got.String())
	p.got.Reset()
	return events
}

func parseEvents(t testing.TB, stream string) (events []event) {
	t.Helper()
	blocks := strings.Split(stream, "\n\n")
	if last := blocks[len(blocks)-1]; last != "" {
		t.Fatalf("the stream ends inside an event: %q", last)
	}
	for _, block := range blocks[:len(blocks)-1] {
		var e event
		for line := range strings.SplitSeq(block, "\n") {
			field, value, _ := strings.Cut(line, ":")
			switch field {
			case "id":
				e.id = strings.TrimPrefix(value, " ")
				e.reset = e.id == ""
			case "event":
				e.name = strings.TrimPrefix(value, " ")
			case "data":
				e.data += strings.TrimPrefix(value, " ")
			case "":
			default:
				t.Fatalf("%q is no field of an event", line)
			}
		}
		if e != (event{}) {
			events = append(events, e)
		}
	}
	return events
}

// brief writes events as id, name, key, value and the value before; ids alone
// are left out.
func brief(t testing.TB, events []event) string {
	t.Helper()
	var b strings.Builder
	for _, e := range events {
		switch e.name {
		case "":
		case "sync", "compacted":
			fmt.Fprintf(&b, "%s %s %s\n", e.id, e.name, e.data)
		default:
			var c change
			if err := json.Unmarshal([]byte(e.data), &c); err != nil || c.Op != e.name {
				t.Fatalf("%+v: %v", e, err)
			}
			_, rest, _ := strings.Cut(short([]change{c}), " ")
			fmt.Fprintf(&b, "%s %s", e.id, rest)
		}
	}
	return b.String()
}

// lastID is where a client that had these events would resume.
func lastID(events []event) string { return events[len(events)-1].id }

// liveNode is nodeWithAPast for feeds: its reads wait.
func liveNode(t *testing.T) (*fakeNode, *Server) {
	n, s := nodeWithAPast(t)
	n.waits = true
	return n, s
}

func put(n *fakeNode, key, value string) {
	n.apply(&command.Put{Key: key, Value: []byte(value)})
}

func (n *fakeNode) compact(oldest uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.oldest = oldest
}

func TestAFeedTellsChangesAsTheyHappen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for target, accept := range map[string]string{"a/": "text/event-stream", "a/?stream": "*/*"} {
			n, s := liveNode(t)
			p := follow(t, s, target, "Accept", accept)
			if p.status != 200 || p.header.Get("Content-Type") != "text/event-stream" || p.header.Get("Cache-Control") != "no-store" ||
				p.header.Get("X-Holdfast-Node") != "n1" || p.header.Get("X-Holdfast-Applied") != "8" || p.header.Get("X-Holdfast-Staleness") != "0" {
				t.Errorf("%d %v", p.status, p.header)
			}
			// A client that is cut off before the first event knows where it was.
			if events := p.take(); !slices.Equal(events, []event{{id: "8"}}) {
				t.Errorf("at first: %+v", events)
			}
			at := n.revision
			put(n, "b", strconv.FormatUint(at, 10)) // elsewhere
			put(n, "a/2", "x"+strconv.FormatUint(at, 10))
			n.apply(&command.DeleteTree{Prefix: "a/"})
			n.apply(&command.PutMany{KVs: []command.KV{{Key: "a/1", Value: []byte("1")}, {Key: "b"}, {Key: "a/2", Value: []byte("zwei")}}})
			want := fmt.Sprintf("%d.0 put a/2=x%d (zwei)\n%d.0 delete a/2 (x%d)\n%d.0 put a/1=1\n%d.2 put a/2=zwei\n", at+2, at, at+3, at, at+4, at+4)
			if got := brief(t, p.take()); got != want {
				t.Errorf("got\n%swant\n%s", got, want)
			}
			p.close()
			if p.cut {
				t.Error("the stream was broken off")
			}
		}
	})
}

// A client that comes back with the id of any event gets exactly what followed it,
// at any node, whether that node has it ready or must read it.
func TestAFeedResumesBehindAnyEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNode()
		n.waits = true
		random := rand.New(rand.NewPCG(1, 2))
		change := func() {
			switch key := fmt.Sprintf("%c/%d", 'a'+rune(random.IntN(3)), random.IntN(4)); random.IntN(4) {
			case 0:
				n.apply(&command.Delete{Key: key})
			case 1:
				n.apply(&command.DeleteTree{Prefix: key[:2]})
			case 2:
				n.apply(&command.PutMany{KVs: []command.KV{{Key: key, Value: []byte{byte(random.Uint32())}}, {Key: "a/x"}, {Key: "b/x"}, {Key: "a/y"}}})
			default:
				put(n, key, fmt.Sprint(random.Uint32()))
			}
		}
		for range 100 {
			change()
		}
		// One node has all events ready, one those of others, one none.
		servers := []*Server{newTestServer(t, n), newTestServer(t, n), newTestServer(t, n)}
		all, some := follow(t, servers[0], ""), follow(t, servers[1], "b/")
		for range 100 {
			change()
		}
		for _, prefix := range []string{"", "a/", "b/x", "none/"} {
			p := follow(t, servers[0], prefix+"?from=1")
			events := p.take()
			p.close()
			if len(events) < 100 && prefix < "b" {
				t.Fatalf("%q: only %d events", prefix, len(events))
			}
			for i, e := range events {
				p := follow(t, servers[i%3], prefix, "Last-Event-ID", e.id)
				if got, want := brief(t, p.take()), brief(t, events[i+1:]); got != want {
					t.Fatalf("%q behind %s:\n%swant\n%s", prefix, e.id, got, want)
				}
				p.close()
			}
		}
		all.close()
		some.close()
	})
}

func TestAFeedWaitsForWhatItsClientHasSeenElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, s := liveNode(t)
		for _, id := range []string{"10", "10.0", "9.3"} {
			p := follow(t, s, "a/", "Last-Event-ID", id)
			if events := p.take(); !slices.Equal(events, []event{{id: id}}) {
				t.Errorf("%s: %+v", id, events)
			}
			time.Sleep(20 * time.Minute)
			put(n, "a/3", "nine")
			put(n, "a/3", "ten")
			put(n, "a/3", "eleven")
			want := "11.0 put a/3=eleven (ten)\n"
			if id == "9.3" {
				want = "10.0 put a/3=ten (nine)\n" + want
			}
			if got := brief(t, p.take()); got != want {
				t.Errorf("%s: %s", id, got)
			}
			p.close()
			n.mu.Lock()
			n.revision, n.history = 8, n.history[:8]
			delete(n.records, "a/3")
			n.mu.Unlock()
		}
	})
}

// listed is a node with enough under l/ for a list of several pieces.
func listed(t *testing.T) (n *fakeNode, s *Server, keys int) {
	n, s = liveNode(t)
	for keys = range 300 {
		put(n, fmt.Sprintf("l/key %03d", keys), strings.Repeat("v", 500))
	}
	return n, s, keys + 1
}

func TestInitListsOneRevisionAndGoesOnFromThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, s, keys := listed(t)
		at := n.revision
		p := follow(t, s, "l/?init")
		whole := p.take()
		p.close()
		past := follow(t, s, "l/?from=1")
		past.take()
		past.close()
		if p.piece > feedPiece+1000 || past.piece > feedPiece+1000 {
			t.Errorf("pieces of %d and %d bytes", p.piece, past.piece)
		}
		if len(whole) != keys+1 || lastID(whole) != fmt.Sprint(at) || whole[keys] != (event{id: fmt.Sprint(at), name: "sync", data: fmt.Sprintf(`{"Index":%d}`, at)}) {
			t.Fatalf("%d events, the last %+v", len(whole), whole[len(whole)-1])
		}
		if !strings.HasPrefix(whole[0].data, `{"Index":9,"Op":"put","KV":{"LockIndex":0,"Key":"l/key 000",`) {
			t.Errorf("%+v", whole[0])
		}

		// What changes while a client is slow comes after the list.
		p = followHeld(t, s, "l/?init")
		put(n, "l/key 299", "new")
		n.apply(&command.Delete{Key: "l/key 298"})
		p.release()
		got := p.take()
		p.close()
		if len(got) != len(whole)+2 || !slices.Equal(got[:len(whole)], whole) {
			t.Fatalf("%d events instead of %d and 2", len(got), len(whole))
		}
		if tail := brief(t, got[len(whole):]); !strings.HasSuffix(tail, fmt.Sprintf("%d.0 delete l/key 298 (%s)\n", at+2, strings.Repeat("v", 500))) ||
			!strings.HasPrefix(tail, fmt.Sprintf("%d.0 put l/key 299=new (", at+1)) {
			t.Errorf("%s", tail)
		}
		// A list that was cut off goes on where it was, elsewhere, as of then.
		for _, i := range []int{0, 1, 150, keys - 1, keys} {
			p := follow(t, newTestServer(t, n), "l/?init", "Last-Event-ID", whole[i].id)
			if rest := p.take(); brief(t, rest) != brief(t, got[i+1:]) {
				t.Errorf("behind %s: %d events, want %d", whole[i].id, len(rest), len(got)-i-1)
			}
			p.close()
		}
		// Also on a node that has not got there.
		p = follow(t, s, "l/?init", "Last-Event-ID", fmt.Sprintf("%d@l%%2Fkey+298", at+3))
		time.Sleep(20 * time.Minute)
		if got := brief(t, p.take()); got != "" {
			t.Errorf("before its time: %s", got)
		}
		put(n, "l/key 299", "newer")
		want := fmt.Sprintf("%d@l%%2Fkey+299 put l/key 299=newer\n%d sync {\"Index\":%d}\n", at+3, at+3, at+3)
		if got := brief(t, p.take()); got != want {
			t.Errorf("%s, want %s", got, want)
		}
		p.close()
	})
}

func TestAFeedIsToldThatItsPlaceIsCompacted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, open := range map[string]func(n *fakeNode, s *Server) *tap{
			"from": func(n *fakeNode, s *Server) *tap { n.compact(4); return follow(t, s, "?from=3") },
			"id":   func(n *fakeNode, s *Server) *tap { n.compact(4); return follow(t, s, "a/", "Last-Event-ID", "2") },
			"id and from": func(n *fakeNode, s *Server) *tap {
				n.compact(4)
				return follow(t, s, "?from=4", "Last-Event-ID", "3.0")
			},
			"list": func(n *fakeNode, s *Server) *tap { n.compact(4); return follow(t, s, "", "Last-Event-ID", "3@a%2F1") },
			// A state that was replaced begins a new history at its revision: who stood
			// right before it has missed all that is different.
			"replaced": func(n *fakeNode, s *Server) *tap {
				p := follow(t, s, "")
				n.mu.Lock()
				n.oldest, n.restored = 9, 9
				n.mu.Unlock()
				put(n, "b", "x")
				return p
			},
			"slow": func(n *fakeNode, s *Server) *tap {
				p := followHeld(t, s, "a/?from=1")
				for i := range 2 {
					put(n, "a/1", strings.Repeat(fmt.Sprint(i), 2*hubBytes))
				}
				put(n, "b", "y")
				synctest.Wait()
				n.compact(10)
				p.release()
				return p
			},
		} {
			n, s := liveNode(t)
			p := open(n, s)
			events := p.take()
			if len(events) == 0 || !p.ended() || p.cut {
				t.Errorf("%s: %d events, ended %v", name, len(events), p.ended())
				p.close()
				continue
			}
			// The id is taken back, or EventSource would come with it again.
			if last := events[len(events)-1]; last != (event{name: "compacted", data: fmt.Sprintf(`{"Oldest":%d}`, n.oldest), reset: true}) {
				t.Errorf("%s: %+v", name, last)
			}
		}
		n, s := liveNode(t)
		n.compact(4)
		for _, p := range []*tap{follow(t, s, "a/?from=4"), follow(t, s, "a/", "Last-Event-ID", "3")} {
			if got := brief(t, p.take()); !strings.HasPrefix(got, "4.0 delete a/2\n6.0 put a/1=eins (uno)\n") {
				t.Errorf("from the oldest: %s", got)
			}
			p.close()
		}
	})
}

func TestSilenceIsBrokenAndMovesThePlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, s := liveNode(t)
		p := follow(t, s, "a/")
		p.take()
		time.Sleep(feedSilence - time.Millisecond)
		if got := p.got.String(); got != "" {
			t.Errorf("too early: %q", got)
		}
		for range 3 {
			put(n, "b", fmt.Sprint(n.revision))
			time.Sleep(time.Millisecond)
			synctest.Wait()
			if got, want := p.got.String(), fmt.Sprintf(":\nid: %d\n\n", n.revision); got != want {
				t.Errorf("%q, want %q", got, want)
			}
			p.take()
			time.Sleep(feedSilence - time.Millisecond)
			// So a client that heard nothing for long does not fall out of history.
			n.compact(n.revision)
		}
		put(n, "a/1", "x") // an event is a sign of life, too
		p.take()
		time.Sleep(feedSilence - time.Millisecond)
		if events := p.take(); len(events) != 0 {
			t.Errorf("%+v", events)
		}
		p.close()
	})
}

func TestASlowFeedHoldsUpNobodyAndLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, s := liveNode(t)
		slow, quick, rare := followHeld(t, s, "a/"), follow(t, s, "a/"), follow(t, s, "b")
		quick.take()
		var want strings.Builder
		const writes = 60
		for i := range writes {
			value := strings.Repeat(string(rune('a'+i%26)), 200_000)
			put(n, "a/big", value)
			events := quick.take()
			if len(events) != 1 {
				t.Fatalf("the quick one got %d events for a write", len(events))
			}
			want.WriteString(brief(t, events))
		}
		s.feeds.mu.Lock()
		held, kept := s.feeds.bytes, len(s.feeds.ring)
		s.feeds.mu.Unlock()
		if held > hubBytes || held < hubBytes/2 || kept >= writes {
			t.Errorf("the hub keeps %d events, %d bytes", kept, held)
		}
		slow.release()
		if got := brief(t, slow.take()); got != want.String() {
			t.Errorf("the slow one got %d bytes of events, want %d", len(got), want.Len())
		}
		slow.close()
		quick.close()
		// One that waits for something rare is not left behind by what others get.
		n.compact(n.revision)
		put(n, "b", "at last")
		if got, want := brief(t, rare.take()), fmt.Sprintf("%d.0 put b=at last (three)\n", n.revision); got != want {
			t.Errorf("%s, want %s", got, want)
		}
		rare.close()
		if s.feeds.stop != nil || s.feeds.ring != nil || len(s.feeds.prefixes) != 0 {
			t.Error("the hub outlives its feeds")
		}
	})
}

// gatedNode holds back a hub's look at the changes once it is over.
type gatedNode struct {
	*fakeNode
	gate chan struct{}
}

func (n gatedNode) Read(ctx context.Context, o command.ReadOptions, fn func(command.View) error) (command.ReadInfo, error) {
	info, err := n.fakeNode.Read(ctx, o, fn)
	if o.MinRevision > 0 && err == nil {
		<-n.gate
	}
	return info, err
}

func TestAFeedThatJoinsWhileTheHubLooksMissesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := gatedNode{newFakeNode(), make(chan struct{})}
		n.waits = true
		s := newTestServer(t, n)
		put(n.fakeNode, "b", "1")
		other := follow(t, s, "b")
		put(n.fakeNode, "a", "2")
		synctest.Wait() // the hub has looked, for b only
		p := follow(t, s, "a", "Last-Event-ID", "1")
		close(n.gate)
		if got := brief(t, p.take()); got != "2.0 put a=2\n" {
			t.Errorf("got %q", got)
		}
		p.close()
		other.close()
	})
}

func TestAFeedEndsWithTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s := liveNode(t)
		feeds := []*tap{follow(t, s, ""), follow(t, s, "a/", "Last-Event-ID", "99"), follow(t, s, "a/", "Last-Event-ID", "99@a")}
		s.stop()
		for i, p := range feeds {
			if p.take(); !p.ended() || p.cut {
				t.Errorf("feed %d goes on", i)
			}
		}
	})
}

func TestAFeedThatCannotReadOnIsBrokenOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, s := liveNode(t)
		p := follow(t, s, "a/")
		n.mu.Lock()
		n.read = func(context.Context, command.ReadOptions) error { return command.ErrDiverged }
		n.mu.Unlock()
		put(n, "a/1", "x")
		if events := p.take(); !p.ended() || !p.cut || len(events) != 1 {
			t.Errorf("ended %v, broken off %v: %+v", p.ended(), p.cut, events)
		}
		// Whoever comes back is told why.
		w := ask(t, s, "GET", "/v1/changes/a/?stream", nil, "Last-Event-ID", "8")
		if w.Code != 503 || !strings.Contains(w.Body.String(), command.ErrDiverged.Message) {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	})
}

func TestFeedsThatMakeNoSenseAreRefused(t *testing.T) {
	_, s := liveNode(t)
	for target, text := range map[string]string{
		"?stream&from=0":             "Invalid from",
		"?stream&from=x":             "Invalid from",
		"?stream&from=3&init":        "Cannot specify ?from with ?init",
		"?stream&from=3&to=4":        "a stream has no end",
		"?stream&limit=4":            "a stream has no end",
		"?stream&consistent&stale":   "conflicting semantics",
		"a/../b?stream":              "Invalid key",
		"?stream&min_index=99x&init": "Invalid min_index",
	} {
		if w := ask(t, s, "GET", "/v1/changes/"+target, nil); w.Code != 400 || !strings.Contains(w.Body.String(), text) {
			t.Errorf("%s: %d %s", target, w.Code, w.Body)
		}
	}
	for _, id := range []string{"x", "-1", "1.", "1.x", "1.4294967296", ".1", "1.2.3", "@a", "1@%", "1.2@a", "18446744073709551616"} {
		if w := ask(t, s, "GET", "/v1/changes/?stream", nil, "Last-Event-ID", id); w.Code != 400 || !strings.Contains(w.Body.String(), "Invalid Last-Event-ID") {
			t.Errorf("%s: %d %s", id, w.Code, w.Body)
		}
	}
}

// A client that does not read is cut off; the others do not notice.
func TestAClientThatTakesNothingIsCutOff(t *testing.T) {
	n := newFakeNode()
	n.waits = true
	s := newTestServer(t, n, func(c *Config) { c.WriteTimeout = 50 * time.Millisecond })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	open := func() net.Conn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err == nil {
			_, err = io.WriteString(c, "GET /v1/changes/?stream HTTP/1.1\r\nHost: h\r\n\r\n")
		}
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	defer open().Close()
	reader := open()
	defer reader.Close()
	var ended atomic.Bool // the reader has come to the last change
	go func() {
		lines := bufio.NewScanner(reader)
		lines.Buffer(nil, 4<<20)
		for lines.Scan() {
			ended.Store(ended.Load() || strings.Contains(lines.Text(), `"Key":"last"`))
		}
	}()
	feeds := func() int { s.feeds.mu.Lock(); defer s.feeds.mu.Unlock(); return len(s.feeds.feeds) }
	until(t, "the feeds are there", func() bool { return feeds() == 2 })
	for i := range 40 { // more than the buffers of a connection hold
		put(n, "big", strings.Repeat(string(rune('a'+i%26)), 400_000))
	}
	until(t, "one feed is cut off", func() bool { return feeds() == 1 })
	quiet := time.Now()
	until(t, "the deadline of the last write passes", func() bool { return time.Since(quiet) > 2*s.cfg.WriteTimeout })
	put(n, "last", "")
	until(t, "the other goes on", ended.Load)
}

// until waits for a condition of another goroutine.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// Feeds of many prefixes that come and go while a node is written to get every
// change of theirs once and in order.
func TestFeedsThatComeAndGoLoseNothing(t *testing.T) {
	n := newFakeNode()
	n.waits = true
	s := newTestServer(t, n)
	server := httptest.NewServer(s)
	defer server.Close()
	defer s.stop()
	const writes, clients = 800, 20
	var wg sync.WaitGroup
	var resumed atomic.Int64
	for i := range clients {
		prefix := []string{"", "a/", "a/1", "b/", "c/"}[i%5]
		last := fmt.Sprintf("%d.%d", writes, []int{2, 0, 0, 1, 2}[i%5])
		random := rand.New(rand.NewPCG(uint64(i), 7))
		wg.Go(func() {
			id, got := "0", []string{}
			for done := false; !done; resumed.Add(1) {
				req, err := nethttp.NewRequestWithContext(t.Context(), "GET", server.URL+"/v1/changes/"+prefix+"?stream", nil)
				if err != nil {
					t.Error(err)
					return
				}
				req.Header.Set("Last-Event-ID", id)
				res, err := server.Client().Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				// Take some events, then leave in the middle of another.
				in := bufio.NewReader(res.Body)
				for range 1 + random.IntN(40) {
					block, err := readBlock(in)
					if err != nil {
						t.Error(err)
						break
					}
					e := parseEvents(t, block)[0]
					if id = e.id; e.name != "" {
						got = append(got, e.id)
					}
					if done = e.id == last; done {
						break
					}
				}
				res.Body.Close()
			}
			var want []string
			n.mu.Lock()
			defer n.mu.Unlock()
			for _, c := range n.history {
				if strings.HasPrefix(c.Record.Key, prefix) {
					want = append(want, fmt.Sprintf("%d.%d", c.At.Revision, c.At.K))
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%q: %d events, want %d", prefix, len(got), len(want))
			}
		})
	}
	for i := range writes - 1 {
		put(n, fmt.Sprintf("%c/%d", 'a'+rune(i%4), i%20), fmt.Sprint(i))
	}
	// The last one is for all.
	n.apply(&command.PutMany{KVs: []command.KV{{Key: "a/1z"}, {Key: "b/z"}, {Key: "c/z"}}})
	wg.Wait()
	t.Logf("%d connections", resumed.Load())
}

// readBlock reads one event off a stream, up to and with the line that ends it.
func readBlock(in *bufio.Reader) (block string, err error) {
	for !strings.HasSuffix(block, "\n\n") {
		line, err := in.ReadString('\n')
		if err != nil {
			return "", err
		}
		block += line
	}
	return block, nil
}
