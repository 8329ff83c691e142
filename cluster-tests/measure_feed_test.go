package clustertests

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/internal/bench"
)

// TestMeasureFeed prints what streams of changes cost, and how soon they tell: make
// bench-feed.
func TestMeasureFeed(t *testing.T) {
	measured(t, "make bench-feed")
	eachReport(t, map[string]func(*testing.T, *report){"idle": measureIdleFeeds, "busy": measureBusyFeeds})
}

// feedRequest opens a stream.
func feedRequest(prefix string) []byte {
	return fmt.Appendf(nil, "GET /v1/changes/%s?stream HTTP/1.1\r\nHost: h\r\n\r\n", prefix)
}

// measureIdleFeeds is the memory of a node per stream on which nothing happens.
func measureIdleFeeds(t *testing.T, r *report) {
	r.columns("streams", "KiB each at first", "KiB each at rest", "processor ms per s")
	c, n := startVoters(t, loneVoter)
	first, rest, used := c.idle(n, func(i int) []byte { return feedRequest(fmt.Sprintf("idle/%05d", i)) })
	r.row(idleWatchers, first, rest, used)
}

// seenChange is a revision and when somebody knew of it.
type seenChange struct {
	index uint64
	at    time.Time
}

// measureBusyFeeds is the time from the moment a write is acknowledged to the
// moment each stream of its prefix has told it.
func measureBusyFeeds(t *testing.T, r *report) {
	r.columns("streams", "at", "writes per s", "told", "p50", "p99", "most", "processor ms per s and node")
	for _, at := range []string{"all voters", "the leader"} {
		t.Run(at, func(t *testing.T) {
			c := startCluster(t, voters)
			nodes := c.nodes
			if at == "the leader" {
				nodes = []*node{c.waitLeader()}
			}
			var (
				mu             sync.Mutex
				failed         []error
				acks           []seenChange
				told           [busyWatchers][]seenChange
				watch, writing sync.WaitGroup
			)
			const writes = busyWrites * int(busyTime/time.Second)
			fail := func(err error) {
				mu.Lock()
				defer mu.Unlock()
				failed = append(failed, err)
			}
			for i := range told {
				conn, err := net.Dial("tcp", nodes[i%len(nodes)].http)
				if err == nil {
					_, err = conn.Write(feedRequest("busy/"))
				}
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				watch.Go(func() {
					told[i] = make([]seenChange, 0, writes)
					if err := readIDs(conn, writes, &told[i]); err != nil {
						fail(err)
					}
				})
			}
			c.wait(10*time.Second, "all streams are open", func() bool {
				open := 0
				for _, n := range nodes {
					open += c.requestsInFlight(n) - 1
				}
				return open == busyWatchers
			})
			used := c.processorTime(c.nodes[0]) + c.processorTime(c.nodes[1]) + c.processorTime(c.nodes[2])
			began := time.Now()
			for i := range busyWriters {
				writing.Go(func() {
					conn, err := bench.Dial(c.nodes[i%len(c.nodes)].http, dialTimeout)
					if err != nil {
						fail(err)
						return
					}
					defer conn.Close()
					for n := i; n < writes; n += busyWriters {
						time.Sleep(time.Until(began.Add(time.Duration(n) * time.Second / busyWrites)))
						if _, err := conn.Do(putRequest(fmt.Sprintf("busy/%03d", n%busyKeys), fmt.Append(nil, n)), time.Time{}); err != nil {
							fail(err)
							return
						}
						ack := seenChange{conn.Index, time.Now()}
						mu.Lock()
						acks = append(acks, ack)
						mu.Unlock()
					}
				})
			}
			writing.Wait()
			took := time.Since(began)
			used = c.processorTime(c.nodes[0]) + c.processorTime(c.nodes[1]) + c.processorTime(c.nodes[2]) - used
			watch.Wait()
			if err := errors.Join(failed...); err != nil {
				t.Fatal(err)
			}
			slices.SortFunc(acks, func(a, b seenChange) int { return int(a.index) - int(b.index) })
			var delays []time.Duration
			for i := range told {
				for j, w := range acks {
					if told[i][j].index != w.index {
						t.Fatalf("stream %d told index %d where %d was due", i, told[i][j].index, w.index)
					}
					delays = append(delays, max(told[i][j].at.Sub(w.at), 0))
				}
			}
			slices.Sort(delays)
			r.row(busyWatchers, at, float64(writes)/took.Seconds(), len(delays), delays[len(delays)/2], delays[len(delays)*99/100], delays[len(delays)-1],
				millis(used)/took.Seconds()/float64(len(c.nodes)))
		})
	}
}

// readIDs reads a stream until it has told a number of changes.
func readIDs(conn net.Conn, changes int, told *[]seenChange) error {
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	var rest []byte
	b := make([]byte, 64<<10)
	for len(*told) < changes {
		n, err := conn.Read(b)
		now := time.Now()
		if err != nil {
			return errors.Join(err, io.ErrUnexpectedEOF)
		}
		rest = append(rest, b[:n]...)
		for {
			// Only the ids of changes have a dot before their line ends.
			_, after, ok := bytes.Cut(rest, []byte("id: "))
			id, _, whole := bytes.Cut(after, []byte("\n"))
			if !ok || !whole {
				break
			}
			rest = after[len(id):]
			revision, _, isChange := bytes.Cut(id, []byte("."))
			if !isChange {
				continue
			}
			index, err := strconv.ParseUint(string(revision), 10, 64)
			if err != nil {
				return fmt.Errorf("id %q: %w", id, err)
			}
			*told = append(*told, seenChange{index, now})
		}
	}
	return nil
}
