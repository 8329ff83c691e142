//go:build linux

package faultfs

import (
	"sync"
	"syscall"
	"time"
)

// Fault says which operation is to fail, and how.
type Fault struct {
	// At is the number of the operation, from 1; the first one from there on that
	// can meet the fault does.
	At int
	// Forever: so do all operations that follow.
	Forever bool
	// Only is the kind of operation that can meet the fault; zero: any.
	Only Kind
	// Err is the error, EIO when zero. ENOSPC is met only by operations that
	// need space: write, fallocate, create, mkdir.
	Err syscall.Errno
	// Torn is how many sectors of 512 bytes of a failing write still arrive.
	Torn int
	// Hang: the operation does not fail, it waits until Release.
	Hang bool
	// Delay: the operation does not fail, it takes so much longer. Only a sync does,
	// as on a disk that is slow.
	Delay time.Duration
}

// volume is one file system.
type volume struct {
	mu      sync.Mutex
	id      uint32
	base    *tree // as it began
	live    *tree
	journal []*operation
	trace   []string // what each operation did
	free    uint64   // bytes that statfs tells of
	fault   Fault
	met     int           // number of the first operation that met the fault, 0: none
	gate    chan struct{} // closed by Release
	hanging bool

	// replayed is base with the first replayedTo operations. Crashes are mostly
	// asked for in the order of operations.
	replayed   *tree
	replayedTo int
}

const plenty = 1 << 40

func newVolume(id uint32, base *tree) *volume {
	return &volume{id: id, base: base, live: base.clone(), free: plenty}
}

// do carries out an operation, or lets it fail.
func (v *volume) do(o *operation) (*node, syscall.Errno) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.journal = append(v.journal, o)
	v.trace = append(v.trace, v.live.describe(o))
	if f := v.fault; f.meets(len(v.journal), o.kind) && (f.Forever || v.met == 0) {
		if v.met == 0 {
			v.met = len(v.journal)
		}
		if f.Hang {
			return v.hang(o)
		}
		if f.Delay > 0 {
			v.mu.Unlock()
			time.Sleep(f.Delay)
			v.mu.Lock()
			return v.live.apply(o)
		}
		o.failed = true
		switch o.kind {
		case Fsync:
			o.kind = dropped
		case Write:
			o.data = o.data[:min(len(o.data), f.Torn*sectorSize)]
		}
		_, _ = v.live.apply(o)
		if f.Err == 0 {
			return nil, syscall.EIO
		}
		return nil, f.Err
	}
	return v.live.apply(o)
}

func (f *Fault) meets(n int, k Kind) bool {
	return f.At > 0 && n >= f.At && (f.Only == 0 || f.Only == k) && (f.Err != syscall.ENOSPC || k.allocates()) && (f.Delay == 0 || k == Fsync)
}

// hang waits for Release before it carries out an operation. The journal has it
// where it then happens.
func (v *volume) hang(o *operation) (*node, syscall.Errno) {
	at := len(v.journal) - 1
	v.journal[at] = &operation{kind: o.kind, ino: o.ino, failed: true} // no effect
	v.hanging = true
	gate := v.gate
	v.mu.Unlock()
	<-gate
	v.mu.Lock()
	v.hanging = false
	v.journal = append(v.journal, o)
	v.trace = append(v.trace, v.live.describe(o))
	return v.live.apply(o)
}

func (v *volume) plan(f Fault) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.release() // of the fault before
	v.fault, v.met, v.gate = f, 0, make(chan struct{})
}

func (v *volume) release() {
	if v.gate != nil {
		close(v.gate)
		v.gate = nil
	}
	v.fault.Hang = false
}

// copy returns the tree as it is, with what is durable of it.
func (v *volume) copy() *tree {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.live.clone()
}

// crash returns the tree that a loss of power after the first n operations
// leaves; below 0: after all.
func (v *volume) crash(n int, seed uint64) *tree {
	v.mu.Lock()
	defer v.mu.Unlock()
	if n < 0 || n > len(v.journal) {
		n = len(v.journal)
	}
	if v.replayed == nil || v.replayedTo > n {
		v.replayed, v.replayedTo = v.base.clone(), 0
	}
	for ; v.replayedTo < n; v.replayedTo++ {
		_, _ = v.replayed.apply(v.journal[v.replayedTo])
	}
	t := v.replayed.clone()
	t.crash(seed)
	return t
}
