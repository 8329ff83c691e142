package fakeclock

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// clockGettime is the replacement.
//
//lint:ignore U1000 only its code is used
func clockGettime()

// clockGettimeCode is the code of clockGettime.
func clockGettimeCode() *[codeLen]byte

const (
	codeLen   = 128 // of clockGettime, and more
	tableLen  = 16
	tableMark = 0x7461626c65206174
)

// memory is that of a process. It stays that of the same process whatever becomes of the
// process id, and cannot be written any more once the process has ended.
type memory struct {
	*os.File
	table int64 // address of the shifts: nanoseconds, by clock id
}

// replace puts clockGettime in place of the vDSO's function in a process that is stopped
// right after execve.
func replace(pid int) (_ *memory, err error) {
	file, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			file.Close()
		}
	}()
	start, end, err := vdso(pid)
	if err != nil {
		return nil, err
	}
	image := make([]byte, end-start)
	if _, err := file.ReadAt(image, start); err != nil {
		return nil, err
	}
	lib, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return nil, fmt.Errorf("vDSO: %w", err)
	}
	symbols, err := lib.DynamicSymbols()
	if err != nil {
		return nil, fmt.Errorf("vDSO: %w", err)
	}
	for _, s := range symbols {
		if s.Name != "__vdso_clock_gettime" {
			continue
		}
		at := start + int64(s.Value)
		m := &memory{file, (at + codeLen + 7) &^ 7} // aligned, so that a word is written in one step
		if m.table+tableLen > at+int64(s.Size) {
			return nil, fmt.Errorf("the vDSO's function has %d bytes: too few", s.Size)
		}
		code := bytes.Clone(clockGettimeCode()[:])
		mark := bytes.Index(code, binary.LittleEndian.AppendUint64(nil, tableMark))
		if mark < 0 {
			return nil, errors.New("the replacement has no place for its table")
		}
		binary.LittleEndian.PutUint64(code[mark:], uint64(m.table))
		if _, err := file.WriteAt(code, at); err != nil {
			return nil, err
		}
		return m, m.set(shifts{})
	}
	return nil, errors.New("the vDSO has no __vdso_clock_gettime")
}

// vdso is where the vDSO of a process lies.
func vdso(pid int) (start, end int64, err error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(maps)) {
		if strings.HasSuffix(line, "[vdso]\n") {
			_, err := fmt.Sscanf(line, "%x-%x", &start, &end)
			return start, end, err
		}
	}
	return 0, 0, errors.New("the process has no vDSO")
}

func (m *memory) set(s shifts) error {
	for clock, shift := range map[int64]time.Duration{unix.CLOCK_REALTIME: s.wall, unix.CLOCK_MONOTONIC: s.monotonic} {
		if _, err := m.WriteAt(binary.LittleEndian.AppendUint64(nil, uint64(shift)), m.table+8*clock); err != nil {
			return err
		}
	}
	return nil
}

func (m *memory) close() { m.Close() }
