package http

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	nethttp "net/http"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

const (
	defaultLockDelay = 15 * time.Second
	longestLockDelay = time.Minute
	longestTTL       = 24 * time.Hour
	// nodeCheck is the check that clients expect a session to have unless they ask
	// for none. There is nothing behind it.
	nodeCheck = "serfHealth"
	// maxSessionBody is the largest body of a session's creation in bytes. Sessions
	// are few and all of it is kept.
	maxSessionBody = 64 << 10
	// maxSessionID is the longest id that is looked for.
	maxSessionID = command.MaxOnceKey
)

// sessionRequest is the body of a session's creation. Field names are matched
// whatever their case, unknown ones are left alone.
type sessionRequest struct {
	Name, Node           string
	LockDelay            *lockDelay
	Behavior             command.Behavior
	TTL                  string
	NodeChecks, Checks   []string // Checks is what older clients call NodeChecks
	ServiceChecks        []json.RawMessage
	Namespace, Partition string
}

// lockDelay is a duration as clients write it: text in Go's syntax, or a number of
// nanoseconds. Anything below 1000 is meant in seconds.
type lockDelay time.Duration

func (d *lockDelay) UnmarshalJSON(b []byte) error {
	var v float64 // exact far beyond what is allowed
	if b[0] == '"' {
		var s string
		if err := json.Unmarshal(b, &s); err != nil {
			return err
		}
		t, err := time.ParseDuration(s)
		if err != nil {
			return errors.New("LockDelay: " + string(b) + " is not a duration like 15s")
		}
		v = float64(t)
	} else if err := json.Unmarshal(b, &v); err != nil {
		return errors.New("LockDelay: " + string(b) + " is neither a duration nor a number")
	}
	if v < 0 {
		return errors.New("LockDelay: " + string(b) + " is negative")
	}
	if v < 1000 {
		v *= float64(time.Second)
	}
	*d = lockDelay(min(v, float64(longestLockDelay)))
	return nil
}

// createSession is PUT /v1/session/create.
func (s *Server) createSession(x *exchange) {
	session, err := x.readSession()
	create := &command.SessionCreate{Session: session}
	var c command.Command
	if err == nil {
		c, err = x.idempotent(create)
	}
	if err != nil {
		x.fail(err)
		return
	}
	st := s.node.Status()
	create.Session.ID = sessionID(c, st.Cluster.ID)
	fill(&create.Session.Node, st.Name)
	if _, err := x.propose(c); err != nil {
		x.fail(err)
		return
	}
	x.replyValue(struct{ ID string }{create.Session.ID})
}

// sessionID makes the id of a session to be created: at random, or, when it is to be
// created once for an idempotency key, from the key and the request, so that every
// node gives the same id to a repeat. A repeat after the retention finds the session
// if it still lives, and else makes one of the same id: to the client it is the
// session that it asked for with that key.
func sessionID(create command.Command, cluster string) string {
	var id [16]byte
	version := byte(4)
	if once, ok := create.(*command.Once); ok {
		sum := sha256.Sum256(fmt.Appendf(nil, "session %s %q %x", cluster, once.Key, once.Request))
		copy(id[:], sum[:])
		version = 8 // of the maker's own
	} else {
		_, _ = rand.Read(id[:]) // never fails
	}
	id[6] = id[6]&0x0f | version<<4
	id[8] = id[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}

// readSession reads the body of a session's creation, which may be missing.
func (x *exchange) readSession() (command.Session, error) {
	body, err := x.body(maxSessionBody, func(sizes string) error {
		return tooLarge("Session is too large ("+sizes+")", "shorten its name or its checks")
	})
	if err != nil {
		return command.Session{}, err
	}
	var r sessionRequest
	if len(body) > 0 {
		if err := decode(body, &r); err != nil {
			return command.Session{}, badRequest("Request decode failed: " + err.Error())
		}
	}
	return r.session(x.s.cfg.SessionTTLMin)
}

// session is what the request asks for, but for the id, and for the node when it
// names none.
func (r *sessionRequest) session(ttlMin time.Duration) (command.Session, error) {
	v := command.Session{Name: r.Name, Node: r.Node, LockDelay: defaultLockDelay, Behavior: r.Behavior, TTL: r.TTL}
	if r.LockDelay != nil {
		v.LockDelay = time.Duration(*r.LockDelay)
	}
	switch {
	case !defaultScope(r.Namespace):
		return v, foreignScope("Namespace", r.Namespace)
	case !defaultScope(r.Partition):
		return v, foreignScope("Partition", r.Partition)
	}
	fill(&v.Behavior, command.BehaviorRelease)
	if v.Behavior != command.BehaviorRelease && v.Behavior != command.BehaviorDelete {
		return v, badSession("Invalid Behavior setting '"+string(v.Behavior)+"'", "give release or delete")
	}
	if v.TTL != "" {
		ttl, err := time.ParseDuration(v.TTL)
		if err != nil {
			return v, badSession("Invalid Session TTL '"+v.TTL+"': "+err.Error(), "give a duration like 30s")
		}
		if ttl != 0 && (ttl < ttlMin || ttl > longestTTL) {
			return v, badSession(fmt.Sprintf("Invalid Session TTL '%s', must be between %v and %v", v.TTL, ttlMin, longestTTL),
				"the lower bound is --session-ttl-min")
		}
	}
	switch {
	case r.NodeChecks != nil:
		v.NodeChecks = r.NodeChecks
	case r.Checks != nil:
		v.NodeChecks = r.Checks
	default:
		v.NodeChecks = []string{nodeCheck}
	}
	if len(r.ServiceChecks) > 0 {
		checks, err := json.Marshal(r.ServiceChecks)
		if err != nil {
			return v, err
		}
		v.ServiceChecks = checks
	}
	return v, nil
}

// badSession refuses what a session may not be. Clients know the texts and the
// status.
func badSession(text, hint string) *problem {
	return &problem{status: nethttp.StatusInternalServerError, code: codeBadRequest, text: text, hint: hint}
}

// sessionOf takes the id of a session off the path.
func (x *exchange) sessionOf() (string, error) {
	id := x.named()
	switch {
	case id == "":
		return "", badRequest("Missing session").advise("put the id of a session behind the path; GET /v1/session/list lists them")
	case len(id) > maxSessionID:
		return "", badRequest("Session id is too long (" + sizesOf(int64(len(id)), maxSessionID) + ")")
	}
	return id, nil
}

// destroySession is PUT /v1/session/destroy/ID.
func (s *Server) destroySession(x *exchange) {
	id, err := x.sessionOf()
	if err != nil {
		x.fail(err)
		return
	}
	if _, err := x.propose(&command.SessionDestroy{ID: id}); err != nil {
		x.fail(err)
		return
	}
	x.replyValue(true)
}

// renewSession is PUT /v1/session/renew/ID.
func (s *Server) renewSession(x *exchange) {
	id, err := x.sessionOf()
	if err != nil {
		x.fail(err)
		return
	}
	session, err := s.node.RenewSession(x.r.Context(), id)
	if errors.Is(err, command.ErrSessionNotFound) {
		err = reworded(command.ErrSessionNotFound, "Session id '"+id+"' not found")
	}
	if err != nil {
		x.fail(err)
		return
	}
	x.out = append(x.out[:0], '[')
	x.out = appendSession(x.out, &session)
	x.out = append(x.out, ']')
	x.replyJSON(nethttp.StatusOK)
}

// getSession is GET /v1/session/info/ID.
func (s *Server) getSession(x *exchange) {
	id, err := x.sessionOf()
	if err != nil {
		x.fail(err)
		return
	}
	s.readSessions(x, func(v command.View, give func(command.Session) bool) error {
		session, err := v.Session(id)
		if errors.Is(err, command.ErrSessionNotFound) {
			return nil
		}
		if err == nil {
			give(session)
		}
		return err
	})
}

// getSessions is GET /v1/session/list.
func (s *Server) getSessions(x *exchange) {
	s.readSessions(x, func(v command.View, give func(command.Session) bool) error { return v.Sessions(give) })
}

// getNodeSessions is GET /v1/session/node/NAME.
func (s *Server) getNodeSessions(x *exchange) {
	name := x.named()
	if name == "" {
		x.fail(badRequest("Missing node name"))
		return
	}
	s.readSessions(x, func(v command.View, give func(command.Session) bool) error {
		return v.Sessions(func(session command.Session) bool { return session.Node != name || give(session) })
	})
}

// readSessions answers with the sessions that find gives, an empty list when there
// are none. All of these reads share one index: that of the last session created or
// ended.
func (s *Server) readSessions(x *exchange, find func(v command.View, give func(command.Session) bool) error) {
	opts, err := x.readOptions()
	if err != nil {
		x.fail(err)
		return
	}
	var index uint64
	evaluate := func(v command.View) error {
		x.resetReply()
		if index = v.SessionsRevision(); x.knows(index) {
			return nil
		}
		x.out = append(x.out, '[')
		n, began := 0, time.Now()
		var stop error
		err := find(v, func(session command.Session) bool {
			if n > 0 {
				x.out = append(x.out, ',')
			}
			x.out = appendSession(x.out, &session)
			n++
			stop = x.mayGoOn(n, began)
			return stop == nil
		})
		x.out = append(x.out, ']')
		return errors.Join(stop, err)
	}
	info, err := x.block(command.Target{Kind: command.TargetSessions}, opts, evaluate, &index)
	if err != nil {
		x.failRead(&info, err)
		return
	}
	x.readHeaders(&info, max(index, 1))
	x.replyJSON(nethttp.StatusOK)
}

// appendSession writes a session as clients decode it.
func appendSession(b []byte, s *command.Session) []byte {
	b = append(b, `{"ID":`...)
	b = appendString(b, s.ID)
	b = append(b, `,"Name":`...)
	b = appendString(b, s.Name)
	b = append(b, `,"Node":`...)
	b = appendString(b, s.Node)
	b = append(b, `,"LockDelay":`...)
	b = appendUint(b, uint64(s.LockDelay))
	b = append(b, `,"Behavior":`...)
	b = appendString(b, string(s.Behavior))
	b = append(b, `,"TTL":`...)
	b = appendString(b, s.TTL)
	b = append(b, `,"NodeChecks":[`...)
	for i, check := range s.NodeChecks {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, check)
	}
	b = append(b, `],"ServiceChecks":`...)
	if len(s.ServiceChecks) > 0 {
		b = append(b, s.ServiceChecks...)
	} else {
		b = append(b, "null"...)
	}
	b = append(b, `,"CreateIndex":`...)
	b = appendUint(b, s.CreateRevision)
	b = append(b, `,"ModifyIndex":`...) // a session never changes
	b = appendUint(b, s.CreateRevision)
	return append(b, '}')
}
