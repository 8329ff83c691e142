package fsm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/store"
)

// One operation is what a member does that missed 200,000 overwrites of 256
// bytes, spread over 1,000,000 keys: it opens its state and applies the entries,
// 64 at a time. Making the rest durable, as the state is closed, is not counted.
func BenchmarkCatchUp(b *testing.B) {
	const keys, missed, perEntry, perBatch = 1_000_000, 200_000, 40, 64
	dir := b.TempDir()
	open := func() (*store.State, *FSM) {
		s, err := store.OpenState(store.StateConfig{Dir: dir})
		if err != nil {
			b.Fatal(err)
		}
		return s, New(s, func(err error) { b.Error(err) })
	}
	closeState := func(s *store.State) {
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
	value := bytes.Repeat([]byte("v"), 256)
	index, version := uint64(0), uint64(0)
	entry := func(keys []int) *raft.Log {
		index++
		e := command.NewEntry(320 * len(keys))
		for _, k := range keys {
			version++
			binary.BigEndian.PutUint64(value, version)
			e = command.Append(e, &command.Put{Key: fmt.Sprintf("app/%03d/setting/%07d", k%1000, k), Value: value})
		}
		return &raft.Log{Index: index, Term: 1, Type: raft.LogCommand, Data: e}
	}
	s, f := open()
	order := rand.Perm(keys)
	for rest := order; len(rest) > 0; rest = rest[1000:] {
		f.Apply(entry(rest[:1000]))
	}
	closeState(s)

	var batches [][]*raft.Log
	for b.Loop() {
		b.StopTimer()
		batches = batches[:0]
		var batch []*raft.Log
		for range missed / perEntry {
			some := make([]int, perEntry)
			for i := range some {
				some[i] = rand.IntN(keys)
			}
			if batch = append(batch, entry(some)); len(batch) == perBatch {
				batches = append(batches, batch)
				batch = nil
			}
		}
		batches = append(batches, batch)
		b.StartTimer()
		s, f := open()
		for _, batch := range batches {
			f.ApplyBatch(batch)
		}
		b.StopTimer()
		closeState(s)
		b.StartTimer()
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*missed), "µs/put")
}
