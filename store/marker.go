package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"sync"

	"github.com/holdfast-db/holdfast/command"
)

// marker is the commit marker: the highest Raft index handed to the state, and
// the wall-clock moment at which the state was last certified fresh. It lives in
// a file of two slots that are written in turn, so that a write cut short by a
// crash leaves the one before.
//
// A write goes to the operating system and survives a crash of the process;
// sync makes it survive a loss of power.
type marker struct {
	file *os.File
	disk *Disk // is told of each write; nil where nobody watches

	mu sync.Mutex
	markerSlot
	dirty  bool // written since the last sync
	closed bool
}

// markerSlot is what a slot records.
type markerSlot struct {
	seq   uint64 // the higher of two valid slots counts
	index uint64
	wall  int64  // Unix nanoseconds, 0: never certified
	boot  string // boot of the machine that wrote it, empty when unknown
	clean bool   // written by an orderly stop, with everything synced
}

const (
	markerMagic   = "HFMARK1\n"
	markerSpacing = 4096 // one slot per page of the disk
	markerBoot    = 48
	markerSize    = len(markerMagic) + 3*8 + 1 + 1 + markerBoot + 4
)

func (m markerSlot) encode() []byte {
	b := make([]byte, 0, markerSize)
	b = append(b, markerMagic...)
	b = binary.BigEndian.AppendUint64(b, m.seq)
	b = binary.BigEndian.AppendUint64(b, m.index)
	b = binary.BigEndian.AppendUint64(b, uint64(m.wall))
	clean := byte(0)
	if m.clean {
		clean = 1
	}
	boot := m.boot[:min(len(m.boot), markerBoot)]
	b = append(b, clean, byte(len(boot)))
	b = append(b, boot...)
	b = append(b, make([]byte, markerBoot-len(boot))...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func (m *markerSlot) decode(b []byte) bool {
	if len(b) != markerSize || !bytes.HasPrefix(b, []byte(markerMagic)) {
		return false
	}
	sum := markerSize - 4
	if crc32.Checksum(b[:sum], castagnoli) != binary.BigEndian.Uint32(b[sum:]) {
		return false
	}
	b = b[len(markerMagic):]
	m.seq = binary.BigEndian.Uint64(b)
	m.index = binary.BigEndian.Uint64(b[8:])
	m.wall = int64(binary.BigEndian.Uint64(b[16:]))
	m.clean = b[24] == 1
	m.boot = string(b[26 : 26+min(int(b[25]), markerBoot)])
	return true
}

// openMarker opens or creates the marker file. last is what the process before
// left, found is false when it left nothing readable. The file then says that
// this process, in this boot, is at last.index; that is durable on return.
func openMarker(path, boot string) (m *marker, last markerSlot, found bool, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, markerSlot{}, false, fmt.Errorf("open commit marker: %w", err)
	}
	for i := range int64(2) {
		var s markerSlot
		b := make([]byte, markerSize)
		if _, err := f.ReadAt(b, i*markerSpacing); err == nil && s.decode(b) && (!found || s.seq > last.seq) {
			last, found = s, true
		}
	}
	m = &marker{file: f, markerSlot: last}
	m.boot, m.clean = boot, false
	if err = m.writeLocked(); err == nil {
		err = f.Sync()
	}
	if err != nil {
		_ = f.Close()
		return nil, markerSlot{}, false, fmt.Errorf("write commit marker: %w", err)
	}
	m.dirty = false
	return m, last, found, nil
}

// writeLocked hands the present slot to the operating system. After close it is
// command.ErrStopping.
func (m *marker) writeLocked() error {
	if m.closed {
		return command.ErrStopping
	}
	defer m.disk.begin("write the commit marker", urgent)()
	m.seq++
	m.dirty = true
	_, err := m.file.WriteAt(m.encode(), int64(m.seq%2)*markerSpacing)
	return err
}

func (m *marker) setIndex(index uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.index = index
	return m.writeLocked()
}

func (m *marker) setWall(wall int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if wall <= m.wall {
		return nil
	}
	m.wall = wall
	return m.writeLocked()
}

func (m *marker) lastWall() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.wall
}

// sync makes durable what has been written. Writers do not wait for it.
func (m *marker) sync() error {
	m.mu.Lock()
	dirty := m.dirty
	m.dirty = false
	m.mu.Unlock()
	if !dirty {
		return nil
	}
	defer m.disk.begin("sync the commit marker", patient)()
	return m.file.Sync()
}

// close ends the file; clean records that all before it is durable.
func (m *marker) close(clean bool) error {
	m.mu.Lock()
	m.clean = clean
	err := m.writeLocked()
	m.closed = true
	m.mu.Unlock()
	if serr := m.sync(); err == nil {
		err = serr
	}
	if cerr := m.file.Close(); err == nil {
		err = cerr
	}
	return err
}

// thisBoot names the boot of the machine, "" where the system does not tell.
func thisBoot() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(b))
}
