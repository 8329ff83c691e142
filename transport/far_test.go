package transport

import (
	"bytes"
	"context"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// at is a member of cluster "c" at a site.
func at(site, name string) command.Hello {
	h := hello(name)
	h.Site = site
	return h
}

// sites gives n1 and n2 at home and e1 in the east; edit changes n1.
func sites(t *testing.T, edit func(*Config), h Handler) (n1, n2, e1 *Transport, b *book) {
	b = newBook()
	cfg := testConfig(t, b, at("home", "n1"))
	if edit != nil {
		edit(&cfg)
	}
	n1 = start(t, b, cfg, h)
	n2 = start(t, b, testConfig(t, b, at("home", "n2")), h)
	e1 = start(t, b, testConfig(t, b, at("east", "e1")), h)
	consume(n2, acknowledge)
	consume(e1, acknowledge)
	return n1, n2, e1, b
}

// slowLinkTo puts a link of so many bytes per second before a node, which takes in
// no more than it can carry soon.
func slowLinkTo(t *testing.T, to string, perSecond int) string {
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4<<10) })
	}}
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return relayOn(t, l, to, func(toServer bool, b []byte) int {
		if toServer {
			time.Sleep(time.Duration(float64(len(b)) / float64(perSecond) * float64(time.Second)))
		}
		return len(b)
	}).addr()
}

// TestWhatMovesIsNotGivenUp: a request that takes many times the time in which it may
// stand still arrives over a slow link, in either way of replication.
func TestWhatMovesIsNotGivenUp(t *testing.T) {
	const perSecond = 256 << 10
	for _, site := range []string{"home", "east"} {
		t.Run(site, func(t *testing.T) {
			t.Parallel()
			b := newBook()
			cfg := testConfig(t, b, at("home", "n1"))
			cfg.Timeout = 100 * time.Millisecond
			n1 := start(t, b, cfg, nil)
			n2 := start(t, b, testConfig(t, b, at(site, "n2")), nil)
			consume(n2, acknowledge)
			b.set("n2", slowLinkTo(t, n2.Addr(), perSecond))
			value := randomBytes(perSecond) // a second; it may stand still for 200 ms
			began := time.Now()
			if err := n1.AppendEntries("n2", "n2", replication("n1", 1, 1, value), new(raft.AppendEntriesResponse)); err != nil {
				t.Errorf("request: %v", err)
			}
			if took := time.Since(began); took < 500*time.Millisecond {
				t.Errorf("it took %v: the link was not slow", took)
			}
			p, err := n1.AppendEntriesPipeline("n2", "n2")
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			if _, err := p.AppendEntries(replication("n1", 1, 2, value), new(raft.AppendEntriesResponse)); err != nil {
				t.Fatalf("pipeline: %v", err)
			}
			if f := soon(t, "answer", p.Consumer()); f.Error() != nil || f.Response().LastLog != 2 {
				t.Errorf("pipeline: %v, %+v", f.Error(), f.Response())
			}
			if most := n1.peer("n2").pace.most(false); most > 2*perSecond*int(requestTime/time.Second) {
				t.Errorf("the next request may carry %d bytes", most)
			}
		})
	}
}

// TestWhatStandsStillIsGivenUp though the local system took all of it.
func TestWhatStandsStillIsGivenUp(t *testing.T) {
	b := newBook()
	cfg := testConfig(t, b, at("home", "n1"))
	cfg.Timeout = 100 * time.Millisecond
	n1 := start(t, b, cfg, nil)
	e1 := start(t, b, testConfig(t, b, at("east", "e1")), nil)
	stuck := make(chan struct{})
	defer close(stuck)
	consume(e1, func(raft.RPC) { <-stuck })
	for _, size := range []int{10, 256 << 10} {
		sent := later(func() error {
			return n1.AppendEntries("e1", "e1", replication("n1", 1, 1, randomBytes(size)), new(raft.AppendEntriesResponse))
		})
		if err := soon(t, "end of the request", sent); err == nil {
			t.Errorf("%d bytes: answered", size)
		}
	}
}

// TestASiteInTheSameNetworkIsSentPlainBytes: what they save would cost more time.
func TestASiteInTheSameNetworkIsSentPlainBytes(t *testing.T) {
	n1, _, _, _ := sites(t, nil, nil)
	e1 := n1.peer("e1")
	for i, far := range []bool{true, false, false} {
		e1.measured([]time.Duration{2 * nearby, nearby / 2, 2 * nearby}[i]) // the last: a queue
		before := e1.packs.count().Requests
		if err := n1.AppendEntries("e1", "e1", replication("n1", 1, uint64(i+1), recordBytes(16<<10)), new(raft.AppendEntriesResponse)); err != nil {
			t.Fatal(err)
		}
		if packed := e1.packs.count().Requests > before; packed != far {
			t.Errorf("request %d: compressed %v", i, packed)
		}
	}
}

// TestReplicationToAnotherSiteIsCompressed, and arrives as it was; nothing else is.
func TestReplicationToAnotherSiteIsCompressed(t *testing.T) {
	n1, _, _, b := sites(t, nil, nil)
	old := start(t, b, testConfig(t, b, at("east", "old")), nil)
	got := make(chan []byte, 1)
	consume(old, acknowledge)
	b.set("old", newRelay(t, old.Addr(), func(toServer bool, b []byte) int {
		if !toServer { // a build that knows nothing of it
			copy(b, bytes.ReplaceAll(b, []byte(`"packs":true`), []byte(`"other":true`)))
		}
		return len(b)
	}).addr())
	value := recordBytes(32 << 10)
	e2 := start(t, b, testConfig(t, b, at("east", "e2")), nil)
	consume(e2, func(rpc raft.RPC) {
		if a := rpc.Command.(*raft.AppendEntriesRequest); len(a.Entries) > 0 {
			got <- a.Entries[0].Data
		}
		acknowledge(rpc)
	})
	for _, to := range []string{"n2", "e1", "e2", "old"} {
		id := raft.ServerID(to)
		for _, req := range []*raft.AppendEntriesRequest{heartbeat("n1", 1), replication("n1", 1, 1, value[:100]), replication("n1", 1, 1, value)} {
			if err := n1.AppendEntries(id, raft.ServerAddress(to), req, new(raft.AppendEntriesResponse)); err != nil {
				t.Fatalf("%s: %v", to, err)
			}
			if to == "e2" && len(req.Entries) > 0 {
				if data := soon(t, "entry", got); !bytes.Equal(data, req.Entries[0].Data) {
					t.Error("it arrived as something else")
				}
			}
		}
		packed := n1.Peers()[to].Packed
		if want := to == "e1" || to == "e2"; packed.Requests != map[bool]uint64{true: 1}[want] {
			t.Errorf("%s: %+v", to, packed)
		} else if want && (packed.Plain < uint64(len(value)) || packed.Wire > packed.Plain*2/3) {
			t.Errorf("%s: %+v", to, packed)
		}
	}
	// Noise is not tried again and again.
	for i := range 8 {
		pace := &n1.peer("e1").pace // loopback is so fast that nothing would be tried
		pace.mu.Lock()
		pace.perSecond = 0
		pace.mu.Unlock()
		if err := n1.AppendEntries("e1", "e1", replication("n1", 1, uint64(i+2), randomBytes(16<<10)), new(raft.AppendEntriesResponse)); err != nil {
			t.Fatal(err)
		}
	}
	if p := &n1.peer("e1").shrinkage; n1.Peers()["e1"].Packed.Requests != 1 || p.misses == 0 || p.misses > 2 {
		t.Errorf("%d tries, %+v", p.misses, n1.Peers()["e1"].Packed)
	}
}

// TestDamagedPackingIsRefused, whatever it claims.
func TestDamagedPackingIsRefused(t *testing.T) {
	for name, body := range map[string][]byte{
		"nothing": {}, "no frame": {5, 1, 2, 3}, "too large": {0xff, 0xff, 0xff, 0xff, 0xff, 1},
	} {
		if _, err := new(unpacker).unpack(body); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

// TestWANRateBoundsASite: replication and copies to it together keep to the rate;
// heartbeats, votes and calls to it, and everything at home, do not wait.
func TestWANRateBoundsASite(t *testing.T) {
	const perSecond = 256 << 10
	noise := randomBytes(128 << 10)
	n1, _, e1, _ := sites(t, func(c *Config) { c.WANRate = perSecond }, handlerFuncs{copy: func(_ context.Context, _ command.Hello, _ []byte, w io.Writer) error {
		_, err := w.Write(noise)
		return err
	}})
	append1 := func(to string) error {
		return n1.AppendEntries(raft.ServerID(to), raft.ServerAddress(to), replication("n1", 1, 1, noise), new(raft.AppendEntriesResponse))
	}
	began := time.Now()
	sent := later(func() error { return append1("e1") })
	copied := later(func() error { _, err := fetchFrom(t, e1, "n1"); return err })
	for range 10 {
		if err := n1.AppendEntries("e1", "e1", heartbeat("n1", 1), new(raft.AppendEntriesResponse)); err != nil {
			t.Error(err)
		}
		if err := n1.RequestVote("e1", "e1", &raft.RequestVoteRequest{RPCHeader: header("n1"), Term: 1}, new(raft.RequestVoteResponse)); err != nil {
			t.Error(err)
		}
		if _, err := n1.Call(within(t, patience), "e1", 1, noise); err != nil {
			t.Error(err)
		}
		if err := append1("n2"); err != nil {
			t.Error(err)
		}
	}
	if took := time.Since(began); took > 700*time.Millisecond {
		t.Errorf("what is not to be held up took %v", took)
	}
	if err := soon(t, "replication", sent); err != nil {
		t.Error(err)
	}
	if err := soon(t, "copy", copied); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took < 900*time.Millisecond {
		t.Errorf("256 KiB at 256 KiB/s took %v", took)
	}
}

func fetchFrom(t *testing.T, n *Transport, from string) ([]byte, error) {
	r, err := n.FetchCopy(within(t, patience), from, nil)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// TestWindowFollowsTheLink: over a link with a buffer without end the queue stays
// short and the link busy.
func TestWindowFollowsTheLink(t *testing.T) {
	for name, link := range map[string]struct {
		perSecond float64 // bytes
		rtt       time.Duration
	}{
		"256 kbit/s, 200 ms": {32 << 10, 200 * time.Millisecond},
		"2 Mbit/s, 600 ms":   {256 << 10, 600 * time.Millisecond},
		"100 Mbit/s, 40 ms":  {12 << 20, 40 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			var w window
			now := time.Unix(0, 0)
			var longest time.Duration
			var carried float64
			const rounds = 200
			var took time.Duration
			for i := range rounds {
				// All of the window is on its way: what does not fit the link waits.
				rtt := max(link.rtt, time.Duration(float64(w.bytes())/link.perSecond*float64(time.Second)))
				if i > rounds/2 {
					longest = max(longest, rtt-link.rtt)
					carried += float64(w.bytes())
					took += rtt
				}
				now = now.Add(rtt)
				w.judge(now, rtt, link.rtt, true)
			}
			if longest > 2*longQueue {
				t.Errorf("others wait %v", longest)
			}
			if rate := carried / took.Seconds(); rate < link.perSecond*0.6 {
				t.Errorf("%.0f of %.0f bytes per second", rate, link.perSecond)
			}
		})
	}
}

// TestPeerThatPausesIsHeldFor: a leader's replication and heartbeats wait for a peer that
// is paused, nothing of them reaches its Raft, and all goes on as soon as it knocks.
func TestPeerThatPausesIsHeldFor(t *testing.T) {
	b := newBook()
	var paused atomic.Bool
	paused.Store(true)
	cfg := testConfig(t, b, at("east", "e1"))
	cfg.Paused = paused.Load
	e1 := start(t, b, cfg, nil)
	offered := make(chan struct{}, 100)
	lcfg := testConfig(t, b, at("home", "n1"))
	lcfg.BeforeInstall = func(context.Context, string) error {
		if paused.Load() {
			return command.ErrPaused
		}
		offered <- struct{}{}
		return nil
	}
	n1 := start(t, b, lcfg, nil)
	reached := make(chan raft.RPC, 100)
	consume(e1, func(rpc raft.RPC) {
		reached <- rpc
		if _, install := rpc.Command.(*raft.InstallSnapshotRequest); install {
			rpc.Respond(&raft.InstallSnapshotResponse{Success: true}, nil)
			return
		}
		acknowledge(rpc)
	})
	n1.SetLeading(true)
	var waiting []<-chan error
	for _, req := range []*raft.AppendEntriesRequest{heartbeat("n1", 1), replication("n1", 1, 1, []byte("x"))} {
		waiting = append(waiting, later(func() error { return n1.AppendEntries("e1", "e1", req, new(raft.AppendEntriesResponse)) }))
	}
	waiting = append(waiting, later(func() error {
		return n1.InstallSnapshot("e1", "e1", &raft.InstallSnapshotRequest{RPCHeader: header("n1"), Term: 1}, new(raft.InstallSnapshotResponse), bytes.NewReader(nil))
	}))
	eventually(t, "n1 knows that e1 is paused", func() bool { return n1.Link("e1").Paused })
	had := n1.Link("e1").BytesSent
	if err := e1.Knock(t.Context(), "n1"); err != nil { // asks, and is still refused
		t.Fatal(err)
	}
	eventually(t, "n1 asked again", func() bool { return n1.Link("e1").BytesSent > had })
	for _, w := range waiting {
		select {
		case err := <-w:
			t.Fatalf("a request ended: %v", err)
		default:
		}
	}
	if len(reached) > 0 {
		t.Fatal("something reached the Raft of the paused node")
	}
	paused.Store(false)
	resumed := time.Now()
	if err := e1.Knock(t.Context(), "n1"); err != nil {
		t.Fatal(err)
	}
	for _, w := range waiting {
		if err := soon(t, "answer", w); err != nil {
			t.Error(err)
		}
	}
	if took := time.Since(resumed); took > pausedHold/2 {
		t.Errorf("it went on after %v", took)
	}
	if n1.Link("e1").Paused {
		t.Error("n1 believes that e1 is paused")
	}
	// Who leads no longer holds nothing.
	paused.Store(true)
	ended := later(func() error {
		return n1.AppendEntries("e1", "e1", replication("n1", 1, 2, []byte("y")), new(raft.AppendEntriesResponse))
	})
	eventually(t, "n1 knows that e1 is paused again", func() bool { return n1.Link("e1").Paused })
	n1.SetLeading(false)
	if err := soon(t, "end", ended); err == nil {
		t.Error("it was answered")
	}
}
