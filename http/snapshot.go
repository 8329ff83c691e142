package http

import (
	"io"
	nethttp "net/http"

	"github.com/holdfast-db/holdfast/command"
)

var kindGzip = []string{"application/x-gzip"}

// getSnapshot is GET /v1/snapshot: an archive of the state at one revision, made on
// this node, after the leader has confirmed how far that must have come; with stale,
// of whatever is here.
func (s *Server) getSnapshot(x *exchange) {
	o := command.ReadOptions{Mode: command.ReadConsistent}
	if x.q.has(paramStale) {
		o.Mode = command.ReadStale
	}
	info, err := s.node.Read(x.r.Context(), o, func(command.View) error { return nil })
	if err != nil {
		x.failRead(&info, err)
		return
	}
	err = s.node.Archive(x.r.Context(), func(revision uint64) io.Writer {
		info.Revision = revision
		x.readHeaders(&info, max(revision, 1))
		x.w.Header()["Content-Type"] = kindGzip
		x.w.WriteHeader(nethttp.StatusOK)
		x.w.WriteHeaderNow()
		return streamed{x}
	})
	switch {
	case err == nil:
	case x.w.Written():
		s.log.Debug("archive broke off", "revision", info.Revision, "error", err)
		// Only a cut connection tells the client that this is not all.
		panic(nethttp.ErrAbortHandler)
	default:
		x.failRead(&info, err)
	}
}

// streamed writes a reply as it comes, each piece under a deadline of its own.
type streamed struct{ x *exchange }

func (w streamed) Write(b []byte) (int, error) {
	w.x.renewWrite()
	return w.x.w.Write(b)
}

// putSnapshot is PUT /v1/snapshot: the archive in the body takes the place of the
// whole state, on all nodes.
func (s *Server) putSnapshot(x *exchange) {
	body := &archiveBody{x: x}
	revision, err := s.node.Restore(x.r.Context(), body)
	if err == nil {
		x.indexHeader(revision)
		x.replyEmpty(nethttp.StatusOK)
		return
	}
	if !body.ended && (body.broken || !x.drain()) {
		x.lastOfConn()
	}
	x.fail(err)
}

// archiveBody reads a body whose sender may pause for BodyTimeout.
type archiveBody struct {
	x             *exchange
	ended, broken bool
}

func (r *archiveBody) Read(b []byte) (int, error) {
	if !r.ended {
		r.x.renewRead(r.x.s.cfg.BodyTimeout)
	}
	n, err := r.x.r.Body.Read(b)
	switch {
	case err == io.EOF:
		// From here on net/http listens for the client's going away, and must not
		// take a deadline for that.
		r.ended = true
		r.x.renewRead(0)
	case err != nil:
		r.broken = true
		err = r.x.brokenBody(err)
	}
	return n, err
}
