package clustertests

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/holdfast-db/holdfast/internal/bench"
)

// What is measured, and for how long.
const (
	measureRuns   = 5
	measureTime   = 4 * time.Second
	measureWarmUp = 500 * time.Millisecond
	measureValue  = 256 // bytes
	measureKeys   = 10_000
)

// dialTimeout is how long a client of what is measured waits for a connection.
const dialTimeout = 2 * time.Second

// putRequest is the bytes of a PUT; getRequest those of a GET.
func putRequest(key string, value []byte) []byte {
	return append(fmt.Appendf(nil, "PUT /v1/kv/%s HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n", key, len(value)), value...)
}

func getRequest(key, query string) []byte {
	return fmt.Appendf(nil, "GET /v1/kv/%s?%s HTTP/1.1\r\nHost: h\r\n\r\n", key, query)
}

func measureKey(i int) string { return fmt.Sprintf("bench/%05d", i%measureKeys) }

// figures are what a run came to.
type figures struct {
	rate                 float64 // per second
	p50, p99, p999, most time.Duration
}

// drive keeps connections busy for the time given, spread evenly over the nodes,
// and returns what was answered, all but that of a moment to warm up. request
// makes the i-th request of a connection, or returns nil to end it; once all have
// ended or one has failed, the run is over. A run that ends so soon that it only
// warmed up has no figures.
func drive(length time.Duration, connections int, nodes []*node, request func(connection, i int) []byte) (figures, error) {
	var measuring, over atomic.Bool
	took := make([][]time.Duration, connections)
	failed := make([]error, connections)
	conns := make([]*bench.Conn, connections)
	for i := range conns {
		c, err := bench.Dial(nodes[i%len(nodes)].http, dialTimeout)
		if err != nil {
			return figures{}, err
		}
		defer c.Close()
		conns[i] = c
	}
	var wg sync.WaitGroup
	for i, c := range conns {
		wg.Go(func() {
			mine := make([]time.Duration, 0, 1<<14)
			defer func() { took[i] = mine }()
			for n := 0; !over.Load(); n++ {
				r := request(i, n)
				if r == nil {
					return
				}
				began := time.Now()
				status, err := c.Do(r, time.Time{})
				if err == nil && status != 200 {
					err = fmt.Errorf("status %d", status)
				}
				if err != nil {
					failed[i] = fmt.Errorf("request %.60q: %w", r, err)
					over.Store(true)
					return
				}
				if measuring.Load() {
					mine = append(mine, time.Since(began))
				}
			}
		})
	}
	ended := make(chan struct{})
	go func() { wg.Wait(); close(ended) }()
	select {
	case <-time.After(measureWarmUp):
	case <-ended:
	}
	measuring.Store(true)
	began := time.Now()
	select {
	case <-time.After(length):
	case <-ended:
	}
	elapsed := time.Since(began)
	over.Store(true)
	wg.Wait()
	if err := errors.Join(failed...); err != nil {
		return figures{}, err
	}
	all := slices.Concat(took...)
	if len(all) == 0 {
		if elapsed < length {
			return figures{}, nil
		}
		return figures{}, errors.New("nothing was answered")
	}
	slices.Sort(all)
	return figures{
		rate: float64(len(all)) / elapsed.Seconds(),
		p50:  all[len(all)/2], p99: all[len(all)*99/100], p999: all[len(all)*999/1000], most: all[len(all)-1],
	}, nil
}

// median of a few numbers.
func median[T int | float64 | time.Duration](s []T) T {
	s = slices.Sorted(slices.Values(s))
	return s[len(s)/2]
}

// TestMeasure prints throughput and latency of a cluster of three
// voters, each a process, on this machine: make bench.
func TestMeasure(t *testing.T) {
	measured(t, "make bench")
	var out strings.Builder
	fmt.Fprintf(&out, "three voters on %d processors (load included), %d-byte values, %d runs of %v each, medians\n\n",
		runtime.NumCPU(), measureValue, measureRuns, measureTime)
	table := tabwriter.NewWriter(&out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "log store\twhat\tthrough\tconnections\tper second\tp50 ms\tp99 ms\tslowest run\tfastest run\t")
	for _, logStore := range []string{"wal", "boltdb"} {
		measureThroughput(t, logStore, table)
	}
	table.Flush()
	fmt.Fprint(os.Stdout, "\n", out.String(), "\n")
}

func measureThroughput(t *testing.T, logStore string, table io.Writer) {
	c := startCluster(t, voters, withLogStore(logStore))
	leader := c.waitLeader()
	value := bytes.Repeat([]byte("0123456789abcdef"), measureValue/16)
	puts := make([][]byte, measureKeys)
	stale, consistently := make([][]byte, measureKeys), make([][]byte, measureKeys)
	byDefault := make([][]byte, measureKeys)
	for i := range measureKeys {
		key := measureKey(i)
		// Values differ from key to key and, by the count below, from write to
		// write: an equal value would change nothing and be no write at all.
		puts[i] = putRequest(key, value)
		stale[i], consistently[i], byDefault[i] = getRequest(key, "stale"), getRequest(key, "consistent"), getRequest(key, "")
	}
	var count atomic.Uint64
	write := func(connection, i int) []byte {
		n := count.Add(1)
		r := bytes.Clone(puts[n*7919%measureKeys])
		copy(r[len(r)-20:], fmt.Sprintf("%020d", n))
		return r
	}
	pick := func(from [][]byte) func(int, int) []byte {
		return func(connection, i int) []byte { return from[(connection*7919+i*31)%measureKeys] }
	}
	if _, err := drive(measureTime, 8, []*node{leader}, func(connection, i int) []byte { // every key exists
		n := count.Add(1)
		r := bytes.Clone(puts[n%measureKeys])
		copy(r[len(r)-20:], fmt.Sprintf("%020d", n))
		return r
	}); err != nil {
		t.Fatal(err)
	}
	for i := int(count.Load()); i < measureKeys; i++ {
		if w := put(leader, measureKey(i), "x", ""); !w.ok {
			t.Fatalf("%+v", w)
		}
	}
	for _, m := range []struct {
		what, through string
		connections   int
		nodes         []*node
		request       func(connection, i int) []byte
	}{
		{"writes", "leader", 1, []*node{leader}, write},
		{"writes", "leader", 64, []*node{leader}, write},
		{"writes", "leader", 256, []*node{leader}, write},
		{"writes", "all", 256, c.nodes, write},
		{"stale reads", "all", 64, c.nodes, pick(stale)},
		{"consistent reads", "all", 64, c.nodes, pick(consistently)},
		{"consistent reads", "leader", 64, []*node{leader}, pick(consistently)},
		{"default reads", "all", 64, c.nodes, pick(byDefault)},
	} {
		var rates []float64
		var p50, p99 []time.Duration
		for range measureRuns {
			f, err := drive(measureTime, m.connections, m.nodes, m.request)
			if err != nil {
				t.Fatalf("%s: %v", m.what, err)
			}
			rates, p50, p99 = append(rates, f.rate), append(p50, f.p50), append(p99, f.p99)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%d\t%.0f\t%.2f\t%.2f\t%.0f\t%.0f\t\n", logStore, m.what, m.through, m.connections, median(rates),
			millis(median(p50)), millis(median(p99)), slices.Min(rates), slices.Max(rates))
		t.Logf("%s %s %d: %.0f/s", logStore, m.what, m.connections, median(rates))
	}
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
