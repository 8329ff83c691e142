package node

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// LastContact is the time since a leader was heard; 0 on the leader. When there
// never was one it is the time since the start, and ok is false.
func (n *Node) LastContact() (since time.Duration, ok bool) {
	if n.raft.State() == raft.Leader {
		return 0, true
	}
	at := n.raft.LastContact()
	if at.IsZero() {
		return time.Since(n.began), false
	}
	return time.Since(at), true
}

// KnowsLeader reports whether a leader is known now.
func (n *Node) KnowsLeader() bool { return n.leaderID() != "" }

// Learner reports whether the node is meant to serve reads on the spot: a spare is
// while it does not vote.
func (n *Node) Learner() bool {
	if n.cfg.Self.Role != command.RoleSpare {
		return n.cfg.Self.Role == command.RoleLearner
	}
	return !n.hasVote()
}

// CaughtUp records how this node got level.
func (n *Node) CaughtUp(c command.CatchUp) { n.catchUp.Store(&c) }

// CatchUp is how this node last got level.
func (n *Node) CatchUp() command.CatchUp {
	if c := n.catchUp.Load(); c != nil {
		return *c
	}
	return command.CatchUp{}
}

func (n *Node) report(staleness time.Duration, known bool) Report {
	disk := n.Disk()
	r := Report{LastIndex: n.raft.LastIndex(), LastTerm: n.lastTerm(), StalenessMS: -1, Disk: disk.State, DiskLatencyMS: disk.Latency.Milliseconds(), Priority: n.cfg.LeaderPriority}
	if known {
		r.StalenessMS = staleness.Milliseconds()
	}
	if view, err := n.parts.State.View(); err == nil {
		r.Revision, r.Applied, r.Lineage = view.Revision(), view.Applied(), view.Lineage()
		view.Close()
	}
	return r
}

// Status is what the node knows of itself and the cluster right now.
func (n *Node) Status() command.NodeStatus {
	s := command.NodeStatus{
		ID: n.id, Name: n.cfg.Self.Name, Site: n.cfg.Self.Site, HTTPAddr: n.cfg.Self.HTTPAddr, RaftAddr: n.cfg.Self.RaftAddr,
		State: n.raft.State().String(), LeaderID: n.leaderID(), Term: n.raft.CurrentTerm(),
		LastIndex: n.raft.LastIndex(), CommitIndex: n.raft.CommitIndex(), Started: n.began, Version: n.cfg.Self.Version, Disk: n.Disk(),
	}
	if s.State == raft.Follower.String() && !n.hasVote() {
		s.State = "Learner"
	}
	s.LastContact, _ = n.LastContact()
	s.LeaderChanges, s.ElectionsForced = n.elections()
	if view, err := n.parts.State.View(); err == nil {
		defer view.Close()
		s.Cluster, s.AppliedIndex, s.Revision, s.Lineage = view.Cluster(), view.Applied(), view.Revision(), view.Lineage()
		members, err := view.Members()
		if err == nil {
			byID := map[string]command.Member{}
			for _, m := range members {
				byID[m.ID] = m
			}
			s.Leader, s.LeaderRaftAddr = byID[s.LeaderID].Name, byID[s.LeaderID].RaftAddr
			for _, v := range n.raft.GetConfiguration().Configuration().Servers {
				if v.Suffrage == raft.Voter {
					s.VoterRaftAddrs = append(s.VoterRaftAddrs, byID[string(v.ID)].RaftAddr)
				}
			}
		}
	}
	switch failure := n.Failure(); {
	case failure != nil:
		s.NotReadyBecause = failure.Error()
	case s.Disk.State == command.DiskStalled:
		s.NotReadyBecause = fmt.Sprintf("the disk hangs: to %s takes %v by now", s.Disk.Call, s.Disk.Stalled.Round(time.Millisecond))
	case n.Diverged() != 0:
		s.NotReadyBecause = n.wrong().Error()
	case n.Learner() && n.parts.State.LastCertified().IsZero():
		s.NotReadyBecause = "no complete copy yet"
	case !n.Learner() && s.LeaderID == "":
		s.NotReadyBecause = "no known leader"
	case !n.Learner() && s.Cluster.ID == "":
		s.NotReadyBecause = "no complete copy yet"
	default:
		s.Ready = true
	}
	return s
}

type sitesAnswer struct {
	Sites    []command.Site `json:"sites"`
	Revision uint64         `json:"revision"`
}

// Sites is the topology, with the members table's revision. Any node answers;
// what only the leader knows (lag, contact) comes from it when it can be
// reached within a second, and is left unknown when not. A paused copy does not ask.
func (n *Node) Sites(ctx context.Context) ([]command.Site, uint64, error) {
	if n.raft.State() == raft.Leader {
		return n.leaderSites()
	}
	if leader := n.leaderID(); leader != "" && !n.Paused() {
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if b, err := n.parts.Transport.Call(short, leader, methodSites, nil); err == nil {
			var a sitesAnswer
			if err := json.Unmarshal(b, &a); err == nil {
				return a.Sites, a.Revision, nil
			}
		}
	}
	return n.sites(func(_ command.Member, s *command.Server) { s.State = "unknown" })
}

func (n *Node) leaderSites() ([]command.Site, uint64, error) {
	if n.raft.State() != raft.Leader {
		return nil, 0, command.ErrNotLeader
	}
	return n.sites(func(m command.Member, s *command.Server) {
		r, ok := n.reports.get(m.ID)
		if n.parts.Transport.Link(m.ID).Paused {
			defer func() { s.State = "paused" }()
		}
		if !ok {
			s.State = "unreachable"
			return
		}
		since := n.cfg.Clock.Steady() - r.at
		s.Priority = r.Priority
		s.Applied, s.Lineage = r.Revision, hex.EncodeToString(r.Lineage[:])
		s.LastContact = since.Round(time.Millisecond).String()
		if r.leader > r.Applied {
			s.Lag.Entries = r.leader - r.Applied
			s.Lag.Bytes = s.Lag.Entries * n.parts.Logs.EntryBytes()
		}
		if r.StalenessMS >= 0 {
			s.Lag.Seconds = (time.Duration(r.StalenessMS)*time.Millisecond + since).Seconds()
		}
		switch {
		case s.Lag.Entries == 0:
			s.Lag.ETA = 0
		case r.perSecond > 0:
			s.Lag.ETA = float64(s.Lag.Entries) / r.perSecond
		default:
			s.Lag.ETA = -1
		}
		switch {
		case since > command.SilentAfter:
			s.State = "unreachable"
		case r.Disk.Down():
			s.State = string(r.Disk)
		case s.Lag.Entries > levelEntries:
			s.State = "catching-up"
		}
		s.Disk = r.Disk
	})
}

// sites composes the topology from replicated membership; others adds what is
// known of a member other than this node.
func (n *Node) sites(others func(command.Member, *command.Server)) ([]command.Site, uint64, error) {
	view, err := n.parts.State.View()
	if err != nil {
		return nil, 0, err
	}
	defer view.Close()
	members, err := view.Members()
	if err != nil {
		return nil, 0, err
	}
	voters := map[string]bool{}
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		voters[string(s.ID)] = s.Suffrage == raft.Voter
	}
	leader, home := n.leaderID(), view.Cluster().HomeSite
	byName := map[string]*command.Site{}
	for _, m := range members {
		s := command.Server{
			ID: m.ID, Name: m.Name, Address: m.RaftAddr, HTTP: m.HTTPAddr, Role: m.Role, Version: m.Version,
			Voter: voters[m.ID], Leader: m.ID == leader, LastContact: "never", State: "learner", Lag: command.Lag{ETA: -1},
		}
		switch {
		case s.Voter:
			s.State = "voter"
		case s.Role == command.RoleSpare:
			s.State = "spare"
		}
		if m.ID == n.id {
			s.Priority = n.cfg.LeaderPriority
			lineage := view.Lineage()
			s.Disk = n.Disk().State
			s.Applied, s.Lineage, s.LastContact, s.Lag.ETA = view.Revision(), hex.EncodeToString(lineage[:]), "0s", 0
			if since, ok := n.LastContact(); ok && !s.Leader {
				s.LastContact = since.Round(time.Millisecond).String()
			}
			switch {
			case errors.Is(n.parted(), command.ErrFenced):
				s.State = "fenced"
			case n.Failure() != nil:
				s.State = "failed"
			case s.Disk.Down():
				s.State = string(s.Disk)
			case n.Paused():
				s.State = "paused"
			}
		} else {
			others(m, &s)
		}
		if s.Leader {
			s.State = "leader"
		}
		site := byName[m.Site]
		if site == nil {
			site = &command.Site{Name: m.Site, Home: m.Site == home}
			byName[m.Site] = site
		}
		site.Leader = site.Leader || s.Leader
		site.Servers = append(site.Servers, s)
	}
	out := make([]command.Site, 0, len(byName))
	for _, s := range byName {
		slices.SortFunc(s.Servers, func(a, b command.Server) int { return strings.Compare(a.Name, b.Name) })
		out = append(out, *s)
	}
	// Home first, then by name.
	slices.SortFunc(out, func(a, b command.Site) int {
		if a.Home != b.Home {
			if a.Home {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Name, b.Name)
	})
	return out, view.MembersRevision(), nil
}
