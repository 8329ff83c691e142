package transport

import (
	"bytes"
	"context"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// sender gives the node n2 with a copy rate, and readers n1 and n3.
func sender(t *testing.T, bytesPerSecond int64, idle time.Duration, h Handler) (n1, n2, n3 *Transport) {
	b := newBook()
	nodes := make(map[string]*Transport)
	for _, name := range []string{"n1", "n2", "n3"} {
		cfg := testConfig(t, b, hello(name))
		cfg.IdleTimeout = idle
		if name == "n2" {
			cfg.CopyRate = bytesPerSecond
		}
		nodes[name] = start(t, b, cfg, h)
	}
	return nodes["n1"], nodes["n2"], nodes["n3"]
}

// endless is a handler that streams noise to whoever reads it.
var endless = handlerFuncs{copy: func(_ context.Context, _ command.Hello, _ []byte, w io.Writer) error {
	for b := randomBytes(1 << 20); ; {
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
}}

// TestCopyRateIsShared: all streams together keep to the rate, and two that are
// as hungry get as much.
func TestCopyRateIsShared(t *testing.T) {
	const perSecond, enough = 4 << 20, 3 << 19
	n1, n2, n3 := sender(t, perSecond, patience, endless)
	began := time.Now()
	var streams []io.ReadCloser
	for _, n := range []*Transport{n1, n3} {
		r, err := n.FetchCopy(within(t, patience), "n2", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		streams = append(streams, r)
	}
	wire := func(to string) uint64 { return n2.Peers()[to].CopiesSent.Wire }
	at := [2]uint64{wire("n1"), wire("n3")}
	var both sync.WaitGroup
	for _, r := range streams {
		both.Go(func() { _, _ = io.Copy(io.Discard, r) })
	}
	eventually(t, "both got their bytes", func() bool { return wire("n1")+wire("n3") > at[0]+at[1]+2*enough })
	got := [2]uint64{wire("n1") - at[0], wire("n3") - at[1]}
	sent, _ := n2.Copies()
	took := time.Since(began)
	for _, r := range streams {
		r.Close()
	}
	both.Wait()
	if least := time.Duration(float64(sent.Wire-uint64(n2.copyLimit.Burst())) / perSecond * float64(time.Second)); took < least {
		t.Errorf("%d bytes went within %v, which should have taken %v", sent.Wire, took, least)
	}
	if small, large := min(got[0], got[1]), max(got[0], got[1]); small < large*3/4 {
		t.Errorf("shares of %d and %d bytes", small, large)
	}
}

// TestCopyRateHoldsUpCopiesOnly: calls and replication go at full speed past a
// copy that may hardly move.
func TestCopyRateHoldsUpCopiesOnly(t *testing.T) {
	n1, n2, _ := sender(t, 1<<10, patience, endless)
	consume(n1, acknowledge)
	fetched := later(func() error {
		r, err := n1.FetchCopy(within(t, patience), "n2", nil)
		if err == nil {
			r.Close()
		}
		return err
	})
	eventually(t, "a copy is under way", func() bool { sent, _ := n2.Copies(); return sent.Wire > 0 })
	large := randomBytes(1 << 20) // seventeen minutes at that rate
	if got, err := n1.Call(within(t, patience), "n2", 1, large); err != nil || !bytes.Equal(got, large) {
		t.Errorf("call: %d bytes, %v", len(got), err)
	}
	if err := n2.AppendEntries("n1", "n1", replication("n2", 1, 1, large), new(raft.AppendEntriesResponse)); err != nil {
		t.Errorf("replication: %v", err)
	}
	if err := n2.AppendEntries("n1", "n1", heartbeat("n2", 1), new(raft.AppendEntriesResponse)); err != nil {
		t.Errorf("heartbeat: %v", err)
	}
	n2.Close()
	if err := soon(t, "end of the copy", fetched); err == nil {
		t.Error("a whole chunk came through")
	}
}

// TestLimitedCopyIsNotIdle: a chunk that takes many an IdleTimeout at the rate
// there is, shared with another stream, keeps either side waiting.
func TestLimitedCopyIsNotIdle(t *testing.T) {
	content := randomBytes(chunkSize + 44<<10)
	n1, _, n3 := sender(t, 256<<10, 300*time.Millisecond, copying(content))
	var both sync.WaitGroup
	for _, n := range []*Transport{n1, n3} {
		both.Go(func() {
			if got, err := fetchAll(t, n); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%s: %d bytes, %v", n.self, len(got), err)
			}
		})
	}
	both.Wait()
}

// TestSilentHandlerIsWaitedFor: while the handler works without a byte, before
// the first one and after, nothing ends by time, and what it wrote arrives.
func TestSilentHandlerIsWaitedFor(t *testing.T) {
	gate := make(chan struct{}, 1)
	n1, _, _ := sender(t, 0, 400*time.Millisecond, handlerFuncs{copy: func(ctx context.Context, _ command.Hello, _ []byte, w io.Writer) error {
		for _, word := range []string{"first ", "second", ""} {
			select {
			case <-gate:
			case <-ctx.Done():
				return ctx.Err()
			}
			if _, err := io.WriteString(w, word); err != nil {
				return err
			}
		}
		return nil
	}})
	wire := func() uint64 { _, received := n1.Copies(); return received.Wire }
	wait := func() { // for more than two IdleTimeouts
		until := wire() + (2*beatsPerIdle+1)*chunkHeader
		eventually(t, "signs of life", func() bool { return wire() >= until })
	}
	var r io.ReadCloser
	opened := later(func() (err error) { r, err = n1.FetchCopy(context.Background(), "n2", nil); return err })
	wait()
	gate <- struct{}{}
	if err := soon(t, "first bytes", opened); err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	word := make([]byte, len("first "))
	if _, err := io.ReadFull(r, word); err != nil || string(word) != "first " {
		t.Fatalf("%q, %v", word, err)
	}
	rest := later(func() error {
		got, err := io.ReadAll(r)
		if err == nil && string(got) != "second" {
			t.Errorf("%q", got)
		}
		return err
	})
	wait()
	gate <- struct{}{}
	wait()
	gate <- struct{}{}
	if err := soon(t, "end", rest); err != nil {
		t.Error(err)
	}
}

// TestHungHandlerIsGivenUp: signs of life end some time after the handler's
// last byte, and only then.
func TestHungHandlerIsGivenUp(t *testing.T) {
	const beats = longestSilence * beatsPerIdle
	n1, n2, _ := sender(t, 0, time.Hour, handlerFuncs{copy: func(_ context.Context, _ command.Hello, _ []byte, w io.Writer) error {
		for range 2 {
			if _, err := w.Write([]byte("x")); err != nil {
				return err
			}
			for range 2 * beats {
				w.(*copyWriter).beat()
			}
		}
		return nil
	}})
	if got, err := fetchAll(t, n1); err != nil || string(got) != "xx" {
		t.Fatalf("%q, %v", got, err)
	}
	// Of each beat but the last a chunk, the first of them with the byte.
	if sent, _ := n2.Copies(); sent.Wire != 2*((beats-1)*chunkHeader+1)+chunkHeader+endSize {
		t.Errorf("%d bytes were sent", sent.Wire)
	}
}

// TestSlowReceiverHoldsUpNobody: beside one that does not read, another gets its
// copy at full speed.
func TestSlowReceiverHoldsUpNobody(t *testing.T) {
	content := randomBytes(32 << 20)
	n1, n2, n3 := sender(t, 0, patience, copying(content))
	slow, err := n1.FetchCopy(within(t, patience), "n2", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	if got, err := fetchAll(t, n3); err != nil || !bytes.Equal(got, content) {
		t.Errorf("fast: %d bytes, %v", len(got), err)
	}
	if sent := n2.Peers()["n1"].CopiesSent; sent.Open != 1 || sent.Payload >= uint64(len(content)) {
		t.Errorf("the slow one was not slow: %+v", sent)
	}
	if got, err := io.ReadAll(slow); err != nil || !bytes.Equal(got, content) {
		t.Errorf("slow: %d bytes, %v", len(got), err)
	}
}

// TestSlowCopyIsCompressed once it has shown that it is slow.
func TestSlowCopyIsCompressed(t *testing.T) {
	content := recordBytes(4 << 20)
	n1, n2, _ := sender(t, 1<<20, patience, copying(content))
	if got, err := fetchAll(t, n1); err != nil || !bytes.Equal(got, content) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if sent, _ := n2.Copies(); sent.Wire > sent.Payload*2/3 {
		t.Errorf("%d bytes were sent as %d", sent.Payload, sent.Wire)
	}
}

// TestPackingFollowsTheLink, the sender's cores and the data, whatever they were
// before.
func TestPackingFollowsTheLink(t *testing.T) {
	type spell struct {
		link, packer float64 // MiB in a second
		shrinks      float64 // to this part
	}
	for name, tc := range map[string]struct {
		spells []spell
		packed [2]float64 // the least and the most of the last one's bytes
	}{
		"fast link":                      {[]spell{{1000, 200, .2}}, [2]float64{0, 0}},
		"slow link":                      {[]spell{{10, 200, .2}}, [2]float64{.9, 1}},
		"slow link, little gain":         {[]spell{{10, 200, .7}}, [2]float64{.8, 1}},
		"slow link, random data":         {[]spell{{10, 200, 1}}, [2]float64{0, .1}},
		"slow link, busy cores":          {[]spell{{40, 30, .2}}, [2]float64{0, .1}},
		"link that became fast":          {[]spell{{10, 200, .2}, {1000, 200, .2}}, [2]float64{0, .2}},
		"link that became slow":          {[]spell{{1000, 200, .2}, {10, 200, .2}}, [2]float64{.9, 1}},
		"data that begins to shrink":     {[]spell{{10, 200, 1}, {10, 200, .2}}, [2]float64{.8, 1}},
		"data that shrinks no more":      {[]spell{{10, 200, .2}, {10, 200, 1}}, [2]float64{0, .25}},
		"link as fast as what is packed": {[]spell{{40, 200, .2}}, [2]float64{.8, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			const chunk = chunkSize >> 10
			var p pace
			var share float64
			for _, s := range tc.spells {
				const chunks = 512 << 10 / chunk
				packed := 0
				for range chunks {
					mib := float64(chunk) / 1024
					cost := mib / s.link
					if p.packed {
						packed++
						// The kernel sends while the next chunk is packed.
						cost = max(mib*s.shrinks/s.link, mib/s.packer)
						if s.shrinks > worthwhile {
							cost = mib/s.link + mib/s.packer
						}
					}
					p.took(chunkSize, time.Duration(cost*float64(time.Second)))
				}
				share = float64(packed) / chunks
			}
			if share < tc.packed[0] || share > tc.packed[1] {
				t.Errorf("%.2f of the bytes were packed, not %.2f to %.2f", share, tc.packed[0], tc.packed[1])
			}
		})
	}
}

// TestCopiesAreCounted on either side, for the peer and in total.
func TestCopiesAreCounted(t *testing.T) {
	content := recordBytes(1 << 20)
	n1, n2, n3 := sender(t, 0, patience, packing(copying(content)))
	for _, n := range []*Transport{n1, n3} {
		if _, err := fetchAll(t, n); err != nil {
			t.Fatal(err)
		}
	}
	r, err := n1.FetchCopy(within(t, patience), "n2", nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := n1.Peers()["n2"].CopiesReceived; got.Open != 1 || got.Streams != 2 {
		t.Errorf("while one is open: %+v", got)
	}
	if _, err := io.ReadAll(r); err != nil {
		t.Fatal(err)
	}
	r.Close()
	r.Close()
	eventually(t, "n2 knows that all is over", func() bool { sent, _ := n2.Copies(); return sent.Open == 0 })
	size := uint64(len(content))
	total, none := n2.Copies()
	to1, to3 := n2.Peers()["n1"].CopiesSent, n2.Peers()["n3"].CopiesSent
	if want := (CopyCount{Streams: 2, Wire: 2 * to3.Wire, Payload: 2 * size}); to1 != want {
		t.Errorf("to n1 %+v, want %+v", to1, want)
	}
	if want := (CopyCount{Streams: 3, Wire: to1.Wire + to3.Wire, Payload: 3 * size}); total != want || none != (CopyCount{}) {
		t.Errorf("in total %+v, %+v, want %+v", total, none, want)
	}
	if to3.Wire == 0 || to3.Wire > size/2 {
		t.Errorf("%d bytes on the wire", to3.Wire)
	}
	if _, got := n1.Copies(); got != to1 {
		t.Errorf("n1 received %+v", got)
	}
	n2.Disconnect("n1")
	if after, _ := n2.Copies(); after != total {
		t.Errorf("without n1 in total %+v", after)
	}
}
