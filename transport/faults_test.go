package transport

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// east is a learner of the remote site.
func east(name string) command.Hello {
	h := hello(name)
	h.Site = "east"
	return h
}

// TestCutTokens holds who is severed from whom.
func TestCutTokens(t *testing.T) {
	west := east("w1")
	west.Site = "west"
	for _, tc := range []struct {
		cut  *cut
		a, b command.Hello
		want bool
	}{
		{nil, hello("n1"), east("e1"), false},
		{&cut{sites: []string{"east"}}, hello("n1"), east("e1"), true},
		{&cut{sites: []string{"east"}}, hello("n1"), hello("n2"), false},
		{&cut{sites: []string{"east"}}, east("e1"), east("e2"), false},
		{&cut{sites: []string{"east"}}, east("e1"), west, true},
		{&cut{sites: []string{"east"}}, hello("n1"), west, false},
		{&cut{sites: []string{"east", "west"}}, east("e1"), west, true},
		{&cut{sites: []string{"home"}}, hello("n1"), hello("n2"), false},
		{&cut{sites: []string{"home"}}, hello("n1"), west, true},
		{&cut{nodes: []string{"n1"}}, hello("n1"), hello("n2"), true},
		{&cut{nodes: []string{"n1"}}, hello("n2"), hello("n3"), false},
		{&cut{nodes: []string{"n1"}}, hello("n1"), hello("n1"), false},
		{&cut{nodes: []string{"e1"}}, east("e1"), east("e2"), true},
	} {
		if tc.cut.blocks(tc.a, tc.b) != tc.want || tc.cut.blocks(tc.b, tc.a) != tc.want {
			t.Errorf("%+v: %s and %s severed: %v, want %v", tc.cut, tc.a.Name, tc.b.Name, !tc.want, tc.want)
		}
	}
}

// faulty gives a home node and an east node with the fault switch.
func faulty(t *testing.T, h Handler, change func(*Config)) (n1, e1 *Transport, b *book) {
	b = newBook()
	for _, who := range []command.Hello{hello("n1"), east("e1")} {
		cfg := testConfig(t, b, who)
		cfg.Faults = true
		cfg.Timeout, cfg.DeadAfter, cfg.IdleTimeout = patience, patience, patience // cuts heal in time
		if change != nil {
			change(&cfg)
		}
		n1, e1 = e1, start(t, b, cfg, h)
	}
	return n1, e1, b
}

// stalls tells whether the cut holds up a connection for p at either node.
func stalls(p purpose, nodes ...*Transport) bool {
	for _, n := range nodes {
		n.mu.Lock()
		for c := range n.conns {
			if c.peer != nil && c.purpose == p && c.stalled.Load() > 0 {
				n.mu.Unlock()
				return true
			}
		}
		n.mu.Unlock()
	}
	return false
}

// TestCutHealsWithoutLoss: what was on its way in each of the three kinds of
// connection arrives after the cut, complete and in order.
func TestCutHealsWithoutLoss(t *testing.T) {
	content := make([]byte, 32<<20)
	for i := range content {
		content[i] = byte(i * 7 >> (i % 5))
	}
	started := make(chan struct{})
	n1, e1, _ := faulty(t, handlerFuncs{
		copy: func(_ context.Context, _ command.Hello, _ []byte, w io.Writer) error {
			if _, err := w.Write(content[:1<<20]); err != nil {
				return err
			}
			close(started)
			_, err := w.Write(content[1<<20:])
			return err
		},
	}, nil)
	consume(e1, acknowledge)
	// Warm connections first: they are the ones to be cut.
	if _, err := n1.Call(within(t, patience), "e1", 1, nil); err != nil {
		t.Fatal(err)
	}
	if err := n1.AppendEntries("e1", "e1", replication("n1", 1, 1, []byte("x")), &raft.AppendEntriesResponse{}); err != nil {
		t.Fatal(err)
	}
	got := make(chan []byte, 1)
	copied := later(func() error {
		r, err := n1.FetchCopy(context.Background(), "e1", nil)
		if err != nil {
			return err
		}
		defer r.Close()
		b, err := io.ReadAll(r)
		got <- b
		return err
	})
	soon(t, "start of the copy", started)
	n1.SetCut([]string{"east"})
	e1.SetCut([]string{"east"})
	called := later(func() error {
		b, err := n1.Call(context.Background(), "e1", 1, []byte("through the cut"))
		if err == nil && string(b) != "through the cut" {
			err = errors.New("wrong answer " + string(b))
		}
		return err
	})
	replicated := later(func() error {
		return n1.AppendEntries("e1", "e1", replication("n1", 1, 2, []byte("y")), &raft.AppendEntriesResponse{})
	})
	eventually(t, "all three stall", func() bool {
		return stalls(purposeCall, n1) && stalls(purposeRaft, n1) && stalls(purposeCopy, n1, e1)
	})
	for what, ch := range map[string]<-chan error{"copy": copied, "call": called, "replication": replicated} {
		select {
		case err := <-ch:
			t.Fatalf("%s ended in the cut: %v", what, err)
		default:
		}
	}
	n1.SetCut(nil)
	e1.SetCut(nil)
	for what, ch := range map[string]<-chan error{"copy": copied, "call": called, "replication": replicated} {
		if err := soon(t, what, ch); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if !bytes.Equal(soon(t, "content", got), content) {
		t.Error("the copy differs")
	}
}

// twoEnds gives both ends of a call connection before any frame, the first with
// the fault switch in hand.
func twoEnds(t *testing.T, change func(*Config)) (n1 *Transport, near *conn, far net.Conn) {
	n1, e1, _ := faulty(t, nil, change)
	accepted := make(chan net.Conn, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		if p, _, err := readGreeting(c); err == nil {
			writeGreeting(c, p, greeting{Hello: e1.hello()})
		}
		accepted <- c
	}()
	near, err = n1.dial(within(t, patience), purposeCall, "e1", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far = soon(t, "other end", accepted)
	t.Cleanup(func() { near.Close(); far.Close() })
	return n1, near, far
}

// TestWithdrawnCallNeverHappens: a call given up before its request reached the
// kernel says so, and does not happen later.
func TestWithdrawnCallNeverHappens(t *testing.T) {
	var seen atomic.Int64 // a bit for each method
	n1, e1, _ := faulty(t, handlerFuncs{call: func(_ context.Context, _ command.Hello, method uint8, _ []byte) ([]byte, error) {
		seen.Or(1 << method)
		return nil, nil
	}}, nil)
	if _, err := n1.Call(within(t, patience), "e1", 1, nil); err != nil {
		t.Fatal(err)
	}
	n1.SetCut([]string{"east"})
	e1.SetCut([]string{"east"})
	l := n1.caller(destination{id: "e1"}).live.Load()
	unsent := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.buf)
	}
	ctx, cancel := context.WithCancel(context.Background())
	taken := later(func() error { _, err := n1.Call(ctx, "e1", 2, nil); return err })
	eventually(t, "the writer holds the first request", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.waiting) == 1 && len(l.buf) == 0
	})
	waits := later(func() error { _, err := n1.Call(ctx, "e1", 3, nil); return err })
	eventually(t, "the second request waits", func() bool { return unsent() > 0 })
	cancel()
	if err := soon(t, "first call", taken); !errors.Is(err, command.ErrOutcomeUnknown) {
		t.Errorf("held by the writer: %v", err)
	}
	if err := soon(t, "second call", waits); !errors.Is(err, context.Canceled) || errors.Is(err, command.ErrOutcomeUnknown) {
		t.Errorf("never sent: %v", err)
	}
	n1.SetCut(nil)
	e1.SetCut(nil)
	if _, err := n1.Call(within(t, patience), "e1", 4, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first and the last arrive", func() bool { return seen.Load()&^(1<<2) == 1<<1|1<<4 })
	if seen.Load()&(1<<3) != 0 {
		t.Error("a withdrawn call happened")
	}
}

type readResult struct {
	text string
	err  error
}

func readLater(c net.Conn) <-chan readResult {
	ch := make(chan readResult, 1)
	go func() {
		b := make([]byte, 3)
		n, err := c.Read(b)
		ch <- readResult{string(b[:n]), err}
	}()
	return ch
}

// TestBlockedReadIsHeldBack: a read that was in the kernel when the cut came
// keeps what arrives until the cut is healed, or its deadline passes; then the
// next read finds it.
func TestBlockedReadIsHeldBack(t *testing.T) {
	n1, near, far := twoEnds(t, nil)
	read := readLater(near)
	n1.SetCut([]string{"east"})
	far.Write([]byte("abcdef"))
	eventually(t, "the read stalls", func() bool { return near.stalled.Load() == 1 })
	if err := near.SetReadDeadline(time.Now()); err != nil { // also while it waits
		t.Fatal(err)
	}
	if r := soon(t, "deadline", read); r.text != "" || !errors.Is(r.err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %+v", r)
	}
	near.SetReadDeadline(time.Time{})
	read = readLater(near)
	eventually(t, "the next read stalls", func() bool { return near.stalled.Load() == 1 })
	n1.SetCut([]string{"node:e1"}) // another cut is no healing
	n1.SetCut(nil)
	if r := soon(t, "data", read); r.text != "abc" || r.err != nil {
		t.Fatalf("got %+v", r)
	}
	if r := soon(t, "the rest", readLater(near)); r.text != "def" || r.err != nil {
		t.Fatalf("got %+v", r)
	}
}

// TestACutInOneDirectionLetsTheOtherThrough on a connection that exists; a new
// one needs both.
func TestACutInOneDirectionLetsTheOtherThrough(t *testing.T) {
	n1, near, far := twoEnds(t, nil)
	if near.remote.Name != "e1" {
		t.Fatalf("the peer is %q", near.remote.Name)
	}
	redial := func() error {
		_, err := n1.dial(within(t, 50*time.Millisecond), purposeCall, "e1", near.RemoteAddr().String())
		return err
	}
	n1.SetCut([]string{"from:e1"})
	if _, err := near.Write([]byte("out")); err != nil {
		t.Fatal(err)
	}
	if r := soon(t, "what goes out", readLater(far)); r.text != "out" {
		t.Fatalf("got %+v", r)
	}
	read := readLater(near)
	far.Write([]byte("in."))
	eventually(t, "the read stalls", func() bool { return near.stalled.Load() == 1 })
	if err := redial(); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a dial whose answer is lost: %v", err)
	}

	n1.SetCut([]string{"to:e1", "to:n2"})
	if r := soon(t, "what comes in", read); r.text != "in." {
		t.Fatalf("got %+v", r)
	}
	near.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
	if n, err := near.Write([]byte("out")); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("wrote %d, %v", n, err)
	}
	if err := redial(); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a dial that is lost: %v", err)
	}
	n1.SetCut([]string{"to:n2", "from:n2"})
	near.SetWriteDeadline(time.Time{})
	if _, err := near.Write([]byte("out")); err != nil {
		t.Errorf("while others are cut off: %v", err)
	}
}

// TestStalledWrite ends with its deadline, with the heal, or with Close.
func TestStalledWrite(t *testing.T) {
	n1, near, far := twoEnds(t, nil)
	n1.SetCut([]string{"east"})
	near.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
	if n, err := near.Write([]byte("abc")); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("wrote %d, %v", n, err)
	}
	near.SetWriteDeadline(time.Time{})
	write := later(func() error { _, err := near.Write([]byte("abc")); return err })
	eventually(t, "the write stalls", func() bool { return near.stalled.Load() == 1 })
	n1.SetCut(nil)
	if err := soon(t, "write", write); err != nil {
		t.Fatal(err)
	}
	if r := soon(t, "data", readLater(far)); r.text != "abc" {
		t.Fatalf("got %+v", r)
	}
	n1.SetCut([]string{"east"})
	write = later(func() error { _, err := near.Write([]byte("abc")); return err })
	eventually(t, "the write stalls", func() bool { return near.stalled.Load() == 1 })
	near.Close()
	if err := soon(t, "write", write); !errors.Is(err, net.ErrClosed) {
		t.Fatalf("got %v", err)
	}
}

// TestDeathInACut: the end of a peer is as silent as its data, and no longer
// hidden than silence itself would be.
func TestDeathInACut(t *testing.T) {
	t.Run("shows when healed", func(t *testing.T) {
		n1, near, far := twoEnds(t, nil)
		read := readLater(near)
		n1.SetCut([]string{"east"})
		far.Write([]byte("x"))
		far.Close()
		eventually(t, "the read stalls", func() bool { return near.stalled.Load() == 1 })
		n1.SetCut(nil)
		if r := soon(t, "data", read); r.text != "x" {
			t.Fatalf("got %+v", r)
		}
		if r := soon(t, "end", readLater(near)); r.err != io.EOF {
			t.Fatalf("got %+v", r)
		}
	})
	t.Run("is a timeout at the deadline", func(t *testing.T) {
		n1, near, far := twoEnds(t, nil)
		n1.SetCut([]string{"east"})
		near.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		read := readLater(near)
		far.Close()
		if r := soon(t, "end", read); !errors.Is(r.err, os.ErrDeadlineExceeded) {
			t.Fatalf("got %+v", r)
		}
	})
	t.Run("is a timeout after DeadAfter", func(t *testing.T) {
		n1, near, far := twoEnds(t, func(c *Config) { c.DeadAfter = 300 * time.Millisecond })
		read := readLater(near)
		n1.SetCut([]string{"east"})
		far.Close()
		if r := soon(t, "end", read); !errors.Is(r.err, os.ErrDeadlineExceeded) {
			t.Fatalf("got %+v", r)
		}
	})
	t.Run("of calls and replication", func(t *testing.T) {
		h, arrived, _ := hanging()
		n1, e1, _ := faulty(t, h, func(c *Config) { c.DeadAfter, c.Timeout = 300*time.Millisecond, 300*time.Millisecond })
		call := later(func() error { _, err := n1.Call(context.Background(), "e1", 1, nil); return err })
		soon(t, "arrival", arrived)
		back := later(func() error { _, err := e1.Call(context.Background(), "n1", 1, nil); return err })
		soon(t, "arrival", arrived)
		repl := later(func() error {
			return n1.AppendEntries("e1", "e1", replication("n1", 1, 1, []byte("x")), &raft.AppendEntriesResponse{})
		})
		soon(t, "request", e1.Consumer())
		n1.SetCut([]string{"east"})
		e1.Close()
		if err := soon(t, "end of the call", call); !errors.Is(err, command.ErrOutcomeUnknown) {
			t.Errorf("call: %v", err)
		}
		if err := soon(t, "end of the request", repl); err == nil {
			t.Error("replication was answered")
		}
		soon(t, "end of the dead peer's call", back)
		eventually(t, "no connection is left", func() bool { return !n1.Peers()["e1"].Connected })
	})
}

// TestDialIntoACut hangs until it is healed or the dial's time is over, and
// nothing reaches the other side.
func TestDialIntoACut(t *testing.T) {
	n1, e1, b := faulty(t, nil, func(c *Config) { c.DialTimeout = 200 * time.Millisecond })
	var passed atomic.Int64
	b.set("e1", newRelay(t, e1.Addr(), func(_ bool, b []byte) int { passed.Add(1); return len(b) }).addr())
	if _, err := n1.dialPeer(within(t, patience), purposeRaft, "e1"); err != nil { // now it is known
		t.Fatal(err)
	}
	n1.SetCut([]string{"east"})
	before := passed.Load()
	began := time.Now()
	_, err := n1.dialPeer(within(t, patience), purposeRaft, "e1")
	if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took < n1.cfg.DialTimeout {
		t.Errorf("%v after %v", err, took)
	}
	var refused *RefusedError
	if errors.As(err, &refused) || passed.Load() != before {
		t.Errorf("something passed: %v", err)
	}
	for healed := false; !healed; { // within the time of some dial
		dial := later(func() error { _, err := n1.dialPeer(within(t, patience), purposeRaft, "e1"); return err })
		n1.SetCut(nil)
		healed = soon(t, "dial", dial) == nil
	}
}

// TestAcceptedFromACut: the other side does not know of the cut and connects;
// its hello is not answered.
func TestAcceptedFromACut(t *testing.T) {
	n1, e1, _ := faulty(t, nil, func(c *Config) { c.DialTimeout = 200 * time.Millisecond })
	e1.SetCut([]string{"east"})
	if _, err := n1.dialPeer(within(t, patience), purposeRaft, "e1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	e1.SetCut(nil)
	if _, err := n1.dialPeer(within(t, patience), purposeRaft, "e1"); err != nil {
		t.Fatal(err)
	}
	// And the other way round: the dialling side learns the site by the hello.
	e2 := start(t, newBook(), func() Config {
		cfg := testConfig(t, newBook(), east("e2"))
		cfg.Faults = true
		return cfg
	}(), nil)
	n1.SetCut([]string{"east"})
	if _, err := n1.dial(within(t, patience), purposeCall, "", e2.Addr()); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
}

// TestCutSparesOthers: nodes on the same side of the cut go on.
func TestCutSparesOthers(t *testing.T) {
	n1, _, b := faulty(t, nil, nil)
	cfg := testConfig(t, b, hello("n2"))
	cfg.Faults = true
	n2 := start(t, b, cfg, nil)
	for _, n := range []*Transport{n1, n2} {
		n.SetCut([]string{"east"})
	}
	if _, err := n1.Call(within(t, patience), "n2", 1, nil); err != nil {
		t.Fatal(err)
	}
}

// TestNoSwitchNoCut: without Config.Faults the switch does nothing.
func TestNoSwitchNoCut(t *testing.T) {
	n1, _, _ := pair(t, nil)
	n1.SetCut([]string{"node:n2"})
	if _, err := n1.Call(within(t, patience), "n2", 1, nil); err != nil {
		t.Fatal(err)
	}
}
