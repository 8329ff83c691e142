package transport

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

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

// packing is a handler whose streams are compressed from their first byte.
func packing(h Handler) Handler {
	return handlerFuncs{copy: func(ctx context.Context, from command.Hello, req []byte, w io.Writer) error {
		w.(*copyWriter).pace = pace{packed: true, plainCost: time.Hour}
		return h.Copy(ctx, from, req, w)
	}}
}

// TestCopyArrivesWhole at all sizes around those of chunks, plain and compressed.
func TestCopyArrivesWhole(t *testing.T) {
	mixed := append(randomBytes(chunkSize), recordBytes(3*chunkSize)...)
	mixed = append(mixed, randomBytes(chunkSize+5)...)
	for _, content := range [][]byte{
		nil, randomBytes(1), randomBytes(chunkSize - 1), randomBytes(chunkSize), randomBytes(chunkSize + 1), randomBytes(5<<20 + 3),
		recordBytes(10), recordBytes(chunkSize), recordBytes(3<<20 + 7), mixed,
	} {
		for name, h := range map[string]Handler{"plain": copying(content), "packed": packing(copying(content))} {
			n1, n2, _ := pair(t, h)
			r, err := n1.FetchCopy(within(t, patience), "n2", []byte("all"))
			if err != nil {
				t.Fatalf("%s, %d bytes: %v", name, len(content), err)
			}
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, content) {
				t.Errorf("%s, %d bytes: got %d, %v", name, len(content), len(got), err)
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

// sever relays one copy stream and does to it, at a place behind the greeting,
// what at says: flip a bit, or else end the connection.
func sever(t *testing.T, to string, at int64, flip bool) (addr string) {
	var seen, greeted atomic.Int64
	return newRelay(t, to, func(toServer bool, p []byte) int {
		if toServer || greeted.CompareAndSwap(0, 1) {
			return len(p) // the greeting comes alone: nothing follows it unasked
		}
		end := seen.Add(int64(len(p)))
		if i := at - (end - int64(len(p))); i >= 0 && i < int64(len(p)) {
			if !flip {
				return int(i)
			}
			p[i] ^= 1
		}
		return len(p)
	}).addr()
}

// TestDamagedCopyIsNeverComplete: what is read of a stream that broke is a
// verified prefix, and the error says what happened.
func TestDamagedCopyIsNeverComplete(t *testing.T) {
	const endMark = chunkHeader + endSize
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
		"flipped in a kind":          {chunkHeader + chunkSize, true, ErrCorrupt},
		"flipped in the end mark":    {stream - 1, true, ErrCorrupt},
		"cut in a chunk":             {chunkHeader + chunkSize + 1000, false, ErrCutOff},
		"cut between chunks":         {2 * (chunkHeader + chunkSize), false, ErrCutOff},
		"cut before the end mark":    {stream - endMark, false, ErrCutOff},
		"cut in the end mark":        {stream - 3, false, ErrCutOff},
	} {
		t.Run(name, func(t *testing.T) {
			n1, n2, b := pair(t, copying(content))
			b.set("n2", sever(t, n2.Addr(), tc.at, tc.flip))
			got, err := fetchAll(t, n1)
			if !errors.Is(err, tc.want) || errors.Is(err, io.EOF) {
				t.Errorf("got %v after %d bytes", err, len(got))
			}
			if want := tc.at / (chunkHeader + chunkSize) * chunkSize; int64(len(got)) != min(want, int64(len(content))) && tc.at < stream-endMark {
				t.Errorf("%d bytes were read, %d were right", len(got), want)
			}
			if !bytes.HasPrefix(content, got) {
				t.Error("damaged bytes were read")
			}
		})
	}
	t.Run("compressed", func(t *testing.T) {
		content := recordBytes(3*chunkSize + 100)
		n1, n2, b := pair(t, packing(copying(content)))
		if got, err := fetchAll(t, n1); err != nil || !bytes.Equal(got, content) {
			t.Fatal(len(got), err)
		}
		sent, _ := n2.Copies()
		for at := int64(sent.Wire) - 1; at >= 0; at -= 20011 {
			for _, flip := range []bool{true, false} {
				b.set("n2", sever(t, n2.Addr(), at, flip))
				got, err := fetchAll(t, n1)
				if err == nil || !errors.Is(err, ErrCutOff) && !errors.Is(err, ErrCorrupt) {
					t.Errorf("byte %d, flip %v: %v after %d bytes", at, flip, err, len(got))
				}
				if !bytes.HasPrefix(content, got) {
					t.Error("damaged bytes were read")
				}
			}
		}
	})
}

// fetchAll reads a copy of n2 as far as it goes.
func fetchAll(t *testing.T, n *Transport) ([]byte, error) {
	r, err := n.FetchCopy(within(t, patience), "n2", nil)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// TestCutCopyEndsIdle: behind the fault switch both sides of a stream come to
// their end by time, the reader after a verified prefix.
func TestCutCopyEndsIdle(t *testing.T) {
	content := randomBytes(32 << 20)
	wrote := make(chan error, 1)
	n1, e1, _ := faulty(t, handlerFuncs{copy: func(_ context.Context, _ command.Hello, _ []byte, w io.Writer) error {
		_, err := w.Write(content)
		wrote <- err
		return err
	}}, func(c *Config) { c.IdleTimeout = 200 * time.Millisecond })
	r, err := n1.FetchCopy(within(t, patience), "e1", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got := make([]byte, chunkSize+chunkSize/2)
	if _, err := io.ReadFull(r, got); err != nil {
		t.Fatal(err)
	}
	n1.SetCut([]string{"east"})
	e1.SetCut([]string{"east"})
	rest, err := io.ReadAll(r)
	if !errors.Is(err, ErrIdle) || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("reader: %v", err)
	}
	if !bytes.HasPrefix(content, append(got, rest...)) {
		t.Error("not a prefix was read")
	}
	if err := soon(t, "end of the handler", wrote); !errors.Is(err, ErrIdle) {
		t.Errorf("writer: %v", err)
	}
}

// TestForgedChunkCostsLittle: no chunk makes the receiver allocate what it
// claims to hold.
func TestForgedChunkCostsLittle(t *testing.T) {
	huge := make([]byte, 64<<20)
	sized, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	var unsized bytes.Buffer
	stream, err := zstd.NewWriter(&unsized, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Write(huge); err != nil {
		t.Fatal(err)
	}
	if err := stream.Close(); err != nil {
		t.Fatal(err)
	}
	forge := func(kind chunkKind, body []byte) []byte {
		chunk := append(make([]byte, chunkHeader), body...)
		seal(chunk, kind)
		return chunk
	}
	for name, forged := range map[string][]byte{
		"of a known size":          forge(chunkZstd, sized.EncodeAll(huge, nil)),
		"of an unknown size":       forge(chunkZstd, unsized.Bytes()),
		"no zstd":                  forge(chunkZstd, []byte("nonsense")),
		"empty zstd, for ever":     bytes.Repeat(forge(chunkZstd, nil), 100),
		"too long":                 {byte(chunkPlain), 0xFF, 0xFF, 0xFF, 0, 0, 0, 0},
		"of an unknown kind":       forge(77, nil),
		"an early end":             forge(chunkEnd, []byte{endSize - 1: 5}),
		"an end of another length": forge(chunkEnd, make([]byte, endSize+1)),
	} {
		t.Run(name, func(t *testing.T) {
			n1, _, _ := pair(t, handlerFuncs{copy: func(ctx context.Context, _ command.Hello, _ []byte, w io.Writer) error {
				if _, err := w.(*copyWriter).c.Write(forged); err != nil {
					return err
				}
				<-ctx.Done()
				return ctx.Err()
			}})
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			got, err := fetchAll(t, n1)
			runtime.ReadMemStats(&after)
			if !errors.Is(err, ErrCorrupt) || len(got) > 0 {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if cost := after.TotalAlloc - before.TotalAlloc; cost > 8<<20 {
				t.Errorf("it cost %d bytes of memory", cost)
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
		c1, c2 := testConfig(t, b, hello("n1")), testConfig(t, b, hello("n2"))
		c1.IdleTimeout = 100 * time.Millisecond
		c2.IdleTimeout = c1.IdleTimeout / 4 // its handler hangs for longer than it is waited for
		n1 := start(t, b, c1, nil)
		start(t, b, c2, h)
		r, err := n1.FetchCopy(within(t, patience), "n2", nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(r); !errors.Is(err, ErrIdle) {
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
		if _, err := io.ReadAll(r); !errors.Is(err, ErrCutOff) {
			t.Errorf("got %v", err)
		}
		n1.Close()
	})
}
