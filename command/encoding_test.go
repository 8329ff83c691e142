package command

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"testing"
	"time"
)

var everyCommand = []Command{
	&Term{},
	&Init{Cluster: Cluster{ID: "c", Datacenter: "dc1", HomeSite: "home", Epoch: 1}, Members: []Member{{ID: "n1-0", Name: "n1", Site: "home", Role: RoleVoter, Level: 1}}},
	&MemberSet{Member: Member{ID: "e1-0", Name: "e1", Site: "east", Role: RoleLearner, RaftAddr: "a:1", HTTPAddr: "a:2", Version: "v", Level: 1}},
	&MemberRemove{ID: "n1-0"},
	&MemberRemove{ID: "n1-0", Barred: true},
	&Put{Key: "a", Value: []byte("v"), Flags: 3304740253564472344},
	&Put{Key: "a", Value: []byte{}, Mode: PutCAS, Index: 1 << 60},
	&Put{Key: "a", Value: []byte("v"), Mode: PutAcquire, Session: "s"},
	&Put{Key: "a", Value: []byte("v"), Mode: PutRelease, Session: "s", Flags: 1},
	&Delete{Key: "a/b"},
	&Delete{Key: "a/b", CAS: true, Index: 9},
	&DeleteTree{Prefix: ""},
	&DeleteTree{Prefix: "a/"},
	&Compact{Revision: 1 << 40},
	&PutMany{KVs: []KV{{Key: "x", Value: []byte("1"), Flags: 1}, {Key: "y", Value: []byte{}}}},
	&SessionCreate{Session: Session{ID: "s"}},
	&SessionCreate{Session: Session{
		ID: "s", Name: "n", Node: "n1", LockDelay: time.Millisecond, Behavior: BehaviorDelete, TTL: "2.83893084526062s",
		NodeChecks: []string{"serfHealth"}, ServiceChecks: json.RawMessage(`[{"ID":"c"}]`),
	}},
	&SessionDestroy{ID: "s"},
	&Txn{Ops: []TxnOp{}},
	&Txn{Ops: everyOp},
	&Once{Key: "k", Request: [16]byte{1, 15: 2}, Retention: time.Minute, Limit: 1 << 40, Command: &Txn{Ops: everyOp}},
	&Once{Key: "k", Command: &Delete{Key: "a"}},
	&SettingPut{Name: "autopilot", Value: []byte("{}")},
	&SettingPut{Name: "autopilot", Value: []byte("{}"), CAS: true, Index: 1 << 40},
	&Stage{ID: "a", Piece: 7, Data: []byte("piece")},
	&Restore{ID: "a", Pieces: 8, SHA256: [32]byte{3, 31: 4}},
}

// everyOp has an operation of each verb.
var everyOp = func() (ops []TxnOp) {
	for v := Verb(1); v < verbEnd; v++ {
		ops = append(ops, TxnOp{Verb: v, Key: "a/b", Value: []byte("v"), Flags: 1 << 60, Index: uint64(v), Session: "s"})
	}
	return ops
}()

var everyResult = []Result{
	{},
	{OK: true, Revision: 1 << 63},
	{Err: ErrInvalidSession.With("%q", "x"), Revision: 3},
	{OK: true, Revision: 9, Txn: &TxnResult{}},
	{OK: true, Revision: 9, Txn: &TxnResult{Records: []Record{
		{Key: "a", Value: []byte("v"), Flags: 1 << 60, LockIndex: 2, Session: "s", CreateRevision: 3, ModifyRevision: 9},
		{Key: "b", Value: []byte{}},
	}}},
	{Revision: 8, Txn: &TxnResult{Errors: []TxnError{{What: "this"}, {Op: 127, What: "that"}}}},
	{Err: ErrCompacted, Revision: 8, Txn: &TxnResult{Errors: []TxnError{{Op: 1}}}},
}

func TestEntryReadsBackAsItWasWritten(t *testing.T) {
	b := NewEntry(0)
	for _, c := range everyCommand {
		b = Append(b, c)
	}
	wall := time.Unix(12, 34)
	SetTime(b, 99, wall)
	SetTerm(b, 7)
	e, err := DecodeEntry(b)
	if err != nil {
		t.Fatal(err)
	}
	if e.Term != 7 || e.Stamp != 99 || !e.Wall.Equal(wall) {
		t.Errorf("term %d, time %v %v", e.Term, e.Stamp, e.Wall)
	}
	if !reflect.DeepEqual(e.Commands, everyCommand) {
		t.Errorf("got  %+v\nwant %+v", e.Commands, everyCommand)
	}
}

// A cut or changed entry must be an error or another command, never a panic or
// an endless allocation: the log is read at start, before anything can be done
// about it.
func TestDamagedEntriesAreErrors(t *testing.T) {
	for _, c := range everyCommand {
		whole := Append(NewEntry(0), c)
		for n := range whole {
			if e, err := DecodeEntry(whole[:n]); err == nil && len(e.Commands) > 0 {
				t.Errorf("%T cut to %d of %d bytes decodes to %+v", c, n, len(whole), e.Commands)
			}
		}
	}
}

// What was decoded once is encoded and decoded without a change.
func FuzzDecodeEntry(f *testing.F) {
	for _, c := range everyCommand {
		f.Add(Append(NewEntry(0), c))
		f.Add(AppendWithID(NewEntry(0), ID{1 << 60, 3}, c))
	}
	encode := func(e Entry) []byte {
		b := NewEntry(0)
		for i, c := range e.Commands {
			if id := e.IDs[i]; id != (ID{}) {
				b = AppendWithID(b, id, c)
			} else {
				b = Append(b, c)
			}
		}
		SetTime(b, e.Stamp, e.Wall)
		SetTerm(b, e.Term)
		return b
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := DecodeEntry(b)
		if err != nil {
			return
		}
		again := encode(e)
		second, err := DecodeEntry(again)
		if err != nil || !bytes.Equal(encode(second), again) || !slices.Equal(second.IDs, e.IDs) {
			t.Errorf("%+v encodes to something else: %+v, %v", e.Commands, second.Commands, err)
		}
	})
}

func TestAForwardedCommandKeepsItsID(t *testing.T) {
	for _, c := range everyCommand {
		id, got, rest, err := DecodeWithID(append(AppendWithID(nil, ID{1 << 60, 9}, c), "rest"...))
		if err != nil || id != (ID{1 << 60, 9}) || string(rest) != "rest" || !reflect.DeepEqual(got, c) {
			t.Errorf("%+v with an id is %+v with %v, %q left, %v", c, got, id, rest, err)
		}
		for _, b := range [][]byte{Append(nil, c), AppendWithID(nil, ID{}, c)} {
			if KindOf(b) != c.Kind() {
				t.Errorf("%T is of kind %d", c, KindOf(b))
			}
		}
	}
}

func TestErrorsKeepTheirIdentityOverTheWire(t *testing.T) {
	for code, s := range sentinels {
		if got := DecodeError(EncodeError(s)); !errors.Is(got, s) {
			t.Errorf("%s comes back as %v", code, got)
		}
		got := DecodeError(EncodeError(s.With("because %d", 7)))
		if !errors.Is(got, s) || got.Error() != s.Message+": because 7" {
			t.Errorf("%s with a detail comes back as %q", code, got)
		}
		for other, o := range sentinels {
			if other != code && errors.Is(s, o) {
				t.Errorf("%s is taken for %s", code, other)
			}
		}
	}
	for _, b := range [][]byte{EncodeError(errors.New("plain")), []byte(`{"code":"of the future"}`), []byte("garbage")} {
		if got := DecodeError(b); !errors.Is(got, ErrPeer) {
			t.Errorf("%s is taken for an error of this side: %v", b, got)
		}
	}
}

func TestResultReadsBackAsItWasWritten(t *testing.T) {
	for _, r := range everyResult {
		if got, err := DecodeResult(AppendResult(nil, r)); err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("%+v %+v comes back as %+v %+v, %v", r, r.Txn, got, got.Txn, err)
		}
	}
}

func BenchmarkDecodeEntryOf64Puts(b *testing.B) {
	e := NewEntry(0)
	for range 64 {
		e = Append(e, &Put{Key: "bench/0123456789", Value: make([]byte, 256)})
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeEntry(e); err != nil {
			b.Fatal(err)
		}
	}
}

func TestWhatNoStateCanHoldIsRefusedBeforeItIsProposed(t *testing.T) {
	long := string(make([]byte, MaxKey+1))
	for _, c := range []Command{&Put{}, &Put{Key: long}, &Delete{}, &Delete{Key: long}, &DeleteTree{Prefix: long}, &PutMany{KVs: []KV{{Key: "a"}, {}}},
		&Put{Key: "\x00s/"}, &DeleteTree{Prefix: "\x00"},
		&Txn{Ops: []TxnOp{{Verb: VerbGet}}}, &Txn{Ops: []TxnOp{{Verb: VerbSet, Key: "\x00"}}}, &Txn{Ops: []TxnOp{{Verb: verbEnd, Key: "a"}}}, &Txn{Ops: []TxnOp{{Key: "a"}}},
		&SessionCreate{}, &SessionCreate{Session: Session{ID: "a/b"}}, &SessionCreate{Session: Session{ID: long}}, &SessionCreate{Session: Session{ID: "s", ServiceChecks: json.RawMessage("{")}},
		&Once{Key: "k"}, &Once{Command: &Term{}}, &Once{Key: long, Command: &Term{}}, &Once{Key: "k", Command: &Put{}}, &Once{Key: "k", Command: &Once{Key: "k", Command: &Term{}}},
		&SettingPut{}, &Stage{}, &Restore{ID: long},
	} {
		if err := Validate(c); !errors.Is(err, ErrInvalidCommand) {
			t.Errorf("%T: %v", c, err)
		}
	}
	for _, c := range everyCommand {
		if err := Validate(c); err != nil {
			t.Errorf("%T: %v", c, err)
		}
	}
}

func TestEveryVerbIsFoundByItsName(t *testing.T) {
	for v := Verb(1); v < verbEnd; v++ {
		if got, ok := VerbNamed(v.String()); !ok || got != v {
			t.Errorf("%v is found as %v", v, got)
		}
	}
	for _, name := range []string{"", "SET", "verb 0"} {
		if v, ok := VerbNamed(name); ok {
			t.Errorf("%q is %v", name, v)
		}
	}
}
