package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// stageArchive puts an archive aside in pieces and returns the command that restores it.
func stageArchive(t testing.TB, s *State, archive []byte) *command.Restore {
	t.Helper()
	c := &command.Restore{ID: "x", SHA256: sha256.Sum256(archive)}
	for piece := range slices.Chunk(archive, 200) {
		putKey(t, s, StageKey(c.ID, c.Pieces), string(piece))
		c.Pieces++
	}
	return c
}

// restoreNow carries out a restore in an entry of its own.
func restoreNow(t testing.TB, s *State, c *command.Restore) (uint64, error) {
	t.Helper()
	b := s.Begin()
	defer b.Discard()
	i := b.Applied() + 1
	b.Entry(i, 1, command.Stamp(i)*1000, time.Unix(int64(i), 0))
	rev, err := b.Restore(c)
	if errors.Is(err, command.ErrArchive) {
		if perr := b.Publish(); perr != nil {
			t.Fatal(perr)
		}
	}
	return rev, err
}

func restoreInto(t testing.TB, s *State, archive []byte) uint64 {
	t.Helper()
	rev, err := restoreNow(t, s, stageArchive(t, s, archive))
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func liveRecords(t testing.TB, s *State) []command.Record {
	t.Helper()
	var all []command.Record
	if err := s.Export(context.Background(), "", 0, func(rec command.Record) error {
		all = append(all, rec)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// archivedCluster is a state with all there is, and an archive of it.
func archivedCluster(t testing.TB) (*State, []byte) {
	s := openTestState(t, StateConfig{})
	inOneEntry(t, s, func(b *Batch) {
		b.SetCluster(command.Cluster{ID: "old", Datacenter: "dc1"})
		b.SetMember(command.Member{ID: "gone"})
	})
	for i := range 200 {
		putKey(t, s, fmt.Sprintf("key/%03d", i%50), strings.Repeat("v", i*20))
	}
	deleteKey(t, s, "key/007")
	inOneEntry(t, s, func(b *Batch) { putSession(b, "s1", "lock/a", "lock/b") })
	inOneEntry(t, s, func(b *Batch) {
		b.Put(command.Record{Key: SpaceSettings + "autopilot", Value: []byte("{}"), CreateRevision: b.NextRevision()})
		b.Put(command.Record{Key: SpaceDelays + "lock/c", Value: []byte("x"), CreateRevision: b.NextRevision()})
		b.Put(command.Record{Key: SpaceOnce + "k/1", Value: []byte("x"), CreateRevision: b.NextRevision()})
	})
	return s, archiveOf(t, s)
}

func TestARestoreBringsAllThatWasArchivedAndKeepsTheCluster(t *testing.T) {
	from, archive := archivedCluster(t)
	s := openTestState(t, StateConfig{})
	inOneEntry(t, s, func(b *Batch) {
		b.SetCluster(command.Cluster{ID: "new", Datacenter: "dc1"})
		b.SetMember(command.Member{ID: "n1", Name: "one"})
		b.SetMember(command.Member{ID: "n2", Name: "two"})
		b.Put(command.Record{Key: SpaceBarred + "n0", CreateRevision: b.NextRevision()})
		putSession(b, "s9", "lock/b")
	})
	putKey(t, s, "later", "1")
	before := mustView(t, s)
	changed, stop := s.Watch(command.Target{Kind: command.TargetKey, Key: "nowhere"})
	defer stop()
	old := s.Head()
	rev := restoreInto(t, s, archive)
	if now := s.Head(); rev != from.Revision()+1 || now.Revision != rev || now.Cluster != old.Cluster || len(s.Members()) != 2 || now.Lineage == old.Lineage {
		t.Fatalf("revision %d after %d, %+v", rev, from.Revision(), now)
	}
	if id, at := s.Restored(); id != "x" || at != rev {
		t.Errorf("restored %q at %d", id, at)
	}
	if got, want := liveRecords(t, s), liveRecords(t, from); len(got) != 51 || !slices.EqualFunc(got, want, func(a, b command.Record) bool {
		return a.Key == b.Key && bytes.Equal(a.Value, b.Value) && a.CreateRevision == b.CreateRevision && a.ModifyRevision == b.ModifyRevision &&
			a.LockIndex == b.LockIndex && a.Session == b.Session && a.Flags == b.Flags
	}) {
		t.Errorf("%d keys differ from the %d archived", len(got), len(want))
	}
	v := mustView(t, s)
	if ss, err := v.Session("s1"); err != nil || ss.Name != "of s1" {
		t.Errorf("session %+v, %v", ss, err)
	}
	if _, err := v.Session("s9"); !errors.Is(err, command.ErrSessionNotFound) {
		t.Errorf("a session that was not archived: %v", err)
	}
	if value, _, err := v.Setting("autopilot"); err != nil || string(value) != "{}" {
		t.Errorf("setting %q, %v", value, err)
	}
	if barred, err := v.Barred("n0"); err != nil || !barred {
		t.Errorf("who was barred is not any more: %v", err)
	}
	for key, want := range map[string]bool{
		SpaceHolds + "s1/lock/a": true, SpaceHolds + "s1/lock/b": true, SpaceHolds + "s9/lock/b": false,
		SpaceDelays + "lock/c": false, SpaceOnce + "k/1": false, StageKey("x", 0): false,
	} {
		if _, err := v.Get(key); (err == nil) != want {
			t.Errorf("record %q: %v", key, err)
		}
	}
	if _, err := before.Get("later"); err != nil {
		t.Errorf("a view of the state before: %v", err)
	}
	select {
	case <-changed:
	default:
		t.Error("a watch was not woken")
	}
	v.Close()
	before.Close()

	// It goes on as any state does, and so it does after a restart.
	for range 2 {
		if next := putKey(t, s, "key/001", fmt.Sprint("after ", s.Revision())); next != rev+1 {
			t.Errorf("revision %d after %d", next, rev)
		}
		rev++
		deleteKey(t, s, "key/002")
		putKey(t, s, "key/002", "again")
		rev += 2
		s = reopen(t, s)
	}
}

func TestAfterARestoreHistoryBeginsAnew(t *testing.T) {
	s := openTestState(t, StateConfig{})
	putKey(t, s, "a", "1")
	archive := archiveOf(t, s)
	last := putKey(t, s, "b", "2")
	rev := restoreInto(t, s, archive)
	if rev <= last || s.OldestRevision() != rev {
		t.Fatalf("revision %d after %d, history from %d", rev, last, s.OldestRevision())
	}
	v := mustView(t, s)
	if _, err := v.GetAt("b", last); !errors.Is(err, command.ErrCompacted) {
		t.Errorf("the past before the restore: %v", err)
	}
	if rec, err := v.GetAt("a", rev); err != nil || string(rec.Value) != "1" {
		t.Errorf("%q, %v", rec.Value, err)
	}
	// Who follows the changes must learn that this is not simply the next one.
	if err := v.ChangesAfter("", command.EndOf(rev-1), rev, func(command.Change) bool { return true }); !errors.Is(err, command.ErrCompacted) {
		t.Errorf("changes from the restore on: %v", err)
	}
	for _, prefix := range []string{"", "a", "b", "none"} {
		if at, err := v.PrefixRevision(prefix); err != nil || at != rev {
			t.Errorf("prefix %q: index %d, %v; want %d", prefix, at, err, rev)
		}
	}
	next := putKey(t, s, "a", "3")
	n := 0
	if err := mustView(t, s).ChangesAfter("", command.EndOf(rev), next, func(command.Change) bool { n++; return true }); err != nil || n != 1 {
		t.Errorf("%d changes after it, %v", n, err)
	}
}

func TestNodesThatRestoreAreEqualWhateverTheyHaveInMemory(t *testing.T) {
	_, archive := archivedCluster(t)
	a, b := openTestState(t, StateConfig{}), openTestState(t, StateConfig{BufferBytes: 1 << 10})
	for _, s := range []*State{a, b} {
		inOneEntry(t, s, func(b *Batch) { b.SetCluster(command.Cluster{ID: "c"}); b.SetMember(command.Member{ID: "n1"}) })
	}
	behind := openTestState(t, StateConfig{})
	sendCopy(t, a, behind)
	c := stageArchive(t, a, archive)
	stageArchive(t, b, archive)
	compactAll(t, b)
	b = reopen(t, b)
	for _, s := range []*State{a, b} {
		if _, err := restoreNow(t, s, c); err != nil {
			t.Fatal(err)
		}
		putKey(t, s, "after", "1")
	}
	if a.Head() != b.Head() {
		t.Errorf("%+v and %+v", a.Head(), b.Head())
	}
	// One that was away gets level by a full copy, and then by deltas.
	if st := sendCopy(t, b, behind); st.Kind != command.CopyFull {
		t.Errorf("a node from before the restore got a copy of kind %s", st.Kind)
	}
	putKey(t, b, "after", "2")
	if st := sendCopy(t, b, behind); st.Kind != command.CopyDelta {
		t.Errorf("a node from after it got a copy of kind %s", st.Kind)
	}
}

func TestAnArchiveThatIsNotAllThereLeavesTheStateAsItWas(t *testing.T) {
	_, archive := archivedCluster(t)
	for what, spoil := range map[string]func(s *State, c *command.Restore){
		"a piece is missing":         func(s *State, c *command.Restore) { deleteKey(t, s, StageKey("x", 2)) },
		"the last piece is missing":  func(s *State, c *command.Restore) { c.Pieces++ },
		"a piece too many":           func(s *State, c *command.Restore) { c.Pieces-- },
		"a piece is another":         func(s *State, c *command.Restore) { putKey(t, s, StageKey("x", 1), "y") },
		"the checksum is another":    func(s *State, c *command.Restore) { c.SHA256[0]++ },
		"nothing was put aside here": func(s *State, c *command.Restore) { c.ID = "y" },
	} {
		s := openTestState(t, StateConfig{})
		putKey(t, s, "a", "1")
		c := stageArchive(t, s, archive)
		spoil(s, c)
		before := s.Head()
		if _, err := restoreNow(t, s, c); !errors.Is(err, command.ErrArchive) {
			t.Errorf("%s: %v", what, err)
		}
		if now := s.Head(); now.Revision != before.Revision || now.Lineage != before.Lineage {
			t.Errorf("%s: from %+v to %+v", what, before, now)
		}
		putKey(t, s, "a", "2")
		if left, err := os.ReadDir(filepath.Join(s.cfg.Dir, archivesName)); err != nil || len(left) > 0 {
			t.Errorf("%s: files are left: %v, %v", what, left, err)
		}
	}
}

func TestALargeArchiveIsRestoredWhole(t *testing.T) {
	from := openTestState(t, StateConfig{})
	r := rand.New(rand.NewPCG(1, 2))
	random := make([]byte, 512<<10)
	for i := range random {
		random[i] = byte(r.Uint32())
	}
	for i := 0; i < 12_000; {
		inOneEntry(t, from, func(b *Batch) {
			for range 500 {
				setKey(t, b, fmt.Sprintf("key/%05d", i*7919%12_007), string(random[i:i+i%400]))
				i++
			}
		})
	}
	for i := range 20 {
		putKey(t, from, fmt.Sprint("large/", i), string(random[:len(random)-i]))
	}
	archive := archiveOf(t, from)
	s := openTestState(t, StateConfig{})
	c := &command.Restore{ID: "x", SHA256: sha256.Sum256(archive)}
	for piece := range slices.Chunk(archive, 128<<10) {
		putKey(t, s, StageKey(c.ID, c.Pieces), string(piece))
		c.Pieces++
	}
	if _, err := restoreNow(t, s, c); err != nil {
		t.Fatal(err)
	}
	if got := liveRecords(t, s); len(got) != 12_020 || !sameRecords(got, liveRecords(t, from)) {
		t.Errorf("%d keys, which differ from what was archived", len(got))
	}
}

func TestAnUploadIsVerifiedBeforeItIsUsedAndGoneAfterwards(t *testing.T) {
	_, archive := archivedCluster(t)
	s := openTestState(t, StateConfig{})
	used := false
	if err := s.SpoolArchive(t.Context(), bytes.NewReader(archive), func(r io.Reader, sum [sha256.Size]byte) error {
		used = true
		if b, err := io.ReadAll(r); err != nil || !bytes.Equal(b, archive) || sum != sha256.Sum256(archive) {
			t.Errorf("%d bytes of %d, %v", len(b), len(archive), err)
		}
		return nil
	}); err != nil || !used {
		t.Fatalf("used: %v, %v", used, err)
	}
	broken := errors.New("the line broke")
	for what, r := range map[string]io.Reader{
		"damaged": bytes.NewReader(archive[:len(archive)/2]),
		"broken":  io.MultiReader(bytes.NewReader(archive[:10]), failingReader{broken}),
	} {
		err := s.SpoolArchive(t.Context(), r, func(io.Reader, [sha256.Size]byte) error {
			t.Errorf("%s: it was used", what)
			return nil
		})
		if !errors.Is(err, command.ErrArchive) && !errors.Is(err, broken) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if left, err := os.ReadDir(filepath.Join(s.cfg.Dir, archivesName)); err != nil || len(left) > 0 {
		t.Errorf("files are left: %v, %v", left, err)
	}
}

type failingReader struct{ err error }

func (r failingReader) Read([]byte) (int, error) { return 0, r.err }

func BenchmarkRestore(b *testing.B) {
	from := openTestState(b, StateConfig{})
	for i := 0; i < 200_000; {
		inOneEntry(b, from, func(batch *Batch) {
			for range 1000 {
				setKey(b, batch, fmt.Sprintf("key/%08d", i*7919%200_003), strings.Repeat("v", 256))
				i++
			}
		})
	}
	archive := archiveOf(b, from)
	b.SetBytes(int64(from.DataBytes()))
	for b.Loop() {
		b.StopTimer()
		s := openTestState(b, StateConfig{})
		c := &command.Restore{ID: "x", SHA256: sha256.Sum256(archive)}
		for piece := range slices.Chunk(archive, 128<<10) {
			putKey(b, s, StageKey(c.ID, c.Pieces), string(piece))
			c.Pieces++
		}
		b.StartTimer()
		if _, err := restoreNow(b, s, c); err != nil {
			b.Fatal(err)
		}
	}
}
