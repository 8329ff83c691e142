package clustertests

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/fault"
	"github.com/holdfast-db/holdfast/cluster-tests/history"
	"github.com/holdfast-db/holdfast/cluster-tests/workload"
	"github.com/holdfast-db/holdfast/command"
)

// A cluster of processes is a fault.Target, with all abilities that need no network of
// its own: see also runtime_test.go.
var _ interface {
	fault.Target
	fault.Moments
	fault.Transfers
	fault.Memberships
	fault.LogStores
	fault.Snapshots
} = (*cluster)(nil)

// glance is how long a fault waits for a node that may be frozen to say what it is.
const glance = 300 * time.Millisecond

// operating is how long an operator's order may take that waits for the cluster.
const operating = 15 * time.Second

func (c *cluster) named(names ...string) []*node {
	return slices.DeleteFunc(slices.Clone(c.nodes), func(n *node) bool { return !slices.Contains(names, n.name) })
}

// Members implements fault.Target.
func (c *cluster) Members() []fault.Member { return membersOf(c.nodes) }

func membersOf(nodes []*node) []fault.Member {
	members := make([]fault.Member, len(nodes))
	for i, n := range nodes {
		members[i] = fault.Member{Name: n.name, Site: n.site, Voter: n.role == command.RoleVoter, Spare: n.role == command.RoleSpare}
	}
	return members
}

// clientsOf are nodes as the clients of a workload see them.
func clientsOf(nodes []*node) []*workload.Node {
	all := make([]*workload.Node, len(nodes))
	for i, n := range nodes {
		all[i] = &workload.Node{Name: n.name, Site: n.site, Voter: n.role == command.RoleVoter, URL: "http://" + n.http, Client: web}
	}
	return all
}

// Leader implements fault.Target: of those that say that they lead, the one that has
// applied most, since one that was frozen or cut off may not know yet that it is deposed.
func (c *cluster) Leader(ctx context.Context) (string, bool) { return leaderOf(ctx, c.nodes) }

func leaderOf(ctx context.Context, nodes []*node) (string, bool) {
	ctx, cancel := context.WithTimeout(ctx, glance)
	defer cancel()
	all := make([]command.ReplicaStatus, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		if n.role != command.RoleLearner {
			wg.Go(func() { all[i], _ = n.statusIn(ctx) })
		}
	}
	wg.Wait()
	leader := -1
	for i, s := range all {
		if s.Mode == "leader" && (leader < 0 || s.AppliedIndex > all[leader].AppliedIndex) {
			leader = i
		}
	}
	if leader < 0 {
		return "", false
	}
	return nodes[leader].name, true
}

// Running implements fault.Target.
func (c *cluster) Running(name string) bool { return c.named(name)[0].running() }

// Ready implements fault.Target.
func (c *cluster) Ready(_ context.Context, name string) bool {
	ok, _ := c.named(name)[0].ready()
	return ok
}

// Block implements fault.Target by the product's fault switches: each end of a pair is
// told its side of it.
func (c *cluster) Block(_ context.Context, pairs []fault.Pair) error {
	cut := map[*node][]string{}
	for _, p := range pairs {
		from, to := c.named(p.From)[0], c.named(p.To)[0]
		cut[from] = append(cut[from], "to:"+p.To)
		cut[to] = append(cut[to], "from:"+p.From)
	}
	return c.throw(cut)
}

// Kill implements fault.Target.
func (c *cluster) Kill(_ context.Context, names ...string) error {
	return kill(slices.DeleteFunc(c.named(names...), func(n *node) bool { return !n.running() })...)
}

// Stop implements fault.Target.
func (c *cluster) Stop(_ context.Context, name string) error {
	n := c.named(name)[0]
	if !n.running() {
		return nil
	}
	return n.stop()
}

// Start implements fault.Target. Who was removed has to be admitted.
func (c *cluster) Start(_ context.Context, names ...string) error {
	for _, n := range c.named(names...) {
		if n.running() || n.gone {
			continue
		}
		if err := c.launch(n); err != nil {
			return err
		}
	}
	return nil
}

// Pause implements fault.Target.
func (c *cluster) Pause(_ context.Context, names ...string) error {
	return c.frozen(true, names, (*node).pause)
}

// Resume implements fault.Target.
func (c *cluster) Resume(_ context.Context, names ...string) error {
	return c.frozen(false, names, c.unpause)
}

// frozen brings the named nodes that run to that state by order, all at once.
func (c *cluster) frozen(want bool, names []string, order func(*node) error) error {
	var wg sync.WaitGroup
	errs := make([]error, len(names))
	for i, n := range c.named(names...) {
		n.mu.Lock()
		due := n.proc != nil && n.stopped != want
		n.mu.Unlock()
		if due {
			wg.Go(func() { errs[i] = order(n) })
		}
	}
	wg.Wait()
	return errors.Join(errs...)
}

// order makes a request of the API and demands the status 200.
func (n *node) order(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, operating)
	defer cancel()
	status, answer, _, err := call(ctx, n, method, path, body)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("%s %s at %s: %d %.200s", method, path, n, status, answer)
	}
	return answer, err
}

// ask finds a node that answers, the leader if there is one.
func (c *cluster) ask(ctx context.Context, but ...string) (*node, error) {
	if name, ok := c.Leader(ctx); ok && !slices.Contains(but, name) {
		return c.named(name)[0], nil
	}
	for _, n := range c.nodes {
		if !slices.Contains(but, n.name) && n.running() && c.Ready(ctx, n.name) {
			return n, nil
		}
	}
	return nil, fmt.Errorf("%w: no node answers", fault.ErrMissed)
}

// identity is the id of a member as another knows it; the name where it does not.
func (c *cluster) identity(asked *node, name string) string {
	if s, ok := c.server(asked, name); ok {
		return s.ID
	}
	return name
}

// Transfer implements fault.Transfers.
func (c *cluster) Transfer(ctx context.Context, to string) error {
	n, err := c.ask(ctx)
	if err != nil {
		return err
	}
	path := "/v1/operator/raft/transfer-leader"
	if to != "" {
		path += "?id=" + url.QueryEscape(c.identity(n, to))
	}
	_, err = n.order(ctx, http.MethodPost, path, nil)
	return err
}

// Save implements fault.Snapshots.
func (c *cluster) Save(ctx context.Context) ([]byte, error) {
	n, err := c.ask(ctx)
	if err != nil {
		return nil, err
	}
	return n.order(ctx, http.MethodGet, "/v1/snapshot", nil)
}

// Restore implements fault.Snapshots.
func (c *cluster) Restore(ctx context.Context, archive []byte) error {
	n, err := c.ask(ctx)
	if err != nil {
		return err
	}
	_, err = n.order(ctx, http.MethodPut, "/v1/snapshot", archive)
	return err
}

// whole says whether all voters but one run, vote, and answer: then the disk of that one
// may be lost, or itself removed, and the cluster goes on. Two in a row that have not
// come back in between are more than any cluster of three bears.
func (c *cluster) whole(ctx context.Context, but string) error {
	if n := c.named(but)[0]; n.role != command.RoleVoter || n.gone {
		return nil // nobody counts on its vote
	}
	asked, err := c.ask(ctx, but)
	if err != nil {
		return err
	}
	for _, n := range c.voters() {
		if n.name == but {
			continue
		}
		if s, ok := c.server(asked, n.name); !ok || !s.Voter || !c.Ready(ctx, n.name) {
			return fmt.Errorf("%w: %s is not well enough", fault.ErrMissed, n)
		}
	}
	return nil
}

// Remove implements fault.Memberships.
func (c *cluster) Remove(ctx context.Context, name string) error {
	n := c.named(name)[0]
	if err := c.whole(ctx, name); err != nil {
		return err
	}
	asked, err := c.ask(ctx, name)
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.meant = true // it ends when it learns of it
	n.mu.Unlock()
	_, err = asked.order(ctx, http.MethodDelete, "/v1/operator/raft/peer?id="+url.QueryEscape(c.identity(asked, name)), nil)
	if err != nil && !eventually(operating, func() bool { _, ok := c.server(asked, name); return !ok }) {
		return fmt.Errorf("%w: %w", fault.ErrMissed, err)
	}
	n.gone = true
	if n.running() && n.awaitEnd(operating) != nil {
		return fmt.Errorf("%s was removed and runs on", n)
	}
	return nil
}

// Admit implements fault.Memberships.
func (c *cluster) Admit(ctx context.Context, name string) error {
	n := c.named(name)[0]
	if err := c.whole(ctx, name); err != nil {
		return err
	}
	if err := c.Kill(ctx, name); err != nil {
		return err
	}
	if err := os.RemoveAll(n.data); err != nil {
		return err
	}
	n.gone = false
	return c.launch(n)
}

// Move implements fault.Memberships: the port changes, on the same host.
func (c *cluster) Move(ctx context.Context, name string) error {
	n := c.named(name)[0]
	if err := c.Stop(ctx, name); err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(n.raft)
	if err != nil {
		return err
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		return err
	}
	was := n.raft
	if c.lab == nil {
		n.raft = freePort(c.t)
	} else {
		n.raft = net.JoinHostPort(host, strconv.Itoa(number+1))
	}
	for _, o := range c.nodes { // those that start later, and itself
		for i, arg := range o.args {
			if arg == was {
				o.args[i] = n.raft
			}
		}
	}
	return c.launch(n)
}

// OtherLogStore implements fault.LogStores.
func (c *cluster) OtherLogStore(_ context.Context, name string) error {
	n := c.named(name)[0]
	i := slices.Index(n.args, "--log-store")
	if i < 0 {
		n.args = append(n.args, "--log-store", "boltdb")
		return nil
	}
	n.args[i+1] = map[string]string{"wal": "boltdb", "boltdb": "wal"}[n.args[i+1]]
	return nil
}

// bulk is how many values of half a megabyte a member must lack for a delta, or the
// state hold for a full copy that takes a while: a delta at a start is sent for 8 MiB and
// more. Clusters whose copies are to be hit send them no faster than copyRate.
const (
	bulk     = 24
	copyRate = "12MiB"
)

// bulkUp writes that much under keys that nobody else uses.
func (c *cluster) bulkUp(ctx context.Context) error {
	asked, err := c.ask(ctx)
	if err != nil {
		return err
	}
	value := make([]byte, 500<<10)
	for i := range bulk {
		rand.Read(value) // so that it does not shrink on its way
		if w := put(asked, fmt.Sprint("bulk/", i), string(value), ""); w.outcome != history.Decided {
			return fmt.Errorf("%w: %+v", fault.ErrMissed, w)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// Bring implements fault.Moments.
func (c *cluster) Bring(ctx context.Context, m fault.Moment, name string) error {
	n := c.named(name)[0]
	switch m {
	case fault.FullCopy:
		if err := c.bulkUp(ctx); err != nil {
			return err
		}
		if err := c.see(ctx, "a log that has lost its beginning", func() bool { return c.shortened(ctx) }); err != nil {
			return err
		}
		if err := c.Admit(ctx, name); err != nil {
			return err
		}
		return c.see(ctx, "a copy to "+name, func() bool { return c.sending(n) })
	case fault.Delta:
		for {
			if err := c.Kill(ctx, name); err != nil {
				return err
			}
			if err := c.bulkUp(ctx); err != nil {
				return err
			}
			if err := c.launch(n); err != nil {
				return err
			}
			soon, cancel := context.WithTimeout(ctx, 3*time.Second)
			err := c.see(soon, "a delta to "+name, func() bool { return c.sending(n) })
			cancel()
			if err == nil || ctx.Err() != nil {
				return err
			}
			// Nobody began at once, so it took the log.
		}
	case fault.Compaction:
		const oldest = "holdfast_store_oldest_revision"
		before, ok := n.metric(oldest)
		if !ok {
			return fmt.Errorf("%w: %s has no %s", fault.ErrMissed, name, oldest)
		}
		return c.see(ctx, "compaction at "+name, func() bool { now, ok := n.metric(oldest); return ok && now != before })
	case fault.Transfer:
		ended := make(chan error, 1)
		go func() { ended <- c.Transfer(context.WithoutCancel(ctx), "") }()
		select {
		case err := <-ended:
			if err != nil {
				return fmt.Errorf("%w: %w", fault.ErrMissed, err)
			}
			return nil
		case <-time.After(3 * time.Millisecond): // it has been asked for, and has hardly begun
			return nil
		}
	}
	return fmt.Errorf("%w: nobody knows the moment %s", fault.ErrMissed, m)
}

// see waits for a moment.
func (c *cluster) see(ctx context.Context, what string, under func() bool) error {
	for ctx.Err() == nil {
		if under() {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return fmt.Errorf("%w: %s was not seen", fault.ErrMissed, what)
}

// shortened says whether the leader's log does not reach back to its first entry, so that
// a member that begins anew needs a copy.
func (c *cluster) shortened(ctx context.Context) bool {
	asked, err := c.ask(ctx)
	if err != nil {
		return false
	}
	var rows []command.Replica
	body, err := asked.order(ctx, http.MethodGet, "/v1/replicas", nil)
	return err == nil && json.Unmarshal(body, &rows) == nil && slices.ContainsFunc(rows, func(r command.Replica) bool { return r.Log.First > 1 })
}

// sending says whether another node is sending a copy.
func (c *cluster) sending(to *node) bool {
	return slices.ContainsFunc(c.others(to), func(n *node) bool {
		if !n.running() {
			return false
		}
		open, ok := n.metric("holdfast_copies_sent_open")
		return ok && open != "0"
	})
}
