package command

import (
	"bytes"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"
)

func FuzzCommandReadsBackAsItWasWritten(f *testing.F) {
	f.Add(byte(KindPut), byte(PutCAS), "a/b", []byte("v"), uint64(1), uint64(1)<<63, "s")
	f.Add(byte(KindPut), byte(PutAcquire), "", []byte{}, uint64(0), uint64(0), "\xff\x00")
	f.Add(byte(KindDelete), byte(1), "a", []byte(nil), uint64(0), uint64(9), "")
	f.Add(byte(KindPutMany), byte(3), "many", []byte("value"), uint64(7), uint64(0), "")
	f.Add(byte(KindCompact), byte(0), "", []byte(nil), uint64(0), uint64(12), "")
	for kind := KindSessionCreate; kind <= KindRestore; kind++ {
		f.Add(byte(kind), byte(15), "some key", []byte("value"), uint64(1)<<63, uint64(7), "session")
	}
	f.Fuzz(func(t *testing.T, kind, mode byte, key string, value []byte, flags, index uint64, session string) {
		if value == nil {
			value = []byte{}
		}
		var c Command
		switch Kind(kind) {
		case KindTerm:
			c = &Term{}
		case KindMemberRemove:
			c = &MemberRemove{ID: key, Barred: mode%2 == 1}
		case KindPut:
			p := &Put{Key: key, Value: value, Flags: flags, Mode: PutMode(mode % 4)}
			switch p.Mode {
			case PutCAS:
				p.Index = index
			case PutAcquire, PutRelease:
				p.Session = session
			}
			c = p
		case KindDelete:
			c = &Delete{Key: key, CAS: mode%2 == 1, Index: index}
		case KindDeleteTree:
			c = &DeleteTree{Prefix: key}
		case KindPutMany:
			p := &PutMany{KVs: []KV{}}
			for i := range mode {
				p.KVs = append(p.KVs, KV{Key: key[:min(len(key), int(i))], Value: value, Flags: flags + uint64(i)})
			}
			c = p
		case KindCompact:
			c = &Compact{Revision: index}
		case KindSessionCreate:
			text := func(s string) string { return strings.ToValidUTF8(s, "?") } // it is JSON
			c = &SessionCreate{Session: Session{
				ID: text(key), Name: text(session), Node: text(session + key), LockDelay: time.Duration(index), Behavior: Behavior(text(session)), TTL: text(key),
			}}
		case KindSessionDestroy:
			c = &SessionDestroy{ID: key}
		case KindTxn:
			p := &Txn{Ops: []TxnOp{}}
			for i := range mode {
				p.Ops = append(p.Ops, TxnOp{
					Verb: 1 + Verb(i)%(verbEnd-1), Key: key[:min(len(key), int(i))], Value: value, Flags: flags + uint64(i), Index: index, Session: session,
				})
			}
			c = p
		case KindOnce:
			p := &Once{
				Key: key, Retention: time.Duration(index), Limit: flags,
				Command: &Put{Key: key, Value: value, Mode: PutRelease, Flags: index, Session: session},
			}
			copy(p.Request[:], value)
			c = p
		case KindSetting:
			c = &SettingPut{Name: key, Value: value, CAS: mode%2 == 1, Index: index}
		case KindStage:
			c = &Stage{ID: key, Piece: index, Data: value}
		case KindRestore:
			p := &Restore{ID: key, Pieces: index}
			copy(p.SHA256[:], value)
			c = p
		default:
			return
		}
		// Twice, so that a command that takes too much is noticed.
		entry := Append(Append(NewEntry(0), c), c)
		SetTime(entry, Stamp(index), time.Unix(0, int64(flags)))
		e, err := DecodeEntry(entry)
		if err != nil {
			t.Fatal(err)
		}
		if want := []Command{c, c}; !reflect.DeepEqual(e.Commands, want) {
			t.Fatalf("got  %+v\nwant %+v", e.Commands, want)
		}
		if e.Stamp != Stamp(index) || e.Wall.UnixNano() != int64(flags) {
			t.Fatalf("time %v %v", e.Stamp, e.Wall)
		}
		one, rest, err := Decode(AppendEncoded(Append(nil, c), []byte("rest")))
		if err != nil || string(rest) != "rest" || !reflect.DeepEqual(one, c) {
			t.Fatalf("got %+v, %q left, %v", one, rest, err)
		}
	})
}

func FuzzResultReadsBackAsItWasWritten(f *testing.F) {
	f.Add(byte(7), uint64(9), byte(3), byte(2), "key", []byte("value"), uint64(1)<<63, "session")
	f.Fuzz(func(t *testing.T, has byte, revision uint64, records, errs byte, text string, value []byte, n uint64, session string) {
		r := Result{OK: has&resultOK != 0, Revision: revision}
		if has&resultErr != 0 {
			r.Err = ErrKeyReused.With("%s", strings.ToValidUTF8(text, "?"))
			if text == "" {
				r.Err = ErrKeyReused
			}
		}
		if value == nil {
			value = []byte{}
		}
		if has&resultTxn != 0 {
			r.Txn = &TxnResult{}
			for i := range uint64(records) {
				r.Txn.Records = append(r.Txn.Records, Record{
					Key: text, Value: value, Flags: n, LockIndex: n + i, Session: session, CreateRevision: i, ModifyRevision: revision - i,
				})
			}
			for i := range int(errs) {
				r.Txn.Errors = append(r.Txn.Errors, TxnError{Op: i, What: text})
			}
		}
		got, err := DecodeResult(AppendResult(nil, r))
		if err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("%+v %+v comes back as %+v %+v, %v", r, r.Txn, got, got.Txn, err)
		}
	})
}

// Whatever arrives, decoding takes memory in proportion to it.
func FuzzDecodingTakesNoMoreMemoryThanWhatArrived(f *testing.F) {
	for _, c := range everyCommand {
		f.Add(Append(NewEntry(0), c))
	}
	for _, r := range everyResult {
		f.Add(AppendResult(nil, r))
	}
	f.Add(append(NewEntry(0), byte(KindPutMany), 10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1))
	f.Add(append(append(NewEntry(0), byte(KindPutMany), 0xff, 0xff, 3, 0xfc, 0xff, 3), bytes.Repeat([]byte{0}, 1<<16)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _ = DecodeEntry(b)
		_, _ = DecodeResult(b)
		_ = DecodeError(b)
		runtime.ReadMemStats(&after)
		const perByte, fixed = 256, 1 << 20
		if took := after.TotalAlloc - before.TotalAlloc; took > perByte*uint64(len(b))+fixed {
			t.Errorf("%d bytes took %d of memory", len(b), took)
		}
	})
}
