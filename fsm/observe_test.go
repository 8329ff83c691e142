package fsm

import (
	"errors"
	"slices"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// A write that its sender takes for lost must not happen under a later leader.
func TestAnEntryThatWasMeantForAnotherTermChangesNothing(t *testing.T) {
	f, s := newFSM(t)
	meant := func(index, term uint64, commands ...command.Command) []command.Result {
		l := entry(index, command.Stamp(10*index), commands...)
		command.SetTerm(l.Data, term)
		l.Term = 7
		return apply(t, f, l)
	}
	if res := meant(1, 7, putOf("k", "1", 0)); !res[0].OK || res[0].Err != nil {
		t.Errorf("in its own term: %+v", res)
	}
	for i, other := range []uint64{6, 8} {
		index := uint64(2 + i)
		for _, r := range meant(index, other, putOf("k", "2", 0), &command.Term{}) {
			if r.OK || !errors.Is(r.Err, command.ErrNotLeader) {
				t.Errorf("meant for term %d, in term 7: %+v", other, r)
			}
		}
		if applied, _ := s.Applied(); applied != index {
			t.Errorf("applied up to %d, want %d", applied, index)
		}
		if now, _ := s.Stamp(); now != command.Stamp(10*index) {
			t.Errorf("cluster time is %d after entry %d", now, index)
		}
	}
	if rec, _ := get(t, s, "k"); string(rec.Value) != "1" || s.Revision() != 1 {
		t.Errorf("k is %q at revision %d", rec.Value, s.Revision())
	}
	if f.Term() != 0 {
		t.Errorf("the term command of another term counts: %d", f.Term())
	}
}

func TestTheObserverIsToldOfWhatReadersSee(t *testing.T) {
	s := openState(t, t.TempDir())
	f := New(s, func(err error) { t.Error(err) })
	type told struct {
		index, term uint64
		commands    int
		revision    uint64
	}
	var got []told
	f.Observe(func(index, term uint64, e *command.Entry, results []command.Result) {
		if applied, _ := s.Applied(); applied < index {
			t.Errorf("told of entry %d while readers see %d", index, applied)
		}
		x := told{index: index, term: term}
		if e != nil {
			x.commands, x.revision = len(e.Commands), results[len(results)-1].Revision
		}
		got = append(got, x)
	})
	one, two := entry(1, 0, putOf("a", "1", 0)), entry(2, 0, putOf("b", "1", 0), putOf("c", "1", 0))
	f.ApplyBatch([]*raft.Log{one, two})
	// An entry the state holds already: what came of it was decided elsewhere.
	f.ApplyBatch([]*raft.Log{two, entry(4, 0, putOf("a", "1", 0))})
	want := []told{{1, 1, 1, 1}, {2, 1, 2, 3}, {2, 1, 0, 0}, {4, 1, 1, 3}}
	if !slices.Equal(got, want) {
		t.Errorf("told %+v, want %+v", got, want)
	}
}

func TestTheObserverIsNotToldOfABatchThatFailed(t *testing.T) {
	s := openState(t, t.TempDir())
	f := New(s, func(error) {})
	told := 0
	f.Observe(func(uint64, uint64, *command.Entry, []command.Result) { told++ })
	// A key of this size passes no check before a proposal.
	f.ApplyBatch([]*raft.Log{entry(1, 0, putOf("a", "1", 0)), entry(2, 0, putOf(string(make([]byte, 64<<10)), "x", 0))})
	if told != 0 {
		t.Errorf("told of %d entries that nobody sees", told)
	}
}
