package node_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/holdfast-db/holdfast/command"
)

// BenchmarkPropose is writes of many clients at a leader without followers.
func BenchmarkPropose(b *testing.B) {
	c := &cluster{t: b, members: map[string]*member{}}
	m := c.prepare("n1", "home", command.RoleVoter, nil)
	m.cfg.BootstrapExpect = 1
	m.start()
	m.waitJoined()
	n := c.leader().n.Load()
	var next atomic.Uint64
	b.ReportAllocs()
	b.SetParallelism(128)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			i := next.Add(1)
			if _, err := n.Propose(b.Context(), &command.Put{Key: fmt.Sprintf("k%04d", i%1000), Value: make([]byte, 100), Flags: i}); err != nil {
				b.Error(err)
			}
		}
	})
}
