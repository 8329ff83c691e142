package fsm

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/store"
)

// Whichever way a replica comes to what it holds, by entries in any batches, by deltas
// and copies, over restarts, it holds what the others hold and decides as they do.
func TestReplicasThatTakeCopiesDecideAlike(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := chance{rand.New(rand.NewPCG(seed, 0)), newWorld(), map[string]*command.Once{}}
	f, s := newFSM(t)
	other := &replica{t: t, dir: t.TempDir()}
	other.start(r)
	defer func() { other.stop() }()

	const entries = 4000
	var (
		logs    []*raft.Log
		results []any
		now     time.Duration
		archive []byte
	)
	for i := range uint64(entries) {
		now += time.Duration(r.IntN(2)*r.IntN(500)) * time.Millisecond
		commands := []command.Command{r.command(), r.command()}
		member := command.Member{ID: fmt.Sprint("m", r.IntN(5)), Name: fmt.Sprint(i)}
		switch r.IntN(150) {
		case 0:
			commands = append(commands, &command.Init{Cluster: command.Cluster{ID: "c"}})
		case 1:
			commands = append(commands, &command.MemberSet{Member: member})
		case 2:
			commands = append(commands, &command.MemberRemove{ID: member.ID, Barred: r.IntN(3) == 0})
		case 3:
			archive = archiveOf(t, s)
		case 4:
			if archive != nil {
				pieces, restore := staging(fmt.Sprint(i), archive)
				commands = append(append(commands, pieces...), restore)
			}
		}
		logs = append(logs, entry(i+1, command.Stamp(now), commands...))
		results = append(results, f.Apply(logs[i]))
		r.w.lookAt(t, s)
		if r.IntN(40) > 0 {
			continue
		}
		switch r.IntN(4) {
		case 0:
			if err := s.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			other.copyOf(s, r.IntN(3) == 0)
		case 1:
			other.stop()
			other.start(r)
			fallthrough
		default:
			for at := int(other.state.Head().Applied); at < len(logs); {
				to := min(at+1+r.IntN(30), len(logs))
				for k, got := range other.ApplyBatch(logs[at:to]) {
					if got, want := outcomes(t, got), outcomes(t, results[at+k]); got != want {
						t.Fatalf("entry %d: %s\nwant %s", at+k+1, got, want)
					}
				}
				at = to
			}
		}
		if got, want := other.state.Head(), s.Head(); got != want {
			t.Fatalf("after entry %d: %+v\nwant %+v", i+1, got, want)
		}
		if got, want := other.state.Stats().Keys, s.Stats().Keys; got != want || other.state.DataBytes() != s.DataBytes() {
			t.Fatalf("after entry %d: %d keys of %d bytes, want %d of %d", i+1, got, other.state.DataBytes(), want, s.DataBytes())
		}
		v, err := other.state.View()
		if err != nil {
			t.Fatal(err)
		}
		checkHolds(t, v)
		v.Close()
	}
}

// replica is a state machine that is restarted and takes copies.
type replica struct {
	*FSM
	t     *testing.T
	dir   string
	state *store.State
}

func (o *replica) start(r chance) {
	var err error
	// A delta that does not fit the buffer takes another way.
	if o.state, err = store.OpenState(store.StateConfig{Dir: o.dir, MaxData: 1 << 28, BufferBytes: pick[int64](r, 1000, 100_000, 0)}); err != nil {
		o.t.Fatal(err)
	}
	o.FSM = New(o.state, func(err error) { o.t.Errorf("the state machine failed: %v", err) })
}

func (o *replica) stop() {
	if err := o.state.Close(); err != nil {
		o.t.Error(err)
	}
}

// copyOf makes the replica hold what another state holds.
func (o *replica) copyOf(s *store.State, full bool) {
	o.t.Helper()
	var b bytes.Buffer
	if err := s.WriteCopy(o.t.Context(), o.state.CopyRequest(full), &b); err != nil {
		o.t.Fatal(err)
	}
	stats, err := o.state.ReceiveCopy(o.t.Context(), &b)
	if err == nil && stats.Kind == "full" {
		err = o.state.SwapCopy(false)
	}
	if err != nil {
		o.t.Fatal(err)
	}
}

// outcomes are the results of an entry in words.
func outcomes(t *testing.T, response any) (text string) {
	results, ok := response.([]command.Result)
	if !ok {
		t.Fatalf("response %v", response)
	}
	for _, res := range results {
		text += fmt.Sprintf("%v %d %v %+v; ", res.OK, res.Revision, res.Err, res.Txn)
	}
	return text
}

// lookAt takes from a state what commands are made of.
func (w *world) lookAt(t *testing.T, s *store.State) {
	v, err := s.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	w.revision = v.Revision()
	clear(w.keys)
	if err := v.Scan("", "", func(rec command.Record) bool {
		w.keys[rec.Key] = rec
		return true
	}); err != nil {
		t.Fatal(err)
	}
}
