package node

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// reportGrace is how long after its last report a member is not called silent:
// members report twice a second.
const reportGrace = 700 * time.Millisecond

// Health is how the leader sees the cluster. Errors: command.ErrNoLeader.
func (n *Node) Health(ctx context.Context) (command.Health, error) {
	var h command.Health
	answer, err := n.atLeader(ctx, methodHealth, nil, n.answerHealth)
	if err != nil {
		return h, err
	}
	return h, json.Unmarshal(answer, &h)
}

// LocalHealth is the configuration as this node has it, without what only the
// leader knows: it answers also when there is no leader.
func (n *Node) LocalHealth() (command.Health, error) {
	_, members, err := n.table()
	if err != nil {
		return command.Health{}, err
	}
	h := command.Health{Leader: n.leaderID()}
	_, h.Configuration = n.parts.State.Configuration() // Raft's own future has no index
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		m := command.MemberHealth{ID: string(s.ID), Voter: s.Suffrage == raft.Voter, Leader: string(s.ID) == h.Leader, LastContact: -1}
		if i := slices.IndexFunc(members, func(x command.Member) bool { return x.ID == m.ID }); i >= 0 {
			m.Name, m.Site, m.Address, m.Version, m.Role = members[i].Name, members[i].Site, members[i].RaftAddr, members[i].Version, members[i].Role
		}
		if m.ID == n.id {
			m.LastIndex = n.raft.LastIndex()
		}
		h.Members = append(h.Members, m)
	}
	slices.SortFunc(h.Members, func(a, b command.MemberHealth) int {
		return strings.Compare(a.Name+"\x00"+a.ID, b.Name+"\x00"+b.ID)
	})
	return h, nil
}

func (n *Node) answerHealth(context.Context, []byte) ([]byte, error) {
	h, err := n.judgeHealth()
	if err != nil {
		return nil, err
	}
	return encode(h)
}

// judgeHealth is what autopilot has come to, with what the members reported last. On
// the leader.
func (n *Node) judgeHealth() (command.Health, error) {
	p := n.pilot.Load()
	if p == nil || n.raft.State() != raft.Leader {
		return command.Health{}, command.ErrNotLeader
	}
	h, err := n.LocalHealth()
	if err != nil {
		return h, err
	}
	state := p.auto.GetState()
	h.Healthy, h.FailureTolerance, h.Leader = state.Healthy, state.FailureTolerance, n.id
	for i := range h.Members {
		m := &h.Members[i]
		if m.ID == n.id {
			m.Leader, m.LastContact, m.LastTerm, m.LastIndex = true, 0, n.lastTerm(), n.raft.LastIndex()
			m.Disk = n.Disk().State
		} else if r, ok := n.reports.get(m.ID); ok {
			m.LastContact, m.LastTerm, m.LastIndex = n.cfg.Clock.Steady()-r.at, r.LastTerm, r.LastIndex
			m.Disk = r.Disk
		}
		s, ok := state.Servers[raft.ServerID(m.ID)]
		if !ok {
			// It is newer than what autopilot looked at last.
			h.Healthy, m.StableSince, m.UnhealthyBecause = false, n.cfg.Clock.Wall(), "it has only just become a member"
			continue
		}
		m.Healthy, m.StableSince = s.Health.Healthy, s.Health.StableSince
		if !m.Healthy {
			st, _ := standingOf(&s.Server)
			m.UnhealthyBecause = cmp.Or(st.because, "it is not known what it holds")
		}
	}
	return h, nil
}

func (n *Node) lastTerm() uint64 {
	term, _ := n.lastEntry()
	return term
}

// lastEntry is the term and index of the last entry Raft has, in the log or in the
// snapshot: what it compares when it grants a vote. Raft tells both in its statistics
// only.
func (n *Node) lastEntry() (term, index uint64) {
	stats := n.raft.Stats()
	number := func(key string) uint64 {
		v, err := strconv.ParseUint(stats[key], 10, 64)
		if err != nil {
			return 0
		}
		return v
	}
	if log, snapshot := number("last_log_index"), number("last_snapshot_index"); snapshot > log {
		return number("last_snapshot_term"), snapshot
	} else {
		return number("last_log_term"), log
	}
}

// autopilot is the cluster's setting.
func (n *Node) autopilot() (command.Autopilot, error) {
	view, err := n.parts.State.View()
	if err != nil {
		return command.Autopilot{}, err
	}
	defer view.Close()
	value, revision, err := view.Setting(command.SettingAutopilot)
	pilot := command.DefaultAutopilot
	if err == nil && revision > 0 {
		err = json.Unmarshal(value, &pilot)
	}
	return pilot, err
}
