package transport

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/holdfast-db/holdfast/command"
)

// patience bounds what should happen soon.
const patience = 10 * time.Second

func TestMain(m *testing.M) {
	code := m.Run()
	if left := ownGoroutines(); code == 0 && len(left) > 0 {
		fmt.Fprintf(os.Stderr, "goroutines left after all tests:\n\n%s\n", strings.Join(left, "\n\n"))
		code = 1
	}
	os.Exit(code)
}

// ownGoroutines lists the stacks of goroutines the transport started.
func ownGoroutines() []string {
	buf := make([]byte, 4<<20)
	buf = buf[:runtime.Stack(buf, true)]
	var own []string
	for _, g := range strings.Split(string(buf), "\n\n") {
		if strings.Contains(g, "holdfast/transport.(*") && !strings.Contains(g, "_test.go") {
			own = append(own, g)
		}
	}
	return own
}

// book is the members table of a test.
type book struct {
	mu    sync.Mutex
	addrs map[string]string
}

func newBook() *book { return &book{addrs: make(map[string]string)} }

func (b *book) set(id, addr string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.addrs[id] = addr
}

func (b *book) resolve(id string) (string, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a, ok := b.addrs[id]
	return a, ok
}

// handlerFuncs is a Handler made of functions.
type handlerFuncs struct {
	call func(ctx context.Context, from command.Hello, method uint8, req []byte) ([]byte, error)
	copy func(ctx context.Context, from command.Hello, req []byte, w io.Writer) error
}

func (h handlerFuncs) Call(ctx context.Context, from command.Hello, method uint8, req []byte) ([]byte, error) {
	if h.call == nil {
		return req, nil // echo
	}
	return h.call(ctx, from, method, req)
}

func (h handlerFuncs) Copy(ctx context.Context, from command.Hello, req []byte, w io.Writer) error {
	if h.copy == nil {
		_, err := w.Write(req)
		return err
	}
	return h.copy(ctx, from, req, w)
}

// hello is a member of cluster "c" at epoch 1; the id equals the name.
func hello(name string) command.Hello {
	return command.Hello{ID: name, Name: name, Site: "home", ClusterID: "c", Epoch: 1}
}

// testConfig has short timeouts and is good for changes.
func testConfig(tb testing.TB, b *book, h command.Hello) Config {
	cfg := Config{
		Listen:       "127.0.0.1:0",
		Hello:        func() command.Hello { return h },
		Resolve:      b.resolve,
		Timeout:      2 * time.Second,
		DialTimeout:  time.Second,
		IdleTimeout:  2 * time.Second,
		PingInterval: 100 * time.Millisecond,
		DeadAfter:    500 * time.Millisecond,
	}
	if testing.Verbose() {
		if _, bench := tb.(*testing.B); !bench {
			cfg.Log = hclog.New(&hclog.LoggerOptions{Name: h.Name, Level: hclog.Debug, Output: testWriter{tb}})
		}
	}
	return cfg
}

type testWriter struct{ tb testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	fmt.Fprintf(os.Stderr, "%s", b)
	return len(b), nil
}

// start listens, serves, enters the book, and closes with the test.
func start(tb testing.TB, b *book, cfg Config, h Handler) *Transport {
	tb.Helper()
	t, err := Listen(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { t.Close() })
	b.set(t.self, t.Addr())
	if h == nil {
		h = handlerFuncs{}
	}
	t.Serve(h)
	return t
}

// eventually waits for a condition.
func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("never: %s", what)
		}
	}
}

// soon receives a value that should come soon.
func soon[T any](tb testing.TB, what string, ch <-chan T) T {
	tb.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		tb.Fatalf("never: %s", what)
		panic("unreachable")
	}
}

// later runs f and gives its error on a channel.
func later(f func() error) <-chan error {
	ch := make(chan error, 1)
	go func() { ch <- f() }()
	return ch
}

func within(tb testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	tb.Cleanup(cancel)
	return ctx
}

// relay stands between two nodes. pass may change, delay or swallow what one
// side sends; it returns how much of it goes on, less than all of it being the
// end of the connection.
type relay struct {
	l    net.Listener
	pass func(toServer bool, b []byte) int
	wg   sync.WaitGroup
}

func newRelay(tb testing.TB, to string, pass func(toServer bool, b []byte) int) *relay {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	return relayOn(tb, l, to, pass)
}

func relayOn(tb testing.TB, l net.Listener, to string, pass func(toServer bool, b []byte) int) *relay {
	r := &relay{l: l, pass: pass}
	ctx, cancel := context.WithCancel(context.Background())
	r.wg.Go(func() {
		for {
			a, err := l.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", to)
			if err != nil {
				a.Close()
				continue
			}
			context.AfterFunc(ctx, func() { a.Close(); b.Close() })
			r.wg.Go(func() { r.pump(b, a, true) })
			r.wg.Go(func() { r.pump(a, b, false) })
		}
	})
	tb.Cleanup(func() { cancel(); l.Close(); r.wg.Wait() })
	return r
}

func (r *relay) addr() string { return r.l.Addr().String() }

func (r *relay) pump(dst, src net.Conn, toServer bool) {
	defer dst.Close()
	defer src.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			on := r.pass(toServer, buf[:n])
			if _, err := dst.Write(buf[:on]); err != nil || on < n {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
