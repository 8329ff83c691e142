package command

import (
	"errors"
	"reflect"
	"testing"
	"time"
)

var everyCommand = []Command{
	&Term{},
	&Init{Cluster: Cluster{ID: "c", Datacenter: "dc1", HomeSite: "home", Epoch: 1}, Members: []Member{{ID: "n1-0", Name: "n1", Site: "home", Role: RoleVoter, Level: 1}}},
	&MemberSet{Member: Member{ID: "e1-0", Name: "e1", Site: "east", Role: RoleLearner, RaftAddr: "a:1", HTTPAddr: "a:2", Version: "v", Level: 1}},
	&MemberRemove{ID: "n1-0"},
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
}

func TestEntryReadsBackAsItWasWritten(t *testing.T) {
	b := NewEntry(0)
	for _, c := range everyCommand {
		b = Append(b, c)
	}
	wall := time.Unix(12, 34)
	SetTime(b, 99, wall)
	e, err := DecodeEntry(b)
	if err != nil {
		t.Fatal(err)
	}
	if e.Stamp != 99 || !e.Wall.Equal(wall) {
		t.Errorf("time %v %v", e.Stamp, e.Wall)
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

func FuzzDecodeEntry(f *testing.F) {
	for _, c := range everyCommand {
		f.Add(Append(NewEntry(0), c))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := DecodeEntry(b)
		if err != nil {
			return
		}
		again := NewEntry(0)
		for _, c := range e.Commands {
			again = Append(again, c)
		}
		SetTime(again, e.Stamp, e.Wall)
		second, err := DecodeEntry(again)
		if err != nil || !reflect.DeepEqual(e.Commands, second.Commands) {
			t.Errorf("%+v encodes to something else: %+v, %v", e.Commands, second.Commands, err)
		}
	})
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
	for _, r := range []Result{{OK: true, Revision: 1 << 63}, {}, {Err: ErrInvalidSession.With("%q", "x"), Revision: 3}} {
		got, err := DecodeResult(AppendResult(nil, r))
		if err != nil || got.OK != r.OK || got.Revision != r.Revision || (got.Err == nil) != (r.Err == nil) {
			t.Errorf("%+v comes back as %+v, %v", r, got, err)
		}
		if r.Err != nil && got.Err.Error() != r.Err.Error() {
			t.Errorf("error %q comes back as %q", r.Err, got.Err)
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
	for _, c := range []Command{&Put{}, &Put{Key: long}, &Delete{}, &Delete{Key: long}, &DeleteTree{Prefix: long}, &PutMany{KVs: []KV{{Key: "a"}, {}}}} {
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
