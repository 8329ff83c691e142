package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

// The calls nodes make to each other. Numbers are part of the protocol.
const (
	methodPropose    uint8 = 1 // term, encoded command -> encoded result; leader only
	methodTerm       uint8 = 2 // nothing -> term, epoch, cluster, id
	methodReadIndex  uint8 = 3 // nothing -> point; leader only
	methodLeaseIndex uint8 = 4 // the same, with lease
	methodProbe      uint8 = 5 // Report -> point with lease; leader only
	methodHello      uint8 = 6 // candidate -> candidate
	methodPromise    uint8 = 7 // promise -> nothing
	methodJoin       uint8 = 8 // join -> joined; sent on to the leader
	methodPing       uint8 = 9 // nothing -> pong
	methodSites      uint8 = 10
	methodFetch      uint8 = 11 // take a copy from the caller; answers when it is complete
	methodLineage    uint8 = 12 // revision -> lineage there
	methodDecided    uint8 = 13 // term, write's ID -> applied index; leader only
	methodRenew      uint8 = 14 // session's ID -> encoded session; leader only
	methodReplicas   uint8 = 30 // nothing -> learners as the leader sees them; leader only
	methodHealth     uint8 = 20 // nothing -> command.Health; leader only
	methodTransfer   uint8 = 21 // id or name of a voter -> nothing; leader only
	methodRemove     uint8 = 22 // removal -> nothing; leader only
	methodFind       uint8 = 40 // finding -> finding; between voters
	methodYield      uint8 = 41 // finding -> 1 if the term is left to the caller, else 0; between voters
	methodStanding   uint8 = 50 // nothing -> command.Standing
	methodPromote    uint8 = 51 // command.Promotion -> nothing; the caller's order to be the seed
	methodTail       uint8 = 52 // tail -> tailPage
	methodOrigins    uint8 = 53 // nothing -> origins
)

// Call serves a request of another node; it implements the transport's handler.
func (n *Node) Call(ctx context.Context, from command.Hello, method uint8, req []byte) ([]byte, error) {
	select {
	case <-n.started:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	n.traffic.asked(from.ID, method)
	return n.onceLeading(ctx, func() ([]byte, error) { return n.answer(ctx, from, method, req) })
}

// onceLeading runs do again as long as it answers that this node does not lead only
// because it has just won: a request that comes that soon would be sent back to
// look for the leader that it has found.
func (n *Node) onceLeading(ctx context.Context, do func() ([]byte, error)) ([]byte, error) {
	for {
		changed := n.changed.wait()
		answer, err := do()
		if !errors.Is(err, command.ErrNotLeader) || !n.winning() {
			return answer, err
		}
		select {
		case <-changed:
		case <-time.After(retryInterval):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// winning reports whether this node was elected and has not applied its term's
// first command yet.
func (n *Node) winning() bool {
	return n.raft.State() == raft.Leader && n.parts.FSM.Term() != n.raft.CurrentTerm()
}

func (n *Node) answer(ctx context.Context, from command.Hello, method uint8, req []byte) ([]byte, error) {
	switch method {
	case methodPropose:
		return n.answerPropose(ctx, req)
	case methodTerm:
		return n.answerTerm(), nil
	case methodReadIndex, methodLeaseIndex:
		return n.answerIndex(ctx, method == methodLeaseIndex)
	case methodProbe:
		return serve(req, func(r Report) ([]byte, error) {
			applied, _ := n.parts.State.Applied()
			verdict := n.judge(from.ID, r, applied)
			point, err := n.answerIndex(ctx, true)
			return append(point, byte(verdict)), err
		})
	case methodHello:
		return serve(req, func(c candidate) ([]byte, error) { return encode(n.greet(c)) })
	case methodPromise:
		return serve(req, func(p promise) ([]byte, error) { return nil, n.accept(p) })
	case methodJoin:
		return serve(req, func(j join) ([]byte, error) {
			answer, err := n.handleJoin(ctx, j)
			if err != nil {
				return nil, err
			}
			return encode(answer)
		})
	case methodPing:
		term, leader := n.raftTerm()
		return encode(pong{ID: n.id, Incarnation: n.cfg.Incarnation, Leader: leader, Term: term})
	case methodSites:
		sites, revision, err := n.leaderSites()
		if err != nil {
			return nil, err
		}
		return encode(sitesAnswer{Sites: sites, Revision: revision})
	case methodFetch:
		return nil, n.fetchCopy(ctx, from.ID)
	case methodLineage:
		return n.answerLineage(req)
	case methodDecided:
		return n.answerDecided(ctx, req)
	case methodRenew:
		return n.answerRenew(ctx, req)
	case methodReplicas:
		return n.answerReplicas(ctx, req)
	case methodHealth:
		return n.answerHealth(ctx, req)
	case methodTransfer:
		return n.answerTransfer(ctx, req)
	case methodRemove:
		return n.answerRemove(ctx, req)
	case methodFind:
		return serve(req, func(f finding) ([]byte, error) {
			mine, err := n.answerFind(from.ID, f)
			if err != nil {
				return nil, err
			}
			return encode(mine)
		})
	case methodYield:
		return serve(req, func(f finding) ([]byte, error) { return n.answerYield(from.ID, f) })
	case methodStanding:
		return encode(n.standing(ctx))
	case methodPromote:
		return serve(req, func(p command.Promotion) ([]byte, error) { return nil, n.acceptPromotion(p) })
	case methodOrigins:
		return encode(n.origins())
	case methodTail:
		return serve(req, func(t tail) ([]byte, error) {
			page, err := n.answerTail(t)
			if err != nil {
				return nil, err
			}
			return encode(page)
		})
	default:
		return nil, fmt.Errorf("method %d is not known to this build", method)
	}
}

// MayLead reports whether this node is a voter in its latest configuration, fit to
// lead, with contents that are not known to be wrong, and not about to stop. The
// transport drops every TimeoutNow while it is not: Raft itself would make even a
// learner a candidate.
func (n *Node) MayLead() bool {
	if n.raft == nil || n.leaving.Load() || !n.mayBeRight() || n.Unfit() != nil {
		return false
	}
	return n.hasVote()
}

// server finds a member in the latest Raft configuration.
func (n *Node) server(id string) (raft.Server, bool) {
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		if string(s.ID) == id {
			return s, true
		}
	}
	return raft.Server{}, false
}

// isVoter reports whether a member is a voter in the latest Raft configuration.
func (n *Node) isVoter(id string) bool {
	s, ok := n.server(id)
	return ok && s.Suffrage == raft.Voter
}

func encode(v any) ([]byte, error) { return json.Marshal(v) }

// serve decodes a JSON request for a handler.
func serve[T any](req []byte, fn func(T) ([]byte, error)) ([]byte, error) {
	var v T
	if err := json.Unmarshal(req, &v); err != nil {
		return nil, fmt.Errorf("decode request: %w", err)
	}
	return fn(v)
}
