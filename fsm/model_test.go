package fsm

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/store"
)

// world is what the state machine should be: plain maps, and rules written down
// without regard to how they are carried out.
type world struct {
	revision, oldest uint64
	now              time.Duration
	visible
	delays map[string]time.Duration
	past   map[string][]command.Record // all that each key ever was; CreateRevision 0: deleted
}

// visible is what makes a revision when it changes.
type visible struct {
	keys, settings map[string]command.Record
	sessions       map[string]command.Session
	once           map[string]remembered
}

type remembered struct {
	until   time.Duration
	request [16]byte
	result  command.Result
}

func newWorld() *world {
	return &world{
		visible: visible{map[string]command.Record{}, map[string]command.Record{}, map[string]command.Session{}, map[string]remembered{}},
		delays:  map[string]time.Duration{}, past: map[string][]command.Record{},
	}
}

func (v visible) clone() visible {
	return visible{maps.Clone(v.keys), maps.Clone(v.settings), maps.Clone(v.sessions), maps.Clone(v.once)}
}

// do is what the command should come to. Of an operation that fails only the
// number is foretold.
func (w *world) do(c command.Command) command.Result {
	before := w.visible.clone()
	res := w.carryOut(c)
	if !reflect.DeepEqual(before, w.visible) {
		w.revision++
	}
	for key, rec := range w.keys {
		if rec.ModifyRevision != before.keys[key].ModifyRevision {
			w.past[key] = append(w.past[key], rec)
		}
	}
	for key := range before.keys {
		if _, ok := w.keys[key]; !ok {
			w.past[key] = append(w.past[key], command.Record{ModifyRevision: w.revision})
		}
	}
	if res.Revision == 0 {
		res.Revision = w.revision
	}
	return res
}

func (w *world) carryOut(c command.Command) command.Result {
	switch c := c.(type) {
	case *command.Put:
		verb := map[command.PutMode]command.Verb{command.PutCAS: command.VerbCAS, command.PutAcquire: command.VerbLock, command.PutRelease: command.VerbUnlock}[c.Mode]
		if _, alive := w.sessions[c.Session]; verb == command.VerbLock && !alive {
			return command.Result{Err: command.ErrInvalidSession.With("%q", c.Session)}
		}
		_, ok := w.op(command.TxnOp{Verb: max(verb, command.VerbSet), Key: c.Key, Value: c.Value, Flags: c.Flags, Index: c.Index, Session: c.Session})
		return command.Result{OK: ok}
	case *command.Delete:
		verb := command.VerbDelete
		if c.CAS {
			verb = command.VerbDeleteCAS
		}
		_, ok := w.op(command.TxnOp{Verb: verb, Key: c.Key, Index: c.Index})
		return command.Result{OK: ok}
	case *command.DeleteTree:
		w.op(command.TxnOp{Verb: command.VerbDeleteTree, Key: c.Prefix})
	case *command.PutMany:
		for _, kv := range c.KVs {
			w.op(command.TxnOp{Verb: command.VerbSet, Key: kv.Key, Value: kv.Value, Flags: kv.Flags})
		}
	case *command.SessionCreate:
		if _, ok := w.sessions[c.Session.ID]; !ok {
			s := c.Session
			s.CreateRevision = w.revision + 1
			w.sessions[s.ID] = s
		}
	case *command.SessionDestroy:
		s, ok := w.sessions[c.ID]
		if !ok {
			break
		}
		delete(w.sessions, c.ID)
		for key, rec := range w.keys {
			if rec.Session != s.ID {
				continue
			}
			if s.Behavior == command.BehaviorDelete {
				delete(w.keys, key)
			} else {
				rec.Session, rec.ModifyRevision = "", w.revision+1
				w.keys[key] = rec
			}
			if s.LockDelay > 0 {
				w.delays[key] = w.now + s.LockDelay
			}
		}
	case *command.Txn:
		before := maps.Clone(w.keys)
		t := &command.TxnResult{}
		for i, op := range c.Ops {
			if recs, ok := w.op(op); ok {
				t.Records = append(t.Records, recs...)
			} else {
				t.Errors = append(t.Errors, command.TxnError{Op: i})
			}
		}
		if t.Errors != nil {
			w.keys, t.Records = before, nil
		}
		return command.Result{OK: t.Errors == nil, Txn: t}
	case *command.Once:
		return w.onceOf(c)
	case *command.SettingPut:
		old, exists := w.settings[c.Name]
		if c.CAS && c.Index != old.ModifyRevision {
			return command.Result{}
		}
		if !exists || string(old.Value) != string(c.Value) {
			w.settings[c.Name] = command.Record{Value: c.Value, ModifyRevision: w.revision + 1}
		}
	case *command.Compact:
		w.oldest = max(w.oldest, min(c.Revision, w.revision))
	}
	return command.Result{OK: true}
}

func (w *world) onceOf(c *command.Once) command.Result {
	if r, ok := w.once[c.Key]; ok && r.until > w.now {
		switch {
		case r.request != c.Request:
			return command.Result{Err: command.ErrKeyReused}
		case r.result.Txn != nil && slices.ContainsFunc(r.result.Txn.Records, func(rec command.Record) bool { return len(rec.Value) > 0 && !w.kept(rec, r.result.Revision) }):
			return command.Result{Err: command.ErrCompacted, Revision: r.result.Revision}
		}
		return r.result
	}
	var over []string
	for key, r := range w.once {
		if r.until <= w.now {
			over = append(over, key)
		}
	}
	slices.SortFunc(over, func(a, b string) int { return cmp.Or(cmp.Compare(w.once[a].until, w.once[b].until), cmp.Compare(a, b)) })
	for _, key := range over[:min(onceDropped, len(over))] {
		delete(w.once, key)
	}
	if c.Limit == 0 {
		return command.Result{Err: command.ErrOnceFull}
	}
	res := w.carryOut(c.Command)
	res.Revision = w.revision + 1
	w.once[c.Key] = remembered{w.now + c.Retention, c.Request, res}
	return res
}

// kept reports whether the value that a transaction gave at a revision can be told
// again.
func (w *world) kept(rec command.Record, revision uint64) bool {
	if rec.ModifyRevision == revision || rec.ModifyRevision >= w.oldest {
		return true
	}
	var at uint64
	for _, p := range w.past[rec.Key] {
		if p.ModifyRevision <= w.oldest {
			at = p.ModifyRevision
		}
	}
	return at == rec.ModifyRevision
}

// op carries out one operation; ok is false when it fails.
func (w *world) op(op command.TxnOp) (recs []command.Record, ok bool) {
	rec, exists := w.keys[op.Key]
	fits := op.Index == rec.ModifyRevision // 0 when it does not exist
	one := func(rec command.Record) []command.Record { return []command.Record{rec} }
	bare := func(rec command.Record) []command.Record {
		rec.Value = nil
		return one(rec)
	}
	write := func(session string, locks uint64) ([]command.Record, bool) {
		next := command.Record{
			Key: op.Key, Value: op.Value, Flags: op.Flags, Session: session, LockIndex: locks,
			CreateRevision: rec.CreateRevision, ModifyRevision: rec.ModifyRevision,
		}
		if !exists {
			next.CreateRevision = w.revision + 1
		}
		if !reflect.DeepEqual(next, rec) {
			next.ModifyRevision = w.revision + 1
		}
		w.keys[op.Key] = next
		return bare(next), true
	}
	switch op.Verb {
	case command.VerbSet:
		return write(rec.Session, rec.LockIndex)
	case command.VerbCAS:
		if fits {
			return write(rec.Session, rec.LockIndex)
		}
	case command.VerbLock:
		switch _, alive := w.sessions[op.Session]; {
		case !alive:
		case rec.Session == op.Session:
			return write(rec.Session, rec.LockIndex)
		case rec.Session == "" && w.delays[op.Key] <= w.now:
			return write(op.Session, rec.LockIndex+1)
		}
	case command.VerbUnlock:
		if rec.Session != "" && rec.Session == op.Session {
			return write("", rec.LockIndex)
		}
	case command.VerbGet:
		if exists {
			return one(rec), true
		}
	case command.VerbGetOrEmpty:
		if !exists {
			rec = command.Record{Key: op.Key, Flags: op.Flags}
		}
		return one(rec), true
	case command.VerbGetTree:
		for _, key := range slices.Sorted(maps.Keys(w.keys)) {
			if strings.HasPrefix(key, op.Key) {
				recs = append(recs, w.keys[key])
			}
		}
		return recs, true
	case command.VerbCheckIndex:
		return bare(rec), exists && fits
	case command.VerbCheckSession:
		return bare(rec), exists && rec.Session == op.Session
	case command.VerbCheckNotExists:
		return nil, !exists
	case command.VerbDelete:
		delete(w.keys, op.Key)
		return nil, true
	case command.VerbDeleteCAS:
		if fits {
			delete(w.keys, op.Key)
		}
		return nil, fits || !exists
	case command.VerbDeleteTree:
		maps.DeleteFunc(w.keys, func(key string, _ command.Record) bool { return strings.HasPrefix(key, op.Key) })
		return nil, true
	}
	return nil, false
}

// chance makes commands that often meet each other.
type chance struct {
	*rand.Rand
	w    *world
	used map[string]*command.Once
}

func pick[T any](r chance, of ...T) T { return of[r.IntN(len(of))] }

func (r chance) key() string     { return pick(r, "a", "a/1", "a/2", "a/2/3", "b", "b/1") }
func (r chance) prefix() string  { return pick(r, "a/", "a/2", "b", "c", "") }
func (r chance) session() string { return pick(r, "s1", "s2", "s3") }
func (r chance) value() []byte   { return []byte(pick(r, "", "x", "y")) }
func (r chance) flags() uint64   { return pick[uint64](r, 0, 0, 5) }

func (r chance) index(key string) uint64 {
	at := r.w.keys[key].ModifyRevision
	return pick(r, 0, at, at, r.w.revision, r.w.revision+1)
}

func (r chance) op() command.TxnOp {
	op := command.TxnOp{
		Verb: command.Verb(1 + r.IntN(int(command.VerbDeleteTree))), Key: r.key(), Value: r.value(), Flags: r.flags(), Session: r.session(),
	}
	op.Index = r.index(op.Key)
	if held := r.w.keys[op.Key].Session; held != "" && r.IntN(2) == 0 {
		op.Session = held
	}
	if r.IntN(4) > 0 { // most never fail, or hardly a transaction would succeed
		op.Verb = pick(r, command.VerbSet, command.VerbSet, command.VerbGetOrEmpty, command.VerbGetTree, command.VerbDelete, command.VerbDeleteTree)
	}
	if op.Verb == command.VerbGetTree || op.Verb == command.VerbDeleteTree {
		op.Key = r.prefix()
	}
	return op
}

func (r chance) txn() command.Command {
	t := &command.Txn{}
	for range r.IntN(7) {
		t.Ops = append(t.Ops, r.op())
	}
	return t
}

func (r chance) command() command.Command {
	op := r.op()
	switch r.IntN(18) {
	case 0, 1:
		return &command.Put{Key: r.key(), Value: op.Value, Flags: op.Flags}
	case 2:
		key := r.key()
		return &command.Put{Key: key, Value: op.Value, Mode: command.PutCAS, Index: r.index(key)}
	case 3, 4:
		return &command.Put{Key: r.key(), Value: op.Value, Flags: op.Flags, Mode: command.PutAcquire, Session: op.Session}
	case 5:
		return &command.Put{Key: r.key(), Value: op.Value, Flags: op.Flags, Mode: command.PutRelease, Session: op.Session}
	case 6:
		key := r.key()
		return &command.Delete{Key: key, CAS: r.IntN(2) == 0, Index: r.index(key)}
	case 7:
		if r.IntN(4) == 0 {
			return &command.DeleteTree{Prefix: r.prefix()}
		}
		return &command.PutMany{KVs: []command.KV{{Key: r.key(), Value: r.value()}, {Key: r.key(), Value: r.value()}}}
	case 8, 9:
		return session(r.session(), pick(r, 0, 3*time.Second), pick(r, command.BehaviorRelease, command.BehaviorDelete))
	case 10:
		return &command.SessionDestroy{ID: r.session()}
	case 11:
		return &command.SettingPut{Name: "n", Value: op.Value, CAS: r.IntN(2) == 0, Index: pick(r, 0, r.w.settings["n"].ModifyRevision)}
	case 12:
		if r.IntN(8) == 0 {
			return &command.Compact{Revision: r.w.revision - min(r.w.revision, r.Uint64N(40))}
		}
		fallthrough
	case 13, 14:
		return r.txn()
	default:
		key := fmt.Sprint("once", r.IntN(4))
		if o := r.used[key]; o != nil && r.IntN(3) > 0 {
			return o
		}
		o := &command.Once{Key: key, Retention: 6 * time.Second, Limit: pick[uint64](r, 1<<40, 1<<40, 1<<40, 0)}
		for o.Command = r.txn(); r.IntN(2) == 0; {
			if c := r.command(); c.Kind() != command.KindOnce && c.Kind() != command.KindCompact {
				o.Command = c
			}
		}
		for i := range o.Request {
			o.Request[i] = byte(r.Uint32())
		}
		r.used[key] = o
		return o
	}
}

// Every command does what the rules say, whatever came before it; and equal logs
// give equal stores, however they are cut into batches.
func TestRandomCommandsDoWhatTheRulesSay(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	model := newWorld()
	r := chance{rand.New(rand.NewPCG(seed, 0)), model, map[string]*command.Once{}}
	f, s := newFSM(t)
	const entries = 6000
	var logs []*raft.Log
	for i := range uint64(entries) {
		model.now += time.Duration(r.IntN(2)*r.IntN(500)) * time.Millisecond
		// What the second command is made of is what the first has left.
		var commands []command.Command
		var want []command.Result
		for range 1 + r.IntN(2) {
			c := r.command()
			commands, want = append(commands, c), append(want, model.do(c))
		}
		logs = append(logs, entry(i+1, command.Stamp(model.now), commands...))
		for k, got := range apply(t, f, logs[i]) {
			if problem := differs(got, want[k]); problem != "" {
				t.Fatalf("entry %d: %s\nof %+v\ngot  %+v %+v\nwant %+v %+v", i+1, problem, commands[k], got, got.Txn, want[k], want[k].Txn)
			}
		}
		if r.IntN(100) == 0 {
			if err := s.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		compareWorld(t, s, model)
		if t.Failed() {
			t.Fatalf("after entry %d: %+v", i+1, commands)
		}
	}
	dir := t.TempDir()
	other := openState(t, dir)
	g := New(other, func(err error) { t.Error(err) })
	for at := 0; at < len(logs); {
		to := min(at+1+r.IntN(200), len(logs))
		g.ApplyBatch(logs[at:to])
		at = to
		if r.IntN(10) == 0 {
			if err := other.Close(); err != nil {
				t.Fatal(err)
			}
			other = openState(t, dir)
			g = New(other, func(err error) { t.Error(err) })
			at = int(other.Head().Applied)
		}
	}
	if got, want := other.Head(), s.Head(); got != want {
		t.Errorf("in other batches: %+v\nwant %+v", got, want)
	}
}

// differs says in what a result is not what it should be.
func differs(got, want command.Result) string {
	switch {
	case got.OK != want.OK || got.Revision != want.Revision:
		return "another outcome"
	case !errors.Is(got.Err, want.Err) || (got.Err == nil) != (want.Err == nil):
		return "another error"
	case (got.Txn == nil) != (want.Txn == nil):
		return "not a transaction"
	case got.Txn == nil:
		return ""
	case !slices.EqualFunc(got.Txn.Records, want.Txn.Records, sameRecord):
		return "other records"
	}
	if !slices.EqualFunc(got.Txn.Errors, want.Txn.Errors, func(g, w command.TxnError) bool { return g.Op == w.Op && g.What != "" }) {
		return "other errors"
	}
	return ""
}

// sameRecord compares records; an empty value is as good as none.
func sameRecord(a, b command.Record) bool {
	same := string(a.Value) == string(b.Value)
	a.Value, b.Value = nil, nil
	return same && reflect.DeepEqual(a, b)
}

func compareWorld(t *testing.T, s *store.State, w *world) {
	t.Helper()
	v, err := s.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	keys, sessions := map[string]command.Record{}, map[string]command.Session{}
	if err := errors.Join(
		v.Scan("", "", func(rec command.Record) bool { keys[rec.Key] = rec; return true }),
		v.Sessions(func(s command.Session) bool { sessions[s.ID] = s; return true }),
	); err != nil {
		t.Fatal(err)
	}
	if !maps.EqualFunc(keys, w.keys, sameRecord) {
		t.Errorf("keys\n     %+v\nwant %+v", keys, w.keys)
	}
	if !reflect.DeepEqual(sessions, w.sessions) {
		t.Errorf("sessions\n     %+v\nwant %+v", sessions, w.sessions)
	}
	value, at, err := v.Setting("n")
	if want := w.settings["n"]; err != nil || string(value) != string(want.Value) || at != want.ModifyRevision {
		t.Errorf("setting %q at %d (%v), want %+v", value, at, err, want)
	}
	checkHolds(t, v)
}
