package clustertests

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/holdfast-db/holdfast/client"
)

// TestMeasureTransactions prints the rate of transactions of ten operations, and how
// long a lock takes from who gives it back to who waits for it: make bench.
func TestMeasureTransactions(t *testing.T) {
	measured(t, "make bench")
	c := startCluster(t, threeSites)
	var out strings.Builder
	fmt.Fprintf(&out, "three voters and two learners on %d processors (load included), %d runs of %v each, medians\n\n", runtime.NumCPU(), measureRuns, measureTime)
	table := tabwriter.NewWriter(&out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "transactions of ten operations\tconnections\tper second\toperations per second\tp50 ms\tp99 ms\t")
	var count atomic.Uint64
	for _, m := range []struct {
		name string
		verb func(i int) string
	}{
		{"ten sets", func(int) string { return "set" }},
		{"five gets, five sets", func(i int) string { return []string{"get-or-empty", "set"}[i%2] }},
		{"ten gets", func(int) string { return "get-or-empty" }},
	} {
		for _, connections := range []int{1, 64} {
			var rates []float64
			var p50, p99 []time.Duration
			for range measureRuns {
				f, err := drive(measureTime, connections, []*node{c.waitLeader()}, func(_, _ int) []byte {
					return txnRequest(count.Add(1), m.verb)
				})
				if err != nil {
					t.Fatal(err)
				}
				rates, p50, p99 = append(rates, f.rate), append(p50, f.p50), append(p99, f.p99)
			}
			fmt.Fprintf(table, "%s\t%d\t%.0f\t%.0f\t%.2f\t%.2f\t\n", m.name, connections, median(rates), 10*median(rates), millis(median(p50)), millis(median(p99)))
		}
	}
	table.Flush()
	handOver := measureHandOver(t, c, 200)
	fmt.Fprintf(&out, "\nlock hand-over, from the call that gives it back to the return of the one that waited: median %.1f ms, p99 %.1f ms, worst %.1f ms of %d\n",
		millis(median(handOver)), millis(handOver[len(handOver)*99/100]), millis(handOver[len(handOver)-1]), len(handOver))
	fmt.Fprint(os.Stdout, "\n", out.String(), "\n")
}

// txnRequest is the bytes of a transaction of ten operations.
func txnRequest(n uint64, verb func(i int) string) []byte {
	value := bytes.Repeat([]byte("0123456789abcdef"), measureValue/16)
	copy(value, fmt.Sprintf("%020d", n))
	var body bytes.Buffer
	body.WriteByte('[')
	for i := range 10 {
		if i > 0 {
			body.WriteByte(',')
		}
		v := verb(i)
		fmt.Fprintf(&body, `{"KV":{"Verb":%q,"Key":%q`, v, measureKey(int(n)*7919+i*31))
		if v == "set" {
			fmt.Fprintf(&body, `,"Value":%q`, base64.StdEncoding.EncodeToString(value))
		}
		body.WriteString("}}")
	}
	body.WriteByte(']')
	return append(fmt.Appendf(nil, "PUT /v1/txn HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n", body.Len()), body.Bytes()...)
}

// measureHandOver hands a lock to and fro between clients of two nodes.
func measureHandOver(t *testing.T, c *cluster, times int) []time.Duration {
	ctx := context.Background()
	apis := []*client.Client{clientOf(t, c.node("n1")), clientOf(t, c.node("n2"))}
	held, err := apis[0].Lock(ctx, "measured-lock", client.LockOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var took []time.Duration
	for i := range times {
		type got struct {
			l   *client.Lock
			at  time.Time
			err error
		}
		next := make(chan got, 1)
		go func() {
			l, err := apis[(i+1)%2].Lock(ctx, "measured-lock", client.LockOptions{})
			next <- got{l, time.Now(), err}
		}()
		// The other one waits when its session is there and its first try has failed.
		time.Sleep(20 * time.Millisecond)
		began := time.Now()
		if err := held.Unlock(ctx); err != nil {
			t.Fatal(err)
		}
		g := <-next
		if g.err != nil {
			t.Fatal(g.err)
		}
		took = append(took, g.at.Sub(began))
		held = g.l
	}
	if err := held.Unlock(ctx); err != nil {
		t.Fatal(err)
	}
	slices.Sort(took)
	return took
}
