package clustertests

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-db/holdfast/cluster-tests/history"
	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/internal/faultfs"
)

// withDisks puts the data of each named node on a disk of its own that fails, hangs or
// is slow on request. The disks are healed before the test's processes are ended: what
// hangs in the kernel cannot be killed.
func withDisks(t testing.TB, names ...string) (map[string]*faultfs.FS, option) {
	t.Helper()
	disks := map[string]*faultfs.FS{}
	for _, name := range names {
		disks[name] = faultfs.Mount(t)
	}
	return disks, func(c *cluster) {
		c.disks = map[string]string{}
		for name, disk := range disks {
			c.disks[name] = disk.Path()
		}
	}
}

// sick plans a fault from the next operation on.
func sick(disk *faultfs.FS, f faultfs.Fault) {
	f.At, f.Forever = disk.Ops()+1, true
	disk.Fail(f)
}

// acknowledged writes at a node until a write is acknowledged, and returns how long
// after began that was.
func (c *cluster) acknowledged(n *node, key string, began time.Time, within time.Duration) time.Duration {
	c.t.Helper()
	c.wait(within, "a write at "+n.name+" is acknowledged", func() bool {
		return put(n, key, key, "").ok
	})
	return time.Since(began)
}

// sees waits until a node shows another one in a state on /v1/sites.
func (c *cluster) sees(at, whom *node, state string) {
	c.t.Helper()
	c.wait(10*time.Second, fmt.Sprintf("%s shows %s as %s", at, whom, state), func() bool {
		s, ok := c.server(at, whom.name)
		return ok && s.State == state
	})
}

// A leader whose disk hangs is replaced, though its heartbeats would go on. Its own
// clients reach the new leader through it. When the disk answers again it is a healthy
// follower, by itself.
func TestALeaderWhoseDiskHangsIsReplaced(t *testing.T) {
	disks, onDisks := withDisks(t, "n1", "n2", "n3")
	c := startCluster(t, voters, onDisks)
	rounds := 1
	if *measureFlag {
		rounds = 12
	}
	for round := range rounds {
		leader := c.waitLeader()
		disk := disks[leader.name]
		t.Cleanup(disk.Release)
		others := c.others(leader)
		if w := put(leader, "before", fmt.Sprint(round), ""); !w.ok {
			t.Fatalf("put: %+v", w)
		}
		began := time.Now()
		sick(disk, faultfs.Fault{Hang: true})
		took := c.acknowledged(others[0], fmt.Sprint("after/", round), began, 5*time.Second)
		t.Logf("acknowledged again after %v", took)
		if took > 2500*time.Millisecond {
			t.Errorf("a write was acknowledged only %v after the disk had begun to hang", took)
		}
		next := c.waitLeader(others...)
		c.sees(next, leader, "stalled")
		if ok, why := leader.ready(); ok || !strings.Contains(why, "disk hangs") {
			t.Errorf("%s says %v, %q", leader, ok, why)
		}
		if w := put(leader, "through the node that hangs", fmt.Sprint(round), ""); !w.ok {
			t.Errorf("a write at %s: %+v", leader, w)
		}
		disk.Heal()
		c.waitReady(leader)
		c.waitLevel(20 * time.Second)
		if s, _ := leader.status(); s.Mode != "voter" {
			t.Errorf("%s is %+v", leader, s)
		}
	}
}

// A leader with a slow disk hands over to a voter with a better one, and that settles
// it.
func TestALeaderWithASlowDiskHandsOver(t *testing.T) {
	disks, onDisks := withDisks(t, "n1", "n2", "n3")
	c := startCluster(t, voters, onDisks, withFlags("--slow-disk-limit", "40ms"))
	leader := c.waitLeader()
	sick(disks[leader.name], faultfs.Fault{Delay: 120 * time.Millisecond})
	others := c.others(leader)
	written := 0
	c.wait(20*time.Second, "another voter leads", func() bool {
		written++
		if w := put(leader, "k", fmt.Sprint(written), ""); !w.ok {
			t.Errorf("put %d: %+v", written, w)
		}
		return slices.ContainsFunc(others, func(n *node) bool { s, ok := n.status(); return ok && s.Mode == "leader" })
	})
	next := c.waitLeader(others...)
	for i := range 20 {
		if w := put(next, "k", fmt.Sprint("settled ", i), ""); !w.ok {
			t.Errorf("put: %+v", w)
		}
	}
	if s, _ := next.status(); s.Mode != "leader" {
		t.Errorf("%s leads no longer", next)
	}
	disks[leader.name].Heal()
}

// A write that fails ends the node's part in Raft at once, and every node says so. It
// goes on serving stale reads.
func TestANodeWhoseDiskFailsSaysSoEverywhere(t *testing.T) {
	disks, onDisks := withDisks(t, "n1", "n2", "n3")
	c := startCluster(t, voters, onDisks)
	leader := c.waitLeader()
	if w := put(leader, "kept", "value", ""); !w.ok {
		t.Fatalf("put: %+v", w)
	}
	others := c.others(leader)
	began := time.Now()
	sick(disks[leader.name], faultfs.Fault{})
	took := c.acknowledged(others[1], "after", began, 5*time.Second)
	t.Logf("acknowledged again after %v", took)
	for _, n := range c.nodes {
		c.sees(n, leader, "failed")
	}
	if ok, why := leader.ready(); ok || !strings.Contains(why, "input/output error") {
		t.Errorf("%s says %v, %q", leader, ok, why)
	}
	if v, _ := leader.metric("holdfast_disk_failed"); v != "1" {
		t.Errorf("holdfast_disk_failed is %s", v)
	}
	a, err := read(leader, "kept", "stale")
	if err != nil || len(a.entries) != 1 || string(a.entries[0].Value) != "value" {
		t.Errorf("a stale read at %s: %+v %v", leader, a, err)
	}
	disks[leader.name].Heal()
	c.kill(leader)
}

// smallDisk mounts a file system of a few megabytes.
func smallDisk(t testing.TB, size string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf-disk-")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		os.Remove(dir)
		t.Skipf("SKIPPED: a small disk needs root: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
		os.Remove(dir)
	})
	return dir
}

// fill takes space on a disk until so many bytes are left, and returns what gives it
// back.
func fill(t testing.TB, disk string, left uint64) (free func()) {
	t.Helper()
	f, err := os.CreateTemp(disk, "filler")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var fs unix.Statfs_t
	if err := unix.Statfs(disk, &fs); err != nil {
		t.Fatal(err)
	}
	have := fs.Bavail * uint64(fs.Bsize)
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(have-min(left, have))); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(f.Name()); err != nil {
			t.Error(err)
		}
	}
}

// A leader whose disk is full hands over to a voter that has space. When all are full,
// what adds data is refused, and deletes and reads go on; with space again everything
// does, by itself.
func TestAFullDiskRefusesOnlyWhatAddsData(t *testing.T) {
	small := map[string]string{}
	for _, n := range voters {
		small[n.name] = smallDisk(t, "96m")
	}
	c := startCluster(t, voters, func(c *cluster) { c.disks = small }, withFlags("--disk-reserve", "16MiB"))
	leader := c.waitLeader()
	for i := range 20 {
		if w := put(leader, fmt.Sprint("key/", i), "value", ""); !w.ok {
			t.Fatalf("put: %+v", w)
		}
	}
	free := []func(){fill(t, small[leader.name], 10<<20)}
	others := c.others(leader)
	c.wait(10*time.Second, "a voter with space leads", func() bool {
		return slices.ContainsFunc(others, func(n *node) bool { s, ok := n.status(); return ok && s.Mode == "leader" })
	})
	next := c.waitLeader(others...)
	if w := put(next, "while one is full", "value", ""); !w.ok {
		t.Errorf("put: %+v", w)
	}
	for _, n := range others {
		free = append(free, fill(t, small[n.name], 10<<20))
	}
	c.wait(10*time.Second, "all know that all disks are full", func() bool {
		return !slices.ContainsFunc(c.nodes, func(n *node) bool {
			s, ok := c.server(next, n.name)
			return !ok || s.Disk != command.DiskFull
		})
	})
	next = c.waitLeader()
	c.wait(10*time.Second, "what adds data is refused", func() bool {
		w := put(next, "more", "value", "")
		return w.status == http.StatusInsufficientStorage && strings.Contains(w.text, "disk is full")
	})
	term, _ := next.metric("holdfast_raft_term")
	for i := range 10 {
		if w := remove(next, fmt.Sprint("key/", i), ""); !w.ok {
			t.Errorf("a delete on full disks: %+v", w)
		}
	}
	if a, err := read(next, "key/15", "consistent"); err != nil || len(a.entries) != 1 {
		t.Errorf("a read on full disks: %+v %v", a, err)
	}
	for began := time.Now(); time.Since(began) < time.Second; {
		if w := remove(next, "none", ""); w.outcome != history.Decided {
			t.Fatalf("a delete on full disks: %+v", w)
		}
	}
	if now, _ := next.metric("holdfast_raft_term"); now != term {
		t.Errorf("leadership moves about among full disks: term %s, then %s", term, now)
	}
	for _, give := range free {
		give()
	}
	c.wait(10*time.Second, "writes go on", func() bool { return put(next, "more", "value", "").ok })
	c.waitLevel(10 * time.Second)
	for _, n := range c.nodes {
		if _, err := os.Stat(filepath.Join(n.data, "ballast")); err != nil {
			t.Errorf("the ballast of %s was not made again: %v", n, err)
		}
	}
}

// A follower without any space lags, and catches up by itself when there is some.
func TestAFollowerWhoseDiskIsFullCatchesUpByItself(t *testing.T) {
	disk := smallDisk(t, "96m")
	c := startCluster(t, voters, func(c *cluster) { c.disks = map[string]string{"n3": disk} }, withFlags("--disk-reserve", "16MiB"))
	n3 := c.node("n3")
	leader := c.waitLeader()
	if leader == n3 {
		if _, stderr, err := c.run(10*time.Second, n3, "operator", "transfer-leader", "n1"); err != nil {
			t.Fatal(stderr)
		}
		leader = c.waitLeader(c.node("n1"))
	}
	ballast := filepath.Join(n3.data, "ballast")
	free := []func(){fill(t, disk, 0)}
	write := func(key string) {
		t.Helper()
		if w := put(leader, key, strings.Repeat("x", 100<<10), ""); !w.ok {
			t.Fatalf("put: %+v", w)
		}
	}
	c.wait(10*time.Second, "the ballast is given up", func() bool {
		write("a")
		_, err := os.Stat(ballast)
		return err != nil
	})
	free = append(free, fill(t, disk, 0))
	for i := range 20 {
		write(fmt.Sprint("key/", i))
	}
	ahead, _ := leader.status()
	if s, ok := n3.status(); !ok || s.Applied == ahead.Applied {
		t.Errorf("without space n3 holds it all: %+v", s)
	}
	if s, _ := n3.status(); s.Disk != command.DiskFull || !s.Running {
		t.Errorf("n3: %+v", s)
	}
	for _, give := range free {
		give()
	}
	c.waitLevel(20 * time.Second)
	c.wait(10*time.Second, "the ballast is made again", func() bool { _, err := os.Stat(ballast); return err == nil })

	// Without a byte it starts by what the ballast held, and with nothing left to give up
	// it says so.
	give := fill(t, disk, 0)
	c.kill(n3)
	c.start(n3)
	c.wait(10*time.Second, "n3 is there again, without space", func() bool { s, ok := n3.status(); return ok && s.Disk == command.DiskFull })
	giveMore := fill(t, disk, 0)
	c.kill(n3)
	c.start(n3)
	c.must(n3.awaitEnd(10 * time.Second))
	if last := lastLines(n3.log, 1); !strings.Contains(last, "cannot record this start: no space left on device; check the disk and its free space") {
		t.Errorf("n3 ended with %q", last)
	}
	give()
	giveMore()
	c.start(n3)
}

// A write that finds no space though there seemed to be some ends the node's part in
// Raft only until it can write again.
func TestANodeThatFoundNoSpaceStartsAgainByItself(t *testing.T) {
	disks, onDisks := withDisks(t, "n1", "n2", "n3")
	c := startCluster(t, voters, onDisks)
	leader := c.waitLeader()
	if w := put(leader, "kept", "value", ""); !w.ok {
		t.Fatalf("put: %+v", w)
	}
	sick(disks[leader.name], faultfs.Fault{Err: syscall.ENOSPC})
	c.acknowledged(c.others(leader)[0], "after", time.Now(), 5*time.Second)
	c.wait(5*time.Second, leader.name+" says that it takes part no longer", func() bool {
		s, ok := leader.status()
		return ok && s.Status == "failed"
	})
	if a, err := read(leader, "kept", "stale"); err != nil || len(a.entries) != 1 {
		t.Errorf("a stale read at %s: %+v %v", leader, a, err)
	}
	disks[leader.name].Heal()
	c.waitReady(leader)
	c.waitLevel(10 * time.Second)
}

// A node whose disk fails goes on from its standby directory, as a new member of the
// same name, votes again, and stays there over a restart.
func TestANodeGoesOverToItsStandbyDirectory(t *testing.T) {
	disks, onDisks := withDisks(t, "n1", "n2", "n3")
	c := newCluster(t, voters, onDisks)
	for _, n := range c.nodes {
		n.args = append(n.args, "--standby-data-dir", filepath.Join(c.dir, n.name+"-standby"), "--standby-after", "1s", "--disk-stall-limit", "300ms")
		c.start(n)
	}
	leader := c.waitLeader()
	c.waitLevel(20 * time.Second)
	if w := put(leader, "kept", "value", ""); !w.ok {
		t.Fatalf("put: %+v", w)
	}
	for i, fault := range []faultfs.Fault{{Err: syscall.EIO}, {Hang: true}} {
		leader := c.waitLeader()
		t.Cleanup(disks[leader.name].Release)
		was := c.id(leader)
		sick(disks[leader.name], fault)
		c.acknowledged(c.others(leader)[0], fmt.Sprint("after/", i), time.Now(), 10*time.Second)
		c.wait(30*time.Second, leader.name+" votes from its standby directory", func() bool {
			id := c.id(leader)
			v, ok := leader.metric("holdfast_raft_voters")
			return id != "" && id != was && ok && v == "3" && c.votes(leader)
		})
		leader.data = filepath.Join(c.dir, leader.name+"-standby")
		c.waitLevel(20 * time.Second)
		if a, err := read(leader, "kept", "consistent"); err != nil || len(a.entries) != 1 {
			t.Errorf("a read at %s: %+v %v", leader, a, err)
		}
		disks[leader.name].Heal()
		is := c.id(leader)
		c.kill(leader)
		c.start(leader)
		c.waitReady(leader)
		if id := c.id(leader); id != is {
			t.Errorf("after a restart %s is %s, was %s", leader, id, is)
		}
	}
}

// A start on a disk that fails, at whatever moment, ends with a line that says so, or
// the node goes on without taking part.
func TestAStartOnADiskThatFailsEndsWithALineThatSaysSo(t *testing.T) {
	ended := 0
	for op := 1; op <= 121; op += 8 {
		disk := faultfs.Mount(t)
		c := newCluster(t, voters[:1], func(c *cluster) { c.disks = map[string]string{"n1": disk.Path()} })
		n := c.nodes[0]
		disk.Fail(faultfs.Fault{At: op, Forever: true})
		c.start(n)
		c.wait(10*time.Second, fmt.Sprintf("a start whose disk fails at operation %d comes to an end", op), func() bool {
			s, ok := n.status()
			return !n.running() || ok && s.Status == "failed"
		})
		if n.running() {
			c.kill(n)
			continue
		}
		ended++
		n.meant = true
		last := lastLines(n.log, 1)
		if code := n.state.ExitCode(); code != 1 || !strings.Contains(last, "input/output error") || strings.HasPrefix(last, "panic") {
			t.Errorf("failing at operation %d: status %d, %q", op, code, last)
		}
	}
	if ended == 0 {
		t.Error("no start ended")
	}
}

// id is the server id a node says it has, "" when it does not answer.
func (c *cluster) id(n *node) string {
	s, _ := c.server(n, n.name)
	return s.ID
}

// votes reports whether a node is a voter, as it says itself.
func (c *cluster) votes(n *node) bool {
	s, _ := c.server(n, n.name)
	return s.Voter
}

// Whatever the leaders' disks do, one after the other, nothing that was acknowledged is
// lost, and no read goes back.
func TestNoStateOfADiskLosesAnAcknowledgedWrite(t *testing.T) {
	disks, onDisks := withDisks(t, "n1", "n2", "n3")
	for _, disk := range disks {
		t.Cleanup(disk.Release)
	}
	c := startCluster(t, threeSites, onDisks, withFlags("--disk-stall-limit", "300ms"))
	w := c.load()
	defer w.stop()
	for _, fault := range []faultfs.Fault{{Hang: true}, {Err: syscall.ENOSPC}, {}, {Hang: true}} {
		w.awaitWrites(100)
		leader := c.waitLeader()
		sick(disks[leader.name], fault)
		c.waitLeader(without(c.voters(), leader)...)
		w.awaitWrites(100)
		disks[leader.name].Heal()
		if fault == (faultfs.Fault{}) { // final for the process
			c.kill(leader)
			c.start(leader)
		}
		c.waitReady(leader)
	}
	w.judge()
}
