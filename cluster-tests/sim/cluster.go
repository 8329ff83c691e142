//go:build linux

package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/holdfast-db/holdfast/cluster-tests/workload"
	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/internal/agent"
	"github.com/holdfast-db/holdfast/store"
)

const (
	httpPort = 8500
	nodePort = 8300
	home     = "home"
)

func at(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }

// member is one node of the cluster, with the machine it stands on.
type member struct {
	Name, Site   string
	Voter, Spare bool

	host  *host
	clock *clock
	hw    hardware
	ill   atomic.Bool  // its disk is: the process may end for that
	late  atomic.Int64 // nanoseconds that each sync takes longer
	cfg   agent.Config
	log   *os.File
	// images counts the directories the node has had: a kill moves it to a copy.
	images int
	moves  int  // how often its node port has moved
	run    *run // the one that counts; nil: none
}

// run is one life of a node's process.
type run struct {
	process *process
	dir     string
	stop    context.CancelCauseFunc
	ended   chan struct{} // closed behind err
	err     error
	over    atomic.Bool // what becomes of it is nobody's business any more
}

// running says whether the process is there.
func (m *member) running() bool {
	if m.run == nil {
		return false
	}
	select {
	case <-m.run.ended:
		return false
	default:
		return true
	}
}

// Cluster is a whole cluster in the bubble that made it. One goroutine at a time may
// do things to it.
type Cluster struct {
	dir     string
	seed    uint64
	net     *network
	members []*member
	clients *process
	api     *http.Client // of the workloads
	// orders go on connections of their own: one that is kept may have died with its
	// member, and an order is not sent twice.
	orders *http.Client
	// disks, when set, are what the members' data lies on; else it lies in dir.
	disks *disks
	// archivist, when set, makes and restores archives: who judges those of its own
	// has to know of these, too.
	archivist *workload.Archivist
	// forgets, when set, is told of a member that may come back with less than it has told.
	forgets func(name string)
	// ghosts are runs that were killed and have not noticed yet.
	ghosts []*run
	// died gets the news of a node that ended by itself.
	died chan string
}

// plan is what a cluster is made of.
type plan struct {
	dir      string
	seed     uint64
	voters   int
	spare    bool // there is one
	logStore string
	// shortLog: little of the log is kept, so that members catch up by copies, which take
	// their time; shortHistory: history is soon dropped.
	shortLog, shortHistory bool

	sites    map[string]int // remote sites, and how many learners stand there
	lines    func(a, b *host) line
	hardware func(name string) hardware
	edit     func(*agent.Config)
	disks    *disks
	level    hclog.Level
}

// members are those of a plan, voters first.
func (p *plan) members() []*member {
	var members []*member
	for i := range p.voters {
		members = append(members, &member{Name: fmt.Sprintf("n%d", i+1), Site: home, Voter: true})
	}
	if p.spare {
		members = append(members, &member{Name: "s1", Site: home, Spare: true})
	}
	for _, site := range slices.Sorted(maps.Keys(p.sites)) {
		for i := range p.sites[site] {
			members = append(members, &member{Name: fmt.Sprintf("%c%d", site[0], i+1), Site: site})
		}
	}
	return members
}

func newCluster(p plan) (*Cluster, error) {
	c := &Cluster{dir: p.dir, seed: p.seed, disks: p.disks, net: newNetwork(p.seed, p.lines), died: make(chan string, 64)}
	c.clients = c.net.addHost("clients", "").begin()
	dial := func(ctx context.Context, _, addr string) (net.Conn, error) { return c.clients.dial(ctx, addr) }
	c.api = &http.Client{Transport: &http.Transport{
		DialContext: dial, MaxIdleConnsPerHost: 64, IdleConnTimeout: 30 * time.Second, DisableCompression: true,
	}}
	c.orders = &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true, DisableCompression: true}}
	c.members = p.members()
	var voters []string
	for _, m := range c.members[:p.voters] {
		voters = append(voters, at(m.Name, nodePort))
	}
	for _, m := range c.members {
		m.host = c.net.addHost(m.Name, m.Site)
		m.clock = newClock()
		m.hw = p.hardware(m.Name)
		m.cfg = agent.Config{
			Node: m.Name, Site: m.Site, Home: m.Site == home, Role: command.RoleLearner,
			HTTP: at(m.Name, httpPort), Raft: at(m.Name, nodePort),
			AdvertiseHTTP: at(m.Name, httpPort), AdvertiseRaft: at(m.Name, nodePort),
			Join: voters, Datacenter: "dc1", LogStore: p.logStore, RaftMultiplier: 1, LeaderHoldOff: 30 * time.Second,
			MaxValue: command.DefaultMaxValue, History: command.Retention{Age: time.Hour, Changes: 1_000_000, Bytes: 1 << 30},
			SessionTTLMin: time.Second, OnceRetention: 15 * time.Minute, OnceBytes: 64 << 20,
			LogRetention: 512 << 20, LogOutage: 24 * time.Hour,
			// The least reserve there can be: the ballast and the files of the log are made
			// in advance, and copied with each kill.
			Disk:         store.DiskLimits{Stall: store.DefaultDiskLimits.Stall, Slow: store.DefaultDiskLimits.Slow, Reserve: 2 << 20},
			StandbyAfter: 30 * time.Second, LogLevel: p.level, Version: "sim",
			DataDir: filepath.Join(p.dir, m.Name+".0"),
		}
		if p.disks != nil {
			m.cfg.DataDir = p.disks.folder(m.Name)
		}
		if m.Spare {
			m.cfg.Role = command.RoleSpare
		}
		if m.Voter {
			m.cfg.Role = command.RoleVoter
			m.cfg.BootstrapExpect = p.voters
			m.cfg.Join = slices.DeleteFunc(slices.Clone(voters), func(a string) bool { return a == m.cfg.Raft })
		}
		if p.edit != nil {
			p.edit(&m.cfg)
		}
		log, err := os.Create(filepath.Join(p.dir, m.Name+".log"))
		if err != nil {
			return nil, err
		}
		m.log = log
	}
	return c, nil
}

// start begins a run of a node that has none.
func (c *Cluster) start(m *member) {
	m.host.boot()
	ctx, stop := context.WithCancelCause(context.Background())
	r := &run{process: m.host.begin(), dir: m.cfg.DataDir, stop: stop, ended: make(chan struct{})}
	m.run = r
	cfg := m.cfg
	fmt.Fprintf(m.log, "---- %v start in %s\n", time.Now().UTC().Format(time.TimeOnly), filepath.Base(cfg.DataDir))
	go func() {
		defer close(r.ended)
		r.err = agent.Run(ctx, cfg, agent.Host{Listen: r.process.listen, Dial: r.process.dial, Clock: m.clock, Parts: slow(r.process, m.hw, &m.late, c.seed^uint64(m.images)), Log: m.log})
		if ctx.Err() == nil && !r.over.Load() && !m.ill.Load() {
			c.died <- fmt.Sprintf("%s ended by itself: %v", m.Name, r.err)
		}
	}()
}

var errStop = errors.New("the simulation stops it")

// stop ends a node in good order.
func (c *Cluster) stop(m *member) error {
	r := m.run
	if r == nil {
		return nil
	}
	r.process.goOn()
	r.stop(errStop)
	<-r.ended
	m.run = nil
	m.host.kill() // a connection may outlive the node, but not its process
	return r.err
}

// kill ends processes at once, as kill -9 does. What they have given to the system at
// that moment is what the next run finds.
func (c *Cluster) kill(members ...*member) error {
	return c.end(false, members, func(m *member) (string, error) {
		if c.disks != nil {
			return c.disks.copy(m.Name), nil
		}
		m.images++
		image := filepath.Join(c.dir, fmt.Sprintf("%s.%d", m.Name, m.images))
		return image, copyTree(m.cfg.DataDir, image)
	})
}

// end ends processes at once and has them go on with an image of their directories.
func (c *Cluster) end(silent bool, members []*member, image func(*member) (dir string, err error)) error {
	var killed []*member
	for _, m := range members {
		if m.run == nil {
			continue
		}
		killed = append(killed, m)
		m.run.over.Store(true)
		if silent {
			m.host.losePower()
		} else {
			m.host.kill()
		}
	}
	// When nothing moves, no call to the disk is under way.
	synctest.Wait()
	for _, m := range killed {
		dir, err := image(m)
		if err != nil {
			return fmt.Errorf("image of the disk of %s: %w", m.Name, err)
		}
		fmt.Fprintf(m.log, "---- %v killed, power lost: %v\n", time.Now().UTC().Format(time.TimeOnly), silent)
		m.cfg.DataDir = dir
		m.run.stop(errStop)
		c.ghosts = append(c.ghosts, m.run)
		m.run = nil
	}
	c.bury()
	return nil
}

// bury removes what those left behind that have ended since they were killed.
func (c *Cluster) bury() {
	c.ghosts = slices.DeleteFunc(c.ghosts, func(r *run) bool {
		select {
		case <-r.ended:
			_ = os.RemoveAll(r.dir)
			return true
		default:
			return false
		}
	})
}

// close ends everything. The goroutines of the bubble are gone when it returns.
func (c *Cluster) close() error {
	var errs []error
	for _, m := range c.members {
		if m.run != nil {
			m.run.process.goOn()
			m.run.stop(errStop)
		}
	}
	for _, m := range c.members {
		if m.run != nil {
			<-m.run.ended
			if m.run.err != nil {
				errs = append(errs, fmt.Errorf("%s ended with: %w", m.Name, m.run.err))
			}
		}
		_ = m.log.Close()
	}
	for _, r := range c.ghosts {
		<-r.ended
	}
	c.api.CloseIdleConnections()
	c.clients.h.kill()
	return errors.Join(errs...)
}

// nodes are the members as workloads see them.
func (c *Cluster) nodes() []*workload.Node {
	var nodes []*workload.Node
	for _, m := range c.members {
		nodes = append(nodes, c.client(m))
	}
	return nodes
}

// client is a member as a workload sees it.
func (c *Cluster) client(m *member) *workload.Node {
	return &workload.Node{Name: m.Name, Site: m.Site, Voter: m.Voter, URL: "http://" + m.cfg.AdvertiseHTTP, Client: c.api}
}

// level waits until all nodes hold the same, within so much time; died is why they
// never will.
func (c *Cluster) level(within time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	_, err := workload.Level(ctx, c.nodes())
	var parted *workload.Divergence
	select {
	case what := <-c.died:
		if !errors.As(err, &parted) {
			err = errors.Join(errors.New(what), err)
		}
	default:
	}
	return err
}
