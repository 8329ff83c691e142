package command

import "testing"

func TestAForkHasWhatIsNotBehindItsLastEntry(t *testing.T) {
	f := Fork{Index: 10, Term: 3}
	for _, c := range []struct {
		index, term uint64
		has         bool
	}{{10, 3, true}, {9, 3, true}, {11, 3, false}, {99, 2, true}, {1, 4, false}, {0, 0, true}} {
		if got := f.Has(c.index, c.term); got != c.has {
			t.Errorf("entry %d of term %d: %v", c.index, c.term, got)
		}
	}
}

func TestTheFirstForkBehindAnEpochIsFound(t *testing.T) {
	forks := []Fork{{Epoch: 4}, {Epoch: 2}, {Epoch: 3}}
	for epoch, want := range map[uint64]uint64{1: 2, 2: 3, 3: 4, 4: 0} {
		if f, ok := ForkAfter(forks, epoch); f.Epoch != want || ok != (want > 0) {
			t.Errorf("behind %d: %d", epoch, f.Epoch)
		}
	}
}

func TestWhatTheStateSaysOfAForkCounts(t *testing.T) {
	all := AllForks([]Fork{{Epoch: 2, Site: "east"}}, []Fork{{Epoch: 2, Site: "other"}, {Epoch: 3, Site: "west"}})
	if len(all) != 2 || all[0].Site != "east" || all[1].Site != "west" {
		t.Errorf("%+v", all)
	}
}
