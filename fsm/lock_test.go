package fsm

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/store"
)

// machine is a state machine that is fed one command after the other.
type machine struct {
	t     testing.TB
	f     *FSM
	s     *store.State
	index uint64
	now   time.Duration // cluster time
}

func newMachine(t *testing.T) *machine {
	f, s := newFSM(t)
	return &machine{t: t, f: f, s: s}
}

func (m *machine) do(c command.Command) command.Result {
	m.t.Helper()
	m.index++
	r, ok := m.f.Apply(entry(m.index, command.Stamp(m.now), c)).([]command.Result)
	if !ok {
		m.t.Fatalf("%+v could not be applied", c)
	}
	return r[0]
}

// must is do for a command that succeeds.
func (m *machine) must(c command.Command) command.Result {
	m.t.Helper()
	res := m.do(c)
	if !res.OK || res.Err != nil {
		m.t.Fatalf("%+v: %+v", c, res)
	}
	return res
}

func (m *machine) view() command.View {
	m.t.Helper()
	v, err := m.s.View()
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(v.Close)
	return v
}

func (m *machine) record(key string) command.Record {
	m.t.Helper()
	v := m.view()
	defer v.Close()
	rec, err := v.Get(key)
	if err != nil && !errors.Is(err, command.ErrKeyNotFound) {
		m.t.Fatal(err)
	}
	return rec
}

// system counts the system's records under a prefix.
func (m *machine) system(prefix string) (n int) {
	m.t.Helper()
	v := m.view()
	defer v.Close()
	if err := v.ScanKeys(prefix, "", func(string, uint64) bool { n++; return true }); err != nil {
		m.t.Fatal(err)
	}
	return n
}

func session(id string, delay time.Duration, b command.Behavior) *command.SessionCreate {
	return &command.SessionCreate{Session: command.Session{ID: id, LockDelay: delay, Behavior: b, TTL: "15s"}}
}

func acquireOf(key, session, value string) *command.Put {
	return &command.Put{Key: key, Value: []byte(value), Mode: command.PutAcquire, Session: session}
}

func releaseOf(key, session, value string) *command.Put {
	return &command.Put{Key: key, Value: []byte(value), Mode: command.PutRelease, Session: session}
}

func TestALockIsGivenAndTakenByTheseRules(t *testing.T) {
	m := newMachine(t)
	m.must(session("s1", 0, command.BehaviorRelease))
	m.must(session("s2", 0, command.BehaviorRelease))
	for _, step := range []struct {
		name     string
		command  command.Command
		ok       bool
		revision uint64
		want     string // value, holder and LockIndex after it
	}{
		{"acquire makes a key", acquireOf("k", "s1", "1"), true, 3, "1 s1 1"},
		{"the holder changes the value", acquireOf("k", "s1", "2"), true, 4, "2 s1 1"},
		{"the holder changes nothing", acquireOf("k", "s1", "2"), true, 4, "2 s1 1"},
		{"another does not get it", acquireOf("k", "s2", "x"), false, 4, "2 s1 1"},
		{"nor gives it back", releaseOf("k", "s2", "x"), false, 4, "2 s1 1"},
		{"nor nobody", releaseOf("k", "", "x"), false, 4, "2 s1 1"},
		{"a put keeps the lock", putOf("k", "3", 0), true, 5, "3 s1 1"},
		{"so does check-and-set", &command.Put{Key: "k", Value: []byte("4"), Mode: command.PutCAS, Index: 5}, true, 6, "4 s1 1"},
		{"so do many puts", &command.PutMany{KVs: []command.KV{{Key: "k", Value: []byte("5")}}}, true, 7, "5 s1 1"},
		{"release sets the value", releaseOf("k", "s1", "6"), true, 8, "6  1"},
		{"only once", releaseOf("k", "s1", "7"), false, 8, "6  1"},
		{"and nobody holds it", releaseOf("k", "", "7"), false, 8, "6  1"},
		{"the next holder raises LockIndex", acquireOf("k", "s2", "6"), true, 9, "6 s2 2"},
		{"a delete does not ask", &command.Delete{Key: "k"}, true, 10, "  0"},
		{"nothing is left to release", releaseOf("k", "s2", "x"), false, 10, "  0"},
		{"a new key starts anew", acquireOf("k", "s1", "7"), true, 11, "7 s1 1"},
		{"a tree goes, locked or not", &command.DeleteTree{Prefix: "k"}, true, 12, "  0"},
	} {
		res := m.do(step.command)
		rec := m.record("k")
		if got := fmt.Sprintf("%s %s %d", rec.Value, rec.Session, rec.LockIndex); res.Err != nil || res.OK != step.ok || res.Revision != step.revision || got != step.want {
			t.Errorf("%s: %+v, %q; want ok %v at %d, %q", step.name, res, got, step.ok, step.revision, step.want)
		}
		if holds := m.system(store.SpaceHolds); (holds == 1) != (rec.Session != "") {
			t.Errorf("%s: %d holds are noted", step.name, holds)
		}
	}
	for _, id := range []string{"none", ""} {
		if res := m.do(acquireOf("k", id, "x")); res.OK || !errors.Is(res.Err, command.ErrInvalidSession) {
			t.Errorf("the lock for session %q: %+v", id, res)
		}
	}
}

func TestTheEndOfASessionReleasesOrDeletesItsKeysInOneRevision(t *testing.T) {
	for _, behavior := range []command.Behavior{command.BehaviorRelease, command.BehaviorDelete} {
		t.Run(string(behavior), func(t *testing.T) {
			m := newMachine(t)
			m.must(session("s", 0, behavior))
			m.must(session("s-", 0, behavior)) // a name that begins the same
			m.must(putOf("k/0", "not held", 0))
			m.must(acquireOf("other", "s-", "1"))
			const keys = 5000
			var before uint64
			for i := range keys {
				before = m.must(&command.Put{Key: fmt.Sprint("k/", i), Value: []byte("v"), Flags: 7, Mode: command.PutAcquire, Session: "s"}).Revision
			}
			if err := m.s.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			if res := m.must(&command.SessionDestroy{ID: "s"}); res.Revision != before+1 {
				t.Errorf("made revisions %d to %d", before+1, res.Revision)
			}
			v := m.view()
			n := 0
			if err := v.Scan("k/", "", func(rec command.Record) bool {
				n++
				if rec.Session != "" || rec.LockIndex != 1 || string(rec.Value) != "v" || rec.Flags != 7 || rec.ModifyRevision != before+1 {
					t.Fatalf("became %+v", rec)
				}
				return true
			}); err != nil {
				t.Fatal(err)
			}
			if want := map[command.Behavior]int{command.BehaviorRelease: keys}[behavior]; n != want {
				t.Errorf("%d keys are left of %d", n, keys)
			}
			if _, err := v.Session("s"); !errors.Is(err, command.ErrSessionNotFound) {
				t.Errorf("the session: %v", err)
			}
			if m.record("other").Session != "s-" || m.system(store.SpaceHolds) != 1 {
				t.Error("another session lost its lock")
			}
			if v.SessionsRevision() != before+1 {
				t.Errorf("sessions changed at %d", v.SessionsRevision())
			}
			if res := m.must(&command.SessionDestroy{ID: "s"}); res.Revision != before+1 {
				t.Error("the end of an unknown session is a change")
			}
		})
	}
}

func TestASessionIsMadeOnce(t *testing.T) {
	m := newMachine(t)
	c := session("s", time.Second, command.BehaviorDelete)
	c.Session.Name, c.Session.NodeChecks, c.Session.ServiceChecks = "n", []string{"a"}, []byte(`[{"ID":"x"}]`)
	m.must(c)
	if res := m.must(session("s", 0, command.BehaviorRelease)); res.Revision != 1 {
		t.Errorf("made again at %d", res.Revision)
	}
	got, err := m.view().Session("s")
	want := c.Session
	want.CreateRevision = 1
	if err != nil || fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
}

// Who lost a lock may not know it yet.
func TestALostKeyCannotBeLockedBeforeItsLockDelayIsOver(t *testing.T) {
	for _, behavior := range []command.Behavior{command.BehaviorRelease, command.BehaviorDelete} {
		m := newMachine(t)
		m.must(session("a", 10*time.Second, behavior))
		m.must(session("b", 0, behavior))
		m.must(acquireOf("lost", "a", "1"))
		m.must(acquireOf("given", "a", "1"))
		m.must(releaseOf("given", "a", "1"))
		m.now = 5 * time.Second
		m.must(&command.SessionDestroy{ID: "a"})
		m.must(acquireOf("given", "b", "2"))
		m.must(acquireOf("never", "b", "2"))
		lock := &command.Txn{Ops: []command.TxnOp{{Verb: command.VerbLock, Key: "lost", Session: "b"}}}
		for _, after := range []time.Duration{5 * time.Second, 15*time.Second - 1} {
			m.now = after
			if res := m.do(acquireOf("lost", "b", "2")); res.OK || res.Err != nil {
				t.Errorf("%s, after %v: %+v", behavior, after, res)
			}
			if res := m.do(lock); res.OK || res.Txn.Errors[0].What != `failed to lock key "lost" due to lock delay` {
				t.Errorf("%s, after %v, in a transaction: %+v", behavior, after, res.Txn)
			}
			m.must(putOf("lost", fmt.Sprint(after), 0)) // asks for no lock
		}
		m.now = 15 * time.Second
		m.must(acquireOf("lost", "b", "2"))
		if n := m.system(store.SpaceDelays); n != 0 {
			t.Errorf("%s: %d records of a delay that is over", behavior, n)
		}
		m.must(&command.SessionDestroy{ID: "b"})
		m.must(session("c", 0, behavior))
		m.must(acquireOf("lost", "c", "3")) // b had no lock-delay
	}
}

func TestLockDelaysThatAreOverDoNotPileUp(t *testing.T) {
	m := newMachine(t)
	for i := range 20 {
		id := fmt.Sprint("s", i)
		m.must(session(id, time.Second, command.BehaviorDelete))
		for k := range 50 {
			m.must(acquireOf(fmt.Sprint(id, k), id, ""))
		}
		m.must(&command.SessionDestroy{ID: id})
		m.now += 2 * time.Second
	}
	if n := m.system(store.SpaceDelays); n > 2*100 {
		t.Errorf("%d records are left", n)
	}
}

func TestASettingIsKeptUntilItIsSetAnew(t *testing.T) {
	m := newMachine(t)
	m.must(putOf("k", "1", 0))
	for _, step := range []struct {
		command  command.SettingPut
		ok       bool
		revision uint64 // of the setting, after it
		want     string
	}{
		{command.SettingPut{CAS: true, Index: 1, Value: []byte("x")}, false, 0, ""},
		{command.SettingPut{CAS: true, Value: []byte("1")}, true, 2, "1"},
		{command.SettingPut{CAS: true, Value: []byte("x")}, false, 2, "1"},
		{command.SettingPut{Value: []byte("1")}, true, 2, "1"},
		{command.SettingPut{Value: []byte("2")}, true, 3, "2"},
		{command.SettingPut{CAS: true, Index: 3, Value: []byte("3")}, true, 4, "3"},
	} {
		step.command.Name = "autopilot"
		res := m.do(&step.command)
		v := m.view()
		value, revision, err := v.Setting("autopilot")
		if err != nil || res.Err != nil || res.OK != step.ok || revision != step.revision || string(value) != step.want {
			t.Errorf("%+v: %+v, became %q at %d (%v); want %+v", step.command, res, value, revision, err, step)
		}
		if v.KVRevision() != 1 || strings.Contains(string(m.record("autopilot").Value), step.want) && step.want != "" {
			t.Error("a setting is shown as a key")
		}
	}
}
