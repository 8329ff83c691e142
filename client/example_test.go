package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/client"
	"github.com/holdfast-db/holdfast/command"
)

// The examples run against a real node, which is a cluster of its own.

var exampleAddress string

func TestMain(m *testing.M) { os.Exit(withNode(m.Run)) }

// withNode runs fn beside a node at exampleAddress.
func withNode(fn func() int) int {
	dir, err := os.MkdirTemp("", "hf-client-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	bin := filepath.Join(dir, "holdfast")
	if out, err := exec.Command("go", "build", "-o", bin, "github.com/holdfast-db/holdfast/cmd/holdfast").CombinedOutput(); err != nil {
		log.Fatalf("%v: %s", err, out)
	}
	exampleAddress = freeAddress()
	node := exec.Command(bin, "agent", "--node", "n1", "--site", "home", "--home", "--role", "voter", "--bootstrap-expect", "1",
		"--data-dir", filepath.Join(dir, "data"), "--http", exampleAddress, "--raft", freeAddress())
	if err := node.Start(); err != nil {
		log.Fatal(err)
	}
	defer func() {
		_ = node.Process.Signal(os.Interrupt)
		_ = node.Wait()
	}()
	c, err := client.New(client.Config{Addresses: []string{exampleAddress}})
	if err != nil {
		log.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); c.Ready(context.Background()) != nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			log.Fatal("the node for the examples is never ready")
		}
	}
	return fn()
}

func freeAddress() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func exampleClient() *client.Client {
	c, err := client.New(client.Config{Addresses: []string{exampleAddress}})
	if err != nil {
		log.Fatal(err)
	}
	return c
}

func Example() {
	c := exampleClient()
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	if _, _, err := c.Put(ctx, "config/colour", []byte("green")); err != nil {
		log.Fatal(err)
	}
	rec, meta, err := c.Get(ctx, "config/colour")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s, from %s\n", rec.Value, meta.Site)

	_, _, err = c.Get(ctx, "config/none")
	fmt.Println(errors.Is(err, command.ErrKeyNotFound))
	// Output:
	// green, from home
	// true
}

// A write with a condition changes what nobody else has changed meanwhile.
func ExampleCAS() {
	c := exampleClient()
	defer c.Close()
	ctx := context.Background()

	made, _, err := c.Put(ctx, "counter", []byte("1"), client.CAS(0)) // only if it is new
	if err != nil {
		log.Fatal(err)
	}
	rec, _, err := c.Get(ctx, "counter", client.Consistent())
	if err != nil {
		log.Fatal(err)
	}
	changed, _, err := c.Put(ctx, "counter", []byte("2"), client.CAS(rec.ModifyRevision))
	if err != nil {
		log.Fatal(err)
	}
	late, _, err := c.Put(ctx, "counter", []byte("3"), client.CAS(rec.ModifyRevision))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(made, changed, late)
	// Output: true true false
}

// With Once the client may send a write as often as it takes.
func ExampleOnce() {
	c := exampleClient()
	defer c.Close()
	ok, _, err := c.Put(context.Background(), "orders/17", []byte("paid"), client.CAS(0), client.Once())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(ok)
	// Output: true
}

func ExampleClient_Txn() {
	c := exampleClient()
	defer c.Close()
	res, _, err := c.Txn(context.Background(), []client.TxnOp{
		{Verb: command.VerbCheckNotExists, Key: "accounts/closed"},
		{Verb: command.VerbSet, Key: "accounts/a", Value: []byte("70")},
		{Verb: command.VerbSet, Key: "accounts/b", Value: []byte("30")},
		{Verb: command.VerbGetTree, Key: "accounts/"},
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(res.OK)
	for _, r := range res.Records[2:] {
		fmt.Printf("%s %s\n", r.Key, r.Value)
	}
	// Output:
	// true
	// accounts/a 70
	// accounts/b 30
}

func ExampleClient_Lock() {
	c := exampleClient()
	defer c.Close()
	ctx := context.Background()

	l, err := c.Lock(ctx, "locks/backup", client.LockOptions{Name: "nightly backup"})
	if err != nil {
		log.Fatal(err)
	}
	_, err = c.Lock(ctx, "locks/backup", client.LockOptions{Try: true})
	fmt.Println(err)
	// Work under l.Context(), which ends when the lock is lost, and give l.Fence to
	// what is guarded.
	fmt.Println(l.Fence, l.Context().Err())
	if err := l.Unlock(ctx); err != nil {
		log.Fatal(err)
	}
	// Output:
	// lock is held by somebody else
	// 1 <nil>
}

// Of all that campaign for one key, one leads at a time.
func ExampleClient_Campaign() {
	c := exampleClient()
	defer c.Close()
	ctx, stop := context.WithCancel(context.Background())

	err := c.Campaign(ctx, "leaders/scheduler", "host-1", client.LockOptions{}, func(ctx context.Context) error {
		rec, _, err := c.Get(ctx, "leaders/scheduler")
		fmt.Printf("%s leads\n", rec.Value)
		stop() // a real leader works until ctx ends
		return err
	})
	fmt.Println(err)
	// Output:
	// host-1 leads
	// context canceled
}

func ExampleClient_Watch() {
	c := exampleClient()
	defer c.Close()
	ctx := context.Background()
	_, meta, err := c.Put(ctx, "watched/a", []byte("1"))
	if err != nil {
		log.Fatal(err)
	}
	if _, err := c.DeleteTree(ctx, "watched/"); err != nil {
		log.Fatal(err)
	}
	enough := errors.New("enough")
	seen := 0
	err = c.Watch(ctx, "watched/", client.Start{From: meta.Index}, func(e client.Event) error {
		fmt.Println(e.Op, e.Record.Key)
		if seen++; seen == 2 {
			return enough
		}
		return nil
	})
	fmt.Println(err)
	// Output:
	// put watched/a
	// delete watched/a
	// enough
}
