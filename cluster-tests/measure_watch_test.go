package clustertests

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/workload"
	"github.com/holdfast-db/holdfast/internal/bench"
)

const (
	idleWatchers   = 10_000
	idleEvery      = 4 * time.Millisecond // one comes
	busyWatchers   = 100
	busyWrites     = 500 // per second
	busyKeys       = 100 // under the prefix that is watched
	busyWriters    = 8
	busyTime       = 10 * time.Second
	settleWatchers = 45 * time.Second // for collections of garbage, and its return to the system
)

// TestMeasureWatch prints what waiting clients cost, and how soon they are woken:
// make bench-watch.
func TestMeasureWatch(t *testing.T) {
	measured(t, "make bench-watch")
	eachReport(t, map[string]func(*testing.T, *report){"idle": measureIdleWatchers, "busy": measureBusyWatchers})
}

// measureIdleWatchers is the memory of a node per connection on which a blocking
// query waits, and what the node does meanwhile.
func measureIdleWatchers(t *testing.T, r *report) {
	r.columns("waiting", "watched", "KiB each at first", "KiB each at rest", "processor ms per s")
	for watched, query := range map[string]string{"a key": "", "a prefix": "recurse&"} {
		t.Run(watched, func(t *testing.T) {
			c, n := startVoters(t, loneVoter)
			index := uint64(0)
			for i := range idleWatchers / 100 { // the others wait for what is not there yet
				w := put(n, fmt.Sprintf("idle/%05d/k", i), "x", "")
				if !w.ok {
					t.Fatalf("%+v", w)
				}
				index = max(index, w.revision)
			}
			arrives := time.NewTicker(idleEvery)
			defer arrives.Stop()
			first, rest, used := c.idle(n, func(i int) []byte {
				<-arrives.C
				return getRequest(fmt.Sprintf("idle/%05d/k", i), fmt.Sprintf("%sindex=%d", query, index))
			})
			r.row(idleWatchers, watched, first, rest, used)
		})
	}
}

// idle has idleWatchers clients send a node the request that is theirs, and wait. It
// returns the memory that each takes at first and at rest, in KiB, and the processor
// time of the node at rest, in ms per s.
func (c *cluster) idle(n *node, request func(i int) []byte) (first, rest string, used float64) {
	c.t.Helper()
	time.Sleep(settleWatchers / 3)
	m := c.watchMemory(n)
	before := m.sample()
	for i := range idleWatchers {
		r := request(i)
		conn, err := net.Dial("tcp", n.http)
		if err == nil {
			_, err = conn.Write(r)
		}
		if err != nil {
			c.t.Fatal(err)
		}
		defer conn.Close()
	}
	c.wait(time.Minute, "all wait", func() bool { return c.requestsInFlight(n) > idleWatchers })
	each := func() string { return fmt.Sprintf("%.1f", float64(m.sample()-before)/idleWatchers/1024) }
	first = each()
	began := c.processorTime(n)
	time.Sleep(settleWatchers)
	return first, each(), millis(c.processorTime(n)-began) / settleWatchers.Seconds()
}

// requestsInFlight is how many requests a node is answering, this one included.
func (c *cluster) requestsInFlight(n *node) int {
	c.t.Helper()
	return int(c.metric(n, "holdfast_http_requests_in_flight"))
}

// metric is a figure of a node's /metrics that stands alone under its name.
func (c *cluster) metric(n *node, name string) (value float64) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), workload.Patience)
	defer cancel()
	_, metrics, _, err := call(ctx, n, http.MethodGet, "/metrics", nil)
	if err != nil {
		c.t.Fatal(err)
	}
	_, text, _ := bytes.Cut(metrics, []byte("\n"+name+" "))
	if _, err := fmt.Sscan(string(text), &value); err != nil {
		c.t.Fatalf("%s: %v", name, err)
	}
	return value
}

// measureBusyWatchers is the time from the moment a write is sent to the moment at
// which each watcher of the prefix knows of it, or of a later one.
func measureBusyWatchers(t *testing.T, r *report) {
	r.columns("watchers", "writes per s", "watched", "mode", "replies per s", "p50", "p99", "most")
	for _, query := range []struct{ watched, mode string }{{"recurse", ""}, {"recurse", "stale"}, {"keys", ""}} {
		t.Run(query.watched+query.mode, func(t *testing.T) {
			c := startCluster(t, voters)
			for i := range busyKeys {
				if w := put(c.nodes[0], fmt.Sprintf("busy/%03d", i), "x", ""); !w.ok {
					t.Fatalf("%+v", w)
				}
			}
			type seen struct {
				index uint64
				at    time.Time
			}
			var (
				over           atomic.Bool
				mu             sync.Mutex
				sent           []seen // guarded by mu
				failed         []error
				all            [busyWatchers][]seen
				watch, writing sync.WaitGroup
			)
			fail := func(err error) {
				mu.Lock()
				defer mu.Unlock()
				failed = append(failed, err)
			}
			for i := range all {
				watch.Go(func() {
					conn, err := bench.Dial(c.nodes[i%len(c.nodes)].http, dialTimeout)
					if err != nil {
						fail(err)
						return
					}
					defer conn.Close()
					for index := uint64(0); !over.Load(); index = conn.Index {
						if _, err := conn.Do(getRequest("busy/", fmt.Sprintf("%s&%s&wait=2s&index=%d", query.watched, query.mode, index)), time.Time{}); err != nil {
							fail(err)
							return
						}
						all[i] = append(all[i], seen{conn.Index, time.Now()})
					}
				})
			}
			began := time.Now()
			for i := range busyWriters {
				writing.Go(func() {
					conn, err := bench.Dial(c.nodes[i%len(c.nodes)].http, dialTimeout)
					if err != nil {
						fail(err)
						return
					}
					defer conn.Close()
					for n := i; n < busyWrites*int(busyTime/time.Second); n += busyWriters {
						time.Sleep(time.Until(began.Add(time.Duration(n) * time.Second / busyWrites)))
						at := time.Now()
						if _, err := conn.Do(putRequest(fmt.Sprintf("busy/%03d", n%busyKeys), fmt.Append(nil, n)), time.Time{}); err != nil {
							fail(err)
							return
						}
						mu.Lock()
						sent = append(sent, seen{conn.Index, at})
						mu.Unlock()
					}
				})
			}
			writing.Wait()
			took := time.Since(began)
			over.Store(true)
			watch.Wait()
			if err := errors.Join(failed...); err != nil {
				t.Fatal(err)
			}
			slices.SortFunc(sent, func(a, b seen) int { return int(a.index) - int(b.index) })
			var delays []time.Duration
			replies := 0
			for _, replied := range all {
				replies += len(replied)
				next := 0
				for _, w := range sent {
					for next < len(replied) && replied[next].index < w.index {
						next++
					}
					if next == len(replied) {
						break // it ended before the last writes
					}
					delays = append(delays, replied[next].at.Sub(w.at))
				}
			}
			if len(delays) < len(sent)*busyWatchers*9/10 {
				t.Fatalf("%d of %d writes were seen by the watchers", len(delays), len(sent)*busyWatchers)
			}
			slices.Sort(delays)
			r.row(busyWatchers, float64(len(sent))/took.Seconds(), query.watched, "mode "+query.mode, float64(replies)/took.Seconds(),
				delays[len(delays)/2], delays[len(delays)*99/100], delays[len(delays)-1])
		})
	}
}
