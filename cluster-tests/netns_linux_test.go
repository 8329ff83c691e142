package clustertests

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// lab is a network for one cluster: each node is a host of its own, a network
// namespace; the hosts of a site share a bridge; and the bridges are joined by lines,
// which may be long and lossy. The test itself is a host at the first site. Every
// host has one address, and any two may be kept apart by the firewall.
//
//	test ─┐
//	n1 ───┤
//	n2 ───┼─ bridge home ─ line ─ bridge east ─── e1
//	n3 ───┘
//
// It needs root, and the programs ip and nft.
type lab struct {
	t      testing.TB
	name   string // begins the names of everything the kernel is asked for
	prefix string // of all addresses: three bytes and a dot
	hub    string // the namespace of the bridges
	hosts  map[string]*host
	sites  []string
	lines  []*line
}

// host is one namespace. Its name is that of the node that runs on it.
type host struct {
	namespace string
	addr      string
	port      string // the device at the bridge's end of its cable
}

// newLab makes the network for nodes, or skips the test where it cannot be had.
func newLab(t testing.TB, nodes []spec) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("networks of namespaces need root")
	}
	for _, program := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("networks of namespaces need the program %s", program)
		}
	}
	l := &lab{t: t, name: fmt.Sprintf("hf%04x", rand.IntN(1<<16)), hosts: map[string]*host{}}
	l.prefix = fmt.Sprintf("10.%d.%d.", 100+rand.IntN(100), rand.IntN(256))
	l.hub = l.name + "hub"
	if out, err := exec.Command("ip", "netns", "add", l.hub).CombinedOutput(); err != nil {
		t.Skipf("no network namespaces here: %v: %s", err, out)
	}
	t.Cleanup(l.remove)
	for i, s := range nodes {
		if !slices.Contains(l.sites, s.site) {
			l.sites = append(l.sites, s.site)
			l.inHub("ip", "link", "add", l.bridge(s.site), "type", "bridge")
			l.inHub("ip", "link", "set", l.bridge(s.site), "up")
		}
		h := &host{namespace: l.name + s.name, addr: fmt.Sprint(l.prefix, 10+i), port: fmt.Sprint(l.name, "p", i)}
		l.hosts[s.name] = h
		l.run("ip", "netns", "add", h.namespace)
		l.plug(s.site, h.port, h.namespace, "eth0", h.addr)
		l.in(h, "ip", "link", "set", "lo", "up")
		l.in(h, "nft", "add table inet lab; add chain inet lab in { type filter hook input priority 0; }")
	}
	l.plug(l.sites[0], l.name+"pt", "", l.name+"t", l.prefix+"1")
	return l
}

// bridge is the bridge of a site, by a name short enough for the kernel.
func (l *lab) bridge(site string) string { return fmt.Sprint("br", slices.Index(l.sites, site)) }

// plug leads a cable from a site's bridge to a namespace, "" for that of the test.
func (l *lab) plug(site, port, namespace, device, addr string) {
	l.t.Helper()
	l.run("ip", "link", "add", port, "netns", l.hub, "type", "veth", "peer", "name", l.name+"x")
	l.inHub("ip", "link", "set", port, "master", l.bridge(site), "up")
	target := []string{"ip"}
	if namespace != "" {
		l.run("ip", "link", "set", l.name+"x", "netns", namespace)
		target = append(target, "-n", namespace)
	}
	for _, args := range [][]string{
		{"link", "set", l.name + "x", "name", device}, {"addr", "add", addr + "/24", "dev", device}, {"link", "set", device, "up"},
	} {
		l.run(append(slices.Clone(target), args...)...)
	}
}

func (l *lab) run(command ...string) {
	l.t.Helper()
	if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
		l.t.Fatalf("%s: %v: %s", strings.Join(command, " "), err, bytes.TrimSpace(out))
	}
}

func (l *lab) inHub(command ...string) {
	l.t.Helper()
	l.run(append([]string{"ip", "netns", "exec", l.hub}, command...)...)
}

func (l *lab) in(h *host, command ...string) {
	l.t.Helper()
	l.run(append([]string{"ip", "netns", "exec", h.namespace}, command...)...)
}

// remove takes the network away; what runs on it has ended.
func (l *lab) remove() {
	for _, line := range l.lines {
		line.cut()
	}
	exec.Command("ip", "link", "del", l.name+"t").Run()
	for _, h := range l.hosts {
		exec.Command("ip", "netns", "del", h.namespace).Run()
	}
	exec.Command("ip", "netns", "del", l.hub).Run()
}

// inLab runs a cluster's nodes on the hosts of the lab.
func inLab(l *lab) option { return func(c *cluster) { c.lab = l } }

// filter has a host judge what comes in from others by a rule of nft, beside the rules
// it has.
func (l *lab) filter(at, from *node, rule string) {
	l.t.Helper()
	h := l.hosts[at.name]
	l.in(h, "nft", fmt.Sprintf("add rule inet lab in ip saddr %s %s", l.hosts[from.name].addr, rule))
}

// drop loses all that goes from one node to another: the sender is not told.
func (l *lab) drop(from, to *node) { l.t.Helper(); l.filter(to, from, "drop") }

// refuse keeps two nodes apart as a firewall does that answers with a reset.
func (l *lab) refuse(a, b *node) {
	l.t.Helper()
	for _, pair := range [][2]*node{{a, b}, {b, a}} {
		l.filter(pair[0], pair[1], "meta l4proto tcp reject with tcp reset")
	}
}

// lose loses that many of a hundred packets from one node to another.
func (l *lab) lose(from, to *node, percent int) {
	l.t.Helper()
	l.filter(to, from, fmt.Sprintf("numgen random mod 100 < %d drop", percent))
}

// mend takes all rules back.
func (l *lab) mend() {
	l.t.Helper()
	for _, h := range l.hosts {
		l.in(h, "nft", "flush chain inet lab in")
	}
}

// unplug takes a node's cable out, or puts it in again.
func (l *lab) unplug(n *node, out bool) {
	l.t.Helper()
	state := "up"
	if out {
		state = "down"
	}
	l.inHub("ip", "link", "set", l.hosts[n.name].port, state)
}

// line joins two bridges. The kernel's own tool for that, netem, is not built into
// every kernel, so the frames go through this process: out of a tap at one end and,
// later, into one at the other.
type line struct {
	ends    [2]*os.File
	delay   time.Duration // one way
	lossy   int           // frames of a thousand that are lost
	running sync.WaitGroup
	over    chan struct{}
}

// join joins two sites by a line with that round trip, which loses so many frames of
// a thousand.
func (l *lab) join(a, b string, roundTrip time.Duration, lossy int) {
	l.t.Helper()
	w := &line{delay: roundTrip / 2, lossy: lossy, over: make(chan struct{})}
	for i, site := range []string{a, b} {
		device := fmt.Sprintf("tap%d", 2*len(l.lines)+i)
		tap, err := tapIn(l.hub, device)
		if err != nil {
			l.t.Skipf("no tap devices here: %v", err)
		}
		w.ends[i] = tap
		l.inHub("ip", "link", "set", device, "master", l.bridge(site), "up")
	}
	l.lines = append(l.lines, w)
	for i := range w.ends {
		w.running.Go(func() { w.carry(w.ends[i], w.ends[1-i]) })
	}
}

func (w *line) cut() {
	close(w.over)
	for _, end := range w.ends {
		end.Close()
	}
	w.running.Wait()
}

// carry takes frames from one end to the other, in order.
func (w *line) carry(from, to *os.File) {
	type frame struct {
		due  time.Time
		data []byte
	}
	travelling := make(chan frame, 10_000) // more are lost, as on any line
	w.running.Go(func() {
		for {
			select {
			case f := <-travelling:
				time.Sleep(time.Until(f.due))
				to.Write(f.data)
			case <-w.over:
				return
			}
		}
	})
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if rand.IntN(1000) < w.lossy {
			continue
		}
		select {
		case travelling <- frame{time.Now().Add(w.delay), bytes.Clone(buf[:n])}:
		default:
		}
	}
}

// tapIn makes a tap in a namespace. The device ends with the file.
func tapIn(namespace, device string) (*os.File, error) {
	type made struct {
		file *os.File
		err  error
	}
	result := make(chan made)
	go func() { // the thread is not let go, so that it ends, wherever it was
		runtime.LockOSThread()
		file, err := func() (*os.File, error) {
			ns, err := os.Open("/run/netns/" + namespace)
			if err != nil {
				return nil, err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return nil, err
			}
			fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
			if err != nil {
				return nil, err
			}
			r, err := unix.NewIfreq(device)
			if err == nil {
				r.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
				err = unix.IoctlIfreq(fd, unix.TUNSETIFF, r)
			}
			if err != nil {
				return nil, errors.Join(err, unix.Close(fd))
			}
			return os.NewFile(uintptr(fd), device), nil
		}()
		result <- made{file, err}
	}()
	m := <-result
	return m.file, m.err
}

// address is where a node of the lab listens with one of its two ports.
func (l *lab) address(name, port string) string { return net.JoinHostPort(l.hosts[name].addr, port) }

// command is the command line that runs a program on a node's host.
func (l *lab) command(name string, program string, args []string) (string, []string) {
	return "ip", append([]string{"netns", "exec", l.hosts[name].namespace, program}, args...)
}
