package node

import (
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"sync"
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
			m.Name, m.Site, m.Address, m.Version = members[i].Name, members[i].Site, members[i].RaftAddr, members[i].Version
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

// judgeHealth looks at all members, on the leader.
func (n *Node) judgeHealth() (command.Health, error) {
	if n.raft.State() != raft.Leader {
		return command.Health{}, command.ErrNotLeader
	}
	h, err := n.LocalHealth()
	if err != nil {
		return h, err
	}
	pilot, err := n.autopilot()
	if err != nil {
		return h, err
	}
	last, term := n.raft.LastIndex(), n.lastTerm()
	h.Healthy, h.Leader = true, n.id
	voters, well := 0, 0
	for i := range h.Members {
		m := &h.Members[i]
		if m.ID == n.id {
			m.Leader, m.LastContact, m.LastTerm, m.LastIndex, m.Healthy = true, 0, term, last, n.Failure() == nil
		} else if r, ok := n.reports.get(m.ID); ok {
			m.LastContact, m.LastTerm, m.LastIndex = n.cfg.Clock.Steady()-r.at, r.LastTerm, r.LastIndex
			// What the leader wrote within a heartbeat or two the member cannot have
			// reported yet.
			m.Healthy = m.LastContact <= reportGrace+pilot.LastContactThreshold &&
				r.LastTerm == term && r.LastIndex+pilot.MaxTrailingLogs >= r.leader
		}
		m.StableSince = n.health.since(m.ID, m.Healthy, n.cfg.Clock.Wall())
		h.Healthy = h.Healthy && m.Healthy
		if m.Voter {
			voters++
			if m.Healthy {
				well++
			}
		}
	}
	h.FailureTolerance = max(well-(voters/2+1), 0)
	return h, nil
}

// followHealth judges the members though nobody asks, so that whoever does learns
// since when they are as they are.
func (n *Node) followHealth() {
	if _, err := n.judgeHealth(); err != nil {
		n.log.Debug("health of the members is not known", "error", err)
	}
}

func (n *Node) lastTerm() uint64 {
	term, err := strconv.ParseUint(n.raft.Stats()["last_log_term"], 10, 64)
	if err != nil {
		return 0
	}
	return term
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

// stability remembers since when each member is healthy, or is not.
type stability struct {
	mu   sync.Mutex
	byID map[string]steadiness // guarded by mu
}

type steadiness struct {
	healthy bool
	since   time.Time
}

// since notes how a member does now, and says since when it has.
func (s *stability) since(id string, healthy bool, now time.Time) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	was, known := s.byID[id]
	if !known || was.healthy != healthy {
		if s.byID == nil {
			s.byID = map[string]steadiness{}
		}
		was = steadiness{healthy, now}
		s.byID[id] = was
	}
	return was.since
}

func (s *stability) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byID = nil
}
