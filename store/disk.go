package store

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/holdfast-db/holdfast/command"
)

// DiskLimits say when a disk counts as stalled, slow or full.
type DiskLimits struct {
	// Stall is how long a call that others wait for may take: an append to the Raft
	// log, a vote, the commit marker. Calls that move much at once get several times
	// as long.
	Stall time.Duration
	// Slow is the mean time of an append to the Raft log from which on the disk is slow.
	Slow time.Duration
	// Reserve is the space in bytes below which the disk is full for what adds data.
	// A quarter of it is held by the ballast file.
	Reserve uint64
}

// DefaultDiskLimits hold where nothing else is said. A disk that is busy, or shared with
// others that are, may take a second for a sync when the file system commits; a leader
// whose disk hangs is to be replaced within two.
var DefaultDiskLimits = DiskLimits{Stall: 1500 * time.Millisecond, Slow: 250 * time.Millisecond, Reserve: LogReserve}

// LogReserve is the default of DiskLimits.Reserve: it has room for a segment of
// the Raft log, the next flush of the state, votes and deletes.
const LogReserve = 128 << 20

// ballast is the size of the file that is given up when space runs out.
func (l *DiskLimits) ballast() uint64 { return l.Reserve / 4 }

// floor is the space that no append to the log and no flush of the state takes: the
// rest is for terms and votes.
func (l *DiskLimits) floor() uint64 { return l.Reserve / 8 }

// clear is the space from which on a disk is not full any more: a little more than
// where it became so, or it would be one thing and the other with each write.
func (l *DiskLimits) clear() uint64 { return l.Reserve + l.Reserve/8 }

// Disk watches the disk of a data directory: what is under way on it and since
// when, how long it takes, and how much space is left. Nothing that it is asked
// touches the disk, so it answers also while that hangs.
//
// The methods of a nil Disk watch nothing.
type Disk struct {
	path   string
	log    hclog.Logger
	limits atomic.Pointer[DiskLimits]
	calls  calls
	latch  *latch

	latency latency
	// free is the space left as it was seen last, with sampled set.
	free    atomic.Uint64
	sampled atomic.Bool
	full    atomic.Bool

	// guarding is held while the ballast is made or given up.
	guarding sync.Mutex
	guarded  atomic.Bool // there is to be a ballast
	ballast  atomic.Bool // there is one

	stop chan struct{}
	done chan struct{}
	// space tells the free bytes; tests replace it.
	space func(path string) (uint64, error)
}

func newDisk(path string, log hclog.Logger) *Disk {
	d := &Disk{path: path, log: log, latch: newLatch(), space: freeSpace, stop: make(chan struct{}), done: make(chan struct{})}
	limits := DefaultDiskLimits
	d.limits.Store(&limits)
	return d
}

// Look is how the disk does right now.
func (d *Disk) Look() command.Disk {
	if d == nil {
		return command.Disk{State: command.DiskOK}
	}
	limits := d.limits.Load()
	v := command.Disk{State: command.DiskOK, Free: d.free.Load(), Reserve: limits.Reserve, Latency: d.latency.mean()}
	if !d.sampled.Load() {
		v.Free = math.MaxInt64
	}
	var late bool
	v.Stalled, v.Call, late = d.calls.oldest(limits.Stall)
	switch {
	case d.latch.get() != nil:
		v.State = command.DiskFailed
	case late:
		v.State = command.DiskStalled
	case d.full.Load():
		v.State = command.DiskFull
	case v.Latency > limits.Slow:
		v.State = command.DiskSlow
	}
	return v
}

// Failed delivers the first failure of a write, once, and is closed after it. One for
// want of space is command.ErrDiskFull: then a new start may succeed once there is some.
func (d *Disk) Failed() <-chan error { return d.latch.ch }

// Err is the failure Failed delivered, nil while there is none.
func (d *Disk) Err() error { return d.latch.get() }

// Writable reports whether something small can be written again after a failure for
// want of space. It waits for the disk.
func (d *Disk) Writable() bool {
	if d.full.Load() {
		return false
	}
	path := filepath.Join(d.path, probeName)
	defer os.Remove(path)
	defer d.begin("see whether there is space again", patient)()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, dataFileMode)
	if err != nil {
		return false
	}
	_, err = f.Write(make([]byte, 1<<20))
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close()) == nil
}

// fail notes that a write failed for good.
func (d *Disk) fail(err error) {
	if d == nil {
		return
	}
	if diskFull(err) && !errors.Is(err, command.ErrDiskFull) {
		err = command.ErrDiskFull.With("%v", err)
	}
	d.latch.fail(err)
}

// The patience with calls, in multiples of DiskLimits.Stall.
const (
	urgent  = 1 // others wait for it, and it is small
	patient = 5 // it moves much at once, or nobody waits
)

// begin notes that a call has begun, and returns what notes its end.
func (d *Disk) begin(what string, patience int) (end func()) {
	if d == nil {
		return func() {}
	}
	c := d.calls.begin(what, patience)
	return func() { d.calls.end(c) }
}

// timed is begin for a call whose time counts as the disk's.
func (d *Disk) timed(what string) (end func()) {
	if d == nil {
		return func() {}
	}
	c := d.calls.begin(what, urgent)
	return func() { d.latency.add(d.calls.end(c)) }
}

// room returns nil when there is space for more than terms and votes. Where there
// is none the ballast is given up.
func (d *Disk) room() error {
	if d == nil {
		return nil
	}
	floor := d.limits.Load().floor()
	free, err := d.look()
	if err != nil || free >= floor {
		return nil
	}
	if d.giveUp() {
		if free, err = d.look(); err != nil || free >= floor {
			return nil
		}
	}
	return fmt.Errorf("%d MiB left of the %d MiB kept for votes: %w", free>>20, floor>>20, ErrNoSpace)
}

// reserve is how much space anything that can wait leaves.
func (d *Disk) reserve() uint64 {
	if d == nil {
		return LogReserve
	}
	return d.limits.Load().Reserve
}

// short says how much space there is above the floor, and whether the disk is full.
func (d *Disk) short() (left uint64, full bool) {
	if d == nil || !d.full.Load() {
		return 0, false
	}
	free, floor := d.free.Load(), d.limits.Load().floor()
	return free - min(free, floor), true
}

// look asks the system how much space there is, and takes note.
func (d *Disk) look() (uint64, error) {
	free, err := d.space(d.path)
	if err != nil {
		return 0, err
	}
	d.free.Store(free)
	d.sampled.Store(true)
	limits := d.limits.Load()
	usable := free
	if d.guarded.Load() && !d.ballast.Load() {
		usable -= min(usable, limits.ballast()) // it is to be made again
	}
	switch full := d.full.Load(); {
	case !full && usable < limits.Reserve:
		if d.full.CompareAndSwap(false, true) {
			d.log.Error("the disk is full: writes that add data are refused while this node leads",
				"free", mib(free), "reserve", mib(limits.Reserve))
		}
	case full && usable >= limits.clear():
		if d.full.CompareAndSwap(true, false) {
			d.log.Info("there is space on the disk again", "free", mib(free))
		}
	}
	return free, nil
}

func mib(n uint64) string { return fmt.Sprintf("%dMiB", n>>20) }

// guardPeriod is how often the space is looked at.
const guardPeriod = 200 * time.Millisecond

// guard sets the limits, makes the ballast if there is room, and watches the space
// until unguard.
func (d *Disk) guard(limits DiskLimits) {
	d.limits.Store(&limits)
	d.guarded.Store(true)
	d.tend()
	go d.run()
}

func (d *Disk) run() {
	defer close(d.done)
	tick := time.NewTicker(guardPeriod)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			d.tend()
		case <-d.stop:
			return
		}
	}
}

// unguard ends the watch. One that hangs on the disk is left behind.
func (d *Disk) unguard() {
	if !d.guarded.CompareAndSwap(true, false) {
		return
	}
	close(d.stop)
	select {
	case <-d.done:
	case <-time.After(time.Second):
	}
}

// tend looks at the space, and makes the ballast when there is room for it.
func (d *Disk) tend() {
	defer d.begin("look at the free space", patient)()
	d.guarding.Lock()
	defer d.guarding.Unlock()
	path := filepath.Join(d.path, ballastName)
	limits := d.limits.Load()
	if !d.ballast.Load() {
		fi, err := os.Stat(path)
		d.ballast.Store(err == nil && uint64(fi.Size()) == limits.ballast())
	}
	free, err := d.look()
	if err != nil || d.ballast.Load() || free < limits.clear()+limits.ballast() {
		return
	}
	if err := makeBallast(path, limits.ballast()); err != nil {
		d.log.Debug("the ballast could not be made", "error", err)
		return
	}
	d.ballast.Store(true)
	_, _ = d.look() // an error is met again soon
}

// giveUp removes the ballast, if there is one.
func (d *Disk) giveUp() bool {
	d.guarding.Lock()
	defer d.guarding.Unlock()
	if !d.ballast.Load() {
		return false
	}
	if err := os.Remove(filepath.Join(d.path, ballastName)); err != nil {
		d.log.Warn("the ballast could not be given up", "error", err)
		return false
	}
	d.ballast.Store(false)
	d.log.Error("the disk is full: the ballast is given up, for votes, deletes and the next flush")
	return true
}

// makeBallast makes a file that takes size bytes on the disk. Where the file system
// has no way to say so, it is written.
func makeBallast(path string, size uint64) (err error) {
	unfinished := path + ".new"
	f, err := os.OpenFile(unfinished, os.O_RDWR|os.O_CREATE|os.O_TRUNC, dataFileMode)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err == nil {
			err = os.Rename(unfinished, path)
		}
		if err != nil {
			_ = os.Remove(unfinished)
		}
	}()
	if err = reserveSpace(f, int64(size)); errors.Is(err, unix.EOPNOTSUPP) {
		zeros := make([]byte, 1<<20)
		for left := int64(size); left > 0 && (err == nil || errors.Is(err, unix.EOPNOTSUPP)); left -= int64(len(zeros)) {
			_, err = f.Write(zeros[:min(left, int64(len(zeros)))])
		}
	}
	if err != nil {
		return err
	}
	return f.Sync()
}

// calls are the calls to a disk that are under way, the oldest first.
type calls struct {
	mu          sync.Mutex
	first, last *call // guarded by mu
}

// call is one call to the disk.
type call struct {
	what       string
	patience   int
	since      time.Time
	prev, next *call
}

func (l *calls) begin(what string, patience int) *call {
	c := &call{what: what, patience: patience, since: time.Now()}
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.prev = l.last; c.prev != nil {
		c.prev.next = c
	} else {
		l.first = c
	}
	l.last = c
	return c
}

// end returns how long the call took.
func (l *calls) end(c *call) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		l.first = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	} else {
		l.last = c.prev
	}
	return time.Since(c.since)
}

// oldest is the oldest call under way and its age, and late whether any has been
// running for longer than it may: then it is the oldest of those.
func (l *calls) oldest(limit time.Duration) (age time.Duration, what string, late bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for c := l.first; c != nil; c = c.next {
		a := now.Sub(c.since)
		if what == "" {
			age, what = a, c.what
		}
		if limit > 0 && a > limit*time.Duration(c.patience) {
			return a, c.what, true
		}
	}
	return age, what, false
}

// latency is a moving mean of how long something takes: over some tens of times, or
// ten seconds when it is rare. What lies long back is forgotten.
type latency struct {
	mu    sync.Mutex
	value time.Duration // guarded by mu
	at    time.Time     // guarded by mu; of the last sample
}

const (
	latencyMemory  = 32 // samples
	latencyHorizon = 10 * time.Second
	latencyLife    = 30 * time.Second
)

func (l *latency) add(took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	weight := max(1.0/latencyMemory, min(float64(now.Sub(l.at))/float64(latencyHorizon), 0.5))
	l.value += time.Duration(weight * float64(took-l.value))
	l.at = now
}

func (l *latency) mean() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.at) > latencyLife {
		return 0
	}
	return l.value
}
