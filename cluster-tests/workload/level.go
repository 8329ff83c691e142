package workload

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Status is what a node says of its copy (/v1/replica/status).
type Status struct {
	Mode, Status string
	// Applied is the revision, Lineage the hash over everything applied up to it.
	Applied uint64
	Lineage string
	// Diverged is the revision from which on the node knows its copy to be wrong, 0
	// when it does not.
	Diverged uint64
}

// Status asks the node what it is.
func (n *Node) Status(ctx context.Context) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var s Status
	a, err := n.Ask(ctx, http.MethodGet, "/v1/replica/status", nil)
	if err == nil && a.Status != http.StatusOK {
		err = fmt.Errorf("status %d: %.200s", a.Status, a.Body)
	}
	if err == nil {
		err = json.Unmarshal(a.Body, &s)
	}
	return s, err
}

// Divergence is two nodes that hold different data at one revision: the worst that
// can happen, and never mended by waiting.
type Divergence struct{ What string }

func (d *Divergence) Error() string { return "DIVERGED: " + d.What }

// Level waits until all nodes stand at one revision with one lineage, which means that
// they hold the same. The error is a *Divergence when two of them were seen at one
// revision with two lineages; else ctx ended first.
func Level(ctx context.Context, nodes []*Node) (Status, error) {
	type seen struct {
		node    *Node
		lineage string
	}
	lineages := map[uint64]seen{}
	for {
		var all []Status
		var last error
		for _, n := range nodes {
			s, err := n.Status(ctx)
			if err != nil {
				last = fmt.Errorf("%s: %w", n, err)
				continue
			}
			if s.Diverged > 0 {
				return s, &Divergence{fmt.Sprintf("%s says that it is wrong from revision %d on", n, s.Diverged)}
			}
			other, ok := lineages[s.Applied]
			if ok && other.lineage != s.Lineage {
				return s, &Divergence{fmt.Sprintf("at revision %d %s has lineage %s and %s has %s", s.Applied, n, s.Lineage, other.node, other.lineage)}
			}
			lineages[s.Applied] = seen{n, s.Lineage}
			all = append(all, s)
		}
		if len(all) == len(nodes) {
			first := slices.IndexFunc(all, func(s Status) bool { return s.Applied != all[0].Applied })
			if first < 0 && all[0].Applied > 0 {
				return all[0], nil
			}
			last = fmt.Errorf("revisions of %v: %+v", nodes, all)
		}
		if ctx.Err() != nil {
			return Status{}, fmt.Errorf("not level: %w", last)
		}
		Rest(ctx, 20*time.Millisecond)
	}
}

// CheckLevel is Level, and compares the contents themselves too.
func CheckLevel(ctx context.Context, nodes []*Node) error {
	s, err := Level(ctx, nodes)
	if err != nil {
		return err
	}
	return SameContents(ctx, nodes, s.Applied)
}

// pageSize is how many entries are compared at once.
const pageSize = 2000

// SameContents compares all that nodes hold at a revision that all of them have:
// every key with its value, flags, revisions and lock, and, unless something changed
// meanwhile, the sessions. The error is a *Divergence, or says that a node could not
// be asked.
func SameContents(ctx context.Context, nodes []*Node, revision uint64) error {
	for after := ""; ; {
		path := fmt.Sprintf("%s?recurse&stale&rev=%d&limit=%d&after=%s", Key(""), revision, pageSize, url.QueryEscape(after))
		var page []Entry
		for i, n := range nodes {
			a, err := n.Do(ctx, http.MethodGet, path, nil)
			if err != nil {
				return fmt.Errorf("contents of %s: %w", n, err)
			}
			entries, err := a.Entries()
			if err != nil {
				return fmt.Errorf("contents of %s: %w", n, err)
			}
			if i == 0 {
				page = entries
			} else if what := difference(page, entries); what != "" {
				return &Divergence{fmt.Sprintf("at revision %d %s and %s differ: %s", revision, nodes[0], n, what)}
			}
		}
		if len(page) < pageSize {
			break
		}
		after = page[len(page)-1].Key
	}
	var first Answer
	for i, n := range nodes {
		a, err := n.Do(ctx, http.MethodGet, "/v1/session/list?stale", nil)
		if err != nil || a.Status != http.StatusOK {
			return fmt.Errorf("sessions of %s: %d %.200s, %w", n, a.Status, a.Body, err)
		}
		if applied, err := a.Applied(); err != nil || applied != revision {
			return err // a session has come to its end meanwhile
		}
		if i == 0 {
			first = a
		} else if !bytes.Equal(a.Body, first.Body) {
			return &Divergence{fmt.Sprintf("at revision %d %s has sessions %s and %s has %s", revision, nodes[0], first.Body, n, a.Body)}
		}
	}
	return nil
}

// difference names the first entry that two lists do not share; empty when they are equal.
func difference(a, b []Entry) string {
	for i := range max(len(a), len(b)) {
		switch {
		case i >= len(a):
			return fmt.Sprintf("only the second has %+v", b[i])
		case i >= len(b):
			return fmt.Sprintf("only the first has %+v", a[i])
		case a[i].Key != b[i].Key:
			if strings.Compare(a[i].Key, b[i].Key) < 0 {
				return fmt.Sprintf("only the first has %+v", a[i])
			}
			return fmt.Sprintf("only the second has %+v", b[i])
		case !bytes.Equal(a[i].Value, b[i].Value), a[i].Flags != b[i].Flags, a[i].Session != b[i].Session,
			a[i].LockIndex != b[i].LockIndex, a[i].CreateIndex != b[i].CreateIndex, a[i].ModifyIndex != b[i].ModifyIndex:
			return fmt.Sprintf("%+v and %+v", a[i], b[i])
		}
	}
	return ""
}
