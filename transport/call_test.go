package transport

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

func pair(t testing.TB, h Handler) (n1, n2 *Transport, b *book) {
	b = newBook()
	return start(t, b, testConfig(t, b, hello("n1")), nil), start(t, b, testConfig(t, b, hello("n2")), h), b
}

// TestAnswersOvertake: a slow call does not delay the others on its connection.
func TestAnswersOvertake(t *testing.T) {
	release := make(chan struct{})
	n1, _, _ := pair(t, handlerFuncs{call: func(ctx context.Context, from command.Hello, method uint8, req []byte) ([]byte, error) {
		if method == 1 {
			select {
			case <-release:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		return append([]byte(from.Name), req...), nil
	}})
	slow := later(func() error { _, err := n1.Call(within(t, patience), "n2", 1, nil); return err })
	for i := range 100 {
		got, err := n1.Call(within(t, patience), "n2", 2, []byte{byte(i)})
		if err != nil || !bytes.Equal(got, append([]byte("n1"), byte(i))) {
			t.Fatalf("call %d: %q, %v", i, got, err)
		}
	}
	close(release)
	if err := soon(t, "slow answer", slow); err != nil {
		t.Fatal(err)
	}
	if n := len(n1.Peers()["n2"].RemoteAddr); n == 0 || !n1.Peers()["n2"].Connected {
		t.Errorf("peer is not shown: %+v", n1.Peers())
	}
}

// TestEveryCallerGetsItsOwnAnswer under concurrency and with bodies of all sizes.
func TestEveryCallerGetsItsOwnAnswer(t *testing.T) {
	n1, _, _ := pair(t, nil)
	var wg sync.WaitGroup
	for g := range 32 {
		wg.Go(func() {
			for i := range 50 {
				req := make([]byte, 8+(g*i*97)%5000)
				if g == 0 && i%10 == 0 {
					req = make([]byte, 3<<20) // beyond what is buffered
				}
				binary.BigEndian.PutUint64(req, uint64(g<<32|i))
				got, err := n1.Call(within(t, patience), "n2", 1, req)
				if err != nil || !bytes.Equal(got, req) {
					t.Errorf("caller %d call %d: %d bytes for %d, %v", g, i, len(got), len(req), err)
					return
				}
			}
		})
	}
	wg.Wait()
	n1.mu.Lock()
	defer n1.mu.Unlock()
	if n := len(n1.conns); n != 1 {
		t.Errorf("%d connections for one peer", n)
	}
}

// TestErrorsKeepTheirCode on the way back.
func TestErrorsKeepTheirCode(t *testing.T) {
	n1, _, _ := pair(t, handlerFuncs{call: func(_ context.Context, _ command.Hello, method uint8, _ []byte) ([]byte, error) {
		if method == 1 {
			return nil, fmt.Errorf("propose: %w", command.ErrNotLeader.With("n3 leads"))
		}
		return nil, errors.New("plain")
	}})
	if _, err := n1.Call(within(t, patience), "n2", 1, nil); !errors.Is(err, command.ErrNotLeader) {
		t.Errorf("got %v", err)
	}
	if _, err := n1.Call(within(t, patience), "n2", 2, nil); !errors.Is(err, command.ErrPeer) {
		t.Errorf("got %q", err)
	}
}

// TestNeverSentIsTold: errors of requests that cannot have reached anyone do not
// claim otherwise.
func TestNeverSentIsTold(t *testing.T) {
	n1, n2, b := pair(t, nil)
	b.set("dead", freeAddr(t))
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	for name, tc := range map[string]struct {
		ctx  context.Context
		to   string
		req  []byte
		want error
	}{
		"nobody listens":  {within(t, patience), "dead", nil, syscall.ECONNREFUSED},
		"unknown id":      {within(t, patience), "n9", nil, nil},
		"ended already":   {ended, "n2", nil, context.Canceled},
		"far too large":   {within(t, patience), "n2", make([]byte, maxCall+1), errTooLarge},
		"another node":    {within(t, patience), "n1as2", nil, command.ErrWrongIdentity},
		"ended, no route": {ended, "dead", nil, context.Canceled},
	} {
		b.set("n1as2", n2.Addr())
		_, err := n1.Call(tc.ctx, tc.to, 1, tc.req)
		if err == nil || errors.Is(err, command.ErrOutcomeUnknown) || tc.want != nil && !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	n1.Close()
	if _, err := n1.Call(within(t, patience), "n2", 1, nil); !errors.Is(err, command.ErrStopping) {
		t.Errorf("closed: %v", err)
	}
}

// hanging is a handler that says when a call arrived and ends with its context.
func hanging() (h Handler, arrived, ended chan struct{}) {
	arrived, ended = make(chan struct{}, 100), make(chan struct{}, 100)
	return handlerFuncs{call: func(ctx context.Context, _ command.Hello, _ uint8, _ []byte) ([]byte, error) {
		arrived <- struct{}{}
		<-ctx.Done()
		ended <- struct{}{}
		return nil, ctx.Err()
	}}, arrived, ended
}

// TestOutcomeUnknown: a request the peer has and did not answer is told as such.
func TestOutcomeUnknown(t *testing.T) {
	t.Run("peer dies", func(t *testing.T) {
		h, arrived, _ := hanging()
		n1, n2, _ := pair(t, h)
		call := later(func() error { _, err := n1.Call(within(t, patience), "n2", 1, nil); return err })
		soon(t, "arrival", arrived)
		n2.Close()
		if err := soon(t, "failure", call); !errors.Is(err, command.ErrOutcomeUnknown) {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("this node closes", func(t *testing.T) {
		h, arrived, ended := hanging()
		n1, _, _ := pair(t, h)
		call := later(func() error { _, err := n1.Call(within(t, patience), "n2", 1, nil); return err })
		soon(t, "arrival", arrived)
		n1.Close()
		if err := soon(t, "failure", call); !errors.Is(err, command.ErrOutcomeUnknown) {
			t.Fatalf("got %v", err)
		}
		soon(t, "end of the handler's context", ended)
	})
	t.Run("caller gives up", func(t *testing.T) {
		h, arrived, ended := hanging()
		n1, _, _ := pair(t, h)
		ctx, cancel := context.WithCancel(context.Background())
		call := later(func() error { _, err := n1.Call(ctx, "n2", 1, nil); return err })
		soon(t, "arrival", arrived)
		cancel()
		err := soon(t, "failure", call)
		if !errors.Is(err, command.ErrOutcomeUnknown) || !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v", err)
		}
		soon(t, "end of the handler's context", ended)
	})
	t.Run("deadline travels", func(t *testing.T) {
		h, arrived, ended := hanging()
		n1, _, _ := pair(t, h)
		_, err := n1.Call(within(t, 300*time.Millisecond), "n2", 1, nil)
		if err == nil {
			t.Fatal("answered")
		}
		soon(t, "arrival", arrived)
		soon(t, "end of the handler's context", ended)
	})
	t.Run("peer is disconnected", func(t *testing.T) {
		h, arrived, _ := hanging()
		n1, _, _ := pair(t, h)
		call := later(func() error { _, err := n1.Call(within(t, patience), "n2", 1, nil); return err })
		soon(t, "arrival", arrived)
		n1.Disconnect("n2")
		if err := soon(t, "failure", call); !errors.Is(err, command.ErrOutcomeUnknown) {
			t.Fatalf("got %v", err)
		}
		if _, ok := n1.Peers()["n2"]; ok {
			t.Error("a disconnected peer is still shown")
		}
	})
}

// TestSilentPeerFailsWaitingCalls: a peer from which nothing arrives any more,
// though its connection stands, is given up by its missing pings.
func TestSilentPeerFailsWaitingCalls(t *testing.T) {
	h, arrived, _ := hanging()
	b := newBook()
	n1, n2 := start(t, b, testConfig(t, b, hello("n1")), nil), start(t, b, testConfig(t, b, hello("n2")), h)
	var silent atomic.Bool
	stop := make(chan struct{})
	r := newRelay(t, n2.Addr(), func(toServer bool, b []byte) int {
		if silent.Load() {
			<-stop
			return 0
		}
		return len(b)
	})
	defer close(stop)
	b.set("n2", r.addr())
	call := later(func() error { _, err := n1.Call(context.Background(), "n2", 1, nil); return err })
	soon(t, "arrival", arrived)
	eventually(t, "a round trip was measured", func() bool { return n1.Peers()["n2"].RTT > 0 })
	silent.Store(true)
	began := time.Now()
	if err := soon(t, "failure", call); !errors.Is(err, command.ErrOutcomeUnknown) || !errors.Is(err, errSilent) {
		t.Fatalf("got %v", err)
	}
	if took := time.Since(began); took < n1.cfg.DeadAfter-2*n1.cfg.PingInterval {
		t.Errorf("given up after %v, before DeadAfter", took)
	}
}

// TestIdleConnectionStaysUp: pings keep a connection nobody uses, so that a dead
// peer shows at once.
func TestIdleConnectionStaysUp(t *testing.T) {
	n1, n2, _ := pair(t, nil)
	if _, err := n1.Call(within(t, patience), "n2", 1, nil); err != nil {
		t.Fatal(err)
	}
	before := n1.Peers()["n2"]
	eventually(t, "pings for twice the patience", func() bool {
		return n1.Peers()["n2"].LastContact.Sub(before.LastContact) > 2*n1.cfg.DeadAfter
	})
	if p := n1.Peers()["n2"]; p.RemoteAddr != n2.Addr() || p.BytesReceived <= before.BytesReceived || p.Hello.Name != "n2" {
		t.Errorf("%+v", p)
	}
	n1.mu.Lock()
	conns := len(n1.conns)
	n1.mu.Unlock()
	if conns != 1 {
		t.Errorf("%d connections", conns)
	}
	n2.Close()
	eventually(t, "the peer's end is noticed", func() bool { return !n1.Peers()["n2"].Connected })
}

// TestCallsGoOnAfterARestart of the peer, at once and without an error.
func TestCallsGoOnAfterARestart(t *testing.T) {
	n1, n2, b := pair(t, nil)
	if _, err := n1.Call(within(t, patience), "n2", 1, nil); err != nil {
		t.Fatal(err)
	}
	n2.Close()
	eventually(t, "the peer's end is noticed", func() bool { return !n1.Peers()["n2"].Connected })
	start(t, b, testConfig(t, b, hello("n2")), nil)
	if _, err := n1.Call(within(t, patience), "n2", 1, nil); err != nil {
		t.Fatal(err)
	}
}

// TestManyCallersOneDial: callers that arrive while a dial is under way share it
// and its failure.
func TestManyCallersOneDial(t *testing.T) {
	b := newBook()
	n1 := start(t, b, testConfig(t, b, hello("n1")), nil)
	n2, err := Listen(testConfig(t, b, hello("n2"))) // accepts nobody
	if err != nil {
		t.Fatal(err)
	}
	defer n2.Close()
	var dials atomic.Int64
	b.set("n2", newRelay(t, n2.Addr(), func(_ bool, b []byte) int { dials.Add(1); return len(b) }).addr())
	var calls []<-chan error
	for range 20 {
		calls = append(calls, later(func() error { _, err := n1.Call(context.Background(), "n2", 1, nil); return err }))
	}
	for _, c := range calls {
		if err := soon(t, "failure", c); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, command.ErrOutcomeUnknown) {
			t.Fatalf("got %v", err)
		}
	}
	if n := dials.Load(); n != 1 {
		t.Errorf("%d dials", n)
	}
}

// TestPeersWaitForServe: a connection made before Serve is answered after it.
func TestPeersWaitForServe(t *testing.T) {
	b := newBook()
	n1 := start(t, b, testConfig(t, b, hello("n1")), nil)
	n2, err := Listen(testConfig(t, b, hello("n2")))
	if err != nil {
		t.Fatal(err)
	}
	defer n2.Close()
	b.set("n2", n2.Addr())
	call := later(func() error { _, err := n1.Call(context.Background(), "n2", 1, nil); return err })
	n2.Serve(handlerFuncs{})
	if err := soon(t, "answer", call); err != nil {
		t.Fatal(err)
	}
}

// TestCloseLeavesNothing: Close ends what hangs, in both roles, and no goroutine
// outlives it.
func TestCloseLeavesNothing(t *testing.T) {
	h, arrived, _ := hanging()
	b := newBook()
	var ts []*Transport
	for _, name := range []string{"n1", "n2", "n3"} {
		cfg := testConfig(t, b, hello(name))
		cfg.Faults = true
		ts = append(ts, start(t, b, cfg, h))
	}
	var calls []<-chan error
	for _, from := range ts {
		for _, to := range ts {
			calls = append(calls, later(func() error { _, err := from.Call(context.Background(), to.self, 1, nil); return err }))
		}
	}
	for range calls {
		soon(t, "arrival", arrived)
	}
	ts[0].SetCut([]string{"node:n1"}) // now they stall as well
	ts[1].SetCut([]string{"node:n1"})
	for _, n := range ts {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		if err := n.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
	}
	for _, c := range calls {
		if err := soon(t, "failure", c); err == nil {
			t.Error("a call was answered")
		}
	}
	if left := ownGoroutines(); len(left) > 0 {
		t.Errorf("goroutines left: %v", left)
	}
}

func BenchmarkCall(b *testing.B) {
	for _, size := range []int{64, 4096} {
		for _, callers := range []int{1, 16, 256} {
			b.Run(fmt.Sprintf("bytes=%d/callers=%d", size, callers), func(b *testing.B) {
				n1, _, _ := pair(b, nil)
				req := make([]byte, size)
				if _, err := n1.Call(context.Background(), "n2", 1, req); err != nil {
					b.Fatal(err)
				}
				b.ReportAllocs()
				b.ResetTimer()
				var left atomic.Int64
				left.Store(int64(b.N))
				var wg sync.WaitGroup
				for range callers {
					wg.Go(func() {
						for left.Add(-1) >= 0 {
							if _, err := n1.Call(context.Background(), "n2", 1, req); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
			})
		}
	}
}
