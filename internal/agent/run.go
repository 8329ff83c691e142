package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/docs"
	"github.com/holdfast-db/holdfast/fsm"
	"github.com/holdfast-db/holdfast/http"
	"github.com/holdfast-db/holdfast/internal/problem"
	"github.com/holdfast-db/holdfast/node"
	"github.com/holdfast-db/holdfast/readreplica"
	"github.com/holdfast-db/holdfast/store"
	"github.com/holdfast-db/holdfast/transport"
)

// preflightPatience is how long a node that was let in before waits at its start
// for the cluster to say that it still is.
const preflightPatience = 250 * time.Millisecond

// How long an orderly stop gives each of its steps.
const (
	handOverLimit = 3 * time.Second
	requestsLimit = 5 * time.Second
)

// Run runs a node on a host until ctx ends or it can go on no longer, and starts it
// again in this process where that is what the node needs.
func Run(ctx context.Context, cfg Config, host Host) error {
	cfg, err := onStandby(cfg, host)
	if err != nil {
		return err
	}
	return runAgain(ctx, cfg, host, runNode)
}

// runAgain runs a node, and again in the same process for as long as it ends for the
// sake of another start, each time with the configuration that is right by then.
func runAgain(ctx context.Context, cfg Config, host Host, run func(context.Context, Config, Host) error) error {
	log := newLogger(cfg, host, "")
	for {
		err := run(ctx, cfg, host)
		next, again := afterRun(cfg, err)
		switch {
		case !again:
			return err
		case ctx.Err() != nil:
			return nil
		}
		log.Warn("starting again", "because", err)
		cfg = next
	}
}

// afterRun says with what configuration a node whose run ended with err is to be
// started again in this process, if it is.
func afterRun(cfg Config, err error) (next Config, again bool) {
	var restart *node.Restart
	var lost *diskLost
	switch {
	case errors.As(err, &restart):
		return cfg, true
	case cfg.hasStandby() && (errors.As(err, &lost) || diskBroken(err)):
		cfg.DataDir, cfg.BootstrapExpect = cfg.StandbyDir, 0
		return cfg, true
	}
	return cfg, false
}

// runNode builds a node from its parts, runs it until ctx ends or the node does, for
// a reason of its own or because the cluster refuses it for good, and takes it apart
// again: ports, transport and disk are given back on return. Until the cluster has
// been asked, it only looks: a node that may not start leaves no trace on disk.
func runNode(ctx context.Context, cfg Config, host Host) (err error) {
	ctx, end := context.WithCancel(ctx)
	defer end()
	log := newLogger(cfg, host, "")
	a := &presence{incarnation: rand.Text()}

	// Look at the data directory, and take the ports.
	if a.identity, err = identify(cfg); err != nil {
		return err
	}
	promoted := a.identity.Promoted || a.identity.Promotion != nil && a.identity.Promotion.Sealed
	if promoted && cfg.Role != command.RoleVoter {
		log.Warn("this node is a voter since its site became home: start it with --role voter --home from now on")
		cfg.Role, cfg.Home, promoted = command.RoleVoter, true, false
	}
	self := command.Member{
		ID: a.identity.ID, Name: cfg.Node, Site: cfg.Site, Role: cfg.Role,
		RaftAddr: cfg.AdvertiseRaft, HTTPAddr: cfg.AdvertiseHTTP, Version: cfg.Version, Level: command.Level,
	}
	a.self = self
	clients, err := host.listen(cfg.HTTP)
	if err != nil {
		return addressProblem("--http", cfg.HTTP, err)
	}
	defer clients.Close()
	tr, err := transport.Listen(transport.Config{
		Listen: cfg.Raft, Advertise: cfg.AdvertiseRaft, Listener: host.Listen, Dial: host.Dial,
		Hello: a.hello, Resolve: a.resolve, Check: a.check, Forks: a.forks, Newer: a.newer, Refused: a.refused, MayLead: a.mayLead, Paused: a.paused, Condition: a.condition, EntryTerm: a.entryTerm, InTerm: a.inTerm, BeforeInstall: a.beforeInstall, Muted: a.muted,
		CopyRate: cfg.CatchUpRate, WANRate: cfg.WANRate, Faults: host.FaultSwitch != nil, Log: log.Named("transport"),
	})
	if err != nil {
		return addressProblem("--raft", cfg.Raft, err)
	}
	var watched *store.Disk
	closing := func(what string, close func() error) {
		if cerr := unlessItHangs(watched, log, what, close); err == nil {
			err = cerr
		}
	}
	defer func() { closing("the node port", tr.Close) }()
	if host.FaultSwitch != nil {
		faults, err := host.FaultSwitch(tr.SetCut)
		if err != nil {
			return err
		}
		defer faults.Close()
	}

	nodeConfig := node.Config{
		Self: self, Home: cfg.Home, BootstrapExpect: cfg.BootstrapExpect, Join: cfg.Join, Datacenter: cfg.Datacenter,
		Incarnation: a.incarnation, Heartbeat: time.Duration(cfg.RaftMultiplier) * node.DefaultHeartbeat,
		LeaderPriority: cfg.LeaderPriority, LeaderHoldOff: cfg.LeaderHoldOff,
		LogRetention: cfg.LogRetention, LogOutage: cfg.LogOutage, History: cfg.History, MaxData: cfg.MaxDataSize,
		Clock: host.Clock, Log: log, RaftLog: newLogger(cfg, host, "raft"),
	}
	// Ask the cluster, if it is there, whether it would have this node. Who was let
	// in before waits only as long as an answer takes that comes at all: its readers
	// need no cluster.
	// Whoever is to be the seed of a new home asks nobody.
	verdict := make(chan error, 1)
	go func() {
		if a.identity.Promotion != nil {
			verdict <- nil
			return
		}
		verdict <- node.Preflight(ctx, nodeConfig, a.identity.ClusterID, tr)
	}()
	var patience <-chan time.Time
	if a.identity.ClusterID != "" && a.identity.Epoch != 0 {
		patience = time.After(preflightPatience)
	}
	select {
	case err := <-verdict:
		if err != nil {
			return err
		}
		verdict = nil
	case <-patience:
	}

	// From here on things are written.
	dir, err := store.OpenDir(cfg.DataDir, a.identity, log)
	if err != nil {
		return err
	}
	watched = dir.Disk()
	defer func() { closing("the data directory", dir.Close) }()
	dir.Guard(cfg.Disk)
	if promoted && a.identity.Promotion == nil {
		if err := dir.ForgetPromoted(); err != nil { // its flags say so now
			return err
		}
	}
	logs, err := dir.OpenLogs(cfg.LogStore)
	if err != nil {
		return err
	}
	defer func() { closing("the log", logs.Close) }()
	state, err := openState(cfg, log, dir, logs, func() error { return node.FindCopy(ctx, nodeConfig, a.identity.ClusterID, tr) })
	if err != nil {
		return err
	}
	defer func() { closing("the state", state.Close) }()
	if verdict != nil && (!slices.Contains(state.Members(), self) || state.Head().Cluster.Datacenter != cfg.Datacenter) {
		if err := <-verdict; err != nil {
			return err
		}
		verdict = nil
	}
	a.disk.Store(&disk{dir: dir, state: state, logs: logs})

	failed := make(chan error, 2)
	machine := fsm.New(state, func(err error) { failed <- err })
	parts := node.Parts{
		State: stateParts{state}, FSM: machine, Log: logs.Log, Stable: logs.Stable, Snapshots: state.Snapshots(),
		Logs: logs, Identity: identityParts{dir}, Transport: tr, Disk: watched, Failed: failed,
	}
	if host.Parts != nil {
		parts = host.Parts(parts)
	}
	n, err := node.New(ctx, nodeConfig, parts)
	if err == nil {
		err = watched.Err() // Raft starts all the same, and would only be in the way
	}
	if err != nil {
		return startFailed(watched, cfg, err)
	}
	a.created(n)
	if verdict != nil {
		go func() { // ends with the look at the cluster
			if err := <-verdict; err != nil {
				n.Fail(err, true)
			}
		}()
	}
	replica := readreplica.New(readreplica.Config{AskLeader: cfg.AskLeader, Log: log.Named("replica")}, n)
	api := http.New(http.Config{
		Datacenter: cfg.Datacenter, Version: cfg.Version, MaxValue: int64(cfg.MaxValue),
		SessionTTLMin: cfg.SessionTTLMin, OnceRetention: cfg.OnceRetention, OnceBytes: cfg.OnceBytes,
		OpenAPI: docs.OpenAPI, Metrics: append(storeMetrics(watched, state, logs, tr), nodeMetrics(n)...), Log: log.Named("http"),
	}, replica)

	// Serve: peers first, then the reading side, then clients.
	tr.Serve(n)
	n.Start()
	replica.Start()
	lost := make(chan error, 1)
	go func() { lost <- watchDisk(ctx, cfg, watched, n, failed) }() // ends with the run
	served := make(chan error, 1)
	go func() { served <- api.Serve(clients) }()
	log.Info("node is up", "id", self.ID, "site", cfg.Site, "role", cfg.Role, "http", cfg.AdvertiseHTTP, "raft", cfg.AdvertiseRaft, "version", cfg.Version)

	select {
	case <-ctx.Done():
		log.Info("stopping", "cause", context.Cause(ctx))
	case err = <-n.Fatal():
	case err = <-lost:
	case err = <-served:
	}

	// Stop: hand leadership over while requests still find the way to the next
	// leader, finish them, then leave Raft; the deferred calls close the disk.
	bounded, cancel := context.WithTimeout(context.Background(), handOverLimit)
	if err := n.Leave(bounded); err != nil {
		log.Warn("leadership was not handed over", "error", err)
	}
	cancel()
	bounded, cancel = context.WithTimeout(context.Background(), requestsLimit)
	if err := api.Shutdown(bounded); err != nil {
		log.Warn("some requests were cut off", "error", err)
	}
	cancel()
	closing("the reading side", func() error { replica.Stop(); return nil })
	closing("Raft", n.Stop)
	return err
}

// openState opens the state. One that is damaged is set aside and an empty one
// opened, when its contents can be had again: from the log, if that still holds
// everything, else by a copy of another member. The node takes it before it takes
// part again, and its log, its votes and its identity are whole, so it has
// forgotten nothing that it acknowledged. findCopy says whether a member can be
// asked.
func openState(cfg Config, log hclog.Logger, dir *store.Dir, logs *store.Logs, findCopy func() error) (*store.State, error) {
	sc := store.StateConfig{Dir: dir.Path(), ScrubPeriod: cfg.ScrubPeriod, Disk: dir.Disk(), Log: log.Named("store")}
	state, err := store.OpenState(sc)
	if !errors.Is(err, command.ErrDamaged) {
		if err != nil {
			err = fmt.Errorf("open the state: %w", err)
		}
		return state, err
	}
	refusal := func(why error) error {
		return problem.Refuse("start another member, with its address in --join, or move the data directory away and let the node join anew",
			"state in %s is damaged: %w; it cannot be had from elsewhere: %w", cfg.DataDir, err, why)
	}
	first, last, berr := logs.Bounds()
	switch {
	case berr != nil:
		return nil, refusal(berr)
	case last == 0:
		return nil, refusal(errors.New("the log is empty, so what this node has acknowledged is lost"))
	case first > 1:
		if ferr := findCopy(); ferr != nil {
			return nil, refusal(ferr)
		}
	}
	kept, aerr := dir.SetStateAside()
	if aerr != nil {
		return nil, aerr
	}
	log.Error("the state is damaged: it is set aside, and its contents are taken from the log and other members", "error", err, "kept-as", kept)
	if state, err = store.OpenState(sc); err != nil {
		return nil, fmt.Errorf("open a new state: %w", err)
	}
	return state, nil
}

// stateParts and identityParts give the store's parts the shape node asks for.
type stateParts struct{ *store.State }

func (s stateParts) ReceiveCopy(ctx context.Context, r io.Reader) (command.CatchUp, error) {
	stats, err := s.State.ReceiveCopy(ctx, r)
	return command.CatchUp{Kind: stats.Kind, Records: stats.Records, Bytes: stats.Bytes, Seconds: stats.Elapsed.Seconds()}, err
}

type identityParts struct{ *store.Dir }

func (i identityParts) Cluster() (id string, epoch uint64) {
	v := i.Identity()
	return v.ClusterID, v.Epoch
}

func (i identityParts) Promotion() *command.Promotion { return i.Identity().Promotion }
func (i identityParts) Forks() []command.Fork         { return i.Identity().Forks }

func (i identityParts) Paused() bool { return i.Identity().Paused }

// identify finds out who the node is from its data directory, or makes a new
// identity for an empty one. Nothing is written.
func identify(cfg Config) (store.Identity, error) {
	id, ok, err := store.Inspect(cfg.DataDir)
	switch {
	case err != nil:
		return id, err
	case (!ok || id.ClusterID == "") && len(cfg.Join) == 0 && cfg.BootstrapExpect == 0:
		return id, problem.Refuse("give --join with the address of a member, or --bootstrap-expect on the first voters", "%s belongs to no cluster and cannot find one", cfg.Node)
	case !ok:
		return store.NewIdentity(cfg.Node, cfg.Site), nil
	case id.Name != cfg.Node:
		return id, problem.Refuse("start it with --node "+id.Name+", or give another --data-dir", "data directory %s belongs to node %s, not %s", cfg.DataDir, id.Name, cfg.Node)
	case id.Site != cfg.Site:
		return id, problem.Refuse("start it with --site "+id.Site+", or give another --data-dir", "data directory %s belongs to a node at site %s, not %s", cfg.DataDir, id.Site, cfg.Site)
	}
	return id, nil
}

func addressProblem(flag, address string, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return problem.Refuse("stop the process that uses it, or choose another "+flag, "address %s is in use", address)
	}
	return problem.Refuse("choose an address of this host with "+flag, "cannot listen at %s: %w", address, err)
}
