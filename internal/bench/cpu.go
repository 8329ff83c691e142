package bench

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// meter reads the processor time that a process has used since it began.
type meter func() (time.Duration, error)

// reading is what a meter said at a moment.
type reading struct {
	used time.Duration
	at   time.Time
	err  error
}

// meters are those of several processes.
type meters []meter

// metersOf finds those of servers, and says of whom there is none, and why.
func metersOf(servers []address, p product, token string) (all meters, problems []string) {
	for _, a := range servers {
		m, err := meterOf(a, p, token)
		if err != nil {
			problems = append(problems, err.Error())
			continue
		}
		all = append(all, m)
	}
	return all, problems
}

// read reads them all at once.
func (all meters) read() []reading {
	readings := make([]reading, len(all))
	var done sync.WaitGroup
	for i, m := range all {
		done.Go(func() {
			used, err := m()
			readings[i] = reading{used: used, at: time.Now(), err: err}
		})
	}
	done.Wait()
	return readings
}

// cpuOf is the processor time per operation between two readings, with so many operations per
// second. problems say which processes have no meter.
func cpuOf(before, after []reading, perSecond float64, problems []string) CPU {
	c := CPU{Problems: problems}
	// A busy server is slow to tell, so its share of the processors counts, not the difference.
	var busy float64
	for i, b := range before {
		if err := errors.Join(b.err, after[i].err); err != nil {
			c.Problems = append(c.Problems, err.Error())
			continue
		}
		busy += float64(after[i].used-b.used) / float64(after[i].at.Sub(b.at))
	}
	if len(c.Problems) == 0 && len(before) > 0 && perSecond > 0 {
		each := busy / perSecond * 1e6
		c.MicrosecondsPerOperation = &each
	}
	return c
}

// meterOf finds out how the processor time of a server can be read: from its metrics, which
// works from afar, else as a process of this machine.
func meterOf(a address, p product, token string) (meter, error) {
	fromMetrics := func() (time.Duration, error) { return readMetrics(a, p, token) }
	_, err := fromMetrics()
	if err == nil {
		return fromMetrics, nil
	}
	pid, notHere := processAt(a.host)
	if notHere != nil {
		return nil, fmt.Errorf("%s: %w, and %w", a.given, err, notHere)
	}
	return processMeter(pid), nil
}

func processMeter(pid int) meter {
	return func() (time.Duration, error) { return processTime(pid) }
}

const metricsTimeout = 5 * time.Second

func readMetrics(a address, p product, token string) (time.Duration, error) {
	if p.metrics == "" {
		return 0, errors.New("it has no metrics")
	}
	deadline := time.Now().Add(metricsTimeout)
	c, err := dial(a, deadline)
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Close() }()
	var m message
	if _, err := c.Do(m.request("GET", p.metrics, fields(a.host, p.tokenField, token)), deadline); err != nil {
		return 0, err
	}
	for line := range bytes.Lines(c.body) {
		if text, ok := bytes.CutPrefix(line, []byte("process_cpu_seconds_total ")); ok {
			seconds, err := strconv.ParseFloat(string(bytes.TrimSpace(text)), 64)
			return time.Duration(seconds * float64(time.Second)), err
		}
	}
	return 0, fmt.Errorf("%s has no process_cpu_seconds_total", p.metrics)
}

// processTime is the processor time of a process of this machine, by /proc.
func processTime(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The second field is the program's name in brackets, with whatever it contains.
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat is not understood", pid)
	}
	var ticks int64
	for _, field := range f[11:13] { // in user and in system mode
		n, err := strconv.ParseInt(string(field), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/%d/stat is not understood", pid)
		}
		ticks += n
	}
	return time.Duration(ticks) * tick, nil
}

// tick is the unit of processor times in /proc: the kernel's USER_HZ is 100 everywhere.
const tick = time.Second / 100

var errElsewhere = errors.New("its process is not to be found on this machine")

// processAt finds the process of this machine that listens at host:port.
func processAt(host string) (int, error) {
	a, err := net.ResolveTCPAddr("tcp", host)
	if err != nil {
		return 0, err
	}
	ip, ok := netip.AddrFromSlice(a.IP)
	if !ok || !isLocal(ip.Unmap()) {
		return 0, errElsewhere
	}
	sockets := listeners(netip.AddrPortFrom(ip.Unmap(), uint16(a.Port)))
	found, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range found {
		socket, err := os.Readlink(fd)
		if err != nil || !slices.Contains(sockets, socket) {
			continue
		}
		pid := strings.Split(fd, "/")[2]
		if name, _ := os.ReadFile("/proc/" + pid + "/comm"); bytes.HasPrefix(name, []byte("docker-proxy")) {
			return 0, errElsewhere // it stands in for a container
		}
		return strconv.Atoi(pid)
	}
	return 0, errElsewhere
}

func isLocal(ip netip.Addr) bool {
	if ip.IsLoopback() {
		return true
	}
	all, err := net.InterfaceAddrs()
	return err == nil && slices.ContainsFunc(all, func(a net.Addr) bool {
		p, err := netip.ParsePrefix(a.String())
		return err == nil && p.Addr().Unmap() == ip
	})
}

// listeners lists the sockets that take connections to an address, as links in /proc name them.
func listeners(to netip.AddrPort) (sockets []string) {
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(table)
		if err != nil {
			continue
		}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			// sl local_address rem_address st ... inode: 0A is LISTEN
			col := strings.Fields(lines.Text())
			if len(col) < 10 || col[3] != "0A" {
				continue
			}
			at, ok := procAddress(col[1])
			if ok && at.Port() == to.Port() && (at.Addr().IsUnspecified() || at.Addr() == to.Addr()) {
				sockets = append(sockets, "socket:["+col[9]+"]")
			}
		}
		_ = f.Close()
	}
	return sockets
}

// procAddress reads an address as /proc/net/tcp has it: words of four bytes in the
// order of the machine, which is taken to be little-endian, and the port.
func procAddress(text string) (netip.AddrPort, bool) {
	ip, port, _ := strings.Cut(text, ":")
	b, err := hex.DecodeString(ip)
	n, errPort := strconv.ParseUint(port, 16, 16)
	if err != nil || errPort != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for word := range slices.Chunk(b, 4) {
		slices.Reverse(word)
	}
	a, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), ok
}
