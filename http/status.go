package http

import (
	"context"
	"net"
	nethttp "net/http"
	"strconv"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// dialect is the version of Consul whose behaviour clients may count on; they
// parse it.
const dialect = "1.22.0"

func (s *Server) getLeader(x *exchange) { x.replyValue(s.node.Status().LeaderRaftAddr) }

func (s *Server) getPeers(x *exchange) {
	x.replyValue(orNone(s.node.Status().VoterRaftAddrs))
}

// agentSelf is what clients look into to know where they are: `consul lock`
// needs Config.NodeName, Vault Member.Addr, Patroni Config.SessionTTLMin.
type agentSelf struct {
	Config struct {
		Datacenter        string
		PrimaryDatacenter string
		NodeName          string
		NodeID            string
		Revision          string
		Server            bool
		Version           string
		BuildDate         string
		SessionTTLMin     time.Duration
	}
	DebugConfig struct{}
	Coord       *struct{}
	Member      agentMember
	Stats       map[string]map[string]string
	Meta        map[string]string
}

// agentMember is a server as agents see it.
type agentMember struct {
	Name   string
	Addr   string
	Port   int
	Tags   map[string]string
	Status int
}

// The status of a member that is up, and of one that is not heard.
const (
	memberAlive  = 1
	memberFailed = 4
)

func (s *Server) getSelf(x *exchange) {
	st := s.node.Status()
	var v agentSelf
	v.Config.Datacenter = s.cfg.Datacenter
	v.Config.PrimaryDatacenter = s.cfg.Datacenter
	v.Config.NodeName = st.Name
	v.Config.NodeID = st.ID
	v.Config.Server = true
	v.Config.Version = dialect
	v.Config.SessionTTLMin = s.cfg.SessionTTLMin
	v.Member = s.member(st.Name, st.ID, st.Site, st.RaftAddr, st.State == "Learner")
	n := func(n uint64) string { return strconv.FormatUint(n, 10) }
	v.Stats = map[string]map[string]string{
		"raft": {
			"state":          st.State,
			"term":           n(st.Term),
			"last_log_index": n(st.LastIndex),
			"commit_index":   n(st.CommitIndex),
			"applied_index":  n(st.AppliedIndex),
			"num_peers":      strconv.Itoa(max(len(st.VoterRaftAddrs)-1, 0)),
			"last_contact":   st.LastContact.String(),
		},
		"holdfast": {
			"revision": n(st.Revision),
			"lineage":  hexOf(st.Lineage),
			"leader":   st.Leader,
			"ready":    strconv.FormatBool(st.Ready),
		},
	}
	v.Meta = map[string]string{
		"holdfast-version": s.cfg.Version,
		"holdfast-site":    st.Site,
		"holdfast-cluster": st.Cluster.ID,
		"holdfast-http":    st.HTTPAddr,
	}
	x.replyValue(&v)
}

// getMembers is GET /v1/agent/members.
func (s *Server) getMembers(x *exchange) {
	sites, _, err := s.node.Sites(x.r.Context())
	if err != nil {
		x.fail(err)
		return
	}
	members := []agentMember{}
	for _, site := range sites {
		for _, sv := range site.Servers {
			m := s.member(sv.Name, sv.ID, site.Name, sv.Address, !sv.Voter && sv.Role != command.RoleVoter)
			if sv.State == "unreachable" {
				m.Status = memberFailed
			}
			members = append(members, m)
		}
	}
	x.replyValue(members)
}

// member describes a server that is up. By its tags tools tell servers from clients,
// and show their version.
func (s *Server) member(name, id, site, address string, learner bool) agentMember {
	tags := map[string]string{"role": "consul", "build": dialect, "vsn": "2", "dc": s.cfg.Datacenter, "id": id, "site": site}
	if learner {
		tags["read_replica"] = "1"
	}
	m := agentMember{Name: name, Tags: tags, Status: memberAlive}
	m.Addr, m.Port = splitAddress(address)
	return m
}

// getDatacenters is GET /v1/catalog/datacenters: there is one.
func (s *Server) getDatacenters(x *exchange) { x.replyValue([]string{s.cfg.Datacenter}) }

// splitAddress parts host and port; a port that is no number is 0.
func splitAddress(address string) (host string, port int) {
	host, name, err := net.SplitHostPort(address)
	if err != nil {
		return address, 0
	}
	if port, err = strconv.Atoi(name); err != nil {
		port = 0
	}
	return host, port
}

func hexOf(l command.Lineage) string {
	b := make([]byte, 0, 2*len(l))
	for _, c := range l {
		b = append(b, hex[c>>4], hex[c&15])
	}
	return string(b)
}

func (s *Server) getSites(x *exchange) {
	var sites []command.Site
	var revision uint64
	look := func() (_ uint64, err error) {
		sites, revision, err = s.node.Sites(x.r.Context())
		return revision, err
	}
	var err error
	if x.known, err = x.q.index(); err == nil {
		err = x.untilNews(command.Target{Kind: command.TargetMembers}, false, look)
	}
	if err != nil {
		x.fail(err)
		return
	}
	for i := range sites {
		sites[i].Servers = orNone(sites[i].Servers)
	}
	st := s.node.Status()
	x.statusHeaders(&st)
	x.indexHeader(revision)
	x.replyValue(orNone(sites))
}

func (s *Server) getReplicaStatus(x *exchange) {
	st := s.node.Status()
	x.statusHeaders(&st)
	rs := s.node.ReplicaStatus()
	rs.Damaged = orNone(rs.Damaged)
	x.replyValue(rs)
}

func (s *Server) pauseReplica(x *exchange)  { s.orderReplica(x, s.node.Pause) }
func (s *Server) resumeReplica(x *exchange) { s.orderReplica(x, s.node.Resume) }

// orderReplica carries an order out and answers with how the copy is then.
func (s *Server) orderReplica(x *exchange, order func(context.Context) error) {
	if err := order(x.r.Context()); err != nil {
		x.fail(err)
		return
	}
	s.getReplicaStatus(x)
}

// getReplicas is GET /v1/replicas.
func (s *Server) getReplicas(x *exchange) {
	all, err := s.node.Replicas(x.r.Context())
	if err != nil {
		x.fail(err)
		return
	}
	x.replyValue(orNone(all))
}

func (s *Server) getOpenAPI(x *exchange) {
	if len(s.cfg.OpenAPI) == 0 {
		s.noRoute(x)
		return
	}
	x.out = append(x.out, s.cfg.OpenAPI...)
	x.reply(nethttp.StatusOK, kindJSON)
}

// getHealth says that the process is up.
func (s *Server) getHealth(x *exchange) {
	x.out = append(x.out, "ok\n"...)
	x.reply(nethttp.StatusOK, kindText)
}

// getReady says whether the node may serve, and if not, why.
func (s *Server) getReady(x *exchange) {
	if s.stopping.Err() != nil {
		x.fail(&problem{
			status: nethttp.StatusServiceUnavailable, code: command.ErrStopping.Code,
			text: command.ErrStopping.Message, hint: command.ErrStopping.Hint,
		})
		return
	}
	if st := s.node.Status(); !st.Ready {
		why := st.NotReadyBecause
		fill(&why, command.ErrNotReady.Message)
		x.fail(&problem{
			status: nethttp.StatusServiceUnavailable, code: command.ErrNotReady.Code,
			text: why, hint: command.ErrNotReady.Hint,
		})
		return
	}
	x.out = append(x.out, "ready\n"...)
	x.reply(nethttp.StatusOK, kindText)
}
