package store

import (
	"bytes"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/holdfast-db/holdfast/command"
)

func benchState(b *testing.B, keys int) *State {
	flushPages = 4096 // as in real life
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
	for _, keys := range []int{0, 100_000, 1_000_000} {
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
					index++
					batch.Entry(index, 1, command.Stamp(index), time.Unix(0, int64(index)))
					n = (n + 7919) % len(names)
					if err := batch.Set(names[n], value, index); err != nil {
						b.Fatal(err)
					}
					batch.Step()
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
	s := benchState(b, 20_000)
	for _, where := range []string{"file", "memory"} {
		b.Run(where, func(b *testing.B) {
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
			b.ReportAllocs()
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

// One operation reads a key as it was 1,000 revisions ago, over 10 versions of
// each key.
func BenchmarkGetPast(b *testing.B) {
	s := benchState(b, 10_000)
	value := bytes.Repeat([]byte("w"), 256)
	for range 9 {
		for i := 0; i < 10_000; {
			inOneEntry(b, s, func(batch *Batch) {
				for range 1000 {
					rec, _, err := batch.Get(benchKey(i))
					if err != nil {
						b.Fatal(err)
					}
					rec.Value = value
					batch.Put(rec)
					i++
				}
			})
		}
	}
	mustFlush(b, s)
	v := mustView(b, s)
	defer v.Close()
	names := make([]string, 10_000)
	for i := range names {
		names[i] = benchKey(i)
	}
	n, rev := 0, s.Revision()-30
	b.ResetTimer()
	for b.Loop() {
		n = (n + 7919) % len(names)
		if _, err := v.GetAt(names[n], rev); err != nil {
			b.Fatal(err)
		}
	}
}

// One operation walks 1000 changes of 256 bytes in the file.
func BenchmarkChanges1000(b *testing.B) {
	s := benchState(b, 100_000)
	v := mustView(b, s)
	defer v.Close()
	for b.Loop() {
		n := 0
		if err := v.ChangesAfter("", command.EndOf(39), 100, func(command.Change) bool { n++; return n < 1000 }); err != nil || n != 1000 {
			b.Fatal(n, err)
		}
	}
}

// One operation makes 10,000 puts of 256 bytes durable in the state file.
func BenchmarkFlush10000Puts(b *testing.B) {
	for _, keys := range []int{0, 100_000} {
		b.Run(fmt.Sprintf("over %d keys", keys), func(b *testing.B) {
			s := benchState(b, keys)
			value := bytes.Repeat([]byte("w"), 256)
			n := 0
			for b.Loop() {
				b.StopTimer()
				for range 10 {
					inOneEntry(b, s, func(batch *Batch) {
						for range 1000 {
							n += 7919
							batch.Put(command.Record{Key: benchKey(n % max(keys, 10_000)), Value: value})
						}
					})
				}
				b.StartTimer()
				mustFlush(b, s)
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/10_000, "µs/put")
		})
	}
}

// One operation closes and opens a state, with nothing to replay.
func BenchmarkReopen(b *testing.B) {
	for _, keys := range []int{1000, 100_000} {
		b.Run(fmt.Sprintf("%d keys", keys), func(b *testing.B) {
			s := benchState(b, keys)
			for b.Loop() {
				if err := s.Close(); err != nil {
					b.Fatal(err)
				}
				var err error
				if s, err = OpenState(s.cfg); err != nil {
					b.Fatal(err)
				}
			}
			b.Cleanup(func() { _ = s.Close() })
		})
	}
}

// For scale: the same puts and gets on a plain bbolt file, where a batch is a
// synced transaction.
func BenchmarkPlainBolt(b *testing.B) {
	const keys = 100_000
	bucket := []byte("b")
	value := bytes.Repeat([]byte("w"), 256)
	open := func(b *testing.B) *bbolt.DB {
		db, err := bbolt.Open(filepath.Join(b.TempDir(), "plain.db"), 0o600, &bbolt.Options{FreelistType: bbolt.FreelistMapType, InitialMmapSize: 1 << 30})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = db.Close() })
		if err := db.Update(func(tx *bbolt.Tx) error {
			t, err := tx.CreateBucket(bucket)
			for i := range keys {
				if err == nil {
					err = t.Put([]byte(benchKey(i)), value)
				}
			}
			return err
		}); err != nil {
			b.Fatal(err)
		}
		b.ResetTimer()
		return db
	}
	b.Run("64 puts", func(b *testing.B) {
		db, n := open(b), 0
		for b.Loop() {
			if err := db.Update(func(tx *bbolt.Tx) error {
				for range 64 {
					n += 7919
					if err := tx.Bucket(bucket).Put([]byte(benchKey(n%keys)), value); err != nil {
						return err
					}
				}
				return nil
			}); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*64), "µs/put")
	})
	b.Run("get", func(b *testing.B) {
		db, n := open(b), 0
		for b.Loop() {
			n += 7919
			if err := db.View(func(tx *bbolt.Tx) error {
				if v := tx.Bucket(bucket).Get([]byte(benchKey(n % keys))); len(v) != len(value) {
					return fmt.Errorf("%d bytes", len(v))
				}
				return nil
			}); err != nil {
				b.Fatal(err)
			}
		}
	})
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
	s := benchState(b, 20_000)
	for _, keysOnly := range []bool{false, true} {
		b.Run(fmt.Sprintf("keys only %v", keysOnly), func(b *testing.B) {
			v, err := s.view()
			if err != nil {
				b.Fatal(err)
			}
			defer v.Close()
			b.ReportAllocs()
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
