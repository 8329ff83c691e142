package workload

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Clients who never rest leave room for one who does.
func TestEveryClientGetsItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		e := &Env{Nodes: []*Node{{Name: "n1"}, {Name: "n2"}}}
		var asked, most, turns atomic.Int32
		e.each(5*atOnce, func(id int) {
			r := rand.New(rand.NewPCG(1, uint64(id)))
			for {
				_, release, ok := e.Pick(ctx, r, e.Nodes)
				if !ok {
					return
				}
				now := asked.Add(1)
				most.Store(max(most.Load(), now))
				time.Sleep(time.Millisecond) // the node takes so long to answer
				asked.Add(-1)
				release()
				if id == 0 {
					turns.Add(1)
					Rest(ctx, 2*time.Millisecond)
				}
			}
		})
		if most.Load() != 2*atOnce {
			t.Errorf("%d asked at once", most.Load())
		}
		if turns.Load() < 1000 {
			t.Errorf("the one that rests had %d turns in 10 s", turns.Load())
		}
	})
}

func TestANodeThatIsLeftIsNotPicked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		n := &Node{Name: "n1"}
		e, r := &Env{Nodes: []*Node{n}}, rand.New(rand.NewPCG(1, 2))
		_, release, _ := e.Pick(ctx, r, e.Nodes)
		began := time.Now()
		time.AfterFunc(time.Second, release)
		if e.Leave(ctx, n); time.Since(began) < time.Second {
			t.Error("a client waits for it still")
		}
		time.AfterFunc(5*time.Second, func() { e.ComeBack(n) })
		if _, _, ok := e.Pick(ctx, r, e.Nodes); !ok || time.Since(began) < 6*time.Second {
			t.Errorf("picked %v after %v", ok, time.Since(began))
		}
		cancel()
		if _, _, ok := e.Pick(ctx, r, e.Nodes); ok {
			t.Error("picked after the end")
		}
	})
}
