package clustertests

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/client"
	"github.com/holdfast-db/holdfast/command"
)

// Here Holdfast's own Go client and command line work against a three-site cluster.

// clientOf asks those nodes.
func clientOf(t testing.TB, nodes ...*node) *client.Client {
	t.Helper()
	var addresses []string
	for _, n := range nodes {
		addresses = append(addresses, n.http)
	}
	c, err := client.New(client.Config{Addresses: addresses})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// Writes with Once succeed, each exactly once, whatever dies.
func TestWritesWithOnceHappenExactlyOnceWhileLeadersDie(t *testing.T) {
	c := startCluster(t, threeSites)
	const writers = 4
	var done [writers]int
	killing(c, 3, 2*time.Second, func(ctx context.Context) {
		var wg sync.WaitGroup
		for w := range writers {
			api := clientOf(t, c.voters()...)
			wg.Go(func() {
				// Each write appends to what the one before has left: one that happened
				// twice, or not, breaks the chain.
				for i := 1; ctx.Err() == nil; i++ {
					for {
						res, _, err := api.Txn(context.Background(), []client.TxnOp{
							{Verb: command.VerbCheckNotExists, Key: fmt.Sprintf("chain/%d/%d", w, i)},
							{Verb: command.VerbSet, Key: fmt.Sprintf("chain/%d/%d", w, i), Value: []byte("v")},
						}, client.Once())
						if err == nil {
							if !res.OK {
								t.Errorf("write %d of %d: %+v", i, w, res.Errors)
								return
							}
							break
						}
						if !errors.Is(err, command.ErrNoLeader) && !isUnreachable(err) {
							t.Errorf("write %d of %d: %v", i, w, err)
							return
						}
					}
					done[w] = i
				}
			})
		}
		wg.Wait()
	})
	api := clientOf(t, c.waitLeader())
	for w := range writers {
		keys, _, err := api.Keys(context.Background(), fmt.Sprintf("chain/%d/", w), "", client.Consistent())
		if err != nil || len(keys) != done[w] || done[w] == 0 {
			t.Errorf("writer %d: %d keys of %d writes, %v", w, len(keys), done[w], err)
		}
	}
	t.Logf("%v writes", done)
}

func isUnreachable(err error) bool {
	var u *client.UnreachableError
	return errors.As(err, &u)
}

// Of all that campaign one leads at a time, though leaders of the cluster die.
func TestOneCampaignerLeadsAtATimeWhileLeadersDie(t *testing.T) {
	c := startCluster(t, threeSites)
	var inside atomic.Int32
	var terms atomic.Int64
	killing(c, 3, 3*time.Second, func(ctx context.Context) {
		var wg sync.WaitGroup
		for i := range 4 {
			api := clientOf(t, c.nodes...)
			wg.Go(func() {
				var err error
				for ctx.Err() == nil {
					err = api.Campaign(ctx, "leader", fmt.Sprint(i), client.LockOptions{TTL: 10 * time.Second}, func(term context.Context) error {
						if inside.Add(1) != 1 {
							t.Error("two lead")
						}
						defer inside.Add(-1)
						terms.Add(1)
						select {
						case <-term.Done():
							return term.Err()
						case <-time.After(30 * time.Millisecond): // the work of a leader
							return errDone
						}
					})
					if !errors.Is(err, errDone) && ctx.Err() == nil {
						t.Logf("campaign: %v", err)
					}
				}
			})
		}
		wg.Wait()
	})
	if terms.Load() < 10 {
		t.Errorf("there were %d terms only", terms.Load())
	}
	t.Logf("%d terms of office", terms.Load())
}

var errDone = errors.New("done")

func TestTheClientFindsTheOtherServersAndTheNearestOfThem(t *testing.T) {
	c := startCluster(t, threeSites)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	api := clientOf(t, c.node("n1"))
	ended := make(chan error, 1)
	go func() { ended <- api.Discover(ctx) }()
	c.wait(20*time.Second, "the client knows all servers", func() bool { return len(api.Servers()) == len(c.nodes) })
	c.kill(c.node("n1")) // the only one it was told of
	if !eventually(20*time.Second, func() bool {
		_, meta, err := api.Get(ctx, "none", client.Stale())
		return errors.Is(err, command.ErrKeyNotFound) && meta.Node != "n1"
	}) {
		t.Error("the client knows no other server")
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	c.start(c.node("n1"))
	c.waitReady(c.node("n1"))
}

func TestTheCommandLineLocksListsAndCarriesOutTransactions(t *testing.T) {
	c := startCluster(t, threeSites)
	e1 := c.node("e1")
	out := func(want string, args ...string) {
		t.Helper()
		stdout, stderr, err := c.run(30*time.Second, e1, args...)
		if err != nil || !strings.Contains(stdout, want) {
			t.Errorf("%q: %v\n%s%s", args, err, stdout, stderr)
		}
	}
	fails := func(want string, args ...string) {
		t.Helper()
		stdout, stderr, err := c.run(30*time.Second, e1, args...)
		if err == nil || !strings.Contains(stderr, want) {
			t.Errorf("%q: %v\n%s%s", args, err, stdout, stderr)
		}
	}
	out("fence 1 of locks/a", "lock", "locks/a", "--", "sh", "-c", "echo fence $HOLDFAST_LOCK_FENCE of $HOLDFAST_LOCK_KEY")
	out("fence 2", "lock", "locks/a", "--", "sh", "-c", "echo fence $HOLDFAST_LOCK_FENCE")
	fails("ended with status 7", "lock", "locks/a", "--", "sh", "-c", "exit 7")
	fails("needs a key, --, and a command", "lock", "locks/a", "true")
	// Held by one, not to be had by another, and lost when its session ends.
	holder := make(chan string, 1)
	go func() {
		_, stderr, _ := c.run(60*time.Second, e1, "lock", "locks/b", "--", "sleep", "60")
		holder <- stderr
	}()
	api := clientOf(t, e1)
	var session string
	c.wait(20*time.Second, "the lock is held", func() bool {
		rec, _, err := api.Get(context.Background(), "locks/b", client.Consistent())
		session = rec.Session
		return err == nil && session != ""
	})
	fails("held by somebody else", "lock", "--try", "locks/b", "--", "true")
	out(session, "session", "list")
	out("ended", "session", "destroy", session)
	select {
	case stderr := <-holder:
		if !strings.Contains(stderr, "was lost while the command ran") {
			t.Error(stderr)
		}
	case <-time.After(30 * time.Second):
		t.Error("a command goes on though its lock is lost")
	}
	file := filepath.Join(t.TempDir(), "ops.json")
	write := func(ops string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(ops), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`[{"KV":{"Verb":"set","Key":"t/a","Value":"MQ=="}},{"KV":{"Verb":"get","Key":"t/a"}}]`)
	out("2 operations carried out", "txn", file)
	write(`[{"KV":{"Verb":"set","Key":"t/b"}},{"KV":{"Verb":"check-not-exists","Key":"t/a"}}]`)
	fails("1 operation cannot be done", "txn", file)
	write(`[{"KV":{"Verb":"sett","Key":"t/b"}}]`)
	fails("did you mean set?", "txn", file)
	out("n2", "operator", "list-peers")
	out("leads now", "operator", "transfer-leader")
	out("max-trailing-logs", "operator", "autopilot", "get-config")
	out("300", "operator", "autopilot", "set-config", "--max-trailing-logs", "300")
	c.wait(20*time.Second, "all members are healthy", func() bool {
		_, _, err := c.run(30*time.Second, e1, "operator", "autopilot", "health")
		return err == nil
	})
	fails("not found", "operator", "remove-peer", "--id", "nobody")
	out("removed w1", "operator", "remove-peer", "--id", "w1")
	w1 := c.node("w1")
	w1.mu.Lock()
	w1.meant = true // it ends by itself
	w1.mu.Unlock()
	c.wait(20*time.Second, "the removed member ends", func() bool { return !w1.running() })
	c.wipe(w1) // it may come back as a new one
	c.start(w1)
	c.waitReady(w1)
}
