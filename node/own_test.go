package node

import (
	"testing"

	"github.com/holdfast-db/holdfast/command"
)

func TestTheFateOfAWriteIsReadFromTheLog(t *testing.T) {
	const term = 5
	// What the state machine is seen to do after a write meant for that term was
	// handed over at entry 10.
	type event func(o *own, w *ownWrite)
	entry := func(index, entryTerm, meant uint64, mine bool) event {
		return func(o *own, w *ownWrite) {
			id := command.ID{Run: o.run + 1, Seq: w.id.Seq}
			if mine {
				id = w.id
			}
			results := []command.Result{{OK: true, Revision: index}}
			if meant != entryTerm {
				results[0] = command.Result{Err: command.ErrNotLeader}
			}
			o.observe(index, entryTerm, &command.Entry{Term: meant, IDs: []command.ID{id}}, results)
		}
	}
	skipped := func(index, entryTerm uint64) event {
		return func(o *own, _ *ownWrite) { o.observe(index, entryTerm, nil, nil) }
	}
	jumped := func(index uint64) event { return func(o *own, _ *ownWrite) { o.jumped(index) } }
	decided := func(index uint64) event { return func(o *own, w *ownWrite) { o.decidedBy(w, index) } }
	other := func(index, entryTerm uint64) event { return entry(index, entryTerm, entryTerm, false) }
	for name, c := range map[string]struct {
		events []event
		want   fate
	}{
		"nothing is seen":                                        {nil, fateOpen},
		"another write of the term":                              {[]event{other(11, term)}, fateOpen},
		"its entry":                                              {[]event{entry(11, term, term, true)}, fateDone},
		"its entry, then a later term":                           {[]event{entry(11, term, term, true), other(12, term+1)}, fateDone},
		"a later term":                                           {[]event{other(11, term+1)}, fateLost},
		"its entry in a later term":                              {[]event{entry(11, term+1, term, true)}, fateLost},
		"an entry that a copy held":                              {[]event{skipped(11, term)}, fateHidden},
		"a copy that held more, then a later term":               {[]event{skipped(11, term+1), other(12, term+1)}, fateHidden},
		"an entry that a copy held before":                       {[]event{skipped(10, term)}, fateOpen},
		"a copy in place":                                        {[]event{jumped(11)}, fateHidden},
		"a copy that holds what was there":                       {[]event{jumped(10), other(11, term+1)}, fateLost},
		"its entry, then a copy":                                 {[]event{entry(11, term, term, true), jumped(12)}, fateDone},
		"decided at 12, nothing yet":                             {[]event{decided(12), other(11, term)}, fateOpen},
		"decided at 12, without its entry":                       {[]event{decided(12), other(12, term)}, fateLost},
		"decided at 12, its entry":                               {[]event{decided(12), entry(12, term, term, true)}, fateDone},
		"decided before it was asked":                            {[]event{other(11, term), decided(11)}, fateLost},
		"decided among what the state held before":               {[]event{decided(10)}, fateLost},
		"decided at 12, and a copy in place":                     {[]event{decided(12), jumped(12), other(13, term)}, fateHidden},
		"another process's write of the same number":             {[]event{entry(11, term, term, false)}, fateOpen},
		"another process's write of its number, in a later term": {[]event{entry(11, term+1, term+1, false)}, fateLost},
	} {
		o := newOwn()
		w := o.begin()
		if !o.meant(w, term, 10, nil) {
			t.Fatal("refused in its term")
		}
		for _, e := range c.events {
			e(o, w)
		}
		got, result := o.look(w)
		if got != c.want {
			t.Errorf("%s: fate %d, want %d", name, got, c.want)
		}
		if got == fateDone && result.Revision < 11 {
			t.Errorf("%s: result %+v", name, result)
		}
	}
}

func TestAWriteIsNotHandedToALeaderOfAPastTerm(t *testing.T) {
	o := newOwn()
	o.observe(7, 3, &command.Entry{}, nil)
	if o.meant(o.begin(), 2, 7, nil) {
		t.Error("handed over: an entry of the next term would not tell that it is lost")
	}
	if !o.meant(o.begin(), 3, 7, nil) {
		t.Error("refused in the present term")
	}
}

func TestACallToALeaderThatIsGoneIsGivenUp(t *testing.T) {
	o := newOwn()
	w, gone := o.begin(), false
	o.meant(w, 1, 0, func() { gone = true })
	o.observe(1, 1, &command.Entry{Term: 1, IDs: []command.ID{w.id}}, []command.Result{{OK: true}})
	if gone {
		t.Error("given up although the leader may answer")
	}
	o.observe(2, 2, &command.Entry{Term: 2}, nil)
	if !gone {
		t.Error("it waits for the leader of a past term")
	}
}
