package node_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// A lone client's write has an entry of its own. How many share one when there are
// more depends on how fast the log is.
// loneLeader is a leader without followers, real but for its clients, and its log
// if that is kept in memory.
func loneLeader(b *testing.B, logInMemory bool) *member {
	c := &cluster{t: b, members: map[string]*member{}}
	m := c.prepare("n1", "home", command.RoleVoter, nil)
	m.cfg.BootstrapExpect = 1
	if logInMemory {
		m.wrapLog = func(raft.LogStore) raft.LogStore { return raft.NewInmemStore() }
	}
	m.start()
	m.waitJoined()
	return c.leader()
}

// BenchmarkPropose is writes at a leader without followers.
func BenchmarkPropose(b *testing.B) {
	for _, row := range []struct {
		log     string
		clients int
	}{{"wal", 1}, {"wal", 128}, {"memory", 1}} {
		b.Run(fmt.Sprintf("log=%s/clients=%d", row.log, row.clients), func(b *testing.B) {
			n := loneLeader(b, row.log == "memory").n.Load()
			keys := make([]string, 1000)
			for i := range keys {
				keys[i] = fmt.Sprintf("k%04d", i)
			}
			b.ReportAllocs()
			b.ResetTimer()
			var next atomic.Int64
			var wg sync.WaitGroup
			for range row.clients {
				wg.Go(func() {
					for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
						if _, err := n.Propose(b.Context(), &command.Put{Key: keys[i%1000], Value: make([]byte, 100), Flags: uint64(i)}); err != nil {
							b.Error(err)
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

// BenchmarkRead is reads of one key by one client at a leader without followers.
func BenchmarkRead(b *testing.B) {
	for _, row := range []struct {
		name string
		mode command.ReadMode
	}{{"stale", command.ReadStale}, {"default", command.ReadDefault}, {"consistent", command.ReadConsistent}} {
		b.Run(row.name, func(b *testing.B) {
			m := loneLeader(b, false)
			if _, err := m.replica.Propose(b.Context(), &command.Put{Key: "k", Value: make([]byte, 100)}); err != nil {
				b.Fatal(err)
			}
			get := func(v command.View) error { _, err := v.Get("k"); return err }
			b.ReportAllocs()
			for b.Loop() {
				if _, err := m.replica.Read(b.Context(), command.ReadOptions{Mode: row.mode}, get); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
