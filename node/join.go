package node

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// candidate is what nodes tell each other before one of them belongs to a
// cluster.
type candidate struct {
	Member command.Member `json:"member"`
	// ClusterID is the cluster the node belongs to, or has promised to; empty
	// for none.
	ClusterID string `json:"cluster_id"`
	// Expect is the number of first voters the node waits for; 0 when it forms
	// no cluster, or no longer.
	Expect int `json:"expect"`
}

// formed reports whether the node belongs to a cluster that exists.
func (c candidate) formed() bool { return c.ClusterID != "" && c.Expect == 0 }

// promisedEpoch is the epoch of a node that has promised to belong to a cluster
// that is not known to exist yet.
const promisedEpoch = 0

// promise asks a candidate to be one of the first voters of a cluster.
type promise struct {
	ClusterID string           `json:"cluster_id"`
	Members   []command.Member `json:"members"`
}

// join asks the leader to add a member, or to update what the members table
// says of it.
type join struct {
	Member     command.Member `json:"member"`
	Datacenter string         `json:"datacenter"`
	// Incarnation is that of the member's process.
	Incarnation string `json:"incarnation"`
	// Check only asks whether the member would be let in.
	Check bool `json:"check"`
	// Hops counts the nodes the request passed; a non-leader passes it on once.
	Hops int `json:"hops"`
}

// pong says who answers at an address, and whom it follows.
type pong struct {
	ID          string `json:"id"`
	Incarnation string `json:"incarnation"`
	// Leader is the id of the leader that it follows, or is, in Term.
	Leader string `json:"leader"`
	Term   uint64 `json:"term"`
}

type joined struct {
	ClusterID string `json:"cluster_id"`
	Epoch     uint64 `json:"epoch"`
}

// self is this node as a candidate.
func (n *Node) self() candidate {
	id, epoch := n.parts.Identity.Cluster()
	c := candidate{Member: n.cfg.Self, ClusterID: id}
	if (id == "" || epoch == promisedEpoch) && n.raft.LastIndex() == 0 {
		c.Expect = n.cfg.BootstrapExpect
	}
	return c
}

// greet answers a candidate with this node's own standing.
func (n *Node) greet(c candidate) candidate {
	n.parts.Transport.Learn(c.Member.ID, c.Member.RaftAddr)
	return n.self()
}

// ask calls an address of Config.Join.
func ask[T any](ctx context.Context, t Transport, addr string, method uint8, req any) (T, error) {
	var answer T
	b, err := encode(req)
	if err != nil {
		return answer, err
	}
	if b, err = t.CallAddr(ctx, addr, method, b); err != nil {
		return answer, err
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		return answer, fmt.Errorf("decode answer of %s: %w", addr, err)
	}
	return answer, nil
}

// Preflight asks the addresses of cfg.Join, briefly, whether they would have
// this node, before anything of it is on disk. It returns only errors that no
// waiting will cure (command.Permanent); a cluster that cannot be reached is
// none of them.
func Preflight(ctx context.Context, cfg Config, clusterID string, t Transport) error {
	if err := cfg.validate(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	me := candidate{Member: cfg.Self, ClusterID: clusterID}
	check := cfg.entry()
	check.Check = true
	type verdict struct {
		welcome bool
		err     error
	}
	verdicts := make(chan verdict, len(cfg.Join))
	for _, addr := range cfg.Join {
		go func() {
			welcome, err := preflightOne(ctx, t, addr, me, check)
			verdicts <- verdict{welcome, err}
		}()
	}
	for range cfg.Join {
		switch v := <-verdicts; {
		case v.welcome:
			return nil // says the leader; the others may be slow, or dead
		case v.err != nil && permanent(v.err):
			return v.err
		}
	}
	return nil
}

// preflightOne asks one address. welcome: the leader would have this node.
func preflightOne(ctx context.Context, t Transport, addr string, me candidate, check join) (welcome bool, err error) {
	if addr == me.Member.RaftAddr {
		return false, nil
	}
	they, err := ask[candidate](ctx, t, addr, methodHello, me)
	if err != nil {
		return false, err
	}
	if they.Member.ID != me.Member.ID && they.Member.Name == me.Member.Name {
		return false, command.ErrNameInUse.With("%s runs at %s", me.Member.Name, they.Member.RaftAddr)
	}
	if !they.formed() {
		return false, nil
	}
	_, err = ask[joined](ctx, t, addr, methodJoin, check)
	return err == nil, err
}

// findCopyLimit is how long FindCopy looks: members that were started together
// with this node get time to come up.
const findCopyLimit = 10 * time.Second

// FindCopy looks for a member of the cluster at the addresses of cfg.Join, of
// which a node without a state could take a copy. Nil: there is one.
func FindCopy(ctx context.Context, cfg Config, clusterID string, t Transport) error {
	ctx, cancel := context.WithTimeout(ctx, findCopyLimit)
	defer cancel()
	me := candidate{Member: cfg.Self, ClusterID: clusterID}
	problem := errors.New("no address of another member is given")
	for {
		for _, addr := range cfg.Join {
			if addr == cfg.Self.RaftAddr {
				continue
			}
			short, cancel := context.WithTimeout(ctx, 2*time.Second)
			they, err := ask[candidate](short, t, addr, methodHello, me)
			cancel()
			switch {
			case err != nil:
				problem = err
			case they.formed() && they.ClusterID == clusterID && they.Member.ID != cfg.Self.ID:
				return nil
			default:
				problem = fmt.Errorf("%s is not a member of this cluster", addr)
			}
		}
		if len(cfg.Join) == 0 {
			return problem
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return problem
		}
	}
}

// membership makes this node a member and keeps what the members table says of
// it true. It tries for ever, unless the cluster refuses for good: then the
// node ends.
func (n *Node) membership() {
	pause := 50 * time.Millisecond
	told := ""
	for {
		done, err := n.enter()
		switch {
		case err != nil && permanent(err):
			n.Fail(err, true)
			return
		case err != nil:
			if text := err.Error(); text != told {
				n.log.Info("not a member yet", "because", text)
				told = text
			}
			pause = min(2*pause, time.Second)
		case done:
			pause = 2 * time.Second
			n.goOnRemoving()
		}
		select {
		case <-time.After(pause):
		case <-n.stop:
			return
		}
	}
}

// permanent reports whether err means that this node can never enter. An error
// that speaks of the peer (one that is rolled back, or of an older epoch) says
// nothing about this node. That this node is of an older epoch it has learned with
// the refusal (Newer), and what follows is no matter of joining.
func permanent(err error) bool {
	var refusal interface{ OfPeer() bool }
	if errors.As(err, &refusal) && refusal.OfPeer() || errors.Is(err, command.ErrStaleEpoch) {
		return false
	}
	return command.Permanent(err)
}

// enter takes the next step towards membership. done: the node is a member and
// the members table is right about it.
func (n *Node) enter() (done bool, err error) {
	ctx, cancel := context.WithTimeout(n.ctx, n.cfg.Wait)
	defer cancel()
	if n.known() {
		return true, n.remind(ctx)
	}
	if n.parted() != nil {
		return false, n.parted()
	}
	if cluster, _ := n.parts.Identity.Cluster(); cluster != "" && n.raft.LastIndex() > 0 {
		if n.Paused() {
			return true, nil // what others know of it is put right when it is resumed
		}
		// A member whose entry is missing or out of date: the leader will put
		// it right.
		if n.leaderID() == n.id {
			return false, n.found(ctx)
		}
		return false, n.announce(ctx)
	}
	return false, n.meet(ctx)
}

// settling keeps the identity's epoch that of the cluster. It is a loop of its own:
// until a voter has the epoch of a cluster that has come to be, no leadership round
// counts it, and the way into the cluster may take long.
func (n *Node) settling() {
	for {
		changed, unwatch := n.parts.State.Watch(command.Target{Kind: command.TargetMembers})
		var again <-chan time.Time
		if err := n.settleIdentity(); err != nil {
			n.log.Warn("the cluster's epoch is not recorded yet", "error", err)
			again = time.After(time.Second)
		}
		select {
		case <-changed:
		case <-again:
		case <-n.stop:
			unwatch()
			return
		}
		unwatch()
	}
}

// settleIdentity makes a promise final once the cluster exists, and follows its
// epoch.
func (n *Node) settleIdentity() error {
	cluster, _, err := n.table()
	if err != nil {
		return err
	}
	id, epoch := n.parts.Identity.Cluster()
	if cluster.ID == "" || cluster.ID != id || epoch >= cluster.Epoch {
		return nil
	}
	return n.parts.Identity.SetCluster(id, cluster.Epoch)
}

// known reports whether the members table has this node as it is, and the Raft
// configuration has it at all. A table of an earlier epoch says nothing.
func (n *Node) known() bool {
	cluster, members, err := n.table()
	if err != nil || !slices.Contains(members, n.cfg.Self) {
		return false
	}
	if _, epoch := n.parts.Identity.Cluster(); cluster.Epoch < epoch {
		return false
	}
	_, ok := n.server(n.id)
	return ok
}

// entry is the member's entry in the members table, as it asks for it.
func (c *Config) entry() join {
	return join{Member: c.Self, Datacenter: c.Datacenter, Incarnation: c.Incarnation}
}

// announce sends the member's entry to the leader, by the way the node knows
// it or by the addresses of Config.Join.
func (n *Node) announce(ctx context.Context) error {
	req, err := encode(n.cfg.entry())
	if err != nil {
		return err
	}
	if leader := n.leaderID(); leader != "" {
		_, err := n.parts.Transport.Call(ctx, leader, methodJoin, req)
		return err
	}
	err = command.ErrNoLeader
	for _, addr := range n.whereabouts() {
		if addr == n.cfg.Self.RaftAddr {
			continue
		}
		short, cancel := context.WithTimeout(ctx, time.Second) // it may be at a home that is no more
		_, err = ask[joined](short, n.parts.Transport, addr, methodJoin, n.cfg.entry())
		cancel()
		if err == nil || permanent(err) {
			return err
		}
	}
	return err
}

// remind asks to be let in again when no leader has been heard for long: a member
// that was away may have been removed meanwhile, and nobody sends it the log that
// says so. Who still is a member changes nothing by asking. Errors: command.ErrRemoved.
func (n *Node) remind(ctx context.Context) error {
	// After a start whoever is a member is heard at once, unless it is paused.
	if since, heard := n.LastContact(); n.Paused() || since < time.Second || heard && since < command.SilentAfter {
		return nil
	}
	for _, addr := range n.whereabouts() {
		if addr == n.cfg.Self.RaftAddr {
			continue
		}
		short, cancel := context.WithTimeout(ctx, time.Second)
		_, err := ask[joined](short, n.parts.Transport, addr, methodJoin, n.cfg.entry())
		cancel()
		// What else is said may be by a stranger that has the address now.
		if err == nil || errors.Is(err, command.ErrRemoved) {
			return err
		}
	}
	return nil
}

// whereabouts are the addresses at which to look for the cluster: those the node was
// given, and those of the members it knows, since all of the first may be at a home
// that is no more.
func (n *Node) whereabouts() []string {
	addrs := slices.Clone(n.cfg.Join)
	if _, members, err := n.table(); err == nil {
		for _, m := range members {
			if !slices.Contains(addrs, m.RaftAddr) {
				addrs = append(addrs, m.RaftAddr)
			}
		}
	}
	return addrs
}

// found gives a newly formed cluster its identity, or this leader its entry.
func (n *Node) found(ctx context.Context) error {
	n.forming.Lock()
	c := n.forming.init
	n.forming.Unlock()
	if c == nil {
		id, epoch := n.parts.Identity.Cluster()
		c = &command.Init{Cluster: command.Cluster{ID: id, Datacenter: n.cfg.Datacenter, HomeSite: n.cfg.Self.Site, Epoch: max(epoch, 1)}}
	}
	// Changes nothing if the cluster has its identity already.
	if _, err := n.Propose(ctx, c); err != nil {
		return err
	}
	return n.setMember(ctx, n.cfg.Self)
}

// setMember puts a member into the members table. Errors: those of Propose;
// command.ErrRemoved.
func (n *Node) setMember(ctx context.Context, m command.Member) error {
	res, err := n.Propose(ctx, &command.MemberSet{Member: m})
	return cmp.Or(err, res.Err)
}

// meet finds a cluster to join, or forms one with the other candidates.
func (n *Node) meet(ctx context.Context) error {
	candidates := map[string]command.Member{n.id: n.cfg.Self}
	promised, _ := n.parts.Identity.Cluster() // what this node or a candidate has promised to belong to
	var problem error
	for _, addr := range n.cfg.Join {
		if addr == n.cfg.Self.RaftAddr {
			continue
		}
		they, err := ask[candidate](ctx, n.parts.Transport, addr, methodHello, n.self())
		if err != nil {
			if permanent(err) {
				return err
			}
			problem = err
			continue
		}
		if they.Member.ID == n.id {
			continue
		}
		n.parts.Transport.Learn(they.Member.ID, they.Member.RaftAddr)
		switch {
		case they.formed():
			if err := n.joinAt(ctx, addr); err == nil || permanent(err) {
				return err
			} else {
				problem = err
			}
		case they.Member.Name == n.cfg.Self.Name:
			return command.ErrNameInUse.With("%s runs at %s", they.Member.Name, addr)
		case they.ClusterID != "" && promised != "" && they.ClusterID != promised:
			problem = fmt.Errorf("%s has promised to belong to cluster %s, another of the first voters to %s; empty the data directory of one of them", they.Member.Name, they.ClusterID, promised)
		case they.Expect == n.cfg.BootstrapExpect && they.Expect > 0 && they.Member.Site == n.cfg.Self.Site:
			candidates[they.Member.ID] = they.Member
			if they.ClusterID != "" {
				promised = they.ClusterID
			}
		}
	}
	if n.self().Expect > 0 && len(candidates) == n.cfg.BootstrapExpect {
		return n.form(ctx, promised, candidates)
	}
	if problem != nil {
		return problem
	}
	if n.cfg.BootstrapExpect > 0 {
		return fmt.Errorf("%d of %d first voters have met", len(candidates), n.cfg.BootstrapExpect)
	}
	return errors.New("no cluster found yet")
}

// joinAt enters the cluster that the node at addr belongs to.
func (n *Node) joinAt(ctx context.Context, addr string) error {
	answer, err := ask[joined](ctx, n.parts.Transport, addr, methodJoin, n.cfg.entry())
	if err != nil {
		return err
	}
	cluster, _ := n.parts.Identity.Cluster()
	if err := n.parts.Identity.SetCluster(answer.ClusterID, answer.Epoch); err != nil {
		return err
	}
	if cluster == "" {
		n.log.Info("joined the cluster", "cluster", answer.ClusterID)
	}
	return nil
}

// form makes a cluster of exactly these first voters. Only the candidate with
// the lowest id does so, and only after each of them, itself first, has promised,
// durably, to belong to it. A candidate promises itself to one cluster at most,
// so two groups of candidates cannot both form one with the same member; and what
// a former that failed half-way has begun is gone on with: id is the cluster that
// any of them has promised to, empty when none has.
func (n *Node) form(ctx context.Context, id string, candidates map[string]command.Member) error {
	members := make([]command.Member, 0, len(candidates))
	for _, m := range candidates {
		members = append(members, m)
	}
	slices.SortFunc(members, func(a, b command.Member) int { return strings.Compare(a.ID, b.ID) })
	if members[0].ID != n.id {
		return fmt.Errorf("waiting for %s to form the cluster", members[0].Name)
	}
	n.forming.Lock()
	defer n.forming.Unlock()
	if id == "" {
		id = newClusterID()
	}
	if err := n.parts.Identity.SetCluster(id, promisedEpoch); err != nil {
		return err
	}
	p := promise{ClusterID: id, Members: members}
	req, err := encode(p)
	if err != nil {
		return err
	}
	var servers []raft.Server
	for _, m := range members {
		servers = append(servers, raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(m.ID), Address: raft.ServerAddress(m.ID)})
		if m.ID == n.id {
			continue
		}
		if _, err := n.parts.Transport.Call(ctx, m.ID, methodPromise, req); err != nil {
			return fmt.Errorf("%s did not promise to belong to the cluster: %v", m.Name, err) // not %w: it is never permanent
		}
	}
	n.forming.init = &command.Init{
		Cluster: command.Cluster{ID: p.ClusterID, Datacenter: n.cfg.Datacenter, HomeSite: n.cfg.Self.Site, Epoch: 1},
		Members: members,
	}
	n.log.Info("forming a cluster", "cluster", p.ClusterID, "voters", len(servers))
	if err := n.wait(n.raft.BootstrapCluster(raft.Configuration{Servers: servers})); err != nil {
		return fmt.Errorf("form a cluster: %w", err)
	}
	n.standAsFirst(ctx)
	return nil
}

// accept makes this node a first voter of the cluster, durably. It may be asked
// for the same promise again, and never gives another one.
func (n *Node) accept(p promise) error {
	n.forming.Lock()
	defer n.forming.Unlock()
	if n.forming.init != nil || n.raft.LastIndex() > 0 || n.raft.GetConfiguration().Index() > 0 {
		id, _ := n.parts.Identity.Cluster()
		return command.ErrWrongCluster.With("%s belongs to cluster %s", n.cfg.Self.Name, id)
	}
	if !slices.ContainsFunc(p.Members, func(m command.Member) bool { return m.ID == n.id }) {
		return command.ErrWrongIdentity.With("%s was not meant", n.cfg.Self.Name)
	}
	for _, m := range p.Members {
		n.parts.Transport.Learn(m.ID, m.RaftAddr)
	}
	return n.parts.Identity.SetCluster(p.ClusterID, promisedEpoch)
}

func newClusterID() string {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		panic(err) // crypto/rand never fails on supported systems
	}
	return hex.EncodeToString(b[:])
}

// handleJoin lets a member in, or updates its entry. Served by the leader; any
// other node passes the request on to it.
func (n *Node) handleJoin(ctx context.Context, j join) (joined, error) {
	if n.raft.State() != raft.Leader {
		leader := n.leaderID()
		if leader == "" || j.Hops > 0 {
			return joined{}, command.ErrNoLeader
		}
		j.Hops++
		req, err := encode(j)
		if err != nil {
			return joined{}, err
		}
		b, err := n.parts.Transport.Call(ctx, leader, methodJoin, req)
		if err != nil {
			return joined{}, err
		}
		var answer joined
		return answer, json.Unmarshal(b, &answer)
	}
	unlock, err := n.lockMembers(ctx)
	if err != nil {
		return joined{}, err
	}
	defer unlock()
	cluster, members, err := n.table()
	if err != nil {
		return joined{}, err
	}
	if cluster.ID == "" {
		return joined{}, command.ErrNoLeader.With("the cluster is only just being formed")
	}
	former, err := n.admit(ctx, j, cluster, members)
	if err != nil {
		return joined{}, err
	}
	answer := joined{ClusterID: cluster.ID, Epoch: cluster.Epoch}
	if j.Check {
		return answer, nil
	}
	return answer, n.add(ctx, j.Member, former)
}

// lockMembers waits for its turn to change the members: one at a time, since each
// looks at them before. unlock gives the turn back.
func (n *Node) lockMembers(ctx context.Context) (unlock func(), err error) {
	select {
	case n.joining <- struct{}{}:
		return func() { <-n.joining }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-n.stop:
		return nil, command.ErrStopping
	}
}

// admit decides whether m may be a member. former is the dead member of the
// same name that m replaces, empty if there is none.
func (n *Node) admit(ctx context.Context, j join, cluster command.Cluster, members []command.Member) (former string, err error) {
	m := j.Member
	switch barred, err := n.barred(m.ID); {
	case err != nil:
		return "", err
	case barred:
		return "", command.ErrRemoved.With("%s", m.Name)
	}
	if j.Datacenter != cluster.Datacenter {
		return "", command.ErrWrongCluster.With("its datacenter is %s, %s was started for %s", cluster.Datacenter, m.Name, j.Datacenter)
	}
	if m.Role.MayVote() && m.Site != cluster.HomeSite {
		return "", command.ErrNotHome.With("%s is at site %s, home is %s", m.Name, m.Site, cluster.HomeSite)
	}
	lowest := uint32(math.MaxUint32)
	for _, old := range members {
		if old.ID != m.ID {
			lowest = min(lowest, old.Level)
		}
	}
	if len(members) > 0 && m.Level < lowest {
		return "", command.ErrCommandLevel.With("%s knows level %d, the cluster is at %d", m.Name, m.Level, lowest)
	}
	for _, old := range members {
		// The same identity at the same address is the member itself. At another
		// address it has moved, or its data directory was copied: two processes
		// with one identity could vote twice, so the old one must be gone.
		if old.Name != m.Name || old.ID == m.ID && old.RaftAddr == m.RaftAddr {
			continue
		}
		short, cancel := context.WithTimeout(ctx, time.Second)
		there, err := ask[pong](short, n.parts.Transport, old.RaftAddr, methodPing, nil)
		cancel()
		alive := err == nil && there.ID == old.ID && there.Incarnation != j.Incarnation
		if old.ID == n.id || alive {
			return "", command.ErrNameInUse.With("%s runs at %s", old.Name, old.RaftAddr)
		}
		if old.ID != m.ID {
			former = old.ID
		}
	}
	return former, nil
}

// barred reports whether a member was removed for good.
func (n *Node) barred(id string) (bool, error) {
	view, err := n.parts.State.View()
	if err != nil {
		return false, err
	}
	defer view.Close()
	return view.Barred(id)
}

// add puts m into the members table and the Raft configuration, in place of
// former, whose identity never votes again. A new member never votes at once, and who
// asks to vote no longer may for a moment: autopilot gives and takes votes.
func (n *Node) add(ctx context.Context, m command.Member, former string) error {
	if former != "" {
		if err := n.canSpare(ctx, former); err != nil {
			return err
		}
		n.log.Info("replacing a member that is gone", "name", m.Name, "former", former, "now", m.ID)
		if _, err := n.Propose(ctx, &command.MemberRemove{ID: former, Barred: true}); err != nil {
			return err
		}
		if err := n.expel(ctx); err != nil {
			return err
		}
	}
	_, members, err := n.table()
	if err != nil {
		return err
	}
	if !slices.Contains(members, m) {
		if err := n.setMember(ctx, m); err != nil {
			return err
		}
	}
	if _, ok := n.server(m.ID); ok {
		return nil
	}
	return raftError(n.wait(n.raft.AddNonvoter(raft.ServerID(m.ID), raft.ServerAddress(m.ID), 0, n.cfg.Wait)))
}

// raftError turns Raft's words for lost leadership into ours.
func raftError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return command.ErrNoLeader.With("%v", err)
	default:
		return err
	}
}
