package transport

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

func randomBytes(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(b)
	return b
}

// copying is a handler that streams content in pieces of odd sizes.
func copying(content []byte) Handler {
	return handlerFuncs{copy: func(_ context.Context, _ command.Hello, _ []byte, w io.Writer) error {
		for rest, n := content, 1; len(rest) > 0; n = n*3%100_003 + 1 {
			m, err := w.Write(rest[:min(n, len(rest))])
			if err != nil {
				return err
			}
			rest = rest[m:]
		}
		return nil
	}}
}

// TestCopyArrivesWhole at all sizes around those of chunks.
func TestCopyArrivesWhole(t *testing.T) {
	for _, size := range []int{0, 1, chunkSize - 1, chunkSize, chunkSize + 1, 5<<20 + 3} {
		content := randomBytes(size)
		n1, n2, _ := pair(t, copying(content))
		r, err := n1.FetchCopy(within(t, patience), "n2", []byte("all"))
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("%d bytes: got %d, %v", size, len(got), err)
		}
		r.Close()
		if r, err = n1.FetchCopyAddr(within(t, patience), n2.Addr(), nil); err != nil {
			t.Fatal(err)
		}
		r.Close()
		n1.Close()
		n2.Close()
	}
}

// TestCopyAsksWithTheRequest and tells the handler who asks.
func TestCopyAsksWithTheRequest(t *testing.T) {
	n1, _, _ := pair(t, handlerFuncs{copy: func(_ context.Context, from command.Hello, req []byte, w io.Writer) error {
		_, err := w.Write([]byte(from.ID + " asks for " + string(req)))
		return err
	}})
	r, err := n1.FetchCopy(within(t, patience), "n2", []byte("much"))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || string(got) != "n1 asks for much" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestCopyErrorsKeepTheirCode, before the first byte and after.
func TestCopyErrorsKeepTheirCode(t *testing.T) {
	n1, _, _ := pair(t, handlerFuncs{copy: func(_ context.Context, _ command.Hello, req []byte, w io.Writer) error {
		if len(req) > 0 {
			if _, err := w.Write(randomBytes(3 * chunkSize)); err != nil {
				return err
			}
		}
		return command.ErrNotReady.With("x")
	}})
	if _, err := n1.FetchCopy(within(t, patience), "n2", nil); !errors.Is(err, command.ErrNotReady) {
		t.Errorf("at once: %v", err)
	}
	r, err := n1.FetchCopy(within(t, patience), "n2", []byte("late"))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for range 2 { // and it stays
		if _, err := io.ReadAll(r); !errors.Is(err, command.ErrNotReady) {
			t.Errorf("late: %v", err)
		}
	}
}

// TestDamagedCopyIsNeverComplete: no byte behind damage is read, and no end but
// the true one is an end.
func TestDamagedCopyIsNeverComplete(t *testing.T) {
	content := randomBytes(3*chunkSize + 100)
	stream := int64(len(content) + 4*chunkHeader + endMark)
	for name, tc := range map[string]struct {
		at   int64 // in the stream behind the greeting
		flip bool  // else the connection ends there
		want error
	}{
		"flipped in the first chunk": {chunkHeader + 10, true, ErrCorrupt},
		"flipped in a later chunk":   {2*(chunkHeader+chunkSize) + 500, true, ErrCorrupt},
		"flipped in a checksum":      {chunkHeader + chunkSize + 5, true, ErrCorrupt},
		"flipped in the end mark":    {stream - 1, true, ErrCorrupt},
		"cut in a chunk":             {chunkHeader + chunkSize + 1000, false, io.ErrUnexpectedEOF},
		"cut between chunks":         {2 * (chunkHeader + chunkSize), false, io.ErrUnexpectedEOF},
		"cut before the end mark":    {stream - endMark, false, io.ErrUnexpectedEOF},
		"cut in the end mark":        {stream - 3, false, io.ErrUnexpectedEOF},
	} {
		t.Run(name, func(t *testing.T) {
			n1, n2, b := pair(t, copying(content))
			var seen, greeted atomic.Int64
			b.set("n2", newRelay(t, n2.Addr(), func(toServer bool, p []byte) int {
				if toServer || greeted.CompareAndSwap(0, 1) {
					return len(p) // the greeting comes alone: nothing follows it unasked
				}
				end := seen.Add(int64(len(p)))
				if i := tc.at - (end - int64(len(p))); i >= 0 && i < int64(len(p)) {
					if !tc.flip {
						return int(i)
					}
					p[i] ^= 1
				}
				return len(p)
			}).addr())
			r, err := n1.FetchCopy(within(t, patience), "n2", nil)
			var got []byte
			if err == nil {
				got, err = io.ReadAll(r)
				r.Close()
			}
			if !errors.Is(err, tc.want) {
				t.Errorf("got %v after %d bytes", err, len(got))
			}
			if !bytes.HasPrefix(content, got) {
				t.Error("damaged bytes were read")
			}
		})
	}
}

// TestStuckCopyEnds: no byte for IdleTimeout ends it on the side that waits, and
// the handler learns when its caller is gone.
func TestStuckCopyEnds(t *testing.T) {
	ended := make(chan error, 10)
	h := handlerFuncs{copy: func(ctx context.Context, _ command.Hello, _ []byte, w io.Writer) error {
		if _, err := w.Write(randomBytes(2 * chunkSize)); err != nil {
			return err
		}
		<-ctx.Done()
		ended <- ctx.Err()
		return ctx.Err()
	}}
	t.Run("by time", func(t *testing.T) {
		b := newBook()
		cfg := testConfig(t, b, hello("n1"))
		cfg.IdleTimeout = 100 * time.Millisecond
		n1 := start(t, b, cfg, nil)
		start(t, b, testConfig(t, b, hello("n2")), h)
		r, err := n1.FetchCopy(context.Background(), "n2", nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(r); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		r.Close()
		soon(t, "end of the handler's context", ended)
	})
	t.Run("by the caller", func(t *testing.T) {
		n1, _, _ := pair(t, h)
		ctx, cancel := context.WithCancel(context.Background())
		r, err := n1.FetchCopy(ctx, "n2", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		read := later(func() error { _, err := io.ReadAll(r); return err })
		cancel()
		if err := soon(t, "end of the stream", read); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		soon(t, "end of the handler's context", ended)
	})
	t.Run("by Close", func(t *testing.T) {
		n1, n2, _ := pair(t, h)
		r, err := n1.FetchCopy(context.Background(), "n2", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		n2.Close()
		if _, err := io.ReadAll(r); err == nil {
			t.Error("a stream without its end was complete")
		}
		n1.Close()
	})
}
