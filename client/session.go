package client

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// Behavior says what becomes of the keys a session holds when it ends.
type Behavior = command.Behavior

// Session is what a lock belongs to.
type Session struct {
	ID   string `json:",omitempty"`
	Name string `json:",omitempty"`
	// Node defaults to the name of the server that is asked.
	Node string `json:",omitempty"`
	// LockDelay is for how long the keys it held cannot be locked after its end:
	// 15 s when nil, at most 60 s.
	LockDelay *Duration `json:",omitempty"`
	Behavior  Behavior  `json:",omitempty"` // "release" when empty
	// TTL, a Go duration, is for how long the session lives without a renewal: not
	// shorter, and up to twice as long. Empty is until it is destroyed.
	TTL         string `json:",omitempty"`
	CreateIndex uint64 `json:",omitempty"`
}

// wireSession is a session as the API shows it.
type wireSession struct {
	Session
	LockDelay int64 // nanoseconds
}

func (w *wireSession) session() Session {
	s := w.Session
	delay := Duration(w.LockDelay)
	s.LockDelay = &delay
	return s
}

// CreateSession makes a session and returns its ID. It is made once, however often
// the request has to be sent. On return it is on the disks of a majority of the
// voters.
func (c *Client) CreateSession(ctx context.Context, s Session, opts ...WriteOption) (id string, meta Meta, err error) {
	s.ID, s.CreateIndex = "", 0
	body, err := json.Marshal(s)
	if err != nil {
		return "", Meta{}, err
	}
	o := write(opts)
	if o.once == "" {
		o.once = newOnceKey()
	}
	r := o.request(http.MethodPut, body)
	r.path, r.kind = "/v1/session/create", "application/json"
	var made struct{ ID string }
	meta, err = c.ask(ctx, r, &made)
	return made.ID, meta, err
}

// DestroySession ends a session: its keys are released or deleted, and cannot be
// locked for its lock-delay. Ending an unknown one succeeds.
func (c *Client) DestroySession(ctx context.Context, id string) (Meta, error) {
	// A second try changes nothing, so it is sent like a read.
	a, err := c.do(ctx, request{method: http.MethodPut, path: "/v1/session/destroy/" + id})
	return a.meta, err
}

// RenewSession starts a session's TTL anew and returns it;
// command.ErrSessionNotFound when it has ended.
func (c *Client) RenewSession(ctx context.Context, id string) (Session, Meta, error) {
	return c.oneSession(ctx, request{method: http.MethodPut, path: "/v1/session/renew/" + id})
}

// Session returns a session, or command.ErrSessionNotFound.
func (c *Client) Session(ctx context.Context, id string, opts ...ReadOption) (Session, Meta, error) {
	return c.oneSession(ctx, read(opts).request("/v1/session/info/"+id))
}

func (c *Client) oneSession(ctx context.Context, r request) (Session, Meta, error) {
	list, meta, err := c.sessions(ctx, r)
	switch {
	case err != nil:
		return Session{}, meta, err
	case len(list) == 0:
		return Session{}, meta, command.ErrSessionNotFound
	default:
		return list[0], meta, nil
	}
}

// Sessions lists all sessions, in the order of their IDs.
func (c *Client) Sessions(ctx context.Context, opts ...ReadOption) ([]Session, Meta, error) {
	return c.sessions(ctx, read(opts).request("/v1/session/list"))
}

func (c *Client) sessions(ctx context.Context, r request) ([]Session, Meta, error) {
	var wire []wireSession
	meta, err := c.ask(ctx, r, &wire)
	if err != nil {
		return nil, meta, err
	}
	list := make([]Session, len(wire))
	for i := range wire {
		list[i] = wire[i].session()
	}
	return list, meta, nil
}

// keepSession renews a session until ctx ends. It returns nil then, and
// command.ErrSessionNotFound when the session has ended. A server that cannot say
// is asked again: the session is as alive as its keeper may believe for its TTL
// after the last renewal, and after that keepSession returns the last error.
func (c *Client) keepSession(ctx context.Context, id string, ttl time.Duration) error {
	renewed := time.Now()
	for next := ttl / 3; ; {
		if pause(ctx, next) != nil {
			return nil
		}
		sent := time.Now()
		bounded, cancel := context.WithDeadline(ctx, renewed.Add(ttl))
		_, _, err := c.RenewSession(bounded, id)
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			renewed, next = sent, ttl/3
		case time.Since(renewed) >= ttl || !mayPass(err):
			return err
		default:
			next = min(ttl/10, time.Second)
		}
	}
}
