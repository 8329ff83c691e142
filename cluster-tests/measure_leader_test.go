package clustertests

import (
	"flag"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/internal/bench"
)

var roundsFlag = flag.Int("measure-leader-rounds", 10, "how often TestMeasureLeader takes the leader away in each way")

// TestMeasureLeader prints for how long no write is acknowledged when the leader
// is killed, paused, or asked to hand over: make bench-leader. The peers that can be
// had go through the same on the same machine, in turns, with their defaults.
//
// The load is open: at each node that is left a write begins every 5 ms, whatever
// became of those before, so that a gap is the system's and not that of a client
// which waits for an answer that never comes.
func TestMeasureLeader(t *testing.T) {
	measured(t, "make bench-leader")
	all, absent := products(voters)
	for _, a := range absent {
		t.Log("left out: ", a)
	}
	systems := map[string]system{}
	for _, p := range all {
		systems[p.name] = p.start(t)
	}
	r := &report{t: t, data: "a small write every 5 ms at each node that is left"}
	defer r.print()
	r.columns("system", "leader is", "median", "least", "most", "failed writes", "of")
	for _, how := range []string{"killed", "paused", "handed over"} {
		able := slices.DeleteFunc(slices.Clone(all), func(p product) bool { return how == "handed over" && !systems[p.name].canHandOver() })
		gaps, failed := map[string][]time.Duration{}, map[string]int{}
		for range *roundsFlag {
			for _, p := range able {
				gap, lost := leaderGoes(t, systems[p.name], how)
				gaps[p.name], failed[p.name] = append(gaps[p.name], gap), failed[p.name]+lost
				t.Logf("%s, leader %s: %v without an acknowledged write, %d writes failed", p.name, how, gap, lost)
			}
		}
		for _, p := range able {
			r.row(p.name, how, median(gaps[p.name]), slices.Min(gaps[p.name]), slices.Max(gaps[p.name]), failed[p.name], len(gaps[p.name]))
		}
	}
}

// leaderGoes measures one round: the longest time between two acknowledgements
// from just before the leader went, and how many writes failed. Writes at the
// leader itself count only when it hands over.
func leaderGoes(t *testing.T, s system, how string) (gap time.Duration, failed int) {
	leader := s.leader()
	var nodes []int
	for n := range 3 {
		if n != leader || how == "handed over" {
			nodes = append(nodes, n)
		}
	}
	load := startLoad(s, nodes)
	load.await(t, 100)
	at := time.Now()
	s.take(leader, (leader+1)%3, how)
	load.awaitAfter(t, at, 100)
	acks, failed := load.end()
	s.give(leader, how)
	return longestGap(acks, at), failed
}

// load writes at some nodes until it is ended.
type load struct {
	target bench.Target
	client *http.Client
	stop   chan struct{}
	wg     sync.WaitGroup

	mu     sync.Mutex
	acks   []time.Time // guarded by mu
	failed int         // guarded by mu
}

func startLoad(s system, nodes []int) *load {
	l := &load{target: s.target(), stop: make(chan struct{}), client: &http.Client{
		Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 1000},
	}}
	for _, n := range nodes {
		l.wg.Go(func() {
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			for i := 0; ; i++ {
				select {
				case <-tick.C:
				case <-l.stop:
					return
				}
				r := s.put(n, fmt.Sprintf("leader/%d/%d", n, i%1000), time.Now().String())
				l.wg.Go(func() { l.write(r) })
			}
		})
	}
	return l
}

func (l *load) write(r *http.Request) {
	resp, err := l.client.Do(r)
	var body []byte
	if err == nil {
		body, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil || !l.target.Acknowledges(resp.StatusCode, body) {
		l.failed++
		return
	}
	l.acks = append(l.acks, time.Now())
}

// await waits for n acknowledgements, awaitAfter for n after a moment.
func (l *load) await(t *testing.T, n int) { l.awaitAfter(t, time.Time{}, n) }

func (l *load) awaitAfter(t *testing.T, at time.Time, n int) {
	t.Helper()
	if !eventually(30*time.Second, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		after := 0
		for i := len(l.acks) - 1; i >= 0 && l.acks[i].After(at); i-- {
			after++
		}
		return after >= n
	}) {
		t.Fatal("no writes are acknowledged")
	}
}

// end waits for what is under way.
func (l *load) end() (acks []time.Time, failed int) {
	close(l.stop)
	l.wg.Wait()
	l.client.CloseIdleConnections()
	return l.acks, l.failed
}
