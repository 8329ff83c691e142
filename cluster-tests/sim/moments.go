//go:build linux

package sim

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/fault"
	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/store"
)

// bulk is how many values of so many bytes a member must lack, so that the log, which keeps
// some hundred entries at least, does without them, and a copy of them takes a while.
const (
	bulk      = 400
	bulkValue = 1 << 10
)

// How often somebody looks whether a moment has come that is over soon, and one that stays.
const (
	glances = 20 * time.Millisecond
	looks   = 500 * time.Millisecond
)

// comes says whether members of such a cluster get to a moment.
func (p *plan) comes(m fault.Moment) bool {
	// The log store wal gives up whole files only.
	copies := p.shortLog && p.logStore == store.LogStoreBolt
	switch m {
	case fault.FullCopy:
		return copies
	case fault.Delta:
		return copies && !p.shortHistory
	case fault.Compaction:
		return p.shortHistory
	}
	return true
}

// Bring implements fault.Moments.
func (c *Cluster) Bring(ctx context.Context, m fault.Moment, name string) error {
	switch m {
	case fault.FullCopy:
		if err := c.outpace(ctx, 0); err != nil {
			return err
		}
		if err := c.Admit(ctx, name); err != nil {
			return err
		}
		return c.sending(ctx, name)
	case fault.Delta:
		s, err := c.status(ctx, c.member(name))
		if err != nil {
			return fmt.Errorf("%w: %w", fault.ErrMissed, err)
		}
		if err := c.Kill(ctx, name); err != nil {
			return err
		}
		if err := c.outpace(ctx, s.AppliedIndex); err != nil {
			return err
		}
		if err := c.Start(ctx, name); err != nil {
			return err
		}
		return c.sending(ctx, name)
	case fault.Compaction:
		const oldest = "holdfast_store_oldest_revision"
		before := c.metric(ctx, c.member(name), oldest)
		return see(ctx, glances, "compaction at "+name, func() bool {
			now := c.metric(ctx, c.member(name), oldest)
			return before != "" && now != "" && now != before
		})
	case fault.Transfer:
		leader := c.member(name)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), operating)
		ended := make(chan error, 1)
		go func() { // ends with its context
			defer cancel()
			ended <- c.transfer(ctx, leader, "")
		}()
		select {
		case err := <-ended:
			if err != nil {
				return fmt.Errorf("%w: %w", fault.ErrMissed, err)
			}
		case <-time.After(3 * time.Millisecond): // it has been asked for, and has hardly begun
		}
		return nil
	}
	return fmt.Errorf("%w: nobody knows the moment %s", fault.ErrMissed, m)
}

// outpace writes, under keys that nobody else uses, until the leader's log lacks an entry
// that comes behind index: who has no more than that needs a copy.
func (c *Cluster) outpace(ctx context.Context, index uint64) error {
	value := make([]byte, bulkValue)
	source := rand.NewChaCha8([32]byte{})
	for i := range bulk {
		_, _ = source.Read(value) // so that it does not shrink on its way
		err := c.leading(ctx, func(ctx context.Context, m *member) error {
			_, err := c.do(ctx, m, http.MethodPut, fmt.Sprint("/v1/kv/bulk/", i), bytes.NewReader(value))
			return err
		})
		if err != nil {
			return fmt.Errorf("%w: %w", fault.ErrMissed, err)
		}
	}
	return see(ctx, looks, "a log that has lost its beginning", func() bool {
		first := uint64(0)
		_ = c.leading(ctx, func(ctx context.Context, m *member) error {
			body, err := c.do(ctx, m, http.MethodGet, "/v1/replicas", nil)
			var rows []command.Replica
			if err != nil || json.Unmarshal(body, &rows) != nil {
				return err
			}
			for _, r := range rows {
				first = max(first, r.Log.First)
			}
			return nil
		})
		return first > index+1
	})
}

// sending waits until another member sends a copy.
func (c *Cluster) sending(ctx context.Context, to string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second) // by then it is over, or was not needed
	defer cancel()
	return see(ctx, glances, "a copy to "+to, func() bool {
		return slices.ContainsFunc(c.members, func(m *member) bool {
			if m.Name == to || !m.running() {
				return false
			}
			open := c.metric(ctx, m, "holdfast_copies_sent_open")
			return open != "" && open != "0"
		})
	})
}

// see waits for a moment, and looks for it so often.
func see(ctx context.Context, often time.Duration, what string, here func() bool) error {
	for !here() {
		if rest(ctx, often) != nil {
			return fmt.Errorf("%w: %s was not seen", fault.ErrMissed, what)
		}
	}
	return nil
}

// metric is what a member says of itself; "" when it does not answer.
func (c *Cluster) metric(ctx context.Context, m *member, name string) string {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	body, err := c.do(ctx, m, http.MethodGet, "/metrics", nil)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(body)) {
		if value, found := strings.CutPrefix(line, name+" "); found {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
