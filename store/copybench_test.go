package store

import (
	"bytes"
	"context"
	"io"
	"testing"

	"github.com/holdfast-db/holdfast/command"
)

// logical is the size of what a client put in.
func logical(keys int) int64 { return int64(keys * (len(benchKey(0)) + 256)) }

// One operation is a full copy of 200,000 keys from one state to another.
func BenchmarkFullCopy(b *testing.B) {
	const keys = 200_000
	s := benchState(b, keys)
	to := openTestState(b, StateConfig{})
	b.SetBytes(logical(keys))
	for b.Loop() {
		pipeCopy(b, s, to, nil)
	}
}

func pipeCopy(b *testing.B, from, to *State, request []byte) {
	r, w := io.Pipe()
	go func() { _ = w.CloseWithError(from.WriteCopy(context.Background(), request, w)) }()
	if _, err := to.ReceiveCopy(context.Background(), r); err != nil {
		b.Fatal(err)
	}
}

// One operation is a delta of 20,000 changes of random keys to a state of
// 200,000.
func BenchmarkDelta(b *testing.B) {
	const keys, changes = 200_000, 20_000
	s := benchState(b, keys)
	inOneEntry(b, s, func(batch *Batch) { batch.SetCluster(command.Cluster{ID: "c"}) })
	to := openTestState(b, StateConfig{})
	pipeCopy(b, s, to, nil)
	if err := to.SwapCopy(false); err != nil {
		b.Fatal(err)
	}
	value, n := bytes.Repeat([]byte("w"), 256), 0
	b.SetBytes(logical(changes))
	b.ResetTimer()
	for b.Loop() {
		b.StopTimer()
		for range changes / 1000 {
			inOneEntry(b, s, func(batch *Batch) {
				for range 1000 {
					n++
					batch.Put(command.Record{Key: benchKey(n * 7919 % keys), Value: value})
				}
			})
		}
		b.StartTimer()
		pipeCopy(b, s, to, to.CopyRequest(false))
		if s.Revision() != to.Revision() {
			b.Fatal("it was no delta")
		}
	}
}
