//go:build linux

package sim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/fault"
	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/store"
)

var (
	_ fault.Target      = (*Cluster)(nil)
	_ fault.Lines       = (*Cluster)(nil)
	_ fault.Moments     = (*Cluster)(nil)
	_ fault.Transfers   = (*Cluster)(nil)
	_ fault.Memberships = (*Cluster)(nil)
	_ fault.LogStores   = (*Cluster)(nil)
	_ fault.Snapshots   = (*Cluster)(nil)
	_ fault.Disks       = (*Cluster)(nil)
)

func (c *Cluster) member(name string) *member {
	return c.members[slices.IndexFunc(c.members, func(m *member) bool { return m.Name == name })]
}

func (c *Cluster) named(names []string) []*member {
	var members []*member
	for _, name := range names {
		members = append(members, c.member(name))
	}
	return members
}

// Members implements fault.Target.
func (c *Cluster) Members() []fault.Member {
	var members []fault.Member
	for _, m := range c.members {
		members = append(members, fault.Member{Name: m.Name, Site: m.Site, Voter: m.Voter, Spare: m.Spare})
	}
	return members
}

// Leader implements fault.Target: who says that it leads; of several, whoever knows
// most.
func (c *Cluster) Leader(ctx context.Context) (name string, ok bool) {
	var mu sync.Mutex
	var most uint64
	var asking sync.WaitGroup
	for _, m := range c.members {
		if !m.running() || m.run.process.stopped.Load() != nil {
			continue
		}
		asking.Go(func() {
			s, err := c.status(ctx, m)
			mu.Lock()
			defer mu.Unlock()
			if err == nil && s.Mode == "leader" && s.AppliedIndex >= most {
				name, ok, most = m.Name, true, s.AppliedIndex
			}
		})
	}
	asking.Wait()
	return name, ok
}

// Running implements fault.Target.
func (c *Cluster) Running(name string) bool { return c.member(name).running() }

// Ready implements fault.Target.
func (c *Cluster) Ready(ctx context.Context, name string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, err := c.do(ctx, c.member(name), http.MethodGet, "/readyz", nil)
	return err == nil
}

// Block implements fault.Target.
func (c *Cluster) Block(_ context.Context, pairs []fault.Pair) error {
	var directions []direction
	for _, p := range pairs {
		directions = append(directions, direction{p.From, p.To})
	}
	c.net.block(directions)
	return nil
}

// Kill implements fault.Target.
func (c *Cluster) Kill(_ context.Context, names ...string) error {
	return c.kill(c.named(names)...)
}

// Stop implements fault.Target.
func (c *Cluster) Stop(_ context.Context, name string) error { return c.stop(c.member(name)) }

// Start implements fault.Target.
func (c *Cluster) Start(_ context.Context, names ...string) error {
	for _, m := range c.named(names) {
		if !m.running() {
			c.start(m)
		}
	}
	return nil
}

// Pause implements fault.Target, as nearly as virtual time can: the process is not
// heard and hears nothing. What has come for it waits in the host's buffers, as does
// what it has said; connections to it are made and not answered. But its timers run:
// a leader that is paused steps down meanwhile, where one that is frozen would find
// out only afterwards. That is for the tests with real processes.
func (c *Cluster) Pause(_ context.Context, names ...string) error {
	for _, m := range c.named(names) {
		if m.run != nil {
			m.run.process.pause()
		}
	}
	return nil
}

// Resume implements fault.Target.
func (c *Cluster) Resume(_ context.Context, names ...string) error {
	for _, m := range c.named(names) {
		if m.run != nil {
			m.run.process.goOn()
		}
	}
	return nil
}

// SetLine implements fault.Lines. As TCP shows it, what is lost or corrupt is sent
// again, and what was overtaken waits; what arrives twice is not noticed.
func (c *Cluster) SetLine(_ context.Context, site string, l fault.Line) error {
	c.net.setLine(site, line{
		latency: l.Delay, jitter: l.Jitter + time.Duration(l.Reorder)*l.Delay/1000,
		loss: float64(l.Loss+l.Corrupt) / 1000, rate: l.Rate,
	})
	return nil
}

// Transfer implements fault.Transfers.
func (c *Cluster) Transfer(ctx context.Context, to string) error {
	name, ok := c.Leader(ctx)
	if !ok {
		return errors.New("nobody leads")
	}
	ctx, cancel := context.WithTimeout(ctx, operating)
	defer cancel()
	return c.transfer(ctx, c.member(name), to)
}

func (c *Cluster) transfer(ctx context.Context, leader *member, to string) error {
	path := "/v1/operator/raft/transfer-leader"
	if to != "" {
		path += "?id=" + url.QueryEscape(to)
	}
	_, err := c.do(ctx, leader, http.MethodPost, path, nil)
	return err
}

// Remove implements fault.Memberships.
func (c *Cluster) Remove(ctx context.Context, name string) error {
	m := c.member(name)
	if !m.running() {
		return fmt.Errorf("%s does not run", name)
	}
	m.run.over.Store(true)
	ctx, cancel := context.WithTimeout(ctx, operating)
	defer cancel()
	i := slices.IndexFunc(c.members, func(o *member) bool { return o != m && o.running() })
	if i < 0 {
		return errors.New("nobody else runs")
	}
	_, err := c.do(ctx, c.members[i], http.MethodDelete, "/v1/operator/raft/peer?address="+url.QueryEscape(m.cfg.AdvertiseRaft), nil)
	if err != nil {
		m.run.over.Store(false)
		return err
	}
	select {
	case <-m.run.ended: // it has heard of it
	case <-ctx.Done():
	}
	_ = c.stop(m) // it ends with what the cluster said to it
	return nil
}

// Admit implements fault.Memberships.
func (c *Cluster) Admit(ctx context.Context, name string) error {
	m := c.member(name)
	if err := c.stop(m); err != nil {
		return err
	}
	if err := os.RemoveAll(m.cfg.DataDir); err != nil {
		return err
	}
	m.cfg.BootstrapExpect = 0
	return c.Start(ctx, name)
}

// Move implements fault.Memberships: the node port moves.
func (c *Cluster) Move(ctx context.Context, name string) error {
	m := c.member(name)
	if err := c.stop(m); err != nil {
		return err
	}
	m.moves++
	m.cfg.Raft = at(m.Name, nodePort+m.moves)
	m.cfg.AdvertiseRaft = m.cfg.Raft
	return c.Start(ctx, name)
}

// OtherLogStore implements fault.LogStores.
func (c *Cluster) OtherLogStore(_ context.Context, name string) error {
	m := c.member(name)
	if m.cfg.LogStore == store.LogStoreWAL {
		m.cfg.LogStore = store.LogStoreBolt
	} else {
		m.cfg.LogStore = store.LogStoreWAL
	}
	return nil
}

// OwnDisks implements fault.Power.
func (c *Cluster) OwnDisks() bool { return c.disks != nil }

// LosePower implements fault.Power.
func (c *Cluster) LosePower(_ context.Context, seed uint64, names ...string) error {
	return c.end(true, c.named(names), func(m *member) (string, error) {
		if c.forgets != nil {
			c.forgets(m.Name)
		}
		return c.disks.losePower(m.Name, seed), nil
	})
}

// Sicken implements fault.Disks. What is slow is so in virtual time: see hardware.
func (c *Cluster) Sicken(_ context.Context, name string, ill fault.Illness) error {
	m := c.member(name)
	m.ill.Store(true)
	if m.late.Store(int64(ill.Delay)); ill.Delay == 0 {
		c.disks.outside(func() { ill.Befall(c.disks.byName[name]) })
	}
	return nil
}

// Cure implements fault.Disks.
func (c *Cluster) Cure(_ context.Context, names ...string) error {
	for _, m := range c.members {
		if len(names) == 0 || slices.Contains(names, m.Name) {
			m.ill.Store(false)
			m.late.Store(0)
			c.disks.outside(c.disks.byName[m.Name].Heal)
		}
	}
	return nil
}

// MayHang implements fault.Disks. Who waits for the system holds virtual time up, and with
// it whatever would end the waiting.
func (c *Cluster) MayHang() bool { return false }

// Folder implements fault.Disks.
func (c *Cluster) Folder(name string) string { return c.member(name).cfg.DataDir }

// Save implements fault.Snapshots.
func (c *Cluster) Save(ctx context.Context) (archive []byte, err error) {
	err = c.leading(ctx, func(ctx context.Context, m *member) error {
		if c.archivist != nil {
			archive, err = c.archivist.Save(ctx, c.client(m))
		} else {
			archive, err = c.do(ctx, m, http.MethodGet, "/v1/snapshot", nil)
		}
		return err
	})
	return archive, err
}

// Restore implements fault.Snapshots.
func (c *Cluster) Restore(ctx context.Context, archive []byte) error {
	return c.leading(ctx, func(ctx context.Context, m *member) (err error) {
		if c.archivist != nil {
			err = c.archivist.Restore(ctx, c.client(m), archive)
		} else {
			_, err = c.do(ctx, m, http.MethodPut, "/v1/snapshot", bytes.NewReader(archive))
		}
		return err
	})
}

// replaced sets how long a voter must be dead until a spare votes in its place.
func (c *Cluster) replaced(ctx context.Context, after time.Duration) error {
	setting := fmt.Sprintf(`{"DeadServerTime":%q}`, after)
	return c.leading(ctx, func(ctx context.Context, m *member) error {
		_, err := c.do(ctx, m, http.MethodPut, "/v1/operator/autopilot/configuration", strings.NewReader(setting))
		return err
	})
}

// operating is how long an operator's order may take.
const operating = 15 * time.Second

// leading gives an order to the leader, as soon as there is one.
func (c *Cluster) leading(ctx context.Context, order func(context.Context, *member) error) error {
	ctx, cancel := context.WithTimeout(ctx, operating)
	defer cancel()
	for {
		if name, ok := c.Leader(ctx); ok {
			return order(ctx, c.member(name))
		}
		if rest(ctx, 50*time.Millisecond) != nil {
			return fmt.Errorf("%w: nobody leads", fault.ErrMissed)
		}
	}
}

// status asks a node how it does.
func (c *Cluster) status(ctx context.Context, m *member) (s command.ReplicaStatus, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	body, err := c.do(ctx, m, http.MethodGet, "/v1/replica/status", nil)
	if err == nil {
		err = json.Unmarshal(body, &s)
	}
	return s, err
}

// do makes a request. The error says that the answer is not 200.
func (c *Cluster) do(ctx context.Context, m *member, method, path string, body io.Reader) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+m.cfg.AdvertiseHTTP+path, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.orders.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s at %s: %d %s", method, path, m.Name, resp.StatusCode, strings.TrimSpace(string(answer)))
	}
	return answer, err
}
