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
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-db/holdfast/cluster-tests/fault"
)

// lab is a network for one cluster: each node is a host of its own, a network
// namespace; the hosts of a site share a bridge; and the bridges are joined by lines,
// which may be long and lossy. Any two hosts may be kept apart by the firewall. A second
// network, on which nothing ever goes wrong, leads from the test to every host: clients
// come that way, so that what they see is the nodes' doing.
//
//	n1 ───┐
//	n2 ───┼─ bridge home ─ line ─ bridge east ─── e1
//	n3 ───┘
//	test ─── bridge of the clients ─── n1, n2, n3, e1
//
// It needs root, and the programs ip and nft.
type lab struct {
	t      testing.TB
	name   string // begins the names of everything the kernel is asked for
	prefix string // of the nodes' addresses among each other: three bytes and a dot
	client string // of the addresses at which clients reach them
	hub    string // the namespace of the bridges
	hosts  map[string]*host
	sites  []string
	lines  []*line
}

// host is one namespace. Its name is that of the node that runs on it.
type host struct {
	namespace string
	addr      string
	reached   string // address for clients
	port      string // the device at the bridge's end of its cable
	cut       string // rules of nft that block sets
}

// newLab makes the network for nodes, or skips the test where it cannot be had.
func newLab(t testing.TB, nodes []spec) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: networks of namespaces need root")
	}
	for _, program := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("SKIPPED: networks of namespaces need the program %s", program)
		}
	}
	l := &lab{t: t, name: fmt.Sprintf("hf%04x", rand.IntN(1<<16)), hosts: map[string]*host{}}
	second, third := rand.IntN(50), rand.IntN(256)
	l.prefix, l.client = fmt.Sprintf("10.%d.%d.", 100+second, third), fmt.Sprintf("10.%d.%d.", 150+second, third)
	l.hub = l.name + "hub"
	if out, err := exec.Command("ip", "netns", "add", l.hub).CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: no network namespaces here: %v: %s", err, out)
	}
	t.Cleanup(l.remove)
	l.inHub("ip", "link", "add", clientBridge, "type", "bridge")
	l.inHub("ip", "link", "set", clientBridge, "up")
	for i, s := range nodes {
		if !slices.Contains(l.sites, s.site) {
			l.sites = append(l.sites, s.site)
			l.inHub("ip", "link", "add", l.bridge(s.site), "type", "bridge")
			l.inHub("ip", "link", "set", l.bridge(s.site), "up")
		}
		h := &host{namespace: l.name + s.name, addr: fmt.Sprint(l.prefix, 10+i), reached: fmt.Sprint(l.client, 10+i), port: fmt.Sprint(l.name, "p", i)}
		l.hosts[s.name] = h
		l.run("ip", "netns", "add", h.namespace)
		l.plug(l.bridge(s.site), h.port, h.namespace, "eth0", h.addr)
		l.plug(clientBridge, fmt.Sprint(l.name, "c", i), h.namespace, "eth1", h.reached)
		l.in(h, "ip", "link", "set", "lo", "up")
		l.in(h, "nft", "add table inet lab; add chain inet lab in { type filter hook input priority 0; }; add chain inet lab cut { type filter hook input priority 1; }")
	}
	l.plug(clientBridge, l.name+"pt", "", l.name+"t", l.client+"1")
	return l
}

// bridge is the bridge of a site, by a name short enough for the kernel.
func (l *lab) bridge(site string) string { return fmt.Sprint("br", slices.Index(l.sites, site)) }

// clientBridge is the bridge of the clients' network.
const clientBridge = "brc"

// plug leads a cable from a bridge to a namespace, "" for that of the test.
func (l *lab) plug(bridge, port, namespace, device, addr string) {
	l.t.Helper()
	l.run("ip", "link", "add", port, "netns", l.hub, "type", "veth", "peer", "name", l.name+"x")
	l.inHub("ip", "link", "set", port, "master", bridge, "up")
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

// block loses what goes along the pairs, in place of what was blocked before, beside
// all other rules.
func (l *lab) block(pairs []fault.Pair) error {
	rules := map[string]string{}
	for _, p := range pairs {
		rules[p.To] += fmt.Sprintf("add rule inet lab cut ip saddr %s drop\n", l.hosts[p.From].addr)
	}
	var wg sync.WaitGroup
	errs := make(chan error, len(l.hosts))
	for name, h := range l.hosts {
		if rules[name] == h.cut {
			continue
		}
		h.cut = rules[name]
		wg.Go(func() {
			cmd := exec.Command("ip", "netns", "exec", h.namespace, "nft", "-f", "-")
			cmd.Stdin = strings.NewReader("flush chain inet lab cut\n" + rules[name]) // in one transaction
			if out, err := cmd.CombinedOutput(); err != nil {
				errs <- fmt.Errorf("firewall of %s: %w: %s", name, err, out)
			}
		})
	}
	wg.Wait()
	close(errs)
	var all []error
	for err := range errs {
		all = append(all, err)
	}
	return errors.Join(all...)
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
	site    string // at its second end
	ends    [2]*os.File
	base    fault.Line // what it is when nothing is wrong with it
	quality atomic.Pointer[fault.Line]
	running sync.WaitGroup
	over    chan struct{}
}

// queue is how much a line with a rate holds of what waits to go: half a second of a
// slow one, and then frames are lost, as on any line.
const queue = 32 << 10

// join joins two sites by a line with that round trip, which loses so many frames of
// a thousand.
func (l *lab) join(a, b string, roundTrip time.Duration, lossy int) {
	l.t.Helper()
	w := &line{site: b, base: fault.Line{Delay: roundTrip / 2, Loss: lossy}, over: make(chan struct{})}
	w.quality.Store(&w.base)
	for i, site := range []string{a, b} {
		device := fmt.Sprintf("tap%d", 2*len(l.lines)+i)
		tap, err := tapIn(l.hub, device)
		if err != nil {
			l.t.Skipf("SKIPPED: no tap devices here: %v", err)
		}
		w.ends[i] = tap
		l.inHub("ip", "link", "set", device, "master", l.bridge(site), "up")
	}
	l.lines = append(l.lines, w)
	for i := range w.ends {
		w.running.Go(func() { w.carry(w.ends[i], w.ends[1-i]) })
	}
}

// set makes the line worse by q.
func (w *line) set(q fault.Line) {
	q.Delay, q.Loss = q.Delay+w.base.Delay, q.Loss+w.base.Loss
	w.quality.Store(&q)
}

func (w *line) cut() {
	close(w.over)
	for _, end := range w.ends {
		end.Close()
	}
	w.running.Wait()
}

// frame is one on its way.
type frame struct {
	due  time.Time
	data []byte
}

// carry takes frames from one end to the other: in order, but for those that are to be
// overtaken.
func (w *line) carry(from, to *os.File) {
	inOrder, late := make(chan frame, 10_000), make(chan frame, 1_000) // more are lost
	for _, way := range []chan frame{inOrder, late} {
		w.running.Go(func() {
			for {
				select {
				case f := <-way:
					time.Sleep(time.Until(f.due))
					to.Write(f.data)
				case <-w.over:
					return
				}
			}
		})
	}
	var free time.Time // when the line has carried what it has taken
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		q := w.quality.Load()
		happens := func(of int) bool { return rand.IntN(1000) < of }
		if happens(q.Loss) {
			continue
		}
		data := bytes.Clone(buf[:n])
		if happens(q.Corrupt) {
			data[rand.IntN(n)] ^= 1 << rand.IntN(8)
		}
		now := time.Now()
		due := now.Add(q.Delay)
		if q.Rate > 0 {
			if free.Before(now) {
				free = now
			}
			if free.Sub(now).Seconds()*float64(q.Rate) > queue {
				continue
			}
			free = free.Add(time.Duration(float64(n) / float64(q.Rate) * float64(time.Second)))
			due = free.Add(q.Delay)
		}
		if q.Jitter > 0 {
			due = due.Add(rand.N(q.Jitter))
		}
		way := inOrder
		if happens(q.Reorder) {
			way, due = late, due.Add(q.Delay+time.Millisecond)
		}
		copies := 1
		if happens(q.Duplicate) {
			copies = 2
		}
		for range copies {
			select {
			case way <- frame{due, data}:
			default:
			}
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

// addresses are where a node of the lab listens for clients, and for other nodes.
func (l *lab) addresses(name string) (http, raft string) {
	h := l.hosts[name]
	return net.JoinHostPort(h.reached, "8500"), net.JoinHostPort(h.addr, "8300")
}

// command is the command line that runs a program on a node's host.
func (l *lab) command(name string, program string, args []string) (string, []string) {
	return "ip", append([]string{"netns", "exec", l.hosts[name].namespace, program}, args...)
}
