package clustertests

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"
)

// What is measured, and for how long.
const (
	measureRuns   = 5
	measureTime   = 4 * time.Second
	measureWarmUp = 500 * time.Millisecond
	measureValue  = 256 // bytes
	measureKeys   = 10_000
)

// rawConn is an HTTP/1.1 client reduced to what load needs: it shares the
// processors with the cluster, so each instruction of it is taken from what is
// measured. One request is under way at a time.
type rawConn struct {
	net.Conn
	in    *bufio.Reader
	index uint64 // of the last answer that had one
}

func dialRaw(addr string) (*rawConn, error) {
	conn, err := net.DialTimeout("tcp", addr, 2*time.Second)
	if err != nil {
		return nil, err
	}
	return &rawConn{Conn: conn, in: bufio.NewReaderSize(conn, 4<<10)}, nil
}

var (
	contentLength = []byte("content-length:")
	consulIndex   = []byte("x-consul-index:")
	chunked       = []byte("transfer-encoding:")
)

// do sends a request and reads its answer; the body is dropped.
func (c *rawConn) do(request []byte) (status int, err error) {
	if _, err := c.Write(request); err != nil {
		return 0, err
	}
	line, err := c.in.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if len(line) < 12 {
		return 0, fmt.Errorf("status line %q", line)
	}
	if status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, err
	}
	length := 0
	for {
		if line, err = c.in.ReadSlice('\n'); err != nil {
			return 0, err
		}
		if len(line) <= 2 {
			break
		}
		switch {
		case len(line) > len(contentLength) && bytes.EqualFold(line[:len(contentLength)], contentLength):
			if length, err = strconv.Atoi(string(bytes.TrimSpace(line[len(contentLength):]))); err != nil {
				return 0, err
			}
		case len(line) > len(consulIndex) && bytes.EqualFold(line[:len(consulIndex)], consulIndex):
			if c.index, err = strconv.ParseUint(string(bytes.TrimSpace(line[len(consulIndex):])), 10, 64); err != nil {
				return 0, err
			}
		case len(line) > len(chunked) && bytes.EqualFold(line[:len(chunked)], chunked):
			return 0, errors.New("the answer is chunked, which this client does not read")
		}
	}
	_, err = c.in.Discard(length)
	return status, err
}

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
	conns := make([]*rawConn, connections)
	for i := range conns {
		c, err := dialRaw(nodes[i%len(nodes)].http)
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
				status, err := c.do(r)
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

// The load's HTTP client reads answers as Go's own server writes them.
func TestRawClientReadsAnswers(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		in := bufio.NewReader(conn)
		for _, answer := range []string{
			"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-Consul-Index: 5\r\n\r\ntrue",
			"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
			"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
		} {
			for { // the request's head
				line, err := in.ReadString('\n')
				if err != nil || line == "\r\n" {
					break
				}
			}
			io.WriteString(conn, answer)
		}
	}()
	c, err := dialRaw(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, want := range []int{200, 404} {
		if got, err := c.do(getRequest("k", "stale")); err != nil || got != want || c.index != 5 {
			t.Errorf("got %d, index %d, %v; want %d, 5", got, c.index, err, want)
		}
	}
	if _, err := c.do(getRequest("k", "stale")); err == nil {
		t.Error("a chunked answer was taken for a short one")
	}
}
