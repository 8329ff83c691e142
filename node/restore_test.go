package node_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/store"
)

// archive is an archive made on the member, which has applied all that the leader has.
func (m *member) archive() []byte {
	m.t.Helper()
	m.awaitLevel()
	var b bytes.Buffer
	if err := m.n.Load().Archive(m.t.Context(), func(uint64) io.Writer { return &b }); err != nil {
		m.t.Fatal(err)
	}
	return b.Bytes()
}

// awaitLevel waits until the member has applied all that was acknowledged.
func (m *member) awaitLevel() {
	m.t.Helper()
	if _, err := m.read("none", command.ReadOptions{Mode: command.ReadConsistent}); err != nil && !errors.Is(err, command.ErrKeyNotFound) {
		m.t.Fatal(err)
	}
}

func (m *member) restore(archive []byte) (uint64, error) {
	ctx, cancel := context.WithTimeout(m.t.Context(), 3*patience)
	defer cancel()
	return m.n.Load().Restore(ctx, bytes.NewReader(archive))
}

func TestARestoreReachesEveryMemberThroughTheLog(t *testing.T) {
	c := newCluster(t, nil)
	learner := c.add("e1", "east", command.RoleLearner)
	leader := c.leader()
	const keys = 300
	for i := range keys {
		leader.mustPut(fmt.Sprintf("key/%03d", i), strings.Repeat(fmt.Sprint(i), 2000))
	}
	archive := learner.archive()

	away := c.followers()[0]
	away.stop()
	leader = c.leader()
	leader.mustPut("key/000", "changed")
	last := leader.mustPut("later", "x")

	// Writes go on meanwhile, and each happens before the restore or after it.
	var (
		writers sync.WaitGroup
		stop    = make(chan struct{})
		after   atomic.Uint64
	)
	writers.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if res, err := leader.put("during", fmt.Sprint(i)); err != nil || !res.OK {
				t.Errorf("write %d: %+v, %v", i, res, err)
				return
			} else {
				after.Store(res.Revision)
			}
		}
	})
	rev, err := learner.restore(archive)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "a write after the restore", func() bool { return after.Load() > rev })
	close(stop)
	writers.Wait()
	if rev <= last {
		t.Errorf("restored at revision %d, the last before was %d", rev, last)
	}
	away.start()
	for _, m := range c.members {
		m.awaitLevel()
		for i := range keys {
			if got, err := m.read(fmt.Sprintf("key/%03d", i), command.ReadOptions{Mode: command.ReadStale}); err != nil || got != strings.Repeat(fmt.Sprint(i), 2000) {
				t.Fatalf("key %d on %s: %d bytes, %v", i, m.name, len(got), err)
			}
		}
		if _, err := m.read("later", command.ReadOptions{Mode: command.ReadStale}); !errors.Is(err, command.ErrKeyNotFound) {
			t.Errorf("a key that was not archived, on %s: %v", m.name, err)
		}
		eventually(t, m.name+" holds what the leader holds", func() bool {
			a, b := m.state.Head(), leader.state.Head()
			return a.Revision == b.Revision && a.Lineage == b.Lineage
		})
	}
}

func TestAnArchiveThatIsRefusedChangesNothingAnywhere(t *testing.T) {
	c := newCluster(t, nil)
	leader := c.leader()
	leader.mustPut("a", "1")
	archive := leader.archive()
	before := leader.mustPut("a", "2")
	for what, bad := range map[string][]byte{
		"cut short":      archive[:len(archive)-9],
		"a flipped bit":  func() []byte { b := bytes.Clone(archive); b[len(b)/2] ^= 1; return b }(),
		"something else": []byte("hello"),
	} {
		if _, err := leader.restore(bad); !errors.Is(err, command.ErrArchive) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if next := leader.mustPut("a", "3"); next != before+1 {
		t.Errorf("the refused archives took revisions %d to %d", before+1, next-1)
	}
}

func TestARestoreThatIsAbandonedLeavesNothingBehind(t *testing.T) {
	c := newCluster(t, nil)
	leader := c.leader()
	r := rand.New(rand.NewPCG(1, 2))
	value := make([]byte, 100<<10)
	for i := range 60 {
		for k := range value {
			value[k] = byte(r.Uint32())
		}
		leader.mustPut(fmt.Sprint("key/", i), string(value))
	}
	archive := leader.archive()
	before := leader.mustPut("a", "1")
	// The client goes away once some pieces are there.
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		if err := leader.state.WaitRevision(ctx, before+3); err != nil {
			t.Errorf("no pieces came: %v", err)
		}
		cancel()
	}()
	if _, err := leader.n.Load().Restore(ctx, bytes.NewReader(archive)); !errors.Is(err, context.Canceled) {
		t.Fatalf("a restore that nobody waits for: %v", err)
	}
	v, err := leader.state.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if err := v.ScanKeys(store.SpaceStage, "", func(key string, _ uint64) bool {
		t.Errorf("%q is left", key)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if got, err := leader.read("a", command.ReadOptions{}); err != nil || got != "1" {
		t.Errorf("%q, %v", got, err)
	}
	if id, at := leader.state.Restored(); id != "" {
		t.Errorf("restored %q at %d", id, at)
	}
}

// Whatever leaders come and go meanwhile, a restore that is acknowledged happened,
// and it happened once.
func TestARestoreEndsWellAcrossChangesOfTheLeader(t *testing.T) {
	c := newCluster(t, nil)
	learner := c.add("e1", "east", command.RoleLearner)
	random := bytes.Repeat([]byte("0123456789abcdef"), 4096)
	leader := c.leader()
	for i := range 40 {
		leader.mustPut(fmt.Sprint("key/", i), string(random))
	}
	archive := learner.archive()
	for round := range 3 {
		learner.mustPut("later", fmt.Sprint(round))
		done := make(chan error, 1)
		var rev uint64
		go func() {
			var err error
			rev, err = learner.restore(archive)
			done <- err
		}()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		if err := c.leader().n.Load().StepDown(ctx); err != nil {
			t.Log("step down: ", err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if _, at := learner.state.Restored(); at != rev {
			t.Errorf("round %d: restored at %d, it says %d", round, at, rev)
		}
		if _, err := learner.read("later", command.ReadOptions{Mode: command.ReadConsistent}); !errors.Is(err, command.ErrKeyNotFound) {
			t.Errorf("round %d: a key that was not archived: %v", round, err)
		}
	}
}
