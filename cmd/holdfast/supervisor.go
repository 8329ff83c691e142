package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-db/holdfast/client"
	"github.com/holdfast-db/holdfast/command"
)

// How patient the supervisor is.
const (
	// readyWait is how long the first table waits for all nodes.
	readyWait = 30 * time.Second
	// lookEvery is the time between two looks at a node, lookTimeout how long
	// one may take.
	lookEvery   = 250 * time.Millisecond
	lookTimeout = time.Second
	// stopWait is how long nodes may take to stop before they are killed: the
	// leader, and before it all others together.
	stopWait = 10 * time.Second
	// upWait is how long dev start waits for the node to listen.
	upWait = 15 * time.Second
)

// supervisor runs the processes of a dev cluster. It starts them, reports what
// becomes of them, does what it is told at the control socket, and stops them.
// It restarts nothing by itself: a node that ended is something to see.
//
// Its goroutines: run, which waits for the end; one per node that looks at it;
// one per process that waits for it; those of the control server; the spawner.
type supervisor struct {
	cfg    devConfig
	binary string
	out    io.Writer
	layout []devNode
	spawn  *spawner
	asking map[string]*client.Client
	ctx    context.Context // of run: when it ends, orders give up waiting

	// orders lets one order, or the shutdown, run at a time. It is taken
	// before mu.
	orders sync.Mutex

	mu       sync.Mutex // guards all below, and out
	procs    map[string]*process
	ordered  map[string]bool // ended because somebody said so
	cut      map[string]bool // sites
	watch    *watcher
	stopping bool
	// failed gets the first process that ends before all were ready.
	failed  chan string
	started bool // all were ready, or the wait for that is over
}

func newSupervisor(ctx context.Context, cfg devConfig, binary string, out io.Writer) *supervisor {
	s := &supervisor{
		cfg: cfg, binary: binary, out: out,
		layout: devLayout(cfg.HTTPPort, cfg.RaftPort),
		spawn:  newSpawner(),
		asking: map[string]*client.Client{},
		procs:  map[string]*process{}, ordered: map[string]bool{},
		cut:    map[string]bool{},
		failed: make(chan string, 1),
		ctx:    ctx,
	}
	s.watch = newWatcher(s.layout, s.announceLocked)
	return s
}

// run starts the cluster, follows it until the context ends, and stops it.
func (s *supervisor) run() (err error) {
	ctx := s.ctx
	defer s.spawn.close()
	for _, n := range s.layout {
		c, err := client.New(client.Config{Addresses: []string{n.HTTP}, Timeout: lookTimeout})
		if err != nil {
			return err
		}
		defer c.Close()
		s.asking[n.Name] = c
	}
	control, err := serveControl(controlSocket(s.cfg.Dir), s.order)
	if err != nil {
		return err
	}
	defer control.close()

	// Whatever happens from here on, no process is left behind.
	var looking sync.WaitGroup
	looks, stopLooking := context.WithCancel(context.Background())
	defer func() {
		if serr := s.stop(); err == nil {
			err = serr
		}
		stopLooking()
		looking.Wait()
	}()

	s.say("starting five nodes in %s", s.cfg.Dir)
	s.orders.Lock()
	for _, n := range s.layout {
		if err = os.Remove(s.cfg.log(n)); err != nil && !errors.Is(err, os.ErrNotExist) {
			err = fileProblem(s.cfg.log(n), err)
			break
		}
		if err = s.start(n); err != nil {
			break
		}
	}
	s.orders.Unlock()
	if err != nil {
		return err
	}
	for _, n := range s.layout {
		looking.Go(func() { s.look(looks, n) })
	}

	unready, err := s.awaitReady(ctx)
	if err != nil || ctx.Err() != nil {
		return err
	}
	s.showTable()
	for _, u := range unready {
		s.announce("%s", u)
	}
	s.say("Ctrl-C stops the cluster. From another terminal%s: holdfast dev cut east, heal east, kill n1, start n1, status.", s.dirHint())
	<-ctx.Done()
	return nil
}

// dirHint reminds of --dir where it is needed.
func (s *supervisor) dirHint() string {
	if usual, err := devDir(defaultDevDir); err == nil && usual == s.cfg.Dir {
		return " in this directory"
	}
	return ", with --dir " + s.cfg.Dir
}

// start runs the process of n. orders is held.
func (s *supervisor) start(n devNode) error {
	s.mu.Lock()
	tokens := s.cutTokens()
	s.mu.Unlock()
	if err := s.writeInitialCut(n, tokens); err != nil {
		return err
	}
	p, err := s.spawn.spawn(s.binary, s.cfg.agentArgs(n, s.layout), agentEnv(), s.cfg.log(n), func(p *process) { s.ended(n, p) })
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.procs[n.Name] = p
	return nil
}

// ended takes note of the end of a process.
func (s *supervisor) ended(n devNode, p *process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return
	}
	s.watch.ended(n.Name, time.Now())
	if !s.started && !s.ordered[n.Name] {
		select {
		case s.failed <- fmt.Sprintf("%s %s", n.Name, p.end()):
		default:
		}
		return
	}
	s.announceLocked("%s (pid %d) %s; holdfast dev start %s brings it back", n.Name, p.pid, p.end(), n.Name)
}

// awaitReady returns when all nodes may serve and have found a leader, with what is wrong with the
// others when they take too long, or with an error when one has ended.
func (s *supervisor) awaitReady(ctx context.Context) (unready []string, err error) {
	defer func() {
		s.mu.Lock()
		s.started = true
		s.mu.Unlock()
	}()
	late := time.After(readyWait)
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		unready = nil
		for _, n := range s.layout {
			if err := s.asking[n.Name].Ready(ctx); err != nil {
				unready = append(unready, fmt.Sprintf("%s is not ready: %s", n.Name, explain(err)))
			}
		}
		if len(unready) == 0 && s.settled() {
			return nil, nil
		}
		select {
		case how := <-s.failed:
			if strings.Contains(how, "; ") { // it named a remedy itself
				return nil, errors.New(how)
			}
			return nil, refuse("see the logs in "+s.cfg.Dir, "%s", how)
		case <-late:
			return unready, nil
		case <-ctx.Done():
			return nil, nil
		case <-tick.C:
		}
	}
}

func (s *supervisor) settled() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.watch.settled()
}

// look looks at n until ctx ends, and reports what is new.
func (s *supervisor) look(ctx context.Context, n devNode) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s.mu.Lock()
		p := s.procs[n.Name]
		s.mu.Unlock()
		if p == nil || !p.running() {
			continue
		}
		status, _, err := s.asking[n.Name].ReplicaStatus(ctx)
		if ctx.Err() != nil {
			return
		}
		s.mu.Lock()
		if s.procs[n.Name] == p && p.running() && !s.stopping {
			s.watch.see(n.Name, sight{err: err, status: status}, time.Now())
		}
		s.mu.Unlock()
	}
}

// order does what a request of the control socket says.
func (s *supervisor) order(r devRequest) (devReply, error) {
	if r.Do == "status" {
		s.mu.Lock()
		defer s.mu.Unlock()
		return devReply{Nodes: s.stateLocked()}, nil
	}
	s.orders.Lock()
	defer s.orders.Unlock()
	s.mu.Lock()
	stopping := s.stopping
	s.mu.Unlock()
	if stopping {
		return devReply{}, refuse("start it again with holdfast dev", "the dev cluster is stopping")
	}
	switch r.Do {
	case "cut", "heal":
		return s.setCut(r.What, r.Do == "cut")
	case "kill":
		return s.kill(r.What)
	case "start":
		return s.startAgain(r.What)
	default:
		return devReply{}, refuse("use the same version of holdfast for both", "the dev cluster does not know %q", r.Do)
	}
}

func (s *supervisor) setCut(site string, cut bool) (devReply, error) {
	var sites []string
	for _, n := range s.layout {
		if !slices.Contains(sites, n.Site) {
			sites = append(sites, n.Site)
		}
	}
	if !slices.Contains(sites, site) {
		return devReply{}, refuse("give one of "+strings.Join(sites, ", "), "there is no site %q", site)
	}
	s.mu.Lock()
	was := s.cut[site]
	s.cut[site] = cut
	tokens := s.cutTokens()
	procs := map[string]*process{}
	for name, p := range s.procs {
		procs[name] = p
	}
	s.mu.Unlock()

	var untold []string
	for _, n := range s.layout {
		if err := s.writeInitialCut(n, tokens); err != nil {
			return devReply{}, err
		}
		if err := s.throw(n, procs[n.Name], tokens); err != nil {
			untold = append(untold, fmt.Sprintf("%s (%v)", n.Name, err))
		}
	}
	if len(untold) > 0 {
		return devReply{}, refuse("repeat it, or kill and start the node", "not every node could be told: %s", strings.Join(untold, ", "))
	}
	text := fmt.Sprintf("%s is cut off from the other sites", site)
	switch {
	case cut && was:
		text = fmt.Sprintf("%s was cut off already", site)
	case !cut && was:
		text = fmt.Sprintf("%s can be reached again", site)
	case !cut:
		text = fmt.Sprintf("%s was not cut off", site)
	}
	if cut != was {
		s.announce("%s", text)
	}
	return devReply{Text: text}, nil
}

// throw sets the fault switch of a node that runs. One that has just been
// started may not listen yet.
func (s *supervisor) throw(n devNode, p *process, tokens []string) error {
	deadline := time.Now().Add(5 * time.Second)
	for {
		if p == nil || !p.running() {
			return nil
		}
		if err := s.ctx.Err(); err != nil {
			return err
		}
		err := throwSwitch(s.cfg.socket(n), tokens)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		select {
		case <-p.done:
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// cutTokens is the order all fault switches are given. mu is held.
func (s *supervisor) cutTokens() []string {
	tokens := []string{}
	for site, cut := range s.cut {
		if cut {
			tokens = append(tokens, site)
		}
	}
	slices.Sort(tokens)
	return tokens
}

func (s *supervisor) writeInitialCut(n devNode, tokens []string) error {
	b, err := json.Marshal(switchOrder{Cut: tokens})
	if err != nil {
		return err
	}
	path := initialCut(s.cfg.socket(n))
	if err := replaceFile(path, func(w io.Writer) error { _, err := w.Write(b); return err }); err != nil {
		return fileProblem(path, err)
	}
	return nil
}

func (s *supervisor) find(name string) (devNode, *process, error) {
	var names []string
	for _, n := range s.layout {
		if n.Name == name {
			s.mu.Lock()
			defer s.mu.Unlock()
			return n, s.procs[name], nil
		}
		names = append(names, n.Name)
	}
	return devNode{}, nil, refuse("give one of "+strings.Join(names, ", "), "there is no node %q", name)
}

func (s *supervisor) kill(name string) (devReply, error) {
	n, p, err := s.find(name)
	if err != nil {
		return devReply{}, err
	}
	if p == nil || !p.running() {
		return devReply{}, refuse("start it with holdfast dev start "+n.Name, "%s does not run", n.Name)
	}
	s.mu.Lock()
	s.ordered[n.Name] = true
	s.mu.Unlock()
	if err := p.signal(syscall.SIGKILL); err != nil {
		return devReply{}, fmt.Errorf("kill %s (pid %d): %w", n.Name, p.pid, err)
	}
	<-p.done
	return devReply{Text: fmt.Sprintf("%s (pid %d) is killed", n.Name, p.pid)}, nil
}

func (s *supervisor) startAgain(name string) (devReply, error) {
	n, p, err := s.find(name)
	if err != nil {
		return devReply{}, err
	}
	if p != nil && p.running() {
		return devReply{}, refuse("kill it first with holdfast dev kill "+n.Name, "%s runs already (pid %d)", n.Name, p.pid)
	}
	if err := s.start(n); err != nil {
		return devReply{}, err
	}
	_, p, err = s.find(name)
	if err != nil {
		return devReply{}, err
	}
	ctx, cancel := context.WithTimeout(s.ctx, upWait)
	defer cancel()
	for {
		// It is up when it answers, also if the answer is that it is not ready.
		var nowhere *client.UnreachableError
		if err := s.asking[n.Name].Ready(ctx); err == nil || (ctx.Err() == nil && !errors.As(err, &nowhere)) {
			s.announce("%s runs again (pid %d)", n.Name, p.pid)
			return devReply{Text: fmt.Sprintf("%s runs again (pid %d)", n.Name, p.pid)}, nil
		}
		select {
		case <-p.done:
			return devReply{}, refuse("see "+s.cfg.log(n), "%s %s", n.Name, p.end())
		case <-ctx.Done():
			return devReply{}, refuse("see "+s.cfg.log(n), "%s (pid %d) runs but does not answer after %v", n.Name, p.pid, upWait)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// stop ends all processes: learners and followers first, the leader last, so
// that no election is held on the way down. What is left after stopWait is
// killed.
func (s *supervisor) stop() error {
	s.orders.Lock()
	defer s.orders.Unlock()
	s.mu.Lock()
	s.stopping = true
	leader := s.procs[s.watch.leader]
	var others []*process
	for _, p := range s.procs {
		if p != leader && p.running() {
			others = append(others, p)
		}
	}
	s.mu.Unlock()
	if len(others) > 0 || leader != nil {
		s.say("stopping")
	}

	var errs []error
	end := func(ps []*process) {
		patience, cancel := context.WithTimeout(context.Background(), stopWait)
		defer cancel()
		for _, p := range ps {
			if err := p.signal(syscall.SIGTERM); err != nil {
				errs = append(errs, err)
			}
		}
		for _, p := range ps {
			select {
			case <-p.done:
			case <-patience.Done():
				if err := p.signal(syscall.SIGKILL); err != nil {
					errs = append(errs, err)
					continue
				}
				<-p.done
			}
			_ = p.stdin.Close()
		}
	}
	end(others)
	if leader != nil {
		end([]*process{leader})
	}
	return errors.Join(errs...)
}

// stateLocked is the table of nodes. mu is held.
func (s *supervisor) stateLocked() []devNodeState {
	var nodes []devNodeState
	for _, n := range s.layout {
		v := devNodeState{
			Name: n.Name, Site: n.Site, Role: n.Role, URL: "http://" + n.HTTP, HTTP: n.HTTP, Raft: n.Raft,
			Cut: s.cut[n.Site], Log: s.cfg.log(n), State: "not started",
		}
		if p := s.procs[n.Name]; p != nil {
			if p.running() {
				v.PID, v.State = p.pid, s.watch.state(n.Name)
			} else {
				v.State = strings.TrimPrefix(p.end(), "was ")
			}
		}
		if v.Role == command.RoleVoter && v.State == "level" {
			v.State = "follower"
		}
		nodes = append(nodes, v)
	}
	return nodes
}

func (s *supervisor) showTable() {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, _ = fmt.Fprintln(s.out)
	_ = table(s.out, devRows(s.stateLocked()))
	_, _ = fmt.Fprintln(s.out)
}

// say prints a line, announce one with the time before it.
func (s *supervisor) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, _ = fmt.Fprintf(s.out, format+"\n", args...)
}

func (s *supervisor) announce(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.announceLocked(format, args...)
}

func (s *supervisor) announceLocked(format string, args ...any) {
	_, _ = fmt.Fprintf(s.out, time.Now().Format(time.TimeOnly)+"  "+format+"\n", args...)
}
