package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// What operators ask for is done by the leader, wherever it was asked.

// reportGrace is how long after its last report a member is not called silent:
// members report twice a second.
const reportGrace = 700 * time.Millisecond

// atLeader runs do on the leader: here, or there as a call. Nothing happened when
// it fails with an error that tryElsewhere accepts.
func (n *Node) atLeader(ctx context.Context, method uint8, req []byte, do func(context.Context, []byte) ([]byte, error)) (answer []byte, err error) {
	err = n.withLeader(ctx, func(ctx context.Context, leader string) error {
		if leader == n.id {
			answer, err = do(ctx, req)
		} else {
			answer, err = n.parts.Transport.Call(ctx, leader, method, req)
		}
		return err
	})
	return answer, err
}

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
	now, last, term := n.cfg.Clock.Steady(), n.raft.LastIndex(), n.lastTerm()
	h.Healthy, h.Leader = true, n.id
	voters, well := 0, 0
	for i := range h.Members {
		m := &h.Members[i]
		if m.ID == n.id {
			m.Leader, m.LastContact, m.LastTerm, m.LastIndex, m.Healthy = true, 0, term, last, n.Failure() == nil
		} else if r, ok := n.reports.get(m.ID); ok {
			m.LastContact, m.LastTerm, m.LastIndex = now-r.at, r.LastTerm, r.LastIndex
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

// TransferLeader hands leadership to a voter, given by id or name, or, when none
// is given, to the most complete one. It returns when the new leader is known.
// Writes that arrive meanwhile wait, and go to the new leader.
//
// Errors: command.ErrNoTarget, the member cannot lead or is not level;
// command.ErrNoLeader.
func (n *Node) TransferLeader(ctx context.Context, to string) error {
	_, err := n.atLeader(ctx, methodTransfer, []byte(to), n.answerTransfer)
	return err
}

func (n *Node) answerTransfer(ctx context.Context, to []byte) ([]byte, error) {
	if n.raft.State() != raft.Leader {
		return nil, command.ErrNotLeader
	}
	target, err := n.transferTarget(ctx, string(to))
	if err != nil {
		return nil, err
	}
	if target == n.id {
		return nil, nil // it leads already
	}
	if others, _ := n.voters(); len(others) == 0 {
		return nil, command.ErrNoTarget.With("there is no other voter")
	}
	return nil, n.handOver(ctx, target)
}

// transferTarget finds the voter meant by an id or a name; empty means any. What
// could not take over at once is refused here: Raft itself would depose the leader
// for a learner, or for a member that lacks entries.
func (n *Node) transferTarget(ctx context.Context, to string) (id string, err error) {
	if to == "" {
		return "", nil
	}
	// A new leader has heard from nobody yet.
	for deadline := time.Now().Add(2 * reportGrace); ; {
		h, err := n.judgeHealth()
		if err != nil {
			return "", err
		}
		i := slices.IndexFunc(h.Members, func(m command.MemberHealth) bool { return m.ID == to || m.Name == to })
		if i < 0 {
			return "", command.ErrNoTarget.With("id %q was not found in the Raft configuration", to)
		}
		switch m := h.Members[i]; {
		case !m.Voter:
			return "", command.ErrNoTarget.With("%s is not a voter", m.Name)
		case m.Healthy:
			return m.ID, nil
		case time.Now().After(deadline):
			return "", command.ErrNoTarget.With("%s is not healthy", m.Name)
		}
		select {
		case <-time.After(retryInterval):
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

// RemovePeer takes a member out of the cluster for good, given by id or by node
// address: it learns of it if it runs, and cannot come back under its old
// identity. A leader that is to be removed hands over first. What is begun and cannot
// be finished, whichever leader can finishes later.
//
// Errors: command.ErrNoTarget, there is no such member, or without it the voters
// that are left would have no healthy majority; command.ErrNoLeader.
func (n *Node) RemovePeer(ctx context.Context, id, address string) error {
	req, err := encode(removal{ID: id, Address: address})
	if err != nil {
		return err
	}
	_, err = n.atLeader(ctx, methodRemove, req, n.answerRemove)
	return err
}

type removal struct {
	ID      string `json:"id"`
	Address string `json:"address"`
}

func (n *Node) answerRemove(ctx context.Context, req []byte) ([]byte, error) {
	return serve(req, func(r removal) ([]byte, error) { return nil, n.remove(ctx, r) })
}

func (n *Node) remove(ctx context.Context, r removal) error {
	select {
	case n.joining <- struct{}{}: // one change of the members at a time
		defer func() { <-n.joining }()
	case <-ctx.Done():
		return ctx.Err()
	}
	h, err := n.judgeHealth()
	if err != nil {
		return err
	}
	// First what another leader began: who is to go counts no longer.
	if err := n.expel(ctx); err != nil {
		return err
	}
	what := fmt.Sprintf("id %q", r.ID)
	if r.ID == "" {
		what = fmt.Sprintf("address %q", r.Address)
	}
	i := slices.IndexFunc(h.Members, func(m command.MemberHealth) bool {
		return r.ID != "" && m.ID == r.ID || r.Address != "" && m.Address == r.Address
	})
	if i < 0 {
		return command.ErrNoTarget.With("%s was not found in the Raft configuration", what)
	}
	m := h.Members[i]
	if err := n.canSpare(ctx, m.ID); err != nil {
		return err
	}
	if m.ID == n.id {
		if err := n.handOver(ctx, ""); err != nil {
			return err
		}
		return command.ErrNotLeader // the new leader will do it
	}
	n.log.Info("removing a member", "name", m.Name, "id", m.ID)
	// The members table first: while the member is still sent the log it learns that
	// it is to go, and does not ask for votes later.
	res, err := n.Propose(ctx, &command.MemberRemove{ID: m.ID, Barred: true})
	if err != nil {
		return err
	}
	n.awaitReport(ctx, m.ID, res.Revision)
	return n.expel(ctx)
}

// expel takes who was removed for good out of Raft's configuration. It may be another
// leader that began it. Needs joining.
func (n *Node) expel(ctx context.Context) error {
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		id := string(s.ID)
		switch barred, err := n.barred(id); {
		case err != nil:
			return err
		case !barred || id == n.id: // which ends by itself
			continue
		}
		if err := n.canSpare(ctx, id); err != nil {
			return err
		}
		if err := raftError(n.wait(n.raft.RemoveServer(s.ID, 0, n.cfg.Wait))); err != nil {
			return err
		}
		n.parts.Transport.Disconnect(id)
	}
	return nil
}

// goOnRemoving finishes the removals that a leader which was lost had begun, if this
// node leads now.
func (n *Node) goOnRemoving() {
	if n.raft.State() != raft.Leader {
		return
	}
	ctx, cancel := context.WithTimeout(n.ctx, n.cfg.Wait)
	defer cancel()
	select {
	case n.joining <- struct{}{}:
		defer func() { <-n.joining }()
	case <-ctx.Done():
		return
	}
	if err := n.expel(ctx); err != nil {
		n.log.Warn("a member that was removed is still in Raft's configuration", "error", err)
	}
}

// canSpare returns command.ErrNoTarget when a member is a voter without which no
// majority of the voters would answer.
func (n *Node) canSpare(ctx context.Context, id string) error {
	if s, ok := n.server(id); !ok || s.Suffrage != raft.Voter {
		return nil
	}
	if voters, answer := n.votersWithout(ctx, id); answer < voters/2+1 {
		return command.ErrNoTarget.With("without %s, %d of %d voters answer, which is no majority", id, answer, voters)
	}
	return nil
}

// votersWithout counts the voters but one, and how many of them are there now and
// follow this leader.
func (n *Node) votersWithout(ctx context.Context, id string) (voters, answer int) {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.RoundTimeout)
	defer cancel()
	others, self := n.voters()
	if id == n.id {
		self = 0
	}
	term := n.raft.CurrentTerm()
	answers := make(chan error, len(others))
	asked := 0
	for _, other := range others {
		if other != id {
			asked++
			go func() { answers <- n.askTerm(ctx, other, term) }()
		}
	}
	voters, answer = asked+self, self
	for range asked {
		if <-answers == nil {
			answer++
		}
	}
	return voters, answer
}

// awaitReport waits, for two seconds at most, until a member has a revision or is
// gone.
func (n *Node) awaitReport(ctx context.Context, id string, revision uint64) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for {
		r, ok := n.reports.get(id)
		if !ok || r.Revision >= revision || n.cfg.Clock.Steady()-r.at > reportGrace {
			return
		}
		select {
		case <-time.After(retryInterval):
		case <-ctx.Done():
			return
		}
	}
}

// handOver gives leadership to a voter, "" for the most complete one, and returns
// when another leader is known. Writes under way are finished first; those that
// arrive meanwhile wait and go to the new leader: none fails.
func (n *Node) handOver(ctx context.Context, to string) error {
	transfer := n.raft.LeadershipTransfer
	if to != "" {
		transfer = func() raft.Future {
			return n.raft.LeadershipTransferToServer(raft.ServerID(to), raft.ServerAddress(to))
		}
	}
	// A transfer has one election timeout to succeed, and a busy target misses
	// it: so it is tried until ctx ends.
	for {
		err := n.group.drain(ctx)
		if err == nil {
			err = n.wait(transfer())
		}
		if err == nil || n.raft.State() != raft.Leader {
			break
		}
		n.group.unlock()
		select {
		case <-time.After(retryInterval):
		case <-ctx.Done():
			return err
		}
	}
	for {
		changed := n.changed.wait()
		if id := n.leaderID(); id != "" && id != n.id {
			return nil
		}
		select {
		case <-changed:
		case <-time.After(retryInterval):
		case <-ctx.Done():
			return errors.New("leadership was handed over, but no new leader is known yet")
		}
	}
}
