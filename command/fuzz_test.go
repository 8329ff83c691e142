package command

import (
	"bytes"
	"reflect"
	"runtime"
	"testing"
	"time"
)

func FuzzCommandReadsBackAsItWasWritten(f *testing.F) {
	f.Add(byte(KindPut), byte(PutCAS), "a/b", []byte("v"), uint64(1), uint64(1)<<63, "s")
	f.Add(byte(KindPut), byte(PutAcquire), "", []byte{}, uint64(0), uint64(0), "\xff\x00")
	f.Add(byte(KindDelete), byte(1), "a", []byte(nil), uint64(0), uint64(9), "")
	f.Add(byte(KindPutMany), byte(3), "many", []byte("value"), uint64(7), uint64(0), "")
	f.Add(byte(KindCompact), byte(0), "", []byte(nil), uint64(0), uint64(12), "")
	f.Fuzz(func(t *testing.T, kind, mode byte, key string, value []byte, flags, index uint64, session string) {
		if value == nil {
			value = []byte{}
		}
		var c Command
		switch Kind(kind) {
		case KindTerm:
			c = &Term{}
		case KindMemberRemove:
			c = &MemberRemove{ID: key}
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

// Whatever arrives, decoding takes memory in proportion to it.
func FuzzDecodingTakesNoMoreMemoryThanWhatArrived(f *testing.F) {
	for _, c := range everyCommand {
		f.Add(Append(NewEntry(0), c))
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
