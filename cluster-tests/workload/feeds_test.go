package workload

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// told as an event: k is its place among the changes of its index.
func (c Change) event(k int) Event {
	return Event{ID: fmt.Sprintf("%d.%d", c.Index, k), Name: c.Op, Change: c}
}

func TestFeedsJudgeFindsWhatIsMissingAndWhatCameTwice(t *testing.T) {
	at := func(c Change, before uint64) Change { c.Prev.ModifyIndex = before; return c }
	x, y := "feeds/0/x", "feeds/1/y"
	first := changed(2, x, "0.0", "", 0)
	second := []Change{at(changed(3, x, "0.1", "", 0), 2), changed(3, y, "0.1", "", 0)} // one transaction
	third := at(changed(5, x, "", "", 0), 3)
	log := []Change{first, second[0], second[1], third}
	all := []Event{first.event(0), second[0].event(0), second[1].event(1), third.event(0)}
	from := func(after string) Follow { return Follow{Prefix: "feeds/", After: after} }
	init := Follow{Prefix: "feeds/", Init: true}
	// A follower is one client, whatever he asks.
	type answer struct {
		in  Follow
		out any
	}
	listed := func(c Change, at uint64) Event {
		return Event{ID: fmt.Sprintf("%d@%s", at, c.KV.Key), Name: "put", Change: c}
	}
	sync := func(at uint64) Event { return Event{ID: fmt.Sprint(at), Name: "sync", Change: Change{Index: at}} }
	for _, c := range []struct {
		name    string
		answers []answer
		kinds   []string
	}{
		{"all at once", []answer{{from("0"), Stretch{all}}}, nil},
		{"resumed inside an index", []answer{{from("0"), Stretch{all[:2]}}, {from("3.0"), Stretch{all[2:]}}}, nil},
		{"resumed behind a sign of life", []answer{{from("0"), Stretch{append(slices.Clone(all[:3]), Event{ID: "4"})}}, {from("4"), Stretch{all[3:]}}}, nil},
		{"resumed behind a sign of life inside an index", []answer{
			{from("0"), Stretch{append(slices.Clone(all[:2]), Event{ID: "3.0"})}}, {from("3.0"), Stretch{append([]Event{{ID: "3.0"}}, all[2:]...)}},
		}, nil},
		{"a sign of life leaps over a part of an index", []answer{{from("0"), Stretch{append(slices.Clone(all[:2]), Event{ID: "3.1"}, all[2])}}}, []string{"going back"}},
		{"nothing came", []answer{{from("0"), Stretch{}}, {from("0"), Stretch{all}}}, nil},
		{"the rest of an index is lost", []answer{{from("0"), Stretch{all[:2]}}, {from("3.0"), Stretch{all[3:]}}}, []string{"gap"}},
		{"an index is lost", []answer{{from("0"), Stretch{all[:1]}}, {from("2.0"), Stretch{all[3:]}}}, []string{"gap"}},
		{"a sign of life leaps over something", []answer{{from("0"), Stretch{append(slices.Clone(all[:1]), Event{ID: "4"})}}}, []string{"gap"}},
		{"a change comes again", []answer{{from("0"), Stretch{all[:2]}}, {from("3.0"), Stretch{all[1:]}}}, []string{"going back"}},
		{"an index comes again", []answer{{from("0"), Stretch{all[:1]}}, {from("2.0"), Stretch{append([]Event{first.event(1)}, all[1:]...)}}}, []string{"ids differ"}},
		{"a change that never was", []answer{{from("0"), Stretch{[]Event{changed(2, x, "9.9", "", 0).event(0)}}}}, []string{"not what happened"}},
		{"one change, two ids", []answer{{from("0"), Stretch{[]Event{all[0], second[0].event(1)}}}}, nil}, // k counts other prefixes, too
		{"an id of something else", []answer{{from("0"), Stretch{[]Event{{ID: "7.0", Name: "put", Change: first}}}}}, []string{"broken answer"}},
		{"begun with a list", []answer{{init, Stretch{[]Event{listed(second[0], 3), listed(second[1], 3), sync(3), all[3]}}}}, nil},
		{"a list in two parts", []answer{{init, Stretch{[]Event{listed(second[0], 3)}}}, {from("3@feeds%2F0%2Fx"), Stretch{[]Event{listed(second[1], 3), sync(3), all[3]}}}}, nil},
		{"a list with a hole", []answer{{init, Stretch{[]Event{listed(second[0], 3), sync(3)}}}}, []string{"not the state it says"}},
		{"a list of an older state", []answer{{init, Stretch{[]Event{listed(first, 3), listed(second[1], 3), sync(3)}}}}, []string{"not the state it says"}},
		{"a change between list and stream is lost", []answer{{init, Stretch{[]Event{listed(first, 2), sync(2), all[3]}}}}, []string{"gap"}},
		{"compacted, though all is kept", []answer{{from("0"), Stretch{[]Event{{Name: "compacted", Oldest: 3}}}}}, []string{"compacted without cause"}},
		{"lists", []answer{
			{Follow{Prefix: "feeds/", From: 1}, Page{Changes: log[:3], Next: 4}},
			{Follow{Prefix: "feeds/", From: 4}, Page{Next: 5}},
			{Follow{Prefix: "feeds/", From: 5}, Page{Changes: log[3:], Next: 6}},
		}, nil},
		{"a list that splits an index", []answer{{Follow{Prefix: "feeds/", From: 1}, Page{Changes: log[:2], Next: 4}}}, []string{"gap"}},
		{"lists of a narrower prefix", []answer{{Follow{Prefix: "feeds/1/", From: 1}, Page{Changes: log[2:3], Next: 6}}}, nil},
		{"a list that is told to go back too far", []answer{{Follow{Prefix: "feeds/", From: 1}, Page{Oldest: 3}}}, []string{"compacted without cause"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var m made
			m.op(0, 1, "edit", []Edit{{Target: x, Value: "0.0"}}, uint64(2))
			m.op(2, 3, "edit", []Edit{{Target: x, Value: "0.1"}, {Target: y, Value: "0.1"}}, uint64(3))
			m.op(4, 5, "edit", []Edit{{Target: x, Delete: true}}, uint64(5))
			for i, a := range c.answers {
				m.op(time.Duration(10+2*i), time.Duration(11+2*i), "stream", a.in, a.out)
				m[len(m)-1].Client = 100
			}
			m.told(log...)
			condemns(t, NewFeeds(), m, c.kinds...)
		})
	}
	t.Run("a change names the wrong one before", func(t *testing.T) {
		var m made
		m.op(0, 1, "edit", []Edit{{Target: x, Value: "0.0"}}, uint64(2))
		m.told(at(first, 1))
		condemns(t, NewFeeds(), m, "wrong predecessor")
	})
	t.Run("the oldest change that is kept does not name one before", func(t *testing.T) {
		var m made
		m.op(0, 1, "list", Follow{Prefix: "feeds/", From: 3}, Page{Changes: log[1:], Next: 6})
		kept := logOf(append([]Change{at(second[0], 0)}, log[2:]...)...)
		kept.From = 3
		m.op(10, 11, "log", nil, kept)
		condemns(t, NewFeeds(), m, "out of nothing") // nobody is recorded to have written them
	})
	t.Run("the last change never comes", func(t *testing.T) {
		var m made
		m.op(0, 1, "last", "feeds/", false)
		m.told()
		condemns(t, NewFeeds(), m, "never came")
	})
}

func TestFeedsJudgeIsQuick(t *testing.T) {
	var m made
	var log []Change
	var events []Event
	for i := range 20_000 {
		c := changed(uint64(i+2), fmt.Sprintf("feeds/0/%d", i), fmt.Sprint("0.", i), "", 0)
		log, events = append(log, c), append(events, c.event(0))
		m.op(time.Duration(i), time.Duration(i+1), "edit", []Edit{{Target: c.KV.Key, Value: fmt.Sprint("0.", i)}}, c.Index)
	}
	for client := range 5 {
		for i := 0; i < len(events); i += 100 {
			in := Follow{Prefix: "feeds/", After: "0"}
			if i > 0 {
				in.After = events[i-1].ID
			}
			m.op(time.Duration(50_000+i), time.Duration(50_001+i), "stream", in, Stretch{events[i : i+100]})
			m[len(m)-1].Client = 1_000_000 + client
		}
	}
	m.told(log...)
	began := time.Now()
	condemns(t, NewFeeds(), m)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("%d requests judged in %v", len(m), took)
	}
}
