package clustertests

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/fault"
	"github.com/holdfast-db/holdfast/cluster-tests/workload"
	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/internal/faultfs"
)

var (
	diskSeed  = flag.Uint64("disk-seed", 0, "TestDiskFaults: the seed of all that is chosen by chance; 0: another one each time")
	diskSeeds = flag.Int("disk-seeds", 1, "TestDiskFaults: how often each scene runs, each time with the next seed")
)

// disks makes a cluster a fault.Disks: each node's data lies on a volume of its own.
type disks struct {
	c *cluster
	// volumes is the test that the volumes belong to: they outlive the cluster.
	volumes testing.TB
	byName  map[string]*faultfs.FS
}

var _ fault.Disks = (*disks)(nil)

// onDisks puts every node of a cluster on a disk of its own.
func onDisks(volumes testing.TB, specs []spec) (*disks, option) {
	d := &disks{volumes: volumes, byName: map[string]*faultfs.FS{}}
	return d, func(c *cluster) {
		d.c, c.disks = c, map[string]string{}
		for _, s := range specs {
			d.byName[s.name] = faultfs.Mount(volumes)
			c.disks[s.name] = d.byName[s.name].Path()
		}
	}
}

// Sicken implements fault.Disks.
func (d *disks) Sicken(_ context.Context, name string, ill fault.Illness) error {
	ill.Befall(d.byName[name])
	return nil
}

// MayHang implements fault.Disks.
func (d *disks) MayHang() bool { return true }

// Cure implements fault.Disks.
func (d *disks) Cure(_ context.Context, names ...string) error {
	for name, disk := range d.byName {
		if len(names) == 0 || slices.Contains(names, name) {
			disk.Heal()
		}
	}
	return nil
}

// OwnDisks implements fault.Power.
func (d *disks) OwnDisks() bool { return true }

// LosePower implements fault.Power.
func (d *disks) LosePower(_ context.Context, seed uint64, names ...string) error {
	for _, name := range names {
		d.byName[name].Release() // what hangs in the kernel cannot be killed
	}
	var nodes []*node
	for _, name := range names {
		if n := d.c.node(name); n.running() {
			nodes = append(nodes, n)
		}
	}
	d.c.kill(nodes...)
	for i, name := range names {
		if seed != 0 {
			seed += uint64(i) // each disk makes a choice of its own
		}
		old := d.byName[name]
		d.byName[name] = old.Crash(-1, seed)
		old.Close()
		n := d.c.node(name)
		n.data = filepath.Join(d.byName[name].Path(), "data")
		n.args = d.c.agentArgs(n)
	}
	return nil
}

// Folder implements fault.Disks.
func (d *disks) Folder(name string) string { return d.c.node(name).data }

// onSickDisks is a cluster under load whose disks a scene makes ill. What must hold in all of them:
// no value is served that was not written, nothing acknowledged is lost, nobody
// diverges, and a node that does not start says in one line what to do.
type onSickDisks struct {
	*cluster
	*disks
	w    *traffic
	r    *rand.Rand
	seed uint64
}

// strike carries out what may fail for no reason of the product's.
func (s *onSickDisks) strike(what string, err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatalf("seed %d: %v", s.seed, err)
	}
	s.t.Log(what)
}

// anyOf chooses one of the nodes.
func (s *onSickDisks) anyOf(nodes []*node) *node { return nodes[s.r.IntN(len(nodes))] }

// losePower takes the power from nodes and gives it back.
func (s *onSickDisks) losePower(nodes ...*node) {
	s.t.Helper()
	s.powerOff(s.chance(), nodes...)
	s.powerOn(nodes...)
}

// chance is the seed of what a loss of power leaves: one time in four nothing but what
// was synced.
func (s *onSickDisks) chance() uint64 {
	if s.r.IntN(4) == 0 {
		return 0
	}
	return 1 + s.r.Uint64N(1<<32)
}

func (s *onSickDisks) powerOff(seed uint64, nodes ...*node) {
	s.t.Helper()
	names := make([]string, len(nodes))
	for i, n := range nodes {
		names[i] = n.name
	}
	s.strike(fmt.Sprintf("power lost at %v, seed %d", names, seed), s.LosePower(s.t.Context(), seed, names...))
	s.wentBack(nodes...)
}

// wentBack notes that nodes, which do not run, may serve less than before when they do.
func (s *onSickDisks) wentBack(nodes ...*node) {
	for _, n := range nodes {
		s.w.env.History.Forgets(n.name)
	}
}

func (s *onSickDisks) powerOn(nodes ...*node) {
	s.t.Helper()
	for _, n := range nodes {
		s.start(n)
	}
	for _, n := range nodes {
		s.waitReady(n)
	}
}

// comesBack starts a node whose data was harmed. It must become ready by itself, or end
// with a line that says what to do; that is then done. It says whether it refused.
func (s *onSickDisks) comesBack(n *node) (refused bool) {
	s.t.Helper()
	s.start(n)
	return s.settles(n)
}

// settles is comesBack for a node that was started.
func (s *onSickDisks) settles(n *node) (refused bool) {
	s.t.Helper()
	s.wait(40*time.Second, n.name+" is ready, or takes no part", func() bool {
		if ok, _ := n.ready(); ok {
			return true
		}
		refused = s.takesNoPart(n)
		return refused
	})
	if refused {
		s.entersAnew(n)
	}
	return refused
}

// takesNoPart says that a node has ended, or serves what it has and nothing else.
func (s *onSickDisks) takesNoPart(n *node) bool {
	if !n.running() {
		return true
	}
	if st, ok := n.status(); !ok || st.Status != "failed" {
		return false
	}
	ok, why := n.ready()
	return !ok && why != "" && why != "node is stopping" // then it has ended in a moment
}

// entersAnew looks at why a node takes no part, and does what the manual says then.
func (s *onSickDisks) entersAnew(n *node) {
	s.t.Helper()
	if n.running() {
		_, why := n.ready()
		s.t.Logf("%s takes no part: %s", n, why)
		if !strings.Contains(why, "damaged") {
			s.t.Errorf("%s does not say why it takes no part: %q", n, why)
		}
		s.kill(n)
		s.empty(n)
		return
	}
	n.meant = true
	last := lastLines(n.log, 1)
	s.t.Logf("%s refused: %s", n, last)
	if code := n.state.ExitCode(); code != 1 || !strings.HasPrefix(last, "holdfast: ") || !strings.Contains(last, "; ") || !strings.Contains(last, "anew") {
		s.t.Errorf("%s ended with status %d and %q, which is no remedy", n, code, last)
	}
	s.empty(n)
}

// empty has a node come back with an empty disk.
func (s *onSickDisks) empty(n *node) {
	s.t.Helper()
	s.strike(n.name+" comes back empty", fault.Wipe(n.data))
	s.start(n)
	s.waitReady(n)
	if n.role == command.RoleVoter {
		s.wait(40*time.Second, n.name+" votes again", func() bool { return s.votes(n) })
	}
}

// harms are the ways to change a part of a data directory.
var harms = []struct {
	name string
	do   func(dir string, p fault.Part, r *rand.Rand) (string, error)
}{
	{"a flipped bit", fault.Flip},
	{"a cut-off end", fault.Truncate},
}

// diskFault is a scene, and the promise it holds the product to.
type diskFault struct {
	name, promise string
	always        bool // also without -long
	act           func(s *onSickDisks)
}

var diskFaults = []diskFault{
	{"an ill disk", "clients of others go on, and the node is whole again when its disk is, at the latest after a restart", false, func(s *onSickDisks) {
		for _, i := range s.r.Perm(len(fault.Illnesses)) {
			ill := fault.Illnesses[i]
			n := s.anyOf(s.voters())
			if s.r.IntN(2) == 0 {
				n = s.waitLeader()
			}
			s.strike(fmt.Sprintf("the disk of %s is %s", n, ill.Name), s.Sicken(s.t.Context(), n.name, ill))
			s.w.awaitWrites(100)
			if ill.FailsOneSync || ill.Tears {
				s.wait(20*time.Second, n.name+" meets it", func() bool { return s.byName[n.name].Met() != "" })
			}
			s.strike("cured", s.Cure(s.t.Context(), n.name))
			if ill.Final {
				if s.r.IntN(2) == 0 {
					s.powerOff(s.chance(), n)
				} else {
					s.kill(n)
				}
				s.start(n)
			}
			s.waitReady(n)
		}
	}},
	{"power lost by one", "it comes back with all that it acknowledged, and the others go on", false, func(s *onSickDisks) {
		for round := range 6 {
			n := s.waitLeader()
			if round%2 == 1 {
				n = s.anyOf(s.nodes)
			}
			s.w.awaitWrites(60)
			s.losePower(n)
		}
	}},
	{"power lost by a majority", "nothing acknowledged is lost: what was acknowledged was synced by a majority", true, func(s *onSickDisks) {
		for range 4 {
			s.w.awaitWrites(100)
			s.losePower(without(s.voters(), s.anyOf(s.voters()))...)
		}
	}},
	{"power lost by all", "nothing acknowledged is lost", false, func(s *onSickDisks) {
		for range 4 {
			s.w.awaitWrites(100)
			s.losePower(s.nodes...)
		}
	}},
	{"a harmed file", "the node is whole again by itself, or does not start and says what to do", false, func(s *onSickDisks) {
		for _, p := range fault.Parts {
			for _, h := range harms {
				n := s.anyOf(s.nodes)
				s.w.awaitWrites(20)
				s.kill(n)
				what, err := h.do(n.data, p, s.r)
				if errors.Is(err, fault.ErrNothingThere) {
					s.start(n)
					s.waitReady(n)
					continue
				}
				s.strike(fmt.Sprintf("%s of the %s of %s: %s", h.name, p.Name, n, what), err)
				s.comesBack(n)
			}
		}
	}},
	{"a harmed log, and nobody else who has its entries", "who has lost entries that it acknowledged does not vote", true, func(s *onSickDisks) {
		s.onTwo(func(n *node) {
			p, h := fault.Log, harms[s.r.IntN(len(harms))]
			what, err := h.do(n.data, p, s.r)
			s.strike(fmt.Sprintf("%s of the %s of %s: %s", h.name, p.Name, n, what), err)
		})
	}},
	{"a harmed vote, and nobody else who has its entries", "who may have forgotten its vote does not vote", false, func(s *onSickDisks) {
		s.onTwo(func(n *node) {
			what, err := fault.Flip(n.data, fault.Stable, s.r)
			s.strike(fmt.Sprintf("%s: %s", n, what), err)
		})
	}},
	{"a harmed record under a running node", "no wrong value is served, and it is mended from a peer", true, func(s *onSickDisks) {
		const keys = 40
		value := func(i int) string { return fmt.Sprintf("%d is kept here: %s", i, strings.Repeat(fmt.Sprint(i), 60)) }
		key := func(i int) string { return fmt.Sprintf("kept/%02d", i) }
		for i := range keys {
			s.wait(10*time.Second, "a value is kept", func() bool { return put(s.voters()[0], key(i), value(i), "").ok })
		}
		for round := range 4 {
			n := s.nodes[(round+s.r.IntN(2)*2)%len(s.nodes)]
			i := s.r.IntN(keys)
			at := s.placesOf(n, value(i))
			what, err := fault.FlipAt(filepath.Join(n.data, "state.db"), at+s.r.Int64N(int64(len(value(i)))), 1<<s.r.IntN(8))
			s.strike(fmt.Sprintf("under %s: %s", n, what), err)
			s.wait(20*time.Second, n.name+" serves the value again", func() bool {
				a, err := read(n, key(i), "stale")
				if err != nil || len(a.entries) == 0 {
					return false
				}
				if got := string(a.entries[0].Value); got != value(i) {
					s.t.Fatalf("%s served %q for %q", n, got, value(i))
				}
				return true
			})
			s.w.awaitWrites(20)
		}
	}},
	{"a wiped disk", "it enters anew, and votes only when it is level", false, func(s *onSickDisks) {
		for range 2 {
			n := s.anyOf(s.nodes)
			s.kill(n)
			s.w.awaitWrites(50)
			s.empty(n)
			s.w.awaitWrites(50)
		}
	}},
	{"a rolled-back disk", "the others remember more of it: it is refused, and says so", false, func(s *onSickDisks) {
		n := s.anyOf(s.nodes)
		old := filepath.Join(s.t.TempDir(), "old")
		s.kill(n)
		s.strike(n.name+" is saved", fault.Save(n.data, old))
		s.start(n)
		s.waitReady(n)
		s.w.awaitWrites(200)
		s.waitSeen(n)
		s.kill(n)
		s.strike(n.name+" is rolled back", fault.RollBack(n.data, old))
		s.wentBack(n) // a copy serves what it has until it is told
		s.start(n)
		s.wait(20*time.Second, n.name+" is refused", func() bool { return s.takesNoPart(n) })
		s.entersAnew(n)
	}},
	{"a rolled-back disk, and nobody else who has its entries", "it is refused by who knows no more than that it had started once more", true, func(s *onSickDisks) {
		old := filepath.Join(s.t.TempDir(), "old")
		n := without(s.voters(), s.waitLeader())[0]
		s.kill(n)
		s.strike(n.name+" is saved", fault.Save(n.data, old))
		s.start(n)
		s.waitReady(n)
		s.meetsAll(n)
		refused := s.onTwoWith(n, func(n *node) {
			s.strike(n.name+" is rolled back", fault.RollBack(n.data, old))
		})
		if !refused {
			s.t.Errorf("%s takes part with less than it had acknowledged", n)
		}
	}},
	{"power lost by one, while others are frozen or cut off", "whoever leads then has all that was acknowledged", true, func(s *onSickDisks) {
		for round := range 4 {
			leader := s.waitLeader()
			others := without(s.voters(), leader)
			switch round % 2 {
			case 0: // the leader, right after an acknowledged write
				s.pause(others[0])
				s.w.awaitWrites(20)
				s.powerOff(s.chance(), leader)
				s.resume(others[0])
			default: // a follower, and the other one has missed the latest writes
				s.split(others[0])
				s.w.awaitWrites(20)
				s.powerOff(s.chance(), others[1])
				s.heal()
			}
			s.waitLeader(slices.DeleteFunc(s.voters(), func(n *node) bool { return !n.running() })...)
			s.w.awaitWrites(20)
			for _, n := range s.nodes {
				if !n.running() {
					s.powerOn(n)
				}
			}
		}
	}},
}

// placesOf is where a value stands in a node's state file.
func (s *onSickDisks) placesOf(n *node, value string) (at int64) {
	s.t.Helper()
	s.wait(20*time.Second, "the value is in the state file of "+n.name, func() bool {
		b, err := os.ReadFile(filepath.Join(n.data, "state.db"))
		at = int64(bytes.Index(b, []byte(value)))
		return err == nil && at >= 0
	})
	return at
}

// waitSeen waits until a voter shows that it has been told how far a node is by now.
func (s *onSickDisks) waitSeen(n *node) {
	s.t.Helper()
	now, ok := n.status()
	if !ok {
		s.t.Fatalf("%s does not say where it is", n)
	}
	s.wait(10*time.Second, "it was seen how far "+n.name+" is", func() bool {
		seen, ok := s.server(s.waitLeader(), n.name)
		return ok && seen.Applied >= now.Applied
	})
}

// meetsAll has a voter lead until each other one has a write of its: so all know of its
// present start, which those who have not met it since could not.
func (s *onSickDisks) meetsAll(n *node) {
	s.t.Helper()
	s.waitHealthy(n)
	s.wait(20*time.Second, n.name+" leads", func() bool {
		if s.waitLeader() == n {
			return true
		}
		ctx, cancel := context.WithTimeout(context.Background(), workload.Patience)
		defer cancel()
		_, _, _, _ = call(ctx, n, http.MethodPost, "/v1/operator/raft/transfer-leader?id="+n.name, nil) // a busy machine may have to be asked again
		return false
	})
	s.w.awaitWrites(50)
	now, ok := n.status()
	if !ok {
		s.t.Fatalf("%s does not say where it is", n)
	}
	for _, other := range without(s.voters(), n) {
		s.wait(10*time.Second, fmt.Sprintf("%s has what %s wrote", other, n), func() bool {
			st, ok := other.status()
			return ok && st.Applied >= now.Applied
		})
	}
}

// onTwo has a write acknowledged by the leader and one other voter alone, strikes that
// one, and brings it back together with the third. They must not lead without the write.
// When the leader is back as well, the node comes back or refuses.
func (s *onSickDisks) onTwo(strike func(*node)) {
	s.t.Helper()
	s.onTwoWith(without(s.voters(), s.waitLeader())[s.r.IntN(2)], strike)
}

func (s *onSickDisks) onTwoWith(n *node, strike func(*node)) (refused bool) {
	s.t.Helper()
	leader := s.waitLeader()
	if leader == n {
		next := without(s.voters(), n)[0]
		s.transfer(next, next)
		leader = s.waitLeader(without(s.voters(), n)...)
	}
	third := without(s.voters(), leader, n)[0]
	s.split(third)
	s.w.awaitWrites(200)
	s.w.stop() // what is acknowledged from here on would be known to be committed by the leader alone
	s.waitLevel(10*time.Second, leader, n)
	s.kill(leader, n)
	strike(n)
	s.heal()
	s.start(n)
	eventually(4*time.Second, func() bool {
		st, ok := third.status()
		return s.takesNoPart(n) || ok && st.Mode == "leader"
	})
	s.start(leader)
	s.waitReady(leader)
	s.waitReady(third) // with what it missed, of which n may only now find that it is harmed
	return s.settles(n)
}

// diskSites is the cluster of these scenes.
var diskSites = append(slices.Clone(voters), spec{"e1", "east", false, "learner"})

// TestDiskFaults runs all scenes with -long, else those that found most; with
// -disk-seeds each that often, with one seed after the other.
func TestDiskFaults(t *testing.T) {
	faultfs.Mount(t) // or skip
	seed := *diskSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	for round := range uint64(*diskSeeds) {
		for i, f := range diskFaults {
			if !f.always && !*longFlag {
				continue
			}
			t.Run(f.name, func(st *testing.T) {
				st.Parallel()
				store := []string{"wal", "boltdb"}[(round+uint64(i)+seed)%2]
				f.run(t, st, seed+round, withLogStore(store))
			})
		}
	}
}

func (f diskFault) run(volumes, t *testing.T, seed uint64, opts ...option) {
	s := startOnDisks(volumes, t, seed, opts...)
	defer s.w.stop()
	f.act(s)
	s.w.judge()
}

// startOnDisks starts a cluster whose disks can be made ill, and the load on it.
func startOnDisks(volumes, t *testing.T, seed uint64, opts ...option) *onSickDisks {
	t.Helper()
	d, placed := onDisks(volumes, diskSites)
	s := &onSickDisks{disks: d, seed: seed, r: rand.New(rand.NewPCG(seed, 0))}
	t.Logf("seed %d", seed)
	s.cluster = startCluster(t, diskSites, append(opts, placed, withFlags("--disk-stall-limit", "300ms"))...)
	t.Cleanup(func() { _ = d.Cure(context.Background()) }) // what hangs in the kernel cannot be killed
	s.w = s.load()
	s.w.awaitWrites(100)
	return s
}

// plantedDiskBug is a plantedBug that shows on disks only. A cluster that has met it is
// beyond repair, and is not inspected.
type plantedDiskBug struct {
	name, breaks string
	// disturb returns how the bug was seen, nil where the judges of the traffic must see it.
	disturb func(s *onSickDisks) (found error)
}

var plantedDiskBugs = []plantedDiskBug{
	{"unsynced-log", "entries of a boltdb log are acknowledged before they are synced", func(s *onSickDisks) error {
		s.w.awaitWrites(200)
		s.powerOff(0, s.nodes...)
		for _, n := range s.nodes {
			s.start(n)
		}
		s.waitLeader()
		s.w.awaitWrites(100)
		return nil
	}},
	{"rolled-back-let-in", "a peer whose disk went back is let in, and its vote counts", func(s *onSickDisks) error {
		leader := s.waitLeader()
		n, third := without(s.voters(), leader)[0], without(s.voters(), leader)[1]
		old := filepath.Join(s.t.TempDir(), "old")
		s.kill(n)
		s.strike(n.name+" is saved", fault.Save(n.data, old))
		s.start(n)
		s.waitReady(n)
		s.split(third)
		s.w.awaitWrites(200)
		s.kill(leader, n)
		s.strike(n.name+" is rolled back", fault.RollBack(n.data, old))
		s.heal()
		s.start(n)
		s.waitLeader(n, third)
		s.w.awaitWrites(100)
		return nil
	}},
	{"unchecked-record", "the checksum of a record is not looked at", func(s *onSickDisks) error {
		value := strings.Repeat("kept as it was written ", 10)
		s.wait(10*time.Second, "a value is kept", func() bool { return put(s.voters()[0], "kept", value, "").ok })
		n := s.node("e1")
		at := s.placesOf(n, value)
		what, err := fault.FlipAt(filepath.Join(n.data, "state.db"), at+100, 4)
		s.strike(what, err)
		var found error
		s.wait(10*time.Second, "the value is served", func() bool {
			a, err := read(n, "kept", "stale")
			if err == nil && len(a.entries) == 1 && string(a.entries[0].Value) != value {
				found = fmt.Errorf("e1 served %q", a.entries[0].Value)
			}
			return err == nil && len(a.entries) == 1
		})
		return found
	}},
}

func TestPlantedBugsOfDisksAreFound(t *testing.T) {
	faultfs.Mount(t) // or skip
	bin, err := build("holdfast-planted-disks", "-tags", "planted")
	if err != nil {
		t.Fatal(err)
	}
	for _, bug := range plantedDiskBugs {
		t.Run(bug.name+": "+bug.breaks, func(st *testing.T) {
			s := startOnDisks(t, st, 1, withLogStore("boltdb"), withBinary(bin, "HOLDFAST_PLANTED="+bug.name))
			defer s.w.stop()
			found := bug.disturb(s)
			s.w.stop()
			all := s.w.run.Check()
			if found == nil && len(all) > 0 {
				found = errors.New(all[0].String())
			}
			for _, n := range s.nodes {
				if n.running() {
					s.kill(n)
				}
			}
			if found == nil {
				st.Errorf("a cluster in which %s passed as sound", bug.breaks)
			} else {
				st.Logf("found: %.600s", found)
			}
		})
	}
}
