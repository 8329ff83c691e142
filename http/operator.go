package http

import (
	nethttp "net/http"

	"github.com/holdfast-db/holdfast/command"
)

// protocolVersion is what servers say of Raft's protocol.
const protocolVersion = "3"

// health is how the leader sees the members, or, with ?stale and no leader to be
// asked, what this node has of them.
func (x *exchange) health() (command.Health, error) {
	if x.q.has(paramStale) {
		return x.s.node.LocalHealth()
	}
	return x.s.node.Health(x.r.Context())
}

// raftServer is one server of GET /v1/operator/raft/configuration.
type raftServer struct {
	ID, Node, Address string
	Leader            bool
	ProtocolVersion   string
	Voter             bool
	LastIndex         uint64
}

func (s *Server) getRaftConfiguration(x *exchange) {
	h, err := x.health()
	if err != nil {
		x.fail(err)
		return
	}
	v := struct {
		Servers []raftServer
		Index   uint64
	}{Servers: []raftServer{}, Index: h.Configuration}
	for _, m := range h.Members {
		v.Servers = append(v.Servers, raftServer{
			ID: m.ID, Node: m.Name, Address: m.Address, Leader: m.Leader,
			ProtocolVersion: protocolVersion, Voter: m.Voter, LastIndex: m.LastIndex,
		})
	}
	x.replyValue(&v)
}

func (s *Server) deleteRaftPeer(x *exchange) {
	id, address := x.q.get(paramID), x.q.get(paramAddress)
	switch {
	case id == "" && address == "":
		x.fail(badRequest("Must specify either ?id with the server's ID or ?address with IP:port of peer to remove"))
		return
	case id != "" && address != "":
		x.fail(badRequest("Must specify only one of ?id or ?address"))
		return
	}
	if err := s.node.RemovePeer(x.r.Context(), id, address); err != nil {
		x.fail(err)
		return
	}
	x.replyEmpty(nethttp.StatusOK)
}

func (s *Server) transferLeader(x *exchange) {
	if err := s.node.TransferLeader(x.r.Context(), x.q.get(paramID)); err != nil {
		x.fail(err)
		return
	}
	x.replyValue(struct{ Success bool }{true})
}

func (s *Server) promoteSite(x *exchange) {
	site := x.q.get(paramSite)
	if site == "" {
		x.fail(badRequest("Must specify ?site with the site that is to become home"))
		return
	}
	plan, err := s.node.PromoteSite(x.r.Context(), site, x.q.get(paramConfirm), x.q.has(paramForce))
	if err != nil {
		x.fail(err)
		return
	}
	plan.Unreachable, plan.HomeReached = orNone(plan.Unreachable), orNone(plan.HomeReached)
	for i := range plan.Members {
		plan.Members[i].Reaches = orNone(plan.Members[i].Reaches)
	}
	x.replyValue(&plan)
}
