package clustertests

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/client"
	"github.com/holdfast-db/holdfast/cluster-tests/history"
	"github.com/holdfast-db/holdfast/command"

	"github.com/holdfast-db/holdfast/cluster-tests/workload"
)

// feedEvent is an event of a feed, its data as it was sent.
type feedEvent struct{ id, name, data string }

// feedAt reads a feed at one node from behind an event on, "0" for all, until
// take returns false or the stream ends.
func feedAt(ctx context.Context, n *node, prefix, after string, take func(feedEvent) bool) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.http+"/v1/changes/"+prefix, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "text/event-stream")
	req.Header.Set("Last-Event-ID", after)
	res, err := web.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", res.StatusCode)
	}
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, 1<<20)
	var e feedEvent
	for lines.Scan() {
		field, value, _ := strings.Cut(lines.Text(), ": ")
		switch field {
		case "id":
			e.id = value
		case "event":
			e.name = value
		case "data":
			e.data = value
		case "":
			if e.name != "" && !take(e) {
				return nil
			}
			e = feedEvent{}
		}
	}
	return errors.Join(lines.Err(), errors.New("the stream ended"))
}

// lastKey, under each prefix that is followed, is written last.
const lastKey = "zz/last"

// wholeFeed is all of a feed at one node, up to the last key.
func wholeFeed(t *testing.T, n *node, prefix string) (all []feedEvent) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := feedAt(ctx, n, prefix, "0", func(e feedEvent) bool {
		all = append(all, e)
		return !strings.Contains(e.data, lastKey)
	}); err != nil {
		t.Fatalf("all of %q at %s: %v", prefix, n, err)
	}
	return all
}

// Who follows a prefix gets each change of it exactly once and in order, whatever
// node he asks, however often he comes back, and whatever dies meanwhile.
func TestFeedsLoseAndRepeatNothing(t *testing.T) {
	c := startCluster(t, threeSites)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	prefixes := []string{"", "feed/a", "feed/b/1", "feed/c/"}

	var over atomic.Bool
	var writers, followers sync.WaitGroup
	var acknowledged atomic.Int64
	for i := range 6 {
		random := rand.New(rand.NewPCG(uint64(i), 1))
		writers.Go(func() {
			for seq := 0; !over.Load(); seq++ {
				n := c.voters()[random.IntN(len(voters))]
				dir := fmt.Sprintf("feed/%c/", 'a'+rune(random.IntN(3)))
				key := fmt.Sprintf("%s%d", dir, random.IntN(30))
				var w written
				switch random.IntN(20) {
				case 0:
					w = remove(n, dir, "recurse")
				case 1, 2:
					w = remove(n, key, "")
				default:
					w = put(n, key, fmt.Sprintf("%d.%d", i, seq), "")
				}
				if w.outcome == history.Decided {
					acknowledged.Add(1)
				}
			}
		})
	}
	more := func(writes int64) {
		t.Helper()
		target := acknowledged.Load() + writes
		c.wait(60*time.Second, "writes are acknowledged", func() bool { return acknowledged.Load() >= target })
	}

	// Some change the node after a few events, at random or because it died.
	got := make([][]feedEvent, 3*len(prefixes))
	var connections atomic.Int64
	for i := range got {
		random := rand.New(rand.NewPCG(uint64(i), 2))
		prefix := prefixes[i%len(prefixes)]
		followers.Go(func() {
			after, last := "0", false
			for !last && ctx.Err() == nil {
				connections.Add(1)
				some := 1 + random.IntN(500)
				_ = feedAt(ctx, c.nodes[random.IntN(len(c.nodes))], prefix, after, func(e feedEvent) bool {
					got[i] = append(got[i], e)
					after, last, some = e.id, strings.Contains(e.data, lastKey), some-1
					return !last && some > 0
				})
			}
		})
	}
	// Others leave that to the client, and begin with what there is.
	kept := make([]map[string]string, len(prefixes))
	for i, prefix := range prefixes {
		var addresses []string
		for j := range c.nodes {
			addresses = append(addresses, c.nodes[(i+j)%len(c.nodes)].http)
		}
		cl, err := client.New(client.Config{Addresses: addresses})
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		kept[i] = map[string]string{}
		followers.Go(func() {
			enough, synced, at := errors.New("enough"), false, uint64(0)
			err := cl.Watch(ctx, prefix, client.Start{Init: true}, func(e client.Event) error {
				switch {
				case e.Op == client.OpSync:
					synced = true
				case synced && e.Index < at:
					return fmt.Errorf("index %d after %d", e.Index, at)
				case e.Op == client.OpDelete:
					delete(kept[i], e.Record.Key)
				default:
					kept[i][e.Record.Key] = string(e.Record.Value)
				}
				if at = e.Index; strings.HasSuffix(e.Record.Key, lastKey) {
					return enough
				}
				return nil
			})
			if !errors.Is(err, enough) {
				t.Errorf("the watch of %q ended with %v", prefix, err)
			}
		})
	}

	more(300)
	for range 2 {
		leader := c.waitLeader()
		c.kill(leader)
		more(200)
		c.start(leader)
		c.waitReady(leader)
	}
	c.cutOff("east")
	more(200)
	c.heal()
	c.kill(c.node("w1"))
	more(100)
	c.start(c.node("w1"))
	c.waitReady(c.node("w1"))
	c.stop(c.waitLeader())
	more(100)
	over.Store(true)
	writers.Wait()
	for _, n := range c.nodes {
		if !n.running() {
			c.start(n)
			c.waitReady(n)
		}
	}
	n := c.waitLeader()
	for _, prefix := range append(prefixes[1:], "") { // that of all keys ends at the last
		if w := put(n, prefix+lastKey, "x", ""); !w.ok {
			t.Fatalf("%+v", w)
		}
	}
	done := make(chan struct{})
	go func() { followers.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
		t.Fatal("the followers do not come to the end")
	}

	for i, prefix := range prefixes {
		// The one of all keys sees the last keys of the others first.
		all := wholeFeed(t, c.nodes[0], prefix)
		for _, n := range c.nodes[1:] {
			if there := wholeFeed(t, n, prefix); !slices.Equal(there, all) {
				t.Errorf("%q: %s tells it differently than %s", prefix, n, c.nodes[0])
			}
		}
		for j := i; j < len(got); j += len(prefixes) {
			if !slices.Equal(got[j], all) {
				t.Errorf("%q: a follower got %d events, there are %d", prefix, len(got[j]), len(all))
			}
		}
		want := map[string]string{}
		for _, e := range all {
			var ch struct {
				Op string
				KV workload.Entry
			}
			if err := json.Unmarshal([]byte(e.data), &ch); err != nil {
				t.Fatal(err)
			}
			if ch.Op == "delete" {
				delete(want, ch.KV.Key)
			} else {
				want[ch.KV.Key] = string(ch.KV.Value)
			}
		}
		if !maps.Equal(kept[i], want) {
			t.Errorf("%q: a watch has %d keys, there are %d", prefix, len(kept[i]), len(want))
		}
		t.Logf("%q: %d events", prefix, len(all))
	}
	t.Logf("%d connections, %d writes acknowledged", connections.Load(), acknowledged.Load())
}

// A follower that was away for longer than history is kept learns so, on every
// node, instead of being given less than everything.
func TestAFollowerThatFellOutOfHistoryIsTold(t *testing.T) {
	c := startCluster(t, threeSites, func(c *cluster) { c.extra = append(c.extra, dropHistory...) })
	leader := c.waitLeader()
	first := put(leader, "old", "x", "")
	if !first.ok {
		t.Fatalf("%+v", first)
	}
	var many bytes.Buffer
	for i := range 3000 { // more than is kept
		fmt.Fprintf(&many, "{\"key\":\"key/%d\",\"value\":\"\"}\n", i)
	}
	if status, body, _, err := call(t.Context(), leader, http.MethodPut, "/v1/bulk/", many.Bytes()); err != nil || status != http.StatusOK {
		t.Fatalf("%d %s %v", status, body, err)
	}
	place := fmt.Sprintf("%d.0", first.revision)
	for _, n := range c.nodes {
		cl, err := client.New(client.Config{Addresses: []string{n.http}})
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		c.wait(60*time.Second, "history is dropped on "+n.name, func() bool {
			put(leader, "key", time.Now().String(), "")
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			err := cl.Watch(ctx, "old", client.Start{After: place}, func(e client.Event) error {
				return fmt.Errorf("%s gave %+v", n, e)
			})
			if !errors.Is(err, command.ErrCompacted) && !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
			var named *client.Error
			return errors.As(err, &named) && named.Oldest > first.revision
		})
	}
}
