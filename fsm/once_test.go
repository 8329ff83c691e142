package fsm

import (
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/store"
)

func onceOf(key string, c command.Command) *command.Once {
	o := &command.Once{Key: key, Retention: time.Minute, Limit: 1 << 20, Command: c}
	copy(o.Request[:], fmt.Sprintf("%p", c))
	return o
}

func TestARepeatedCommandGetsTheFirstResultAndChangesNothing(t *testing.T) {
	m := newMachine(t)
	m.must(putOf("k", "0", 0))
	m.must(session("s", 0, command.BehaviorRelease))
	for i, c := range []command.Command{
		putOf("k", "1", 0),
		putOf("k", "1", 0), // changes nothing
		&command.Put{Key: "new", Mode: command.PutCAS},
		&command.Put{Key: "new", Mode: command.PutCAS}, // false
		acquireOf("lock", "s", ""),
		acquireOf("lock", "none", ""), // an error
		&command.Delete{Key: "new"},
		&command.DeleteTree{Prefix: "lo"},
		&command.PutMany{KVs: []command.KV{{Key: "a"}, {Key: "b"}}},
		session("t", 0, command.BehaviorRelease),
		&command.SessionDestroy{ID: "t"},
		txnOf(command.TxnOp{Verb: command.VerbGet, Key: "none"}, command.TxnOp{Verb: command.VerbSet, Key: "k"}), // fails
		txnOf(command.TxnOp{Verb: command.VerbSet, Key: "k", Value: []byte("9")}),
	} {
		o := onceOf(fmt.Sprint("key", i), c)
		before := m.s.Head().Revision
		first := m.do(o)
		if first.Revision != before+1 {
			t.Errorf("%+v: decided at %d, kept at %d", c, first.Revision, before+1)
		}
		m.must(putOf("k", "between", uint64(i)))
		m.must(&command.Delete{Key: "new"})
		revision := m.s.Head().Revision
		m.now += time.Minute / 100
		again := m.do(o)
		if !reflect.DeepEqual(first, again) {
			t.Errorf("%+v: %+v, then %+v", c, first, again)
		}
		if m.s.Head().Revision != revision || string(m.record("k").Value) != "between" {
			t.Errorf("%+v: the repeat changed something", c)
		}
	}
}

func TestARepeatedTransactionGetsTheValuesOfTheFirst(t *testing.T) {
	m := newMachine(t)
	m.must(putOf("t/a", "a", 1))
	m.must(putOf("t/empty", "", 0))
	m.must(putOf("old", "old", 0))
	o := onceOf("key", txnOf(
		command.TxnOp{Verb: command.VerbGetTree, Key: "t/"},
		command.TxnOp{Verb: command.VerbSet, Key: "t/a", Value: []byte("b")},
		command.TxnOp{Verb: command.VerbGet, Key: "t/a"},
		command.TxnOp{Verb: command.VerbSet, Key: "t/a", Value: []byte("c")},
		command.TxnOp{Verb: command.VerbGetTree, Key: "t/"},
		command.TxnOp{Verb: command.VerbSet, Key: "t/a", Value: []byte("d")},
		command.TxnOp{Verb: command.VerbGetOrEmpty, Key: "none", Flags: 3},
		command.TxnOp{Verb: command.VerbGet, Key: "old"},
	))
	const want = "t/a=a@1, t/empty=-@2, t/a=-@4, t/a=b@4, t/a=-@4, t/a=c@4, t/empty=-@2, t/a=-@4, none=-@0, old=old@3"
	if got := shown(m.must(o).Txn); got != want {
		t.Fatalf("%s\nwant %s", got, want)
	}
	m.must(putOf("t/a", "later", 0))
	for _, step := range []struct {
		point uint64 // of compaction
		kept  bool
	}{{0, true}, {1, true}, {3, true}, {4, false}, {5, false}} {
		m.must(&command.Compact{Revision: step.point})
		if err := m.s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		res := m.do(o)
		if step.kept && (res.Err != nil || shown(res.Txn) != want) || !step.kept && !errors.Is(res.Err, command.ErrCompacted) || res.Revision != 4 {
			t.Errorf("compacted at %d: %+v %+v", step.point, res, res.Txn)
		}
	}
}

func TestAnIdempotencyKeyIsForOneRequest(t *testing.T) {
	m := newMachine(t)
	m.must(onceOf("key", putOf("k", "1", 0)))
	if res := m.do(onceOf("key", putOf("k", "2", 0))); res.OK || !errors.Is(res.Err, command.ErrKeyReused) {
		t.Errorf("%+v", res)
	}
	if string(m.record("k").Value) != "1" {
		t.Error("another request under the same key was carried out")
	}
	// Nor does a wrong hash do any harm.
	get := onceOf("txn", txnOf(command.TxnOp{Verb: command.VerbGet, Key: "k"}))
	m.must(get)
	for _, c := range []command.Command{putOf("k", "3", 0), txnOf()} {
		other := onceOf("txn", c)
		other.Request = get.Request
		if res := m.do(other); !errors.Is(res.Err, command.ErrKeyReused) {
			t.Errorf("%T under the hash of another: %+v", c, res)
		}
	}
}

func TestAnIdempotencyKeyIsFreeAfterItsRetention(t *testing.T) {
	m := newMachine(t)
	m.must(onceOf("key", putOf("k", "1", 0)))
	m.must(putOf("k", "2", 0))
	m.now = time.Minute - 1
	m.must(onceOf("other", putOf("other", "", 0)))
	if m.do(onceOf("key", putOf("k", "3", 0))); string(m.record("k").Value) != "2" {
		t.Error("the key was free too early")
	}
	m.now = time.Minute
	m.must(onceOf("key", putOf("k", "3", 0)))
	if string(m.record("k").Value) != "3" {
		t.Error("the key is not free")
	}
	for i := range 20 {
		m.now += time.Hour
		m.must(onceOf(fmt.Sprint("key", i), putOf("k", "4", 0)))
	}
	if n := m.system(store.SpaceOnce); n != 2 {
		t.Errorf("%d records are kept of one result", n)
	}
}

func TestFullOfResultsNewOnesAreRefusedAndOldOnesGiven(t *testing.T) {
	m := newMachine(t)
	limited := func(i int) *command.Once {
		o := onceOf(fmt.Sprint("key", i), putOf("k", fmt.Sprint(i), 0))
		copy(o.Request[:], fmt.Sprintf("request %d        ", i))
		o.Limit = 1000
		return o
	}
	n := 0
	for n < 100 && m.do(limited(n)).OK {
		n++
	}
	if n < 15 || n > 25 {
		t.Fatalf("%d results are 1000 bytes", n)
	}
	head := m.s.Head().Revision
	if res := m.do(limited(n)); !errors.Is(res.Err, command.ErrOnceFull) || res.Revision != head {
		t.Errorf("refused with %+v", res)
	}
	for i := range n {
		if res := m.must(limited(i)); res.Revision != uint64(i+1) {
			t.Errorf("the %d. result became %+v", i, res)
		}
	}
	m.now = time.Minute
	m.must(limited(n))
}
