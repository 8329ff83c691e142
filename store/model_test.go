package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// scriptEntry is one log entry of a test: commands that are decided like the
// state machine decides them.
type scriptEntry struct {
	index    uint64
	commands []scriptCommand
}

type scriptCommand struct {
	op   string // put, delete, tree, member, unmember, compact, none
	keys []string
	val  string
	back uint64 // compact: how many revisions before the newest to keep
}

func randomKey(r *rand.Rand) string {
	return []string{"", "a/", "a/b/", "b/", "\xff"}[r.IntN(5)] + fmt.Sprintf("%c%d", 'k'+rune(r.IntN(2)), r.IntN(8))
}

func randomEntry(r *rand.Rand, index uint64) scriptEntry {
	e := scriptEntry{index: index}
	for range 1 + r.IntN(3) {
		c := scriptCommand{val: strings.Repeat("v", r.IntN(200)) + fmt.Sprint(index)}
		switch n := r.IntN(20); {
		case n < 10:
			c.op, c.keys = "put", []string{randomKey(r)}
		case n < 12:
			c.op = "put"
			for range 5 {
				c.keys = append(c.keys, randomKey(r)) // with repeats
			}
		case n < 16:
			c.op, c.keys = "delete", []string{randomKey(r)}
		case n < 17:
			c.op, c.keys = "tree", []string{[]string{"a/b/", "b/", "\xff"}[r.IntN(3)]}
		case n < 18:
			c.op, c.keys = "member", []string{fmt.Sprint("m", r.IntN(3))}
		case n < 19:
			c.op, c.keys = "unmember", []string{fmt.Sprint("m", r.IntN(3))}
		default:
			c.op = "none"
		}
		if r.IntN(40) == 0 {
			c.op, c.back = "compact", r.Uint64N(60)
		}
		e.commands = append(e.commands, c)
	}
	return e
}

// applyScript applies the entries in one batch.
func applyScript(t testing.TB, s *State, entries ...scriptEntry) {
	t.Helper()
	b := s.Begin()
	defer b.Discard()
	for _, e := range entries {
		b.Entry(e.index, 1, command.Stamp(e.index), time.Unix(int64(e.index), 0))
		for _, c := range e.commands {
			switch c.op {
			case "compact":
				b.Compact(b.Revision() - min(c.back, b.Revision()))
			case "put":
				for _, k := range c.keys {
					setKey(t, b, k, c.val)
				}
			case "delete":
				b.Delete(c.keys[0])
			case "tree":
				var keys []string
				if err := b.ScanKeys(c.keys[0], func(k string) bool { keys = append(keys, k); return true }); err != nil {
					t.Fatal(err)
				}
				for _, k := range keys {
					b.Delete(k)
				}
			case "member":
				b.SetMember(command.Member{ID: c.keys[0], Version: c.val})
			case "unmember":
				b.RemoveMember(c.keys[0])
			}
			b.Step()
		}
	}
	if err := b.Publish(); err != nil {
		t.Fatal(err)
	}
}

// model is the simplest thing that answers as the state should: all keys at
// each revision.
type model struct {
	past    []map[string]command.Record // by revision
	touched map[string]uint64           // last change or delete
	members map[string]string
	kv      uint64

	log         []modelChange
	oldest      uint64
	lastDelete  uint64
	buried      uint64
	kvRevisions []uint64 // those at which a key changed
}

// modelChange is one change of a key.
type modelChange struct {
	rev     uint64
	entry   uint64
	key     string
	deleted bool
	val     string
}

func newModel() *model {
	return &model{past: []map[string]command.Record{{}}, touched: map[string]uint64{}, members: map[string]string{}}
}

func (m *model) now() map[string]command.Record { return m.past[len(m.past)-1] }

func (m *model) apply(e scriptEntry) {
	for _, c := range e.commands {
		next, rev := maps.Clone(m.now()), uint64(len(m.past))
		changed, kv := false, false
		set := func(k string) {
			rec, ok := next[k]
			if !ok {
				rec = command.Record{Key: k, CreateRevision: rev}
			}
			rec.Value, rec.ModifyRevision = []byte(c.val), rev
			next[k], m.touched[k] = rec, rev
			m.log = append(m.log, modelChange{rev, e.index, k, false, c.val})
			changed, kv = true, true
		}
		remove := func(k string) {
			if _, ok := next[k]; ok {
				delete(next, k)
				m.touched[k] = rev
				m.log = append(m.log, modelChange{rev: rev, entry: e.index, key: k, deleted: true})
				m.lastDelete = rev
				changed, kv = true, true
			}
		}
		switch c.op {
		case "put":
			for _, k := range c.keys {
				set(k)
			}
		case "delete":
			remove(c.keys[0])
		case "tree":
			for _, k := range slices.Sorted(maps.Keys(m.now())) {
				if strings.HasPrefix(k, c.keys[0]) {
					remove(k)
				}
			}
		case "compact":
			if to := rev - 1 - min(c.back, rev-1); to > m.oldest {
				m.oldest, m.buried = to, m.lastDelete
				if m.lastDelete >= to {
					m.buried = to - 1
				}
			}
		case "member":
			m.members[c.keys[0]] = c.val
			changed = true
		case "unmember":
			if _, ok := m.members[c.keys[0]]; ok {
				delete(m.members, c.keys[0])
				changed = true
			}
		}
		if changed {
			m.past = append(m.past, next)
		}
		if kv {
			m.kv = rev
			m.kvRevisions = append(m.kvRevisions, rev)
		}
	}
}

func (m *model) under(rev uint64, prefix, after string) []command.Record {
	var list []command.Record
	for _, k := range slices.Sorted(maps.Keys(m.past[rev])) {
		if strings.HasPrefix(k, prefix) && k > after {
			list = append(list, m.past[rev][k])
		}
	}
	return list
}

// prefixRevision is the last change under prefix as of a revision; deletes below
// the compaction point are forgotten.
func (m *model) prefixRevision(prefix string, at uint64) uint64 {
	newest := m.kvRevision(at)
	var last uint64
	for _, c := range m.log {
		if c.rev <= at && strings.HasPrefix(c.key, prefix) && (c.rev >= m.oldest || !c.deleted && m.lives(c, at)) {
			last = max(last, c.rev)
		}
	}
	if last == 0 || prefix == "" {
		return newest
	}
	return max(last, m.buried)
}

// lives reports whether a change still says what its key is at a revision.
func (m *model) lives(c modelChange, at uint64) bool {
	rec, ok := m.past[at][c.key]
	return ok && rec.ModifyRevision == c.rev
}

func (m *model) kvRevision(at uint64) uint64 {
	var last uint64
	for _, rev := range m.kvRevisions {
		if rev <= at {
			last = rev
		}
	}
	return last
}

func sameRecords(a, b []command.Record) bool {
	return slices.EqualFunc(a, b, func(x, y command.Record) bool {
		return x.Key == y.Key && string(x.Value) == string(y.Value) && x.CreateRevision == y.CreateRevision && x.ModifyRevision == y.ModifyRevision
	})
}

// check compares everything a view can be asked with the model.
func (m *model) check(t *testing.T, s *State, r *rand.Rand) {
	t.Helper()
	v := mustView(t, s)
	defer v.Close()
	now := uint64(len(m.past) - 1)
	if v.Revision() != now || v.KVRevision() != m.kv || s.Stats().Keys != uint64(len(m.now())) {
		t.Fatalf("revision %d, of keys %d, %d keys; want %d, %d, %d", v.Revision(), v.KVRevision(), s.Stats().Keys, now, m.kv, len(m.now()))
	}
	members, _ := v.Members()
	got := map[string]string{}
	for _, x := range members {
		got[x.ID] = x.Version
	}
	if !maps.Equal(got, m.members) {
		t.Fatalf("members %v; want %v", got, m.members)
	}
	rev := now
	if r.IntN(2) == 0 {
		rev = m.oldest + r.Uint64N(now-m.oldest+1)
	}
	m.checkPast(t, v, rev, r)
	for k := range m.touched {
		want := "-"
		if rec, ok := m.past[rev][k]; ok {
			want = string(rec.Value)
		}
		rec, err := v.GetAt(k, rev)
		wantValue(t, rec, err, want)
		if rev == now {
			rec, err = v.Get(k)
			wantValue(t, rec, err, want)
			rec, err = s.Get(k)
			wantValue(t, rec, err, want)
		}
	}
	for _, prefix := range []string{"", "a", "a/", "a/b/", "b/k", "\xff", "zz"} {
		after := ""
		if r.IntN(2) == 0 {
			after = randomKey(r)
		}
		limit := 1 + r.IntN(30)
		want := m.under(now, prefix, after)
		want = want[:min(limit, len(want))]
		var got, past, keys []command.Record
		gather := func(to *[]command.Record) func(command.Record) bool {
			return func(rec command.Record) bool {
				*to = append(*to, rec)
				return len(*to) < limit
			}
		}
		if err := v.Scan(prefix, after, gather(&got)); err != nil || !sameRecords(got, want) {
			t.Fatalf("scan %q after %q: %v\n got %v\nwant %v", prefix, after, err, got, want)
		}
		err := v.ScanKeys(prefix, after, func(k string, rev uint64) bool {
			keys = append(keys, command.Record{Key: k, ModifyRevision: rev})
			return len(keys) < limit
		})
		if err != nil || !slices.EqualFunc(keys, want, func(a, b command.Record) bool { return a.Key == b.Key && a.ModifyRevision == b.ModifyRevision }) {
			t.Fatalf("keys %q after %q: %v\n got %v\nwant %v", prefix, after, err, keys, want)
		}
		want = m.under(rev, prefix, after)
		want = want[:min(limit, len(want))]
		if err := v.ScanAt(prefix, after, rev, gather(&past)); err != nil || !sameRecords(past, want) {
			t.Fatalf("scan %q after %q at %d of %d: %v\n got %v\nwant %v", prefix, after, rev, now, err, past, want)
		}
		if last, err := v.PrefixRevision(prefix); err != nil || last != m.prefixRevision(prefix, now) {
			t.Fatalf("last change under %q is %d, %v; want %d", prefix, last, err, m.prefixRevision(prefix, now))
		}
		var exported []command.Record
		if last, err := v.PrefixRevisionAt(prefix, rev); err != nil || last != m.prefixRevision(prefix, rev) && rev >= m.firstKept() {
			t.Fatalf("last change under %q at %d is %d, %v; want %d", prefix, rev, last, err, m.prefixRevision(prefix, rev))
		}
		err = s.Export(context.Background(), prefix, max(rev, 1), func(rec command.Record) error {
			exported = append(exported, rec)
			return nil
		})
		if now > 0 && (err != nil || !sameRecords(exported, m.under(max(rev, 1), prefix, ""))) {
			t.Fatalf("export %q at %d: %v\n got %v\nwant %v", prefix, rev, err, exported, m.under(max(rev, 1), prefix, ""))
		}
	}
}

// firstKept is the first revision from the compaction point on that changed a
// key: before it, it may be forgotten which was the last.
func (m *model) firstKept() uint64 {
	for _, rev := range m.kvRevisions {
		if rev >= m.oldest {
			return rev
		}
	}
	return uint64(len(m.past))
}

// checkPast compares changes and histories with the model.
func (m *model) checkPast(t *testing.T, v *View, rev uint64, r *rand.Rand) {
	t.Helper()
	if v.OldestRevision() != m.oldest {
		t.Fatalf("oldest revision %d; want %d", v.OldestRevision(), m.oldest)
	}
	if m.oldest > 0 {
		if _, err := v.GetAt("a", m.oldest-1); !errors.Is(err, command.ErrCompacted) {
			t.Fatalf("read below %d: %v", m.oldest, err)
		}
	}
	if m.oldest > 1 {
		if err := v.ChangesAfter("", command.EndOf(m.oldest-2), rev, nil); !errors.Is(err, command.ErrCompacted) {
			t.Fatalf("changes below %d: %v", m.oldest, err)
		}
	}
	if last, err := v.KVRevisionAt(rev); err != nil || last != m.kvRevision(rev) && rev >= m.firstKept() {
		t.Fatalf("keys changed last at %d, %v; want %d", last, err, m.kvRevision(rev))
	}
	prefix := []string{"", "a/", "b/"}[r.IntN(3)]
	var got, want []modelChange
	var at []command.Position
	gather := func(c command.Change) bool {
		got = append(got, modelChange{c.At.Revision, uint64(c.Wall.Unix()), c.Record.Key, c.Deleted, string(c.Record.Value)})
		at = append(at, c.At)
		return true
	}
	if err := v.ChangesAfter(prefix, command.EndOf(max(m.oldest, 1)-1), rev, gather); err != nil {
		t.Fatal(err)
	}
	for _, c := range m.log {
		if c.rev >= m.oldest && c.rev <= rev && strings.HasPrefix(c.key, prefix) {
			want = append(want, c)
		}
	}
	if !slices.Equal(got, want) {
		t.Fatalf("changes under %q from %d to %d\n got %v\nwant %v", prefix, m.oldest, rev, got, want)
	}
	if len(at) > 0 {
		i := r.IntN(len(at))
		after := at[i]
		if got = nil; v.ChangesAfter(prefix, after, rev, gather) != nil || !slices.Equal(got, want[i+1:]) {
			t.Fatalf("changes under %q after %v to %d\n got %v\nwant %v", prefix, after, rev, got, want[i+1:])
		}
	}
	key := randomKey(r)
	got, want = nil, nil
	if err := v.KeyHistory(key, func(c command.Change) bool {
		got = append(got, modelChange{rev: c.At.Revision, key: c.Record.Key, deleted: c.Deleted, val: string(c.Record.Value)})
		return true
	}); err != nil {
		t.Fatal(err)
	}
	for i := len(m.log) - 1; i >= 0; i-- {
		if c := m.log[i]; c.key == key && (c.rev >= m.oldest || !c.deleted) {
			c.entry = 0
			if want = append(want, c); c.rev <= m.oldest {
				break
			}
		} else if c.key == key {
			break
		}
	}
	if !slices.Equal(got, want) {
		t.Fatalf("history of %q from %d\n got %v\nwant %v", key, m.oldest, got, want)
	}
}

func TestTheStateAnswersAsASimpleModelNowAndInThePast(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 7))
			s := openTestState(t, StateConfig{BufferBytes: 6 << 10, BufferAge: time.Hour})
			m := newModel()
			index := uint64(0)
			for range 60 {
				var group []scriptEntry
				for range 1 + r.IntN(6) {
					index++
					group = append(group, randomEntry(r, index))
				}
				applyScript(t, s, group...)
				for _, e := range group {
					m.apply(e)
				}
				switch r.IntN(12) {
				case 0:
					mustFlush(t, s)
				case 1:
					s = reopen(t, s)
				case 2:
					s = throughACopy(t, s)
				case 3:
					mustFlush(t, s)
					for s.compactDue() {
						if err := s.compactOnce(); err != nil {
							t.Fatal(err)
						}
					}
				}
				m.check(t, s, r)
			}
			mustFlush(t, s)
			m.check(t, s, r)
			for rev := int(m.oldest); rev < len(m.past); rev++ {
				var got []command.Record
				if err := s.Export(context.Background(), "", uint64(max(rev, 1)), func(rec command.Record) error {
					got = append(got, rec)
					return nil
				}); err != nil || !sameRecords(got, m.under(uint64(max(rev, 1)), "", "")) {
					t.Fatalf("revision %d differs: %v", rev, err)
				}
			}
		})
	}
}

func TestExportSaysWhatItCannotDo(t *testing.T) {
	s := openTestState(t, StateConfig{})
	putKey(t, s, "a", "1")
	none := func(command.Record) error { return nil }
	if err := s.Export(context.Background(), "", 2, none); !errors.Is(err, command.ErrRevisionNotReached) {
		t.Errorf("revision of the future: %v", err)
	}
	own := errors.New("own")
	if err := s.Export(context.Background(), "", 0, func(command.Record) error { return own }); err != own {
		t.Errorf("the caller's error came back as %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Export(ctx, "", 0, none); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestAnExportStaysAtItsRevisionWhileWritesGoOn(t *testing.T) {
	s := openTestState(t, StateConfig{BufferBytes: 64 << 10})
	m := newModel()
	c := scriptCommand{op: "put", val: "old"}
	for i := range 9000 { // more than two pages
		c.keys = append(c.keys, fmt.Sprintf("%05d", i))
	}
	e := scriptEntry{index: 1, commands: []scriptCommand{c}}
	applyScript(t, s, e)
	m.apply(e)
	rev, n := s.Revision(), 0
	err := s.Export(context.Background(), "", 0, func(rec command.Record) error {
		if want := m.past[rev][fmt.Sprintf("%05d", n)]; !sameRecords([]command.Record{rec}, []command.Record{want}) {
			t.Fatalf("record %d is %v; want %v", n, rec, want)
		}
		if n%1500 == 0 {
			putKey(t, s, fmt.Sprintf("%05d", n+4500), "new")
			deleteKey(t, s, fmt.Sprintf("%05d", n+4600))
			putKey(t, s, fmt.Sprintf("%05d-new", n+4600), "new")
		}
		n++
		return nil
	})
	if err != nil || n != 9000 {
		t.Errorf("%d records, %v", n, err)
	}
}
