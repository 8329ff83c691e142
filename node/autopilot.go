package node

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	autopilot "github.com/hashicorp/raft-autopilot"

	"github.com/holdfast-db/holdfast/command"
)

// Autopilot looks after the members while this node leads: it judges their health,
// gives and takes votes as promoter.go decides, and has those removed that have
// been dead for long. It runs anew in each term of leadership, so nothing of what
// a former one saw is left, and what it asks for in a term that is over is refused.

// pilotInterval is how often autopilot looks at the members, and how often it acts. Looking
// costs no request: members report by themselves.
const pilotInterval = 100 * time.Millisecond

// pilot is autopilot in one term, and what it knows of the members.
type pilot struct {
	n     *Node
	term  uint64
	began time.Duration // steady clock
	auto  *autopilot.Autopilot
	ctx   context.Context
	end   context.CancelFunc
	// removing is set while a dead member is being removed.
	removing atomic.Bool
	// was is each member's health at the look before, kept by NotifyState.
	was map[raft.ServerID]bool
}

func (n *Node) beginPilot(term uint64) {
	p := &pilot{n: n, term: term, began: n.cfg.Clock.Steady()}
	p.ctx, p.end = context.WithCancel(n.ctx)
	// What it does is logged where it is done.
	p.auto = autopilot.New(&pilotRaft{Raft: n.raft, p: p}, p, autopilot.WithPromoter(promoter{}),
		autopilot.WithLogger(hclog.NewNullLogger()), autopilot.WithUpdateInterval(pilotInterval), autopilot.WithReconcileInterval(pilotInterval))
	p.auto.Start(p.ctx)
	n.pilot.Store(p)
	n.loop(func() {
		<-p.ctx.Done()
		<-p.auto.Stop()
	})
}

// endPilot does not wait: a change of the members that is under way ends by itself.
func (n *Node) endPilot() {
	if p := n.pilot.Swap(nil); p != nil {
		p.end()
	}
}

// AutopilotConfig implements autopilot.ApplicationIntegration.
func (p *pilot) AutopilotConfig() *autopilot.Config {
	pilot, err := p.n.autopilot()
	if err != nil {
		p.n.log.Debug("the setting of autopilot is not known", "error", err)
		return nil
	}
	return &autopilot.Config{
		CleanupDeadServers:      pilot.CleanupDeadServers,
		LastContactThreshold:    pilot.LastContactThreshold,
		MaxTrailingLogs:         min(pilot.MaxTrailingLogs, math.MaxInt64), // it is added to an index
		MinQuorum:               uint(min(pilot.MinQuorum, math.MaxInt32)),
		ServerStabilizationTime: pilot.ServerStabilizationTime,
		Ext:                     pilot,
	}
}

// KnownServers implements autopilot.ApplicationIntegration: the members table.
func (p *pilot) KnownServers() map[raft.ServerID]*autopilot.Server {
	cluster, members, err := p.n.table()
	pilot, err2 := p.n.autopilot()
	if err := errors.Join(err, err2); err != nil {
		p.n.log.Debug("the members are not known", "error", err)
		return nil
	}
	known, term := make(map[raft.ServerID]*autopilot.Server, len(members)), p.n.lastTerm()
	for _, m := range members {
		st := p.standing(m, term, &pilot)
		st.home = m.Site == cluster.HomeSite
		known[raft.ServerID(m.ID)] = p.server(m, st, &pilot)
	}
	return known
}

func (p *pilot) server(m command.Member, st standing, pilot *command.Autopilot) *autopilot.Server {
	srv := &autopilot.Server{
		ID: raft.ServerID(m.ID), Name: m.Name, Address: raft.ServerAddress(m.ID), Version: m.Version,
		NodeStatus: autopilot.NodeAlive, NodeType: nodeLearner, IsLeader: m.ID == p.n.id, Ext: st,
	}
	switch m.Role {
	case command.RoleVoter:
		srv.NodeType = autopilot.NodeVoter
	case command.RoleSpare:
		srv.NodeType = nodeSpare
	}
	r, heard := p.n.reports.get(m.ID)
	switch {
	case srv.IsLeader && p.n.Unfit() != nil, st.dead(pilot):
		srv.NodeStatus = autopilot.NodeFailed
	case !srv.IsLeader && (!heard || r.Disk.Down()): // it is there, and not healthy
		srv.NodeStatus = autopilot.NodeUnknown
	}
	return srv
}

// standing judges a member by its last report. What the leader wrote since then
// the member cannot have reported, so it is compared with what the leader had then.
// term is that of the leader's last entry.
func (p *pilot) standing(m command.Member, term uint64, pilot *command.Autopilot) standing {
	st := standing{role: m.Role, level: true}
	if m.ID == p.n.id {
		if err := p.n.Unfit(); err != nil {
			st.because = err.Error()
		}
		return st
	}
	if p.n.parts.Transport.Link(m.ID).Paused {
		st.level, st.because = false, "it is paused" // and meant to be silent
		return st
	}
	r, heard := p.n.reports.get(m.ID)
	if !heard {
		st.silent, st.level, st.because = p.n.cfg.Clock.Steady()-p.began, false, "it has not reported to this leader yet"
		return st
	}
	st.silent, st.level, st.disk = p.n.cfg.Clock.Steady()-r.at, p.n.level(m.ID), r.Disk
	switch {
	case st.silent > reportGrace+pilot.LastContactThreshold:
		st.because = fmt.Sprintf("its last report came %v ago", st.silent.Round(100*time.Millisecond))
	case r.LastTerm != term:
		st.because = fmt.Sprintf("its log ends in term %d, the leader's in %d", r.LastTerm, term)
	case r.Disk.Down():
		st.because = fmt.Sprintf("its disk is %s", r.Disk)
	case r.lacks() > pilot.MaxTrailingLogs:
		st.because = fmt.Sprintf("it lacks %d entries of the log", r.lacks())
	}
	return st
}

// levelEntries is how many entries a member may lack and still be called level.
const levelEntries = 128

// level reports whether a member said, recently, that it holds nearly all of the log,
// on a disk that takes more.
func (n *Node) level(id string) bool {
	r, ok := n.reports.get(id)
	return ok && n.cfg.Clock.Steady()-r.at < 2*time.Second && r.lacks() <= levelEntries && !r.Disk.Down()
}

// lacks is how many entries the member lacked of the leader's log when it reported.
func (r *reported) lacks() uint64 {
	if r.LastIndex >= r.leader {
		return 0
	}
	return r.leader - r.LastIndex
}

// FetchServerStats implements autopilot.ApplicationIntegration: the members' reports.
func (p *pilot) FetchServerStats(_ context.Context, servers map[raft.ServerID]*autopilot.Server) map[raft.ServerID]*autopilot.ServerStats {
	last := p.n.raft.LastIndex()
	stats := make(map[raft.ServerID]*autopilot.ServerStats, len(servers))
	for id := range servers {
		if string(id) == p.n.id {
			stats[id] = &autopilot.ServerStats{LastTerm: p.n.lastTerm(), LastIndex: last}
		} else if r, ok := p.n.reports.get(string(id)); ok {
			silent := p.n.cfg.Clock.Steady() - r.at
			stats[id] = &autopilot.ServerStats{
				LastContact: max(silent-reportGrace, 0), LastTerm: r.LastTerm, LastIndex: last - min(r.lacks(), last),
			}
		}
	}
	return stats
}

// NotifyState implements autopilot.ApplicationIntegration. It sets since when each member
// is healthy or not: the library compares a member's health with itself, so it keeps the
// moment at which it first saw the member. The library calls it before anyone can read
// the state, never twice at once, and carries the moment on into the next state.
func (p *pilot) NotifyState(s *autopilot.State) {
	is := make(map[raft.ServerID]bool, len(s.Servers))
	for id, srv := range s.Servers {
		is[id] = srv.Health.Healthy
		if was, known := p.was[id]; known && was != is[id] {
			srv.Health.StableSince = time.Now()
		}
	}
	p.was = is
}

// RemoveFailedServer implements autopilot.ApplicationIntegration. One at a time: what it
// comes to counts for the next.
func (p *pilot) RemoveFailedServer(srv *autopilot.Server) {
	if !p.removing.CompareAndSwap(false, true) {
		return
	}
	p.n.loop(func() {
		defer p.removing.Store(false)
		ctx, cancel := context.WithTimeout(p.ctx, p.n.cfg.Wait)
		defer cancel()
		if err := p.removeDead(ctx, string(srv.ID)); err != nil {
			p.n.log.Warn("a dead member could not be removed", "name", srv.Name, "id", srv.ID, "error", err)
		}
	})
}

// pilotRaft is Raft as autopilot may use it: it changes the members only through
// reconfigure, and hands leadership over as an operator does.
type pilotRaft struct {
	*raft.Raft
	p    *pilot
	told string // the last failure that was logged
}

// AddVoter implements autopilot.Raft.
func (r *pilotRaft) AddVoter(id raft.ServerID, _ raft.ServerAddress, _ uint64, _ time.Duration) raft.IndexFuture {
	return r.do("give a vote to", id, func(ctx context.Context) error { return r.p.giveVote(ctx, string(id)) })
}

// DemoteVoter implements autopilot.Raft.
func (r *pilotRaft) DemoteVoter(id raft.ServerID, _ uint64, _ time.Duration) raft.IndexFuture {
	return r.do("take the vote of", id, func(ctx context.Context) error { return r.p.takeVote(ctx, string(id)) })
}

// LeadershipTransferToServer implements autopilot.Raft.
func (r *pilotRaft) LeadershipTransferToServer(id raft.ServerID, _ raft.ServerAddress) raft.Future {
	return r.do("hand leadership to", id, func(ctx context.Context) error { return r.p.n.handOver(ctx, string(id)) })
}

// AddNonvoter implements autopilot.Raft. Members enter by asking: see handleJoin.
func (r *pilotRaft) AddNonvoter(raft.ServerID, raft.ServerAddress, uint64, time.Duration) raft.IndexFuture {
	return done{errNotAutopilots}
}

// RemoveServer implements autopilot.Raft. Members leave by removeDead and expel.
func (r *pilotRaft) RemoveServer(raft.ServerID, uint64, time.Duration) raft.IndexFuture {
	return done{errNotAutopilots}
}

var errNotAutopilots = errors.New("autopilot neither adds nor removes servers of the configuration by itself")

func (r *pilotRaft) do(what string, id raft.ServerID, fn func(context.Context) error) raft.IndexFuture {
	ctx, cancel := context.WithTimeout(r.p.ctx, r.p.n.cfg.Wait)
	defer cancel()
	err := fn(ctx)
	switch {
	case err == nil:
		r.told = ""
	case r.p.ctx.Err() != nil, errors.Is(err, errOutdated), errors.Is(err, command.ErrNotLeader):
	case r.told != err.Error(): // it is tried again in no time
		r.told = err.Error()
		r.p.n.log.Warn("autopilot could not "+what+" a member", "id", id, "error", err)
	}
	return done{err}
}

// done is a raft.IndexFuture of something that has ended.
type done struct{ err error }

func (d done) Error() error { return d.err }
func (done) Index() uint64  { return 0 }
