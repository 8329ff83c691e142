package http

import (
	"errors"
	nethttp "net/http"
	"strconv"

	"github.com/holdfast-db/holdfast/command"
)

// decide proposes a write of keys and answers whether it happened. session is the
// one that the write names, if any.
func (x *exchange) decide(c command.Command, session string) {
	c, err := x.idempotent(c)
	var res command.Result
	if err == nil {
		res, err = x.propose(c)
	}
	if err != nil {
		if errors.Is(err, command.ErrInvalidSession) {
			// Lock clients compare how this text begins.
			err = reworded(command.ErrInvalidSession, command.ErrInvalidSession.Message+" "+strconv.Quote(session))
		}
		x.fail(err)
		return
	}
	x.out = strconv.AppendBool(x.out[:0], res.OK)
	x.replyJSON(x.statusOf(res.OK))
}

// statusOf is the status of a write that happened or, its condition not holding,
// did not. Clients of the dialect look into the body; tools look at the status.
func (x *exchange) statusOf(happened bool) int {
	switch {
	case happened:
		return nethttp.StatusOK
	case x.preconditioned():
		return nethttp.StatusPreconditionFailed
	case x.q.has(paramStrict):
		return nethttp.StatusConflict
	}
	return nethttp.StatusOK
}

// propose has a write decided, and sends the revision at which it was along. If the
// request names sites that are to have it, it waits for them.
func (x *exchange) propose(c command.Command) (command.Result, error) {
	sites, err := x.awaited()
	if err != nil {
		return command.Result{}, err
	}
	res, err := x.s.node.Propose(x.r.Context(), c)
	if err == nil {
		err = res.Err
	}
	if err != nil {
		return res, err
	}
	x.indexHeader(res.Revision)
	if sites.wanted && !x.s.reached(x.r.Context(), sites, res.Revision) {
		x.w.Header()["X-Holdfast-Await"] = []string{"timeout"}
	}
	return res, nil
}

// indexHeader sends an index without the other headers of a read.
func (x *exchange) indexHeader(index uint64) {
	x.w.Header()["X-Consul-Index"] = []string{strconv.FormatUint(max(index, 1), 10)}
}
