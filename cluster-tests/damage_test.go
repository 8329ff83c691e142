package clustertests

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// spoil changes a byte of a value at each place where it stands in a node's state
// file.
func (n *node) spoil(t *testing.T, value string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(n.data, "state.db"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for i := bytes.Index(b, []byte(value)); i >= 0; found++ {
		if _, err := f.WriteAt([]byte{b[i] ^ 1}, int64(i)); err != nil {
			t.Fatal(err)
		}
		next := bytes.Index(b[i+1:], []byte(value))
		if next < 0 {
			i = -1
		} else {
			i += 1 + next
		}
	}
	if found == 0 {
		t.Fatalf("%q is not in the state file of %s", value, n)
	}
}

// Damage of a record on disk is never served. The node takes the record from
// another one while it runs, also when a write needs it, also as the leader.
func TestADamagedRecordIsMendedWhileTheClusterServes(t *testing.T) {
	c := startCluster(t, threeSites)
	leader, e1 := c.waitLeader(), c.node("e1")
	value := func(i int) string { return fmt.Sprintf("value %d to be found on disk", i) }
	for i := range 30 {
		if w := put(leader, fmt.Sprintf("key/%02d", i), value(i), ""); !w.ok {
			t.Fatalf("put: %+v", w)
		}
	}
	c.waitLevel(10 * time.Second)
	for _, n := range []*node{leader, e1} {
		c.wait(10*time.Second, "the state of "+n.name+" is in its file", func() bool {
			b, err := os.ReadFile(filepath.Join(n.data, "state.db"))
			return err == nil && bytes.Contains(b, []byte(value(29)))
		})
	}

	e1.spoil(t, value(7))
	c.wait(10*time.Second, "e1 finds the damage when asked, and serves the key again", func() bool {
		a, err := read(e1, "key/07", "stale")
		if err != nil || len(a.entries) == 0 {
			return false
		}
		if got := string(a.entries[0].Value); got != value(7) {
			t.Fatalf("e1 served %q", got)
		}
		return c.caughtUp(e1).Kind == command.CopyRange // it may have had it in memory, too, when it was first asked
	})
	if s := c.caughtUp(e1); s.Records != 1 {
		t.Errorf("e1 was mended by %+v", s)
	}

	leader.spoil(t, value(9))
	if w := put(leader, "key/09", "after the damage", ""); !w.ok {
		t.Fatalf("put over a damaged record: %+v", w)
	}
	s := c.waitLevel(10 * time.Second)
	for _, n := range c.others() {
		if got, ok := n.status(); !ok || got.Lineage != s.Lineage || len(got.Damaged) > 0 {
			t.Errorf("%s: %+v", n, got)
		}
	}
}
