package http

import (
	nethttp "net/http"
	"slices"
	"strings"

	"github.com/gin-gonic/gin"
)

// route is one method of one path.
type route struct {
	method, path string
	// params are the query parameters the handler may see.
	params params
	handle func(*Server, *exchange)
	// hot: its requests may be answered without net/http.
	hot bool
}

// base is the path before what the request names, with open; the whole path of a
// route whose requests name nothing.
func (rt *route) base() (path string, open bool) {
	path, _, open = strings.Cut(rt.path, "/*")
	return path, open
}

// scoped reports whether the request is about a datacenter's data, so that one
// that names another datacenter or namespace must be refused.
func (rt *route) scoped() bool { return rt.params&paramsEverywhere != 0 }

// routes are all there is. A key is whatever follows its path, slashes included;
// newEngine adds the path alone, which names the empty one.
func routes() []route {
	const (
		get, put, post, del = nethttp.MethodGet, nethttp.MethodPut, nethttp.MethodPost, nethttp.MethodDelete
	)
	everywhere, reads := paramsEverywhere, paramsEverywhere|paramsOfReads
	blocking := everywhere | set(paramIndex, paramWait)
	getKey := reads | set(paramRecurse, paramKeys, paramSeparator, paramRaw, paramRev, paramLimit, paramAfter)
	writes := everywhere | set(paramAwait, paramWait)
	putKey := writes | set(paramCAS, paramFlags, paramAcquire, paramRelease, paramStrict)
	deleteKey := writes | set(paramCAS, paramRecurse, paramStrict)
	txn := reads&^set(paramIndex) | set(paramAwait) // it does not block
	exports := reads | set(paramRev)
	changes := reads | set(paramFrom, paramTo, paramLimit)
	feed := changes | set(paramStream, paramInit)
	return []route{
		{method: get, path: hotPath + "*key", params: getKey, handle: (*Server).getKey, hot: true},
		{method: put, path: hotPath + "*key", params: putKey, handle: (*Server).putKey, hot: true},
		{method: del, path: hotPath + "*key", params: deleteKey, handle: (*Server).deleteKey, hot: true},

		{method: put, path: "/v1/txn", params: txn, handle: (*Server).putTxn},

		{method: put, path: "/v1/session/create", params: writes, handle: (*Server).createSession},
		{method: put, path: "/v1/session/destroy/*id", params: writes, handle: (*Server).destroySession},
		{method: put, path: "/v1/session/renew/*id", params: everywhere, handle: (*Server).renewSession},
		{method: get, path: "/v1/session/info/*id", params: reads, handle: (*Server).getSession},
		{method: get, path: "/v1/session/list", params: reads, handle: (*Server).getSessions},
		{method: get, path: "/v1/session/node/*name", params: reads, handle: (*Server).getNodeSessions},

		{method: get, path: "/v1/bulk/*prefix", params: exports, handle: (*Server).getBulk},
		{method: put, path: "/v1/bulk/*prefix", params: everywhere, handle: (*Server).putBulk},

		{method: get, path: "/v1/history/*key", params: changes, handle: (*Server).getHistory},
		{method: get, path: "/v1/changes/*prefix", params: feed, handle: (*Server).getChanges},

		{method: get, path: "/v1/status/leader", params: everywhere, handle: (*Server).getLeader},
		{method: get, path: "/v1/status/peers", params: everywhere, handle: (*Server).getPeers},
		{method: get, path: "/v1/agent/self", params: everywhere, handle: (*Server).getSelf},
		{method: get, path: "/v1/agent/members", params: everywhere, handle: (*Server).getMembers},
		{method: get, path: "/v1/catalog/datacenters", params: everywhere, handle: (*Server).getDatacenters},
		{method: get, path: "/v1/operator/raft/configuration", params: reads, handle: (*Server).getRaftConfiguration},
		{method: del, path: "/v1/operator/raft/peer", params: everywhere | set(paramID, paramAddress), handle: (*Server).deleteRaftPeer},
		{method: post, path: "/v1/operator/raft/transfer-leader", params: everywhere | set(paramID), handle: (*Server).transferLeader},
		{method: post, path: "/v1/operator/promote-site", params: everywhere | set(paramSite, paramConfirm, paramForce), handle: (*Server).promoteSite},
		{method: get, path: "/v1/operator/autopilot/configuration", params: reads, handle: (*Server).getAutopilot},
		{method: put, path: "/v1/operator/autopilot/configuration", params: everywhere | set(paramCAS), handle: (*Server).putAutopilot},
		{method: get, path: "/v1/operator/autopilot/health", params: everywhere, handle: (*Server).getAutopilotHealth},
		{method: get, path: "/v1/operator/autopilot/state", params: everywhere, handle: (*Server).getAutopilotState},
		{method: get, path: "/v1/snapshot", params: everywhere | set(paramStale), handle: (*Server).getSnapshot},
		{method: put, path: "/v1/snapshot", params: everywhere, handle: (*Server).putSnapshot},
		{method: get, path: "/v1/sites", params: blocking, handle: (*Server).getSites},
		{method: get, path: "/v1/sites/:name/applied", params: blocking, handle: (*Server).getApplied},
		{method: get, path: "/v1/replica/status", params: everywhere, handle: (*Server).getReplicaStatus},
		{method: put, path: "/v1/replica/pause", params: everywhere, handle: (*Server).pauseReplica},
		{method: put, path: "/v1/replica/resume", params: everywhere, handle: (*Server).resumeReplica},
		{method: get, path: "/v1/replicas", params: everywhere, handle: (*Server).getReplicas},
		{method: get, path: "/v1/openapi.json", handle: (*Server).getOpenAPI},

		{method: get, path: "/healthz", handle: (*Server).getHealth},
		{method: get, path: "/readyz", handle: (*Server).getReady},
		{method: get, path: "/metrics", handle: (*Server).getMetrics},

		{method: get, path: "/", handle: (*Server).getRoot},
		{method: get, path: "/ui/*file", handle: (*Server).getUI},
	}
}

// newEngine puts the routes into gin. Redirects are off: a client that follows
// one turns its PUT into a GET.
func (s *Server) newEngine() *gin.Engine {
	gin.SetMode(gin.ReleaseMode)
	e := gin.New()
	e.RedirectTrailingSlash = false
	e.RedirectFixedPath = false
	e.HandleMethodNotAllowed = true
	for _, rt := range routes() {
		answer := s.answerer(rt)
		e.Handle(rt.method, rt.path, handler(answer))
		if rt.hot {
			s.hot.answer[rt.method] = answer
		}
		if base, open := rt.base(); open {
			rt.path = base
			e.Handle(rt.method, base, handler(s.answerer(rt)))
		}
	}
	e.NoRoute(handler(s.answerer(route{path: "none", handle: (*Server).noRoute})))
	e.NoMethod(handler(s.answerer(route{path: "none", handle: (*Server).noMethod})))
	return e
}

func (s *Server) noRoute(x *exchange) {
	text := "Invalid path: " + x.r.URL.Path
	if !strings.HasPrefix(x.r.URL.Path, "/v1/") {
		text += " (paths of the API begin with /v1/)"
	}
	x.fail(&problem{
		status: nethttp.StatusNotFound, code: codeUnknownPath,
		text: text, hint: "GET /v1/openapi.json lists all paths",
	})
}

// noMethod answers OPTIONS, and refuses other methods a path does not have.
// gin has listed those it has.
func (s *Server) noMethod(x *exchange) {
	h := x.w.Header()
	methods := strings.Split(strings.ReplaceAll(h.Get("Allow"), " ", ""), ",")
	slices.Sort(methods)
	h["Allow"] = []string{"OPTIONS," + strings.Join(methods, ",")}
	if x.r.Method == nethttp.MethodOptions {
		x.replyEmpty(nethttp.StatusOK)
		return
	}
	x.fail(&problem{
		status: nethttp.StatusMethodNotAllowed, code: codeMethodNotAllowed,
		text: "method " + x.r.Method + " not allowed", hint: "use one of " + strings.Join(methods, ", "),
	})
}
