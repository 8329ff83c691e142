package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/store"
)

func openState(t *testing.T, dir string) *store.State {
	t.Helper()
	s, err := store.OpenState(store.StateConfig{Dir: dir, MaxData: 1 << 28})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func newFSM(t *testing.T) (*FSM, *store.State) {
	s := openState(t, t.TempDir())
	return New(s, func(err error) { t.Errorf("the state machine failed: %v", err) }), s
}

// entry is a log entry that carries commands.
func entry(index uint64, stamp command.Stamp, commands ...command.Command) *raft.Log {
	b := command.NewEntry(0)
	for _, c := range commands {
		b = command.Append(b, c)
	}
	command.SetTime(b, stamp, time.Unix(int64(index), 0))
	return &raft.Log{Index: index, Term: 1, Type: raft.LogCommand, Data: b}
}

func apply(t *testing.T, f *FSM, l *raft.Log) []command.Result {
	t.Helper()
	switch r := f.Apply(l).(type) {
	case []command.Result:
		return r
	default:
		t.Fatalf("entry %d: %v", l.Index, r)
		return nil
	}
}

func get(t *testing.T, s *store.State, key string) (command.Record, bool) {
	t.Helper()
	v, err := s.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	rec, err := v.Get(key)
	if errors.Is(err, command.ErrKeyNotFound) {
		return rec, false
	}
	if err != nil {
		t.Fatal(err)
	}
	rec.Value = bytes.Clone(rec.Value)
	return rec, true
}

func putOf(key, value string, flags uint64) *command.Put {
	return &command.Put{Key: key, Value: []byte(value), Flags: flags}
}

func TestCommandsAreDecidedAgainstTheStateBeforeThem(t *testing.T) {
	f, s := newFSM(t)
	for i, step := range []struct {
		name     string
		command  command.Command
		ok       bool
		revision uint64
		want     string // key=value after it; "" for not looked at
	}{
		{"a put makes a key", putOf("k", "1", 0), true, 1, "k=1"},
		{"an equal put changes nothing", putOf("k", "1", 0), true, 1, "k=1"},
		{"other flags are a change", putOf("k", "1", 7), true, 2, "k=1"},
		{"cas 0 on an existing key fails", &command.Put{Key: "k", Value: []byte("x"), Mode: command.PutCAS}, false, 2, "k=1"},
		{"cas on another revision fails", &command.Put{Key: "k", Value: []byte("x"), Mode: command.PutCAS, Index: 1}, false, 2, "k=1"},
		{"cas on its revision succeeds", &command.Put{Key: "k", Value: []byte("2"), Mode: command.PutCAS, Index: 2}, true, 3, "k=2"},
		{"cas on an absent key fails", &command.Put{Key: "none", Value: []byte("x"), Mode: command.PutCAS, Index: 3}, false, 3, "none"},
		{"cas 0 on an absent key succeeds", &command.Put{Key: "new", Value: []byte("x"), Mode: command.PutCAS}, true, 4, "new=x"},
		{"delete-cas on another revision fails", &command.Delete{Key: "new", CAS: true, Index: 3}, false, 4, "new=x"},
		{"delete-cas 0 on an existing key fails", &command.Delete{Key: "new", CAS: true}, false, 4, "new=x"},
		{"delete-cas on its revision succeeds", &command.Delete{Key: "new", CAS: true, Index: 4}, true, 5, "new"},
		{"deleting an absent key succeeds and changes nothing", &command.Delete{Key: "new"}, true, 5, "new"},
		{"delete-cas on an absent key succeeds", &command.Delete{Key: "new", CAS: true, Index: 9}, true, 5, "new"},
		{"many keys share one revision", &command.PutMany{KVs: []command.KV{{Key: "t/a", Value: []byte("1")}, {Key: "t/b", Value: []byte("2")}, {Key: "u", Value: []byte("3")}}}, true, 6, "t/b=2"},
		{"many keys that are equal already change nothing", &command.PutMany{KVs: []command.KV{{Key: "t/a", Value: []byte("1")}}}, true, 6, "t/a=1"},
		{"a tree goes in one revision", &command.DeleteTree{Prefix: "t/"}, true, 7, "t/a"},
		{"and nothing beside it", &command.DeleteTree{Prefix: "t/"}, true, 7, "u=3"},
		{"nobody holds a lock to release", &command.Put{Key: "u", Value: []byte("x"), Mode: command.PutRelease, Session: "s"}, false, 7, "u=3"},
		{"an empty value is a value", putOf("u", "", 0), true, 8, "u="},
		{"compaction steps no revision", &command.Compact{Revision: 6}, true, 8, "u="},
		{"nor does going back", &command.Compact{Revision: 2}, true, 8, "u="},
		{"everything goes", &command.DeleteTree{}, true, 9, "k"},
	} {
		res := apply(t, f, entry(uint64(i+1), 0, step.command))[0]
		if res.Err != nil || res.OK != step.ok || res.Revision != step.revision {
			t.Errorf("%s: %+v, want ok %v at revision %d", step.name, res, step.ok, step.revision)
		}
		key, value, wanted := cut(step.want)
		rec, found := get(t, s, key)
		if found != wanted || string(rec.Value) != value {
			t.Errorf("%s: %s is %q (%v), want %q (%v)", step.name, key, rec.Value, found, value, wanted)
		}
	}
}

func TestACompactedRevisionIsRefusedFromItsEntryOn(t *testing.T) {
	f, s := newFSM(t)
	for i := range uint64(9) {
		apply(t, f, entry(i+1, 0, putOf("k", string('0'+rune(i)), 0)))
	}
	at := func(rev uint64) error {
		v, err := s.View()
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		_, err = v.GetAt("k", rev)
		return err
	}
	if err := at(3); err != nil {
		t.Fatal(err)
	}
	apply(t, f, entry(10, 0, &command.Compact{Revision: 5}))
	if err := at(4); !errors.Is(err, command.ErrCompacted) {
		t.Errorf("revision 4: %v", err)
	}
	if err := at(5); err != nil {
		t.Errorf("revision 5: %v", err)
	}
	apply(t, f, entry(11, 0, &command.Compact{Revision: 1 << 50}))
	if got := s.OldestRevision(); got != 9 {
		t.Errorf("a point in the future became %d, the newest revision is 9", got)
	}
}

func cut(s string) (key, value string, found bool) {
	for i := range s {
		if s[i] == '=' {
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}

func TestAcquireNamesTheSessionThatIsNotThere(t *testing.T) {
	f, s := newFSM(t)
	res := apply(t, f, entry(1, 0, &command.Put{Key: "k", Value: []byte("x"), Mode: command.PutAcquire, Session: "s1"}))[0]
	if !errors.Is(res.Err, command.ErrInvalidSession) || res.Err.Error() != `invalid session: "s1"` {
		t.Errorf("acquire: %+v", res)
	}
	if _, found := get(t, s, "k"); found {
		t.Error("a refused acquire wrote the key")
	}
}

func TestAKeyKeepsItsCreationUntilItIsDeleted(t *testing.T) {
	f, s := newFSM(t)
	apply(t, f, entry(1, 0, putOf("k", "1", 0)))
	apply(t, f, entry(2, 0, putOf("k", "2", 0)))
	if rec, _ := get(t, s, "k"); rec.CreateRevision != 1 || rec.ModifyRevision != 2 {
		t.Errorf("after a change: %+v", rec)
	}
	apply(t, f, entry(3, 0, &command.Delete{Key: "k"}))
	apply(t, f, entry(4, 0, putOf("k", "2", 0)))
	if rec, _ := get(t, s, "k"); rec.CreateRevision != 4 || rec.ModifyRevision != 4 {
		t.Errorf("made anew: %+v", rec)
	}
}

// Two writes of one key in one entry need different revisions, or
// check-and-set could not tell them apart.
func TestWritesOfOneEntryHaveTheirOwnRevisions(t *testing.T) {
	f, _ := newFSM(t)
	res := apply(t, f, entry(1, 0, putOf("k", "1", 0), putOf("k", "2", 0),
		&command.Put{Key: "k", Value: []byte("3"), Mode: command.PutCAS, Index: 1},
		&command.Put{Key: "k", Value: []byte("4"), Mode: command.PutCAS, Index: 2}))
	want := []command.Result{{OK: true, Revision: 1}, {OK: true, Revision: 2}, {OK: false, Revision: 2}, {OK: true, Revision: 3}}
	for i := range want {
		if res[i] != want[i] {
			t.Errorf("write %d: %+v, want %+v", i, res[i], want[i])
		}
	}
}

// After a restart Raft hands over again what follows the durable state.
func TestEntriesTheStateHoldsAreSkipped(t *testing.T) {
	f, s := newFSM(t)
	logs := []*raft.Log{entry(1, 0, putOf("k", "1", 0)), entry(2, 0, putOf("k", "2", 0))}
	f.ApplyBatch(logs)
	v, _ := s.View()
	lineage := v.Lineage()
	v.Close()
	for _, r := range f.ApplyBatch(logs) {
		if r != nil {
			t.Errorf("an entry was applied twice: %v", r)
		}
	}
	v, _ = s.View()
	defer v.Close()
	if v.Revision() != 2 || v.Lineage() != lineage {
		t.Errorf("revision %d after the same entries came twice", v.Revision())
	}
}

func TestClusterTimeNeverGoesBack(t *testing.T) {
	f, s := newFSM(t)
	for i, c := range []struct{ entry, want command.Stamp }{{10, 10}, {30, 30}, {20, 30}, {31, 31}} {
		apply(t, f, entry(uint64(i+1), c.entry, putOf("k", fmt.Sprint(i), 0)))
		if got, _ := s.Stamp(); got != c.want {
			t.Errorf("entry stamped %d: cluster time %d, want %d", c.entry, got, c.want)
		}
	}
}

func TestTermIsThatOfTheLastTermCommand(t *testing.T) {
	f, _ := newFSM(t)
	for i, term := range []uint64{2, 5} {
		l := entry(uint64(i+1), 0, &command.Term{})
		l.Term = term
		apply(t, f, l)
		if f.Term() != term {
			t.Errorf("term %d after the command of term %d", f.Term(), term)
		}
	}
}

func TestTheFirstInitCounts(t *testing.T) {
	f, s := newFSM(t)
	first := &command.Init{Cluster: command.Cluster{ID: "a", HomeSite: "home", Epoch: 1}, Members: []command.Member{{ID: "n1-0", Name: "n1"}}}
	apply(t, f, entry(1, 0, first))
	res := apply(t, f, entry(2, 0, &command.Init{Cluster: command.Cluster{ID: "b"}}))[0]
	v, err := s.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	members, _ := v.Members()
	if v.Cluster() != first.Cluster || len(members) != 1 || res.Revision != 1 {
		t.Errorf("cluster %+v, members %+v, second init at %d", v.Cluster(), members, res.Revision)
	}
}

func TestAMemberThatWasRemovedForGoodIsNotSetAgain(t *testing.T) {
	f, s := newFSM(t)
	m := command.Member{ID: "n1-x", Name: "n1"}
	apply(t, f, entry(1, 0, &command.MemberSet{Member: m}))
	apply(t, f, entry(2, 0, &command.MemberRemove{ID: m.ID, Barred: true}))
	before := s.Head()
	if res := apply(t, f, entry(3, 0, &command.MemberSet{Member: m}))[0]; !errors.Is(res.Err, command.ErrRemoved) || res.OK {
		t.Errorf("%+v", res)
	}
	if now := s.Head(); len(s.Members()) != 0 || now.Revision != before.Revision {
		t.Errorf("it is back: %+v", s.Members())
	}
	m.ID = "n1-y"
	if res := apply(t, f, entry(4, 0, &command.MemberSet{Member: m}))[0]; !res.OK || len(s.Members()) != 1 {
		t.Errorf("under another identity: %+v", res)
	}
}

func TestAnUnknownEntryStopsTheProcess(t *testing.T) {
	f, _ := newFSM(t)
	defer func() {
		if recover() == nil {
			t.Error("a replica that skips an entry it cannot read diverges from the others")
		}
	}()
	f.Apply(&raft.Log{Index: 1, Type: raft.LogCommand, Data: []byte{99}})
}

func TestAFailedStoreAppliesNothingMore(t *testing.T) {
	s := openState(t, t.TempDir())
	var failures []error
	f := New(s, func(err error) { failures = append(failures, err) })
	apply(t, f, entry(1, 0, putOf("k", "1", 0)))
	// A key of this size passes no check before a proposal.
	if _, bad := f.Apply(entry(2, 0, putOf(string(make([]byte, 64<<10)), "x", 0))).(error); !bad {
		t.Error("the store took a key that it cannot hold")
	}
	if _, bad := f.Apply(entry(3, 0, putOf("k", "3", 0))).(error); !bad {
		t.Error("an entry was applied although one before it is missing")
	}
	if len(failures) != 1 {
		t.Errorf("told of %d failures: %v", len(failures), failures)
	}
	if rec, _ := get(t, s, "k"); string(rec.Value) != "1" {
		t.Errorf("readers see %q, want the last complete state", rec.Value)
	}
	if _, err := f.Snapshot(); err == nil {
		t.Error("a failed state machine gave a snapshot")
	}
}

// Equal logs give equal stores, however they are cut into batches and wherever
// the process restarts.
func TestEqualLogsGiveEqualLineage(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var logs []*raft.Log
	for i := range 400 {
		key := fmt.Sprint("k", rng.IntN(20))
		var c command.Command
		switch rng.IntN(6) {
		case 0:
			c = &command.Delete{Key: key}
		case 1:
			c = &command.DeleteTree{Prefix: fmt.Sprint("k", rng.IntN(3))}
		case 2:
			c = &command.Put{Key: key, Value: []byte("c"), Mode: command.PutCAS, Index: uint64(rng.IntN(400))}
		case 3:
			c = &command.MemberSet{Member: command.Member{ID: key, Level: uint32(rng.IntN(3))}}
		default:
			c = putOf(key, fmt.Sprint(rng.IntN(5)), 0)
		}
		logs = append(logs, entry(uint64(i+1), command.Stamp(i), c, putOf("common", fmt.Sprint(rng.IntN(3)), 0)))
	}
	head := func(batch int, restart bool) store.Head {
		dir := t.TempDir()
		s := openState(t, dir)
		f := New(s, func(err error) { t.Error(err) })
		for at := 0; at < len(logs); at += batch {
			f.ApplyBatch(logs[at:min(at+batch, len(logs))])
			if restart && at/batch%7 == 3 {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				s = openState(t, dir)
				f = New(s, func(err error) { t.Error(err) })
				f.ApplyBatch(logs[max(0, at-30):min(at+batch, len(logs))])
			}
		}
		return s.Head()
	}
	want := head(len(logs), false)
	for _, batch := range []int{1, 7, 64} {
		for _, restart := range []bool{false, true} {
			if got := head(batch, restart); got != want {
				t.Errorf("batches of %d, restarts %v: %+v, want %+v", batch, restart, got, want)
			}
		}
	}
}

func TestRestoreWithoutAStagedCopyLeavesTheStateAlone(t *testing.T) {
	f, s := newFSM(t)
	apply(t, f, entry(1, 0, putOf("k", "1", 0)))
	if err := f.Restore(io.NopCloser(bytes.NewReader([]byte("x")))); err == nil {
		t.Error("restored from nothing")
	}
	if rec, _ := get(t, s, "k"); string(rec.Value) != "1" {
		t.Errorf("k is %q", rec.Value)
	}
}

func BenchmarkApplyBatchOf64Puts(b *testing.B) {
	s, err := store.OpenState(store.StateConfig{Dir: b.TempDir(), MaxData: 1 << 32})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	f := New(s, func(err error) { b.Error(err) })
	b.ReportAllocs()
	index := uint64(0)
	for b.Loop() {
		index++
		e := command.NewEntry(64 * 300)
		for i := range 64 {
			e = command.Append(e, &command.Put{Key: fmt.Sprintf("bench/%08d", (index*64+uint64(i))%100_000), Value: make([]byte, 256), Flags: index})
		}
		f.ApplyBatch([]*raft.Log{{Index: index, Term: 1, Type: raft.LogCommand, Data: e}})
	}
}
