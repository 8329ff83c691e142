package store

import (
	"io"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

func onlySnapshot(t testing.TB, s *State) *raft.SnapshotMeta {
	t.Helper()
	list, err := s.Snapshots().List()
	if err != nil || len(list) != 1 {
		t.Fatalf("listed %v, %v", list, err)
	}
	return list[0]
}

func TestTheStateFileIsTheOnlySnapshot(t *testing.T) {
	s := openTestState(t, StateConfig{})
	if list, err := s.Snapshots().List(); err != nil || len(list) != 0 {
		t.Errorf("at index 0: %v, %v", list, err)
	}
	putKey(t, s, "a", "1")
	if list, err := s.Snapshots().List(); err != nil || len(list) != 0 {
		t.Errorf("before a flush: %v, %v", list, err)
	}
	mustFlush(t, s)
	putKey(t, s, "a", "2")
	m := onlySnapshot(t, s)
	if m.Index != 1 || m.Term != 1 {
		t.Errorf("listed %+v", m)
	}
	mustFlush(t, s)
	opened, r, err := s.Snapshots().Open(m.ID)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(r)
	if err != nil || int64(len(body)) != opened.Size || opened.Index != 2 {
		t.Errorf("opened %+v with %d bytes, %v", opened, len(body), err)
	}
	if _, _, err := s.Snapshots().Open("nonsense"); err == nil {
		t.Error("opened a snapshot that does not exist")
	}
}

func TestALocalSnapshotIsDurableWithTheIndexItClaims(t *testing.T) {
	conf := raft.Configuration{Servers: []raft.Server{{ID: "n", Address: "n"}}}
	s := openTestState(t, StateConfig{})
	putKey(t, s, "a", "1")
	b := s.Begin() // open while the snapshot is taken
	setKey(t, b, "a", "2")
	b.Step()
	b.Entry(12, 3, 0, time.Time{})
	sink, err := s.Snapshots().Create(1, 9, 3, conf, 8, nil) // a barrier at 9
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := sink.Close(); err != nil {
			t.Fatal(err)
		}
	}
	check := func(s *State, index uint64) {
		t.Helper()
		m := onlySnapshot(t, s)
		if m.Index != index || m.Term != 3 || m.ConfigurationIndex != 8 || len(m.Configuration.Servers) != 1 {
			t.Errorf("snapshot %+v; want index %d", m, index)
		}
	}
	crashed := openTestState(t, StateConfig{Dir: copyOfFiles(t, s)})
	check(crashed, 9)
	if i, _ := crashed.Applied(); i != 1 {
		t.Errorf("applied %d: a barrier is no entry of the state", i)
	}
	inOneEntry(t, crashed, func(*Batch) {})
	mustFlush(t, crashed)
	check(crashed, 9) // a flush never takes it back

	if err := b.Publish(); err != nil {
		t.Fatal(err)
	}
	mustFlush(t, s)
	check(s, 12)
	to := throughACopy(t, s)
	check(to, 12)
}

func TestAnIncomingSnapshotIsRememberedAndNeverListed(t *testing.T) {
	conf := raft.Configuration{Servers: []raft.Server{{ID: "n", Address: "n"}}}
	from := someState(t)
	index, _ := from.Applied()
	to := openTestState(t, StateConfig{})
	receiveCopy(t, to, writeCopy(t, from))
	id := announce(t, to, index, conf, index)
	if list, err := to.Snapshots().List(); err != nil || len(list) != 0 {
		t.Errorf("listed %v, %v", list, err)
	}
	m, _, err := to.Snapshots().Open(id)
	if err != nil || m.Index != index {
		t.Fatalf("opened %+v, %v", m, err)
	}
	if err := to.SwapCopy(false); err != nil {
		t.Fatal(err)
	}
	to = openTestState(t, StateConfig{Dir: copyOfFiles(t, to)})
	m = onlySnapshot(t, to)
	if m.Index != index || m.ConfigurationIndex != index || len(m.Configuration.Servers) != 1 || m.Configuration.Servers[0].ID != "n" {
		t.Errorf("after the swap: %+v", m)
	}
	sink, err := to.Snapshots().Create(1, 99, 1, conf, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sink.Write([]byte("the contents of some other program's snapshot, which is long")); err == nil {
		t.Error("took a foreign snapshot")
	}
	if err := sink.Cancel(); err != nil {
		t.Error(err)
	}
}

// keyFSM sets key "k" to each entry's data.
type keyFSM struct {
	t testing.TB
	s *State
}

func (f keyFSM) ApplyBatch(logs []*raft.Log) []any {
	b := f.s.Begin()
	defer b.Discard()
	for _, l := range logs {
		switch {
		case l.Index <= b.Applied():
		case l.Type == raft.LogConfiguration:
			b.Configuration(l.Index, l.Term, raft.DecodeConfiguration(l.Data))
		default:
			setKey(f.t, b, "k", string(l.Data))
			b.Step()
			b.Entry(l.Index, l.Term, 0, time.Time{})
		}
	}
	if err := b.Publish(); err != nil {
		f.t.Error(err)
	}
	return make([]any, len(logs))
}
func (f keyFSM) Apply(l *raft.Log) any               { return f.ApplyBatch([]*raft.Log{l})[0] }
func (f keyFSM) Snapshot() (raft.FSMSnapshot, error) { return f, nil }
func (f keyFSM) Persist(raft.SnapshotSink) error     { return nil }
func (f keyFSM) Release()                            {}
func (f keyFSM) Restore(r io.ReadCloser) error       { return f.s.SwapCopy(false) }

func TestRaftRestartsFromTheStateFile(t *testing.T) {
	logs := raft.NewInmemStore()
	conf := raft.DefaultConfig()
	conf.LocalID = "n"
	conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = 50*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond
	conf.TrailingLogs, conf.NoSnapshotRestoreOnStart = 0, true
	conf.Logger = hclog.NewNullLogger()
	s := openTestState(t, StateConfig{})
	for round := range 3 {
		addr, trans := raft.NewInmemTransport("n")
		r, err := raft.NewRaft(conf, keyFSM{t, s}, logs, logs, s.Snapshots(), trans)
		if err != nil {
			t.Fatal(err)
		}
		if round == 0 {
			boot := raft.Configuration{Servers: []raft.Server{{ID: "n", Address: addr}}}
			if err := r.BootstrapCluster(boot).Error(); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "election", func() bool { return r.State() == raft.Leader })
		want := string(rune('a' + round))
		if err := r.Apply([]byte(want), time.Second).Error(); err != nil {
			t.Fatal(err)
		}
		if err := r.Barrier(time.Second).Error(); err != nil {
			t.Fatal(err)
		}
		if err := r.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
		if first, _ := logs.FirstIndex(); first == 1 {
			t.Errorf("the log still begins at %d", first)
		}
		if err := r.Shutdown().Error(); err != nil {
			t.Fatal(err)
		}
		s = openTestState(t, StateConfig{Dir: copyOfFiles(t, s)})
		rec, err := s.Get("k")
		wantValue(t, rec, err, want)
		if s.Revision() != uint64(round+1) || len(onlySnapshot(t, s).Configuration.Servers) != 1 {
			t.Errorf("round %d: revision %d, snapshot %+v", round, s.Revision(), onlySnapshot(t, s))
		}
	}
}
