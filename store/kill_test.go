package store

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

const (
	killDirVar  = "HOLDFAST_TEST_KILL_DIR"
	killKindVar = "HOLDFAST_TEST_KILL_LOG_STORE"
)

// killTerm is the term of the entry at an index, killVote who got the vote of a
// term.
func killTerm(index uint64) uint64 { return 1 + index/40 }
func killVote(term uint64) string  { return fmt.Sprint("candidate ", term) }

// killNode opens a whole node.
func killNode(t *testing.T, dir, kind string) (*Dir, *State, *Logs) {
	d := openTestDir(t, dir)
	d.walSegment = 16 << 10
	s := openTestState(t, StateConfig{Dir: dir, BufferBytes: 32 << 10, BufferAge: 2 * time.Millisecond})
	return d, s, openTestLogs(t, d, kind)
}

// TestNodeToBeKilled is not a test: it is the process that the next one kills.
// It lives like a node under load, for ever, and tells of each thing that is
// durable, and of what is published, once it is so.
func TestNodeToBeKilled(t *testing.T) {
	dir := os.Getenv(killDirVar)
	if dir == "" {
		t.Skip("runs as a child of TestStateAndLogAgreeWhenTheProcessIsKilled")
	}
	_, s, l := killNode(t, dir, os.Getenv(killKindVar))
	done := func(err error, what string, n uint64) {
		if err != nil {
			t.Fatal(what, ": ", err)
		}
		fmt.Println(what, n)
	}
	first, last, err := l.Bounds()
	if err != nil {
		t.Fatal(err)
	}
	flushed := s.appliedIndex()
	r := rand.New(rand.NewPCG(last, 1))
	for {
		if term := killTerm(last + 1); term != killTerm(last) {
			if err := l.Stable.SetUint64([]byte(raftLastVoteTerm), term); err != nil {
				t.Fatal(err)
			}
			done(l.Stable.Set([]byte(raftLastVoteCand), []byte(killVote(term))), "voted", term)
		}
		var batch []*raft.Log
		for range 1 + r.IntN(8) {
			last++
			batch = append(batch, testEntry(last, killTerm(last), 2*r.IntN(300)))
		}
		done(l.Log.StoreLogs(batch), "logged", last)
		var entries []scriptEntry
		for i := s.appliedIndex() + 1; i <= last; i++ {
			entries = append(entries, crashEntry(i))
		}
		applyScript(t, s, entries...)
		done(nil, "published", last)
		switch r.IntN(8) {
		case 0:
			done(s.Flush(t.Context()), "flushed", last)
			flushed = last
		case 1:
			if keep := uint64(30); flushed > first+keep {
				done(l.Log.DeleteRange(max(first, 1), flushed-keep), "dropped", flushed-keep)
				first = flushed - keep + 1
			}
		case 2:
			if r.IntN(10) == 0 {
				done(s.rewrite(), "rewritten", last)
			}
		}
	}
}

// A node that is killed at any moment finds in its log all that it has stored,
// in its state all that it has flushed, and nothing missing between the two.
func TestStateAndLogAgreeWhenTheProcessIsKilled(t *testing.T) {
	for _, kind := range []string{LogStoreWAL, LogStoreBolt} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
			m, modelled := newModel(), uint64(0)
			known := map[string]uint64{}
			rounds := 6
			if testing.Short() {
				rounds = 2
			}
			for range rounds {
				runUntilKilled(t, dir, kind, r, known)

				d, s, l := killNode(t, dir, kind)
				first, last, err := l.Bounds()
				if err != nil || last < known["logged"] || first > known["dropped"]+1 && first > known["flushed"] {
					t.Fatalf("the log holds %d to %d, %v; known: %v", first, last, err, known)
				}
				index := s.appliedIndex()
				if index < known["flushed"] || index < modelled || index > last || index+1 < first {
					t.Fatalf("the state is at %d, the log holds %d to %d; known: %v", index, first, last, known)
				}
				if marker, clean := s.Marker(); marker < known["published"] || marker < index || marker > last || !clean {
					t.Fatalf("the marker is at %d (clean: %v); known: %v", marker, clean, known)
				}
				if v := l.stable.stored.Load(); v.VoteTerm < known["voted"] || v.VoteTerm > 0 && string(v.Candidate) != killVote(v.VoteTerm) {
					t.Fatalf("vote for %q in term %d; known: %v", v.Candidate, v.VoteTerm, known)
				}
				for ; modelled < index; modelled++ {
					m.apply(crashEntry(modelled + 1))
				}
				m.check(t, s, r)
				// As a node does: what the state lacks comes from the log.
				for i := first; i <= last; i++ {
					var e raft.Log
					if err := l.Log.GetLog(i, &e); err != nil || !sameEntry(&e, testEntry(i, killTerm(i), len(e.Data))) {
						t.Fatalf("entry %d: %+v, %v", i, e, err)
					}
					if i > index {
						applyScript(t, s, crashEntry(e.Index))
						m.apply(crashEntry(e.Index))
						modelled = i
					}
				}
				m.check(t, s, r)
				for _, c := range []interface{ Close() error }{l, s, d} {
					if err := c.Close(); err != nil {
						t.Fatal(err)
					}
				}
				inspect(t, dir)
			}
		})
	}
}

// runUntilKilled runs a node, kills it at a random moment, and notes what it told.
func runUntilKilled(t *testing.T, dir, kind string, r *rand.Rand, known map[string]uint64) {
	t.Helper()
	child := exec.Command(os.Args[0], "-test.run=^TestNodeToBeKilled$")
	child.Env = append(os.Environ(), killDirVar+"="+dir, killKindVar+"="+kind)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lines, told := bufio.NewScanner(out), 0
	after := 20 + r.IntN(150)
	for lines.Scan() {
		var what string
		var n uint64
		if _, err := fmt.Sscan(lines.Text(), &what, &n); err != nil || n == 0 {
			t.Errorf("the node says: %s", lines.Text())
			continue
		}
		known[what] = max(known[what], n)
		if told++; told == after {
			// Not at once: each kill should find it doing something else.
			time.AfterFunc(time.Duration(r.IntN(5000))*time.Microsecond, func() { _ = child.Process.Kill() })
		}
	}
	_ = child.Wait()
	if told < after {
		t.Fatal("the node ended by itself")
	}
}
