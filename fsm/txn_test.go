package fsm

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/store"
)

func txnOf(ops ...command.TxnOp) *command.Txn { return &command.Txn{Ops: ops} }

// shown is a transaction's result on one line: key=value@ModifyRevision for each
// record, or the errors.
func shown(res *command.TxnResult) string {
	var parts []string
	for _, r := range res.Records {
		value := "-"
		if len(r.Value) > 0 {
			value = string(r.Value)
		}
		parts = append(parts, fmt.Sprintf("%s=%s@%d", r.Key, value, r.ModifyRevision))
	}
	for _, e := range res.Errors {
		parts = append(parts, fmt.Sprintf("%d: %s", e.Op, e.What))
	}
	return strings.Join(parts, ", ")
}

func TestATransactionDoesWhatItsVerbsSay(t *testing.T) {
	type op = command.TxnOp
	set := func(key, value string) op { return op{Verb: command.VerbSet, Key: key, Value: []byte(value)} }
	get := func(key string) op { return op{Verb: command.VerbGet, Key: key} }
	tree := func(verb command.Verb, prefix string) op { return op{Verb: verb, Key: prefix} }
	for _, c := range []struct {
		name    string
		ops     []op
		want    string
		changes int // of keys
	}{
		{"nothing", nil, "", 0},
		{"set", []op{set("a", "2"), set("new", "1")}, "a=-@7, new=-@7", 2},
		{"set to what it is", []op{set("a", "1")}, "a=-@3", 0},
		{"set to what it was", []op{set("a", "2"), set("a", "1")}, "a=-@7, a=-@7", 1},
		{"set and delete", []op{set("new", "1"), {Verb: command.VerbDelete, Key: "new"}}, "new=-@7", 0},
		{"delete and set", []op{{Verb: command.VerbDelete, Key: "a"}, set("a", "1"), get("a")}, "a=-@7, a=1@7", 2},
		{"each sees those before", []op{get("a"), set("a", "2"), get("a"), set("a", "3"), get("a")}, "a=1@3, a=-@7, a=2@7, a=-@7, a=3@7", 1},
		{"cas", []op{{Verb: command.VerbCAS, Key: "a", Index: 3, Value: []byte("2")}, {Verb: command.VerbCAS, Key: "new"}}, "a=-@7, new=-@7", 2},
		{"stale cas", []op{{Verb: command.VerbCAS, Key: "a", Index: 2}, {Verb: command.VerbCAS, Key: "a"}, {Verb: command.VerbCAS, Key: "new", Index: 3}},
			`0: failed to set key "a", index is stale, 1: failed to set key "a", index is stale, 2: failed to set key "new", index is stale`, 0},
		{"lock", []op{{Verb: command.VerbLock, Key: "a", Session: "s2", Value: []byte("1")}, {Verb: command.VerbCheckSession, Key: "a", Session: "s2"}}, "a=-@7, a=-@7", 1},
		{"lock what is held", []op{{Verb: command.VerbLock, Key: "b/locked", Session: "s1", Value: []byte("3")}}, "b/locked=-@5", 0},
		{"lock what another holds", []op{{Verb: command.VerbLock, Key: "b/locked", Session: "s2"}}, `0: failed to lock key "b/locked", lock is already held`, 0},
		{"lock for nobody", []op{{Verb: command.VerbLock, Key: "b/locked", Session: "s3"}}, `0: invalid session "s3"`, 0},
		{"lock and unlock for no session", []op{{Verb: command.VerbLock, Key: "a"}, {Verb: command.VerbUnlock, Key: "a"}, get("new")},
			`0: missing session, 1: missing session, 2: key "new" doesn't exist`, 0},
		{"unlock", []op{{Verb: command.VerbUnlock, Key: "b/locked", Session: "s1", Value: []byte("3")}}, "b/locked=-@7", 1},
		{"hand over", []op{{Verb: command.VerbUnlock, Key: "b/locked", Session: "s1"}, {Verb: command.VerbLock, Key: "b/locked", Session: "s2"}}, "b/locked=-@7, b/locked=-@7", 1},
		{"unlock what is not held", []op{{Verb: command.VerbUnlock, Key: "b/locked", Session: "s2"}, {Verb: command.VerbUnlock, Key: "a", Session: "s1"}, {Verb: command.VerbUnlock, Key: "new", Session: "s1"}},
			`0: failed to unlock key "b/locked", lock isn't held, or is held by another session, 1: failed to unlock key "a", lock isn't held, or is held by another session, 2: failed to unlock key "new", lock isn't held, or is held by another session`, 0},
		{"get", []op{get("a"), get("empty")}, "a=1@3, empty=-@6", 0},
		{"get what is missing", []op{get("new"), {Verb: command.VerbGetOrEmpty, Key: "new", Flags: 9}}, `0: key "new" doesn't exist`, 0},
		{"get or empty", []op{{Verb: command.VerbGetOrEmpty, Key: "new", Flags: 9}, {Verb: command.VerbGetOrEmpty, Key: "a"}}, "new=-@0, a=1@3", 0},
		{"get tree", []op{set("b/0", "0"), set("b/l", "0"), set("b/x", "0"), {Verb: command.VerbDelete, Key: "b/m"}, tree(command.VerbGetTree, "b/")},
			"b/0=-@7, b/l=-@7, b/x=-@7, b/0=0@7, b/l=0@7, b/locked=3@5, b/x=0@7", 4},
		{"get everything", []op{tree(command.VerbGetTree, "")}, "a=1@3, b/locked=3@5, b/m=2@4, empty=-@6", 0},
		{"get no tree", []op{tree(command.VerbGetTree, "none")}, "", 0},
		{"check index", []op{{Verb: command.VerbCheckIndex, Key: "a", Index: 3}, set("a", "2"), {Verb: command.VerbCheckIndex, Key: "a", Index: 7}}, "a=-@3, a=-@7, a=-@7", 1},
		{"check another index", []op{{Verb: command.VerbCheckIndex, Key: "a", Index: 2}, {Verb: command.VerbCheckIndex, Key: "new", Index: 2}},
			`0: failed index check for key "a", current modify index 3 != 2, 1: key "new" doesn't exist`, 0},
		{"check session", []op{{Verb: command.VerbCheckSession, Key: "b/locked", Session: "s1"}}, "b/locked=-@5", 0},
		{"check another session", []op{{Verb: command.VerbCheckSession, Key: "b/locked", Session: "s2"}, {Verb: command.VerbCheckSession, Key: "new"}},
			`0: failed session check for key "b/locked", current session "s1" != "s2", 1: key "new" doesn't exist`, 0},
		{"check absence", []op{{Verb: command.VerbCheckNotExists, Key: "new"}, set("new", "1")}, "new=-@7", 1},
		{"check absence of what is there", []op{{Verb: command.VerbCheckNotExists, Key: "a"}}, `0: key "a" exists`, 0},
		{"delete", []op{{Verb: command.VerbDelete, Key: "b/locked"}, {Verb: command.VerbDelete, Key: "new"}}, "", 1},
		{"delete-cas", []op{{Verb: command.VerbDeleteCAS, Key: "a", Index: 3}, {Verb: command.VerbDeleteCAS, Key: "new", Index: 3}, {Verb: command.VerbCheckNotExists, Key: "a"}}, "", 1},
		{"stale delete-cas", []op{{Verb: command.VerbDeleteCAS, Key: "a", Index: 2}, {Verb: command.VerbDeleteCAS, Key: "a"}},
			`0: failed to delete key "a", index is stale, 1: failed to delete key "a", index is stale`, 0},
		{"delete tree", []op{set("b/new", "1"), tree(command.VerbDeleteTree, "b/"), tree(command.VerbGetTree, "b/")}, "b/new=-@7", 2},
		{"delete everything", []op{tree(command.VerbDeleteTree, ""), set("a", "2"), tree(command.VerbGetTree, "")}, "a=-@7, a=2@7", 5},
		{"all or nothing", []op{set("a", "2"), get("new"), {Verb: command.VerbCheckIndex, Key: "a", Index: 3}, tree(command.VerbDeleteTree, "")},
			`1: key "new" doesn't exist, 2: failed index check for key "a", current modify index 7 != 3`, 0},
	} {
		for _, flushed := range []bool{false, true} {
			m := newMachine(t)
			m.must(session("s1", 0, command.BehaviorRelease))
			m.must(session("s2", 0, command.BehaviorRelease))
			m.must(putOf("a", "1", 0))
			m.must(putOf("b/m", "2", 0))
			m.must(acquireOf("b/locked", "s1", "3"))
			m.must(putOf("empty", "", 0))
			if flushed {
				if err := m.s.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			res := m.do(txnOf(c.ops...))
			if got := shown(res.Txn); got != c.want || res.OK != (res.Txn.Errors == nil) || res.Err != nil {
				t.Errorf("%s: %s\nwant %s", c.name, got, c.want)
			}
			revision, changes := uint64(6), 0
			if c.changes > 0 {
				revision = 7
			}
			if res.Revision != revision {
				t.Errorf("%s: decided at %d, not %d", c.name, res.Revision, revision)
			}
			v := m.view()
			if err := v.ChangesAfter("", command.EndOf(6), 7, func(command.Change) bool { changes++; return true }); err != nil || changes != c.changes {
				t.Errorf("%s: %d changes, not %d (%v)", c.name, changes, c.changes, err)
			}
			checkHolds(t, v)
		}
	}
}

// checkHolds fails unless the holds that are noted are those that the keys say.
func checkHolds(t *testing.T, v command.View) {
	t.Helper()
	var want, got []string
	if err := v.Scan("", "", func(rec command.Record) bool {
		if rec.Session != "" {
			want = append(want, hold(rec.Session, rec.Key))
		}
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if err := v.ScanKeys(store.SpaceHolds, "", func(key string, _ uint64) bool {
		got = append(got, key)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if slices.Sort(want); !slices.Equal(got, want) {
		t.Errorf("holds %q, the keys say %q", got, want)
	}
}

func TestAKeyMadeAnewInATransactionHasBothChangesInItsHistory(t *testing.T) {
	m := newMachine(t)
	m.must(session("s", 0, command.BehaviorRelease))
	m.must(acquireOf("k", "s", "1"))
	m.must(txnOf(command.TxnOp{Verb: command.VerbDelete, Key: "k"}, command.TxnOp{Verb: command.VerbLock, Key: "k", Session: "s", Value: []byte("2")}))
	if rec := m.record("k"); rec.CreateRevision != 3 || rec.LockIndex != 1 || rec.Session != "s" {
		t.Errorf("became %+v", rec)
	}
	v := m.view()
	checkHolds(t, v)
	var got []string
	if err := v.KeyHistory("k", func(c command.Change) bool {
		got = append(got, fmt.Sprintf("%d %v %s", c.At.Revision, c.Deleted, c.Record.Value))
		return true
	}); err != nil || fmt.Sprint(got) != "[3 false 2 3 true  2 false 1]" {
		t.Errorf("%q, %v", got, err)
	}
	for rev, want := range map[uint64]string{2: "1", 3: "2"} {
		if rec, err := v.GetAt("k", rev); err != nil || string(rec.Value) != want {
			t.Errorf("at %d: %q, %v", rev, rec.Value, err)
		}
	}
}

func TestAReadOnlyTransactionIsTheSameOnAViewAndInTheLog(t *testing.T) {
	m := newMachine(t)
	m.must(session("s", time.Second, command.BehaviorRelease))
	m.must(acquireOf("a/1", "s", "1"))
	m.must(putOf("a/2", "2", 5))
	c := txnOf()
	for v := command.VerbSet; v <= command.VerbDeleteTree; v++ {
		if !v.Writes() {
			for _, key := range []string{"a/1", "a/2", "a/3"} {
				c.Ops = append(c.Ops, command.TxnOp{Verb: v, Key: key, Index: 2, Session: "s", Flags: 8})
			}
		}
	}
	for {
		in := m.do(c)
		on, err := c.Read(m.view())
		if err != nil || shown(in.Txn) != shown(on) || fmt.Sprintf("%+v", in.Txn) != fmt.Sprintf("%+v", on) {
			t.Errorf("in the log %+v, on a view %+v, %v", in.Txn, on, err)
		}
		if len(in.Txn.Errors) == 0 {
			break
		}
		// And once more without those that fail.
		for i := len(in.Txn.Errors) - 1; i >= 0; i-- {
			op := in.Txn.Errors[i].Op
			c.Ops = append(c.Ops[:op], c.Ops[op+1:]...)
		}
	}
	if len(c.Ops) < 8 {
		t.Errorf("only %d operations are left", len(c.Ops))
	}
}
