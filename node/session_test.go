package node_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// session makes one through a member.
func (m *member) session(id string, ttl time.Duration) command.Session {
	m.t.Helper()
	s := command.Session{ID: id, TTL: ttl.String(), Behavior: command.BehaviorRelease}
	res, err := m.n.Load().Propose(m.t.Context(), &command.SessionCreate{Session: s})
	if err != nil || !res.OK {
		m.t.Fatalf("create %s: %+v, %v", id, res, err)
	}
	s.CreateRevision = res.Revision
	return s
}

// sessionEnds waits until the member has applied the end of a session.
func (m *member) sessionEnds(s command.Session) {
	m.t.Helper()
	if err := m.state.WaitRevision(m.t.Context(), s.CreateRevision); err != nil {
		m.t.Fatal(err)
	}
	eventually(m.t, "the session ends", func() bool {
		view, err := m.n.Load().View()
		if err != nil {
			m.t.Fatal(err)
		}
		defer view.Close()
		_, err = view.Session(s.ID)
		return errors.Is(err, command.ErrSessionNotFound)
	})
}

func TestASessionIsRenewedThroughAnyNodeAndEndsWithoutRenewal(t *testing.T) {
	const ttl = 2 * time.Second
	c := newCluster(t, nil)
	learner := c.add("e1", "east", command.RoleLearner)
	want := learner.session("s", ttl)
	forever := learner.session("for ever", 0)
	var last time.Time
	for name, m := range c.members {
		last = time.Now()
		got, err := m.n.Load().RenewSession(t.Context(), "s")
		if err != nil || got.ID != want.ID || got.TTL != want.TTL || got.CreateRevision != want.CreateRevision {
			t.Errorf("renewed through %s: %+v, %v; want %+v", name, got, err, want)
		}
	}
	learner.sessionEnds(want)
	if d := time.Since(last); d < 2*ttl {
		t.Errorf("it ended within %v of its last renewal", d)
	}
	for name, m := range c.members {
		if _, err := m.n.Load().RenewSession(t.Context(), "s"); !errors.Is(err, command.ErrSessionNotFound) {
			t.Errorf("renewed through %s after its end: %v", name, err)
		}
		if got, err := m.n.Load().RenewSession(t.Context(), "for ever"); err != nil || got.CreateRevision != forever.CreateRevision {
			t.Errorf("one without TTL, through %s: %+v, %v", name, got, err)
		}
	}
}

func TestASessionHasItsFullTimeUnderANewLeader(t *testing.T) {
	const ttl = 500 * time.Millisecond
	c := newCluster(t, nil)
	leader := c.leader()
	s := leader.session("s", ttl)
	stepped := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := leader.n.Load().StepDown(ctx); err != nil {
		t.Fatal(err)
	}
	c.leader().sessionEnds(s)
	if d := time.Since(stepped); d < 2*ttl {
		t.Errorf("it ended within %v of the change", d)
	}
}
