package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// fuzzSteps bounds the operations of one run.
const fuzzSteps = 4000

// The state answers as the model does, whatever happens to it in whatever order.
// Each byte of the input is an operation.
func FuzzStoreAgainstModel(f *testing.F) {
	const (
		opFlush = 200 + iota
		opReopen
		opCrash
		opCompact
		opFullCopy
		opSendCopy
		opRewrite
		opCheck
		opLast
	)
	f.Add([]byte{1, 2, 3, opFlush, 4, opCheck, opCrash, 5, 6, opReopen, opCheck})
	f.Add([]byte{9, opFlush, 8, 7, opFullCopy, 6, opSendCopy, 5, opFlush, opSendCopy, opCrash})
	f.Add(append(bytes.Repeat([]byte{1, 2, 3, 4, 5, 6, 7, opFlush}, 20), opCompact, opRewrite, opCheck, 1, opCompact, opCrash))
	r := rand.New(rand.NewPCG(1, 2))
	long := make([]byte, 300)
	for i := range long {
		if long[i] = byte(r.IntN(200)); r.IntN(4) == 0 {
			long[i] = opFlush + byte(r.IntN(opLast-opFlush))
		}
	}
	f.Add(long)
	f.Fuzz(func(t *testing.T, ops []byte) {
		if len(ops) > fuzzSteps {
			return
		}
		m := newModel()
		var entries []scriptEntry
		cfg := StateConfig{BufferBytes: 4 << 10}
		s, twin := openTestState(t, cfg), openTestState(t, cfg)
		again := func(s *State) { // as a node does on start
			for _, e := range entries[s.appliedIndex():] {
				applyScript(t, s, e)
			}
		}
		// Both are of a cluster, as all that send deltas are.
		for _, s := range []*State{s, twin} {
			b := s.Begin()
			b.Entry(1, 1, 0, time.Unix(1, 0))
			b.SetCluster(command.Cluster{ID: "c"})
			b.Step()
			if err := b.Publish(); err != nil {
				t.Fatal(err)
			}
			mustFlush(t, s)
		}
		m.past = append(m.past, m.now())
		entries = append(entries, scriptEntry{index: 1})
		for i, op := range ops {
			r := rand.New(rand.NewPCG(uint64(op), uint64(i)))
			switch op {
			default:
				for range 1 + op%8 {
					e := randomEntry(r, uint64(len(entries)+1))
					entries = append(entries, e)
					applyScript(t, s, e)
					m.apply(e)
				}
			case opFlush:
				mustFlush(t, s)
			case opReopen:
				s = reopen(t, s)
			case opCrash:
				s = openTestState(t, StateConfig{Dir: copyOfFiles(t, s), BufferBytes: cfg.BufferBytes})
				again(s)
			case opCompact:
				mustFlush(t, s)
				eventually(t, "compacted", func() bool { return !s.compactDue() || s.Err() != nil })
			case opFullCopy:
				s = throughACopy(t, s)
			case opSendCopy:
				sendCopy(t, s, twin)
				m.check(t, twin, r)
			case opRewrite:
				if err := s.rewrite(); err != nil {
					t.Fatal(err)
				}
			case opCheck:
				m.check(t, s, r)
			}
		}
		m.check(t, s, rand.New(rand.NewPCG(1, uint64(len(ops)))))
	})
}

// Whatever arrives as a copy, the receiver says so or has exactly what was sent.
// The input is either the stream itself, or, so that the fuzzer gets past the
// sums, frames without them.
func FuzzReceiveCopy(f *testing.F) {
	from, to := openTestState(f, StateConfig{}), openTestState(f, StateConfig{})
	for _, s := range []*State{from, to} {
		inOneEntry(f, s, func(b *Batch) { b.SetCluster(command.Cluster{ID: "c"}) })
		for _, k := range []string{"a", "b", "c", "a"} {
			putKey(f, s, k, "value of "+k)
		}
		deleteKey(f, s, "b")
		mustFlush(f, s)
	}
	for _, k := range []string{"d", "b", "a"} {
		putKey(f, from, k, "newer value of "+k)
	}
	full, delta := answer(f, from, nil), answer(f, from, to.CopyRequest(false))
	for _, stream := range [][]byte{full, delta} {
		f.Add(false, stream)
		f.Add(true, stripSums(f, stream))
		for _, cut := range []int{0, 3, len(stream) / 2, len(stream) - 1} {
			f.Add(false, stream[:cut])
		}
		f.Add(false, append(bytes.Clone(stream), 0))
	}
	head, contents := to.Head(), everything(f, to)
	files := map[string][]byte{}
	for _, name := range []string{stateName, markerName} {
		b, err := os.ReadFile(filepath.Join(to.cfg.Dir, name))
		if err != nil {
			f.Fatal(err)
		}
		files[name] = b
	}
	f.Fuzz(func(t *testing.T, framed bool, stream []byte) {
		if framed {
			stream = withSums(stream)
		}
		dir := t.TempDir()
		for name, b := range files {
			write(t, filepath.Join(dir, name), b)
		}
		s, err := OpenState(StateConfig{Dir: dir, BufferAge: time.Hour, MaxData: 1 << 28})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		st, err := s.ReceiveCopy(context.Background(), bytes.NewReader(stream))
		if err == nil {
			genuine := bytes.HasPrefix(stream, full) || bytes.HasPrefix(stream, delta)
			if !framed && !genuine {
				t.Error("a stream that nobody sent was accepted")
			}
			if st.Kind == command.CopyFull {
				err = s.SwapCopy(true)
			}
			if genuine && (err != nil || s.Head() != from.Head()) {
				t.Errorf("got %+v, %v; sent %+v", s.Head(), err, from.Head())
			}
			// Whatever it holds, it can be read without harm.
			_ = s.Export(context.Background(), "", 0, func(command.Record) error { return nil })
			return
		}
		_ = s.SwapCopy(false) // must not find anything
		if s.Head() != head || s.Err() != nil {
			t.Fatalf("a bad copy has changed the state to %+v, %v", s.Head(), s.Err())
		}
		if got := everything(t, s); !bytes.Equal(got, contents) {
			t.Fatalf("a bad copy has changed what the state holds to %q", got)
		}
	})
}

// everything is what a state answers now.
func everything(t testing.TB, s *State) []byte {
	t.Helper()
	var all []byte
	if err := s.Export(context.Background(), "", 0, func(r command.Record) error {
		all = appendText(appendText(all, r.Key), r.Value)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// A frame without sum is its type, the length of the payload (4 bytes) and the
// payload.

func stripSums(t testing.TB, stream []byte) (b []byte) {
	stream = stream[len(copyMagic):]
	for len(stream) > 0 {
		n := int(binary.BigEndian.Uint32(stream[1:]))
		b = append(append(b, stream[:5]...), stream[frameHeadSize:frameHeadSize+n]...)
		stream = stream[frameHeadSize+n:]
	}
	return b
}

func withSums(b []byte) []byte {
	var stream bytes.Buffer
	w := newCopyWriter(context.Background(), &stream)
	w.raw([]byte(copyMagic))
	for len(b) >= 5 {
		n := min(int(binary.BigEndian.Uint32(b[1:])), len(b)-5)
		w.frame(b[0], b[5:5+n])
		b = b[5+n:]
	}
	_ = w.w.Flush()
	return stream.Bytes()
}
