package node

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// Replicas is how the leader sees each learner. Errors: command.ErrNoLeader,
// command.ErrPaused on a node that is itself paused.
func (n *Node) Replicas(ctx context.Context) ([]command.Replica, error) {
	var all []command.Replica
	answer, err := n.atLeader(ctx, methodReplicas, nil, n.answerReplicas)
	if err != nil {
		return nil, err
	}
	return all, json.Unmarshal(answer, &all)
}

func (n *Node) answerReplicas(context.Context, []byte) ([]byte, error) {
	all, err := n.replicas()
	if err != nil {
		return nil, err
	}
	return encode(all)
}

// replicas looks at all learners, on the leader.
func (n *Node) replicas() ([]command.Replica, error) {
	if n.raft.State() != raft.Leader {
		return nil, command.ErrNotLeader
	}
	_, members, err := n.table()
	if err != nil {
		return nil, err
	}
	first, _, err := n.parts.Logs.Bounds()
	if err != nil {
		return nil, err
	}
	seen := n.parts.Logs.Peers()
	all := []command.Replica{}
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		id := string(s.ID)
		if s.Suffrage == raft.Voter || id == n.id {
			continue
		}
		r := command.Replica{ID: id}
		if i := slices.IndexFunc(members, func(m command.Member) bool { return m.ID == id }); i >= 0 {
			r.Name, r.Site = members[i].Name, members[i].Site
		}
		n.describe(&r, first, seen[id].LastIndex)
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b command.Replica) int { return strings.Compare(a.Name+"\x00"+a.ID, b.Name+"\x00"+b.ID) })
	return all, nil
}

// describe fills in how a learner does. first is the first entry of the log, and seen
// the last entry that the learner was seen to hold before it reported to this leader.
func (n *Node) describe(r *command.Replica, first, seen uint64) {
	now := n.cfg.Clock.Steady()
	link := n.parts.Transport.Link(r.ID)
	if !link.LastContact.IsZero() {
		r.LastSeenTimestamp = link.LastContact.UTC().Format(time.RFC3339Nano)
	}
	r.LastRequest = n.traffic.last(r.ID)
	if host, port, err := net.SplitHostPort(link.RemoteAddr); err == nil {
		r.RemoteAddress = host
		r.RemotePort, _ = strconv.Atoi(port)
	}
	r.TransferredEntries, r.TransferredBytes = link.EntriesSent, link.BytesSent
	r.SnapshotsSent, r.DeltasSent = n.traffic.copies(r.ID)

	level, _ := n.parts.State.Applied()
	rep, reported := n.reports.get(r.ID)
	silent := !reported || now-rep.at > command.SilentAfter
	r.Lag.Seconds, r.Lag.ETA = -1, -1
	place := seen
	if reported {
		r.Applied, place = rep.Revision, max(rep.Applied, seen)
		if !silent && !link.Paused {
			level = max(rep.leader, rep.Applied) // at the moment of the report
		}
		if rep.StalenessMS >= 0 {
			r.Lag.Seconds = (time.Duration(rep.StalenessMS)*time.Millisecond + now - rep.at).Seconds()
		}
	}
	r.AppliedIndex = place
	r.Lag.Entries = level - min(place, level)
	r.Lag.Bytes = r.Lag.Entries * n.parts.Logs.EntryBytes()
	switch {
	case r.Lag.Entries == 0:
		r.Lag.ETA = 0
	case !silent && !link.Paused && rep.perSecond > 0:
		r.Lag.ETA = float64(r.Lag.Entries) / rep.perSecond
	}
	switch {
	case link.Paused:
		r.Status = "paused"
	case silent:
		r.Status = "unreachable"
	case r.Lag.Entries > levelEntries:
		r.Status = "catching-up"
	default:
		r.Status = "level"
	}
	progress := 0.0
	if !silent && !link.Paused {
		progress = rep.perSecond
	}
	r.Log = n.retention.place(now, place, level, first, progress, n.logLimit())
}

// traffic is what members ask of this node and were sent by it, beside Raft.
type traffic struct {
	mu   sync.Mutex
	byID map[string]*memberTraffic // guarded by mu
}

type memberTraffic struct {
	request     string
	full, delta uint64
}

func (t *traffic) of(id string, note func(*memberTraffic)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := t.byID[id]
	if m == nil {
		m = new(memberTraffic)
		if t.byID == nil {
			t.byID = map[string]*memberTraffic{}
		}
		t.byID[id] = m
	}
	note(m)
}

func (t *traffic) last(id string) (request string) {
	t.of(id, func(m *memberTraffic) { request = m.request })
	return request
}

func (t *traffic) copies(id string) (full, delta uint64) {
	t.of(id, func(m *memberTraffic) { full, delta = m.full, m.delta })
	return full, delta
}

// requestNames are the requests of members that an operator has a word for.
var requestNames = map[uint8]string{
	methodPropose: "write", methodDecided: "write", methodReadIndex: "read", methodLeaseIndex: "read", methodProbe: "probe",
	methodJoin: "join", methodRenew: "renew", methodLineage: "compare",
}

func (t *traffic) asked(id string, method uint8) {
	if name, ok := requestNames[method]; ok {
		t.of(id, func(m *memberTraffic) { m.request = name })
	}
}

// copyTeller counts a copy for its receiver when the store says of which kind it is.
type copyTeller struct {
	io.Writer
	traffic *traffic
	to      string
}

// CopyKind is called by the store when a copy begins.
func (w copyTeller) CopyKind(kind string) {
	w.traffic.of(w.to, func(m *memberTraffic) {
		switch kind {
		case command.CopyFull:
			m.full++
		case command.CopyDelta:
			m.delta++
		}
	})
}
