package store

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

func benchState(b *testing.B, keys int) *State {
	s := openTestState(b, StateConfig{BufferBytes: 32 << 20, BufferAge: time.Second})
	value := bytes.Repeat([]byte("v"), 256)
	for i := 0; i < keys; {
		inOneEntry(b, s, func(batch *Batch) {
			for range min(1000, keys-i) {
				batch.Put(command.Record{Key: benchKey(i), Value: value, CreateRevision: batch.NextRevision()})
				i++
			}
		})
	}
	mustFlush(b, s)
	b.ReportAllocs()
	b.ResetTimer()
	return s
}

func benchKey(i int) string { return fmt.Sprintf("app/%03d/setting/%06d", i%997, i) }

// One operation is a batch of 64 entries, each a put of 256 bytes and a revision.
func BenchmarkApply64Puts(b *testing.B) {
	for _, keys := range []int{0, 100_000} {
		b.Run(fmt.Sprintf("over %d keys", keys), func(b *testing.B) {
			s := benchState(b, keys)
			value := bytes.Repeat([]byte("w"), 256)
			names := make([]string, max(keys, 10_000))
			for i := range names {
				names[i] = benchKey(i)
			}
			index, n := s.appliedIndex(), 0
			b.ResetTimer()
			for b.Loop() {
				batch := s.Begin()
				for range 64 {
					n = (n + 7919) % len(names)
					rec, ok, err := batch.Get(names[n])
					if err != nil {
						b.Fatal(err)
					}
					if !ok {
						rec = command.Record{Key: names[n], CreateRevision: batch.NextRevision()}
					}
					rec.Value = value
					batch.Put(rec)
					batch.Step()
					index++
					batch.Entry(index, 1, command.Stamp(index), time.Unix(0, int64(index)))
				}
				if err := batch.Publish(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*64), "µs/put")
		})
	}
}

func BenchmarkGet(b *testing.B) {
	for _, where := range []string{"file", "memory"} {
		b.Run(where, func(b *testing.B) {
			s := benchState(b, 100_000)
			if where == "memory" {
				s.flushing.Lock()
				defer s.flushing.Unlock()
				inOneEntry(b, s, func(batch *Batch) {
					for i := range 10_000 {
						batch.Put(command.Record{Key: benchKey(i), Value: []byte("w")})
					}
				})
			}
			names := make([]string, 10_000)
			for i := range names {
				names[i] = benchKey(i)
			}
			b.ResetTimer()
			n := 0
			for b.Loop() {
				n = (n + 7919) % len(names)
				if _, err := s.Get(names[n]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkView(b *testing.B) {
	s := benchState(b, 1000)
	for b.Loop() {
		v, err := s.View()
		if err != nil {
			b.Fatal(err)
		}
		v.Close()
	}
}

// One operation is a scan of 1000 records of 256 bytes.
func BenchmarkScan1000(b *testing.B) {
	for _, keysOnly := range []bool{false, true} {
		b.Run(fmt.Sprintf("keys only %v", keysOnly), func(b *testing.B) {
			s := benchState(b, 100_000)
			v, err := s.view()
			if err != nil {
				b.Fatal(err)
			}
			defer v.Close()
			for b.Loop() {
				n := 0
				if keysOnly {
					err = v.ScanKeys("app/", "app/5", func(string, uint64) bool { n++; return n < 1000 })
				} else {
					err = v.Scan("app/", "app/5", func(command.Record) bool { n++; return n < 1000 })
				}
				if err != nil || n != 1000 {
					b.Fatal(n, err)
				}
			}
		})
	}
}

func BenchmarkFullCopy(b *testing.B) {
	s := benchState(b, 100_000)
	to := openTestState(b, StateConfig{})
	for b.Loop() {
		var stream bytes.Buffer
		if err := s.WriteCopy(context.Background(), &stream); err != nil {
			b.Fatal(err)
		}
		b.SetBytes(int64(stream.Len()))
		if _, err := to.ReceiveCopy(context.Background(), &stream); err != nil {
			b.Fatal(err)
		}
	}
}
