package store

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// promotable is a pair of equal states of a cluster with a home of two voters, and two
// learners.
func promotable(t *testing.T) (seed, other *State) {
	t.Helper()
	seed, other = openTestState(t, StateConfig{}), openTestState(t, StateConfig{})
	for _, s := range []*State{seed, other} {
		inOneEntry(t, s, func(b *Batch) {
			b.SetCluster(command.Cluster{ID: "c", HomeSite: "home", Epoch: 1})
			for _, m := range []command.Member{{ID: "h1", Role: command.RoleVoter}, {ID: "h2", Role: command.RoleVoter}, {ID: "e1", Role: command.RoleLearner}, {ID: "w1", Role: command.RoleLearner}} {
				m.Name, m.Site = m.ID, "home"
				b.SetMember(m)
			}
		})
		b := s.Begin()
		b.Configuration(b.Applied()+1, 1, raft.Configuration{Servers: []raft.Server{
			{ID: "h1", Suffrage: raft.Voter}, {ID: "h2", Suffrage: raft.Voter}, {ID: "e1", Suffrage: raft.Nonvoter}, {ID: "w1", Suffrage: raft.Nonvoter},
		}})
		if err := b.Publish(); err != nil {
			t.Fatal(err)
		}
		for _, v := range []string{"1", "2", "3"} {
			putKey(t, s, "a", v)
		}
		putKey(t, s, "gone", "x")
		deleteKey(t, s, "gone")
	}
	return seed, other
}

func beginEpoch(t *testing.T, s *State) command.Fork {
	t.Helper()
	applied, term := s.Applied()
	e := command.EpochStart{Fork: command.Fork{Epoch: s.Head().Cluster.Epoch + 1, Site: "east", Index: applied, Term: term, At: time.Unix(99, 0)}, Term: term + 1, Voter: "e1"}
	if err := s.BeginEpoch(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	forks := s.Forks()
	return forks[len(forks)-1]
}

func TestAnEpochLeavesContentsAndHistoryAndChangesWhoTheHomeIs(t *testing.T) {
	s, _ := promotable(t)
	before, at := s.Head(), s.Revision()
	f := beginEpoch(t, s)
	check := func(s *State) {
		t.Helper()
		h := s.Head()
		if h.Cluster.Epoch != 2 || h.Cluster.HomeSite != "east" || h.Cluster.ID != "c" || h.Revision != at+epochLeap || h.Applied != before.Applied+2 {
			t.Errorf("the head is %+v", h)
		}
		if f.Revision != at || f.Lineage != before.Lineage || f.Begins != h.Revision {
			t.Errorf("the fork is %+v", f)
		}
		var ids []string
		for _, m := range s.Members() {
			ids = append(ids, m.ID+" "+string(m.Role))
		}
		if len(ids) != 2 || ids[0] != "e1 voter" || ids[1] != "w1 learner" {
			t.Errorf("members are %q", ids)
		}
		conf, index := s.Configuration()
		if index != h.Applied || len(conf.Servers) != 2 || conf.Servers[0].ID != "e1" || conf.Servers[0].Suffrage != raft.Voter || conf.Servers[1].Suffrage != raft.Nonvoter {
			t.Errorf("configuration %d is %+v", index, conf)
		}
		v := mustView(t, s)
		defer v.Close()
		rec, err := v.Get("a")
		wantValue(t, rec, err, "3")
		rec, err = v.GetAt("a", rec.ModifyRevision-1)
		wantValue(t, rec, err, "2")
	}
	check(s)
	s = reopen(t, s)
	check(s)
	// And once more, as after a crash before it was noted elsewhere.
	if err := s.BeginEpoch(t.Context(), command.EpochStart{Fork: f, Term: 9, Voter: "e1"}); err != nil {
		t.Fatal(err)
	}
	check(s)
	if rev := putKey(t, s, "a", "4"); rev != f.Begins+1 {
		t.Errorf("the first write has revision %d, want %d", rev, f.Begins+1)
	}
}

func TestACrashBeforeAnEpochIsDurableLeavesTheOneBefore(t *testing.T) {
	s, _ := promotable(t)
	mustFlush(t, s)
	before := s.Head()
	applied, term := s.Applied()
	if err := s.beginEpoch(command.EpochStart{Fork: command.Fork{Epoch: 2, Site: "east", Index: applied, Term: term}, Term: term + 1, Voter: "e1"}); err != nil {
		t.Fatal(err)
	}
	crashed := openTestState(t, StateConfig{Dir: copyOfFiles(t, s)})
	if h := crashed.Head(); h != before || len(crashed.Forks()) > 0 {
		t.Errorf("it is %+v", h)
	}
	beginEpoch(t, crashed)
}

func TestAnEpochBehindOneThatWasLostGivesNoRevisionOfItAgain(t *testing.T) {
	between, after := promotable(t) // of the first nothing is left but that it was
	beginEpoch(t, between)
	lost := putKey(t, between, "a", "given by the home that was lost")
	applied, term := after.Applied()
	e := command.EpochStart{Fork: command.Fork{Epoch: 3, Site: "east", Index: applied, Term: term}, Term: term + 1, Voter: "e1"}
	if err := after.BeginEpoch(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	if begins := after.Forks()[0].Begins; begins <= lost || begins < lost+epochLeap/2 {
		t.Errorf("epoch 3 begins with revision %d, epoch 2 had come to %d", begins, lost)
	}
}

func TestNoEpochBeginsOnAStateThatIsNotDurable(t *testing.T) {
	s, _ := promotable(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // nothing is flushed
	applied, term := s.Applied()
	e := command.EpochStart{Fork: command.Fork{Epoch: 2, Site: "east", Index: applied, Term: term}, Term: term + 1, Voter: "e1"}
	if err := s.BeginEpoch(ctx, e); !errors.Is(err, context.Canceled) {
		t.Fatalf("it is %v", err)
	}
	crashed := openTestState(t, StateConfig{Dir: copyOfFiles(t, s)})
	if marker, _ := crashed.Marker(); marker > applied {
		t.Errorf("entry %d counts as seen, the log ends with %d and the file is empty", marker, applied)
	}
	beginEpoch(t, s)
}

func TestCopiesCarryAnEpochToMembersOfTheOneBefore(t *testing.T) {
	seed, other := promotable(t)
	putKey(t, seed, "a", "tail") // which the other has only in its log, or not at all
	f := beginEpoch(t, seed)
	for i := range 20 {
		putKey(t, seed, "b", string(rune('a'+i)))
	}
	if stats := sendCopy(t, seed, other); stats.Kind != command.CopyDelta {
		t.Errorf("it took a %s copy", stats.Kind)
	}
	wantEqual(t, seed, other)
	if forks := other.Forks(); len(forks) != 1 || !command.SameFork(forks[0], f) {
		t.Errorf("it knows of the forks %+v", forks)
	}
	fresh := openTestState(t, StateConfig{})
	if stats := sendCopy(t, seed, fresh); stats.Kind != command.CopyFull {
		t.Errorf("an empty one took a %s copy", stats.Kind)
	}
	wantEqual(t, seed, fresh)
}

// wantEqual is wantSame over the revisions that there are.
func wantEqual(t *testing.T, from, to *State) {
	t.Helper()
	if x, y := string(mustJSON(from.gen.Load().meta)), string(mustJSON(to.gen.Load().meta)); x != y {
		t.Errorf("states differ:\n%s\n%s", x, y)
	}
	if !bytes.Equal(history(t, from), history(t, to)) {
		t.Error("history differs")
	}
}

func TestRevisionsBetweenTwoEpochsWereNeverGiven(t *testing.T) {
	s, _ := promotable(t)
	f := beginEpoch(t, s)
	putKey(t, s, "a", "4")
	v := mustView(t, s)
	defer v.Close()
	for _, rev := range []uint64{f.Revision + 1, f.Revision + 77, f.Begins - 1} {
		if _, err := v.GetAt("a", rev); !errors.Is(err, command.ErrCompacted) {
			t.Errorf("revision %d: %v", rev, err)
		}
		if err := v.ChangesAfter("", command.Position{Revision: rev, K: 3}, s.Revision(), func(command.Change) bool { return true }); !errors.Is(err, command.ErrCompacted) {
			t.Errorf("changes after %d: %v", rev, err)
		}
		if _, err := s.LineageAt(rev); !errors.Is(err, command.ErrCompacted) {
			t.Errorf("lineage at %d: %v", rev, err)
		}
	}
	var seen []uint64
	if err := v.ChangesAfter("", command.Position{}, s.Revision(), func(c command.Change) bool {
		seen = append(seen, c.At.Revision)
		return true
	}); err != nil || len(seen) != 6 || seen[5] != f.Begins+1 {
		t.Errorf("all changes: %v, %v", seen, err)
	}
	after := 0
	if err := v.ChangesAfter("", command.Position{Revision: f.Revision, K: 1 << 31}, s.Revision(), func(command.Change) bool { after++; return true }); err != nil || after != 1 {
		t.Errorf("%d changes after the fork, %v", after, err)
	}
	if len(s.Damaged()) > 0 {
		t.Errorf("damaged: %+v", s.Damaged())
	}
}

func TestCompactionPassesAnEpoch(t *testing.T) {
	s, _ := promotable(t)
	f := beginEpoch(t, s)
	for _, v := range []string{"4", "5", "6"} {
		putKey(t, s, "a", v)
	}
	if at, err := s.HistoryStart(command.Retention{Age: 1, Changes: 4, Bytes: 1 << 20}); err != nil || at != f.Begins {
		t.Errorf("history of four changes begins at %d, %v; want %d", at, err, f.Begins)
	}
	for _, target := range []uint64{f.Revision - 1, f.Revision, f.Begins, f.Begins + 2} {
		inOneEntry(t, s, func(b *Batch) { b.Compact(target) })
		mustFlush(t, s)
		eventually(t, "compaction", func() bool { return !s.compactDue() })
		if at, err := s.HistoryStart(command.Retention{Age: time.Hour, Changes: 100, Bytes: 1 << 20}); err != nil || at != target {
			t.Errorf("at %d history begins at %d, %v", target, at, err)
		}
		var stream bytes.Buffer
		if err := s.WriteCopy(context.Background(), nil, &stream); err != nil {
			t.Errorf("at %d: %v", target, err)
		}
		wantFine(t, s)
	}
	if len(s.Damaged()) > 0 {
		t.Errorf("damaged: %+v", s.Damaged())
	}
}
