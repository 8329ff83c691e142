package workload

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/history"
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

// refusing is a host on which nobody listens.
type refusing func()

func (f refusing) RoundTrip(*http.Request) (*http.Response, error) {
	f()
	return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
}

// A refusal takes no time. Whoever does not think before the next request rests a moment
// all the same.
func TestClientsDoNotSpinOnRefusals(t *testing.T) {
	const seconds, mostASecond = 10, 260 // each rests 4 ms or more
	for _, w := range []Workload{NewSet(), NewRegister(), NewCounter(), NewCausal(), NewAppend(), NewLongFork(), NewRestores()} {
		t.Run(w.Name(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), seconds*time.Second)
				defer cancel()
				e := &Env{History: history.New(), Seed: 1, Clients: 2}
				var asked atomic.Int32
				most := int32(5 * seconds * mostASecond) // no workload has more clients here
				client := &http.Client{Transport: refusing(func() {
					if asked.Add(1) > most {
						cancel() // no time passes for who spins, so it would not end
					}
				})}
				e.Nodes = []*Node{{Name: "n1", Voter: true, URL: "http://n1", Client: client}, {Name: "n2", URL: "http://n2", Client: client}}
				w.Clients(ctx, e)
				if n := asked.Load(); n > most {
					t.Errorf("%d requests in less than %d s", n, seconds)
				}
			})
		})
	}
}
