//go:build linux

package sim

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/node"
)

// hardware says how long a machine's disk takes, and how busy it is. Nothing of it is
// measured by the node itself: the calls that take long are those of Raft to its parts.
type hardware struct {
	// sync is the mean time that something takes to be on disk; hiccup is how long it
	// takes now and then, one time in a hundred.
	sync, hiccup time.Duration
	// apply is the mean time until what is committed is applied.
	apply time.Duration
}

// slow puts a machine's delays between a node and its parts. There are some before a
// call and some behind it, so that a kill finds a write that nobody knows to be
// on disk, as well as one that is not there.
//
// Each sync takes late, in nanoseconds, longer.
func slow(p *process, hw hardware, late *atomic.Int64, seed uint64) func(node.Parts) node.Parts {
	d := &delays{process: p, late: late, rand: rand.New(rand.NewPCG(seed, 0x64656c6179))}
	return func(parts node.Parts) node.Parts {
		parts.Log = &slowLog{parts.Log, d, hw}
		parts.Stable = &slowStable{parts.Stable, d, hw}
		parts.FSM = &slowFSM{parts.FSM, d, hw}
		return parts
	}
}

// delays draws delays. A process that is paused does not come to an end of one.
type delays struct {
	process *process
	late    *atomic.Int64
	mu      sync.Mutex
	rand    *rand.Rand // guarded by mu
}

func (d *delays) draw(mean, hiccup time.Duration) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	if hiccup > 0 && d.rand.IntN(100) == 0 {
		return time.Duration(d.rand.Int64N(int64(hiccup)))
	}
	return time.Duration(d.rand.ExpFloat64() * float64(mean))
}

// around makes a call between two parts of a delay.
func (d *delays) around(mean, hiccup time.Duration, call func()) {
	whole := d.draw(mean, hiccup)
	before := time.Duration(0)
	if whole > 0 {
		before = d.draw(whole/2, 0)
	}
	time.Sleep(min(before, whole))
	d.process.runs()
	call()
	time.Sleep(whole - min(before, whole))
	d.process.runs()
}

// sync makes a call that takes as long as the disk needs to keep something.
func (d *delays) sync(hw hardware, call func()) {
	d.around(hw.sync, hw.hiccup, call)
	time.Sleep(time.Duration(d.late.Load()))
}

type slowLog struct {
	raft.LogStore
	d  *delays
	hw hardware
}

// IsMonotonic implements raft.MonotonicLogStore.
func (l *slowLog) IsMonotonic() bool {
	m, ok := l.LogStore.(raft.MonotonicLogStore)
	return ok && m.IsMonotonic()
}

// StoreLog implements raft.LogStore.
func (l *slowLog) StoreLog(log *raft.Log) error { return l.StoreLogs([]*raft.Log{log}) }

// StoreLogs implements raft.LogStore.
func (l *slowLog) StoreLogs(logs []*raft.Log) (err error) {
	l.d.sync(l.hw, func() { err = l.LogStore.StoreLogs(logs) })
	return err
}

// DeleteRange implements raft.LogStore.
func (l *slowLog) DeleteRange(first, last uint64) (err error) {
	l.d.sync(l.hw, func() { err = l.LogStore.DeleteRange(first, last) })
	return err
}

type slowStable struct {
	raft.StableStore
	d  *delays
	hw hardware
}

// Set implements raft.StableStore.
func (s *slowStable) Set(key, value []byte) (err error) {
	s.d.sync(s.hw, func() { err = s.StableStore.Set(key, value) })
	return err
}

// SetUint64 implements raft.StableStore.
func (s *slowStable) SetUint64(key []byte, value uint64) (err error) {
	if now, err := s.GetUint64(key); err == nil && now == value {
		return s.StableStore.SetUint64(key, value) // which is no work for a disk
	}
	s.d.sync(s.hw, func() { err = s.StableStore.SetUint64(key, value) })
	return err
}

type slowFSM struct {
	node.FSM
	d  *delays
	hw hardware
}

// ApplyBatch implements raft.BatchingFSM.
func (f *slowFSM) ApplyBatch(logs []*raft.Log) (results []any) {
	f.d.around(f.hw.apply, 0, func() { results = f.FSM.ApplyBatch(logs) })
	return results
}
