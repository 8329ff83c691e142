package node

import (
	"maps"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	autopilot "github.com/hashicorp/raft-autopilot"

	"github.com/holdfast-db/holdfast/command"
)

// promoter decides for autopilot who votes and who may be removed. It looks at
// nothing but what it is given, and asks for one change at a time: each next one is
// decided by what the last has come to.
//
// The voters wanted are the home site's members of role voter. A spare votes in
// the place of one that is dead, and gives its vote back once enough voters are
// there without it. Members of other sites, and learners, never vote.
type promoter struct{}

// fewestVoters is how many voters are kept without an operator's word: below three
// the loss of one ends all writes.
const fewestVoters = 3

// nodeSpare and nodeLearner are what autopilot calls members of these roles; one
// of role voter is an autopilot.NodeVoter also while it does not vote yet.
const (
	nodeSpare   autopilot.NodeType = "spare"
	nodeLearner autopilot.NodeType = "read-replica"
)

// standing is what the promoter knows of a member beyond what autopilot does.
type standing struct {
	role command.Role
	home bool // at the home site
	// silent is the time since the member last reported, or since this leader
	// waits for its first report; 0 for the leader itself.
	silent time.Duration
	disk   command.DiskState // as it reported it
	level  bool              // it lacks next to nothing of the log
	// because is why the member is not healthy, empty when it is.
	because string
}

// dead reports whether the member takes part no longer: it is silent, or its disk has
// failed, after which a process appends nothing.
func (st *standing) dead(pilot *command.Autopilot) bool {
	return st.silent > pilot.DeadServerTime || st.disk == command.DiskFailed
}

func standingOf(s *autopilot.Server) (standing, bool) {
	st, ok := s.Ext.(standing)
	return st, ok
}

// electorate sorts the members by what may be done with their votes. Those that
// have been healthy for longest come first, those that have been unhealthy for longest last.
type electorate struct {
	leader raft.ServerID
	voters int // how many vote now
	well   int // how many of them are healthy
	wanted int // how many should vote
	// uninvited vote and must not: they asked to be learners since.
	uninvited []raft.ServerID
	ready     []raft.ServerID // want to vote, and can
	spares    []raft.ServerID // can vote in the place of another
	dead      []raft.ServerID // vote and are dead, spares last
	acting    []raft.ServerID // spares that vote and live
	heirs     []raft.ServerID // can lead in the place of the leader
}

func electorateOf(c *autopilot.Config, s *autopilot.State) electorate {
	ids := slices.Collect(maps.Keys(s.Servers))
	autopilot.SortServers(ids, s)
	pilot, _ := c.Ext.(command.Autopilot)
	e := electorate{leader: s.Leader, voters: len(s.Voters)}
	asked := 0
	var deadSpares []raft.ServerID
	for _, id := range ids {
		srv := s.Servers[id]
		st, known := standingOf(&srv.Server)
		if !known {
			continue
		}
		invited := st.home && st.role.MayVote()
		spare := st.role == command.RoleSpare
		if invited && !spare {
			asked++
		}
		votes, dead := srv.HasVotingRights(), st.dead(&pilot)
		if votes && srv.Health.Healthy {
			e.well++
		}
		can := st.level && srv.Health.IsStable(time.Now(), c.ServerStabilizationTime)
		switch {
		case !invited && votes:
			e.uninvited = append(e.uninvited, id)
		case !invited:
		case !votes && can && spare:
			e.spares = append(e.spares, id)
		case !votes && can:
			e.ready = append(e.ready, id)
		case votes && dead && spare:
			deadSpares = append(deadSpares, id)
		case votes && dead:
			e.dead = append(e.dead, id)
		case votes && spare:
			e.acting = append(e.acting, id)
		}
		if votes && invited && !spare && srv.Health.Healthy && id != s.Leader {
			e.heirs = append(e.heirs, id)
		}
	}
	e.dead = append(e.dead, deadSpares...)
	// An odd number: one more to make it even would survive no more losses.
	e.wanted = max(fewestVoters, asked|1)
	return e
}

// CalculatePromotionsAndDemotions implements autopilot.Promoter. A new vote comes
// before the one it replaces is taken: the majority never grows while a vote that
// could answer is missing.
func (promoter) CalculatePromotionsAndDemotions(c *autopilot.Config, s *autopilot.State) autopilot.RaftChanges {
	e := electorateOf(c, s)
	switch {
	case len(e.uninvited) > 0:
		return e.takeVote(e.uninvited[0])
	case len(e.ready) > 0:
		return autopilot.RaftChanges{Promotions: e.ready[:1]}
	case e.voters > e.wanted && len(e.dead) > 0:
		return e.takeVote(e.dead[len(e.dead)-1])
	case len(e.acting) > 0 && e.well > e.wanted:
		return e.takeVote(e.acting[len(e.acting)-1])
	case len(e.dead) > 0 && len(e.spares) > 0:
		return autopilot.RaftChanges{Promotions: e.spares[:1]}
	}
	return autopilot.RaftChanges{}
}

// takeVote takes a member's vote. A leader has to hand over first, and the new one
// goes on.
func (e *electorate) takeVote(id raft.ServerID) autopilot.RaftChanges {
	switch {
	case id != e.leader:
		return autopilot.RaftChanges{Demotions: []raft.ServerID{id}}
	case len(e.heirs) > 0:
		return autopilot.RaftChanges{Leader: e.heirs[0]}
	}
	return autopilot.RaftChanges{}
}

// FilterFailedServerRemovals implements autopilot.Promoter. What autopilot calls
// failed may be removed when it has been dead for as long as the setting says, and
// a voter only if enough voters are left. Servers of Raft's configuration that are no
// members are not autopilot's business: see expel.
func (promoter) FilterFailedServerRemovals(c *autopilot.Config, s *autopilot.State, failed *autopilot.FailedServers) *autopilot.FailedServers {
	pilot, _ := c.Ext.(command.Autopilot)
	return &autopilot.FailedServers{
		FailedNonVoters: slices.DeleteFunc(slices.Clone(failed.FailedNonVoters), func(srv *autopilot.Server) bool {
			return !removable(&pilot, srv, len(s.Voters))
		}),
		FailedVoters: slices.DeleteFunc(slices.Clone(failed.FailedVoters), func(srv *autopilot.Server) bool {
			return !removable(&pilot, srv, len(s.Voters)-1)
		}),
	}
}

// removable reports whether a member has been dead for long enough to be removed.
// left is how many voters there are without it.
func removable(pilot *command.Autopilot, srv *autopilot.Server, left int) bool {
	st, known := standingOf(srv)
	if !known {
		return false
	}
	if !st.role.MayVote() {
		return st.silent > pilot.LearnerCleanupTime
	}
	fewest := fewestVoters
	if pilot.MinQuorum > 0 {
		fewest = int(min(pilot.MinQuorum, 1<<16))
	}
	return st.silent > pilot.VoterCleanupTime && left >= fewest
}

// IsPotentialVoter implements autopilot.Promoter.
func (promoter) IsPotentialVoter(t autopilot.NodeType) bool {
	return t == autopilot.NodeVoter || t == nodeSpare
}

// GetServerExt implements autopilot.Promoter: known servers bring their own.
func (promoter) GetServerExt(*autopilot.Config, *autopilot.ServerState) any { return nil }

// GetStateExt implements autopilot.Promoter.
func (promoter) GetStateExt(*autopilot.Config, *autopilot.State) any { return nil }

// GetNodeTypes implements autopilot.Promoter: known servers bring their own.
func (promoter) GetNodeTypes(*autopilot.Config, *autopilot.State) map[raft.ServerID]autopilot.NodeType {
	return nil
}
