package http

import (
	"context"
	"errors"
	nethttp "net/http"
	"strings"

	"github.com/holdfast-db/holdfast/command"
)

// problem is a failure as a client sees it.
type problem struct {
	status int
	code   string // stable, for programs
	text   string // what was wrong: the body of a plain text reply
	hint   string // what to do about it
}

func (p *problem) Error() string { return p.text }

// Codes of problems that arise in this package, beside those of package
// command.
const (
	codeBadRequest       = "bad_request"
	codeTooLarge         = "too_large"
	codeReplyTooLarge    = "reply_too_large"
	codeStalled          = "request_stalled"
	codeCancelled        = "request_cancelled"
	codeUnknownPath      = "unknown_path"
	codeUnknownSite      = "unknown_site"
	codeMethodNotAllowed = "method_not_allowed"
	codeNoDatacenter     = "no_datacenter"
	codeInternal         = "internal"
)

// row is what the table says about one error code of package command.
type row struct {
	status int
	// bare: clients compare the text, so an occurrence's detail stays out.
	bare bool
	// detail: clients know the text, which is all of the occurrence's detail.
	detail bool
}

// table gives each error of package command its status. Clients that watch
// locks retry on network errors and on the exact status 500, so that is what
// every trouble with leadership gets.
var table = map[string]row{
	command.ErrNoLeader.Code:       {status: nethttp.StatusInternalServerError, bare: true},
	command.ErrNotLeader.Code:      {status: nethttp.StatusInternalServerError},
	command.ErrOutcomeUnknown.Code: {status: nethttp.StatusInternalServerError},
	command.ErrStopping.Code:       {status: nethttp.StatusInternalServerError},
	command.ErrPeer.Code:           {status: nethttp.StatusInternalServerError},

	command.ErrFenced.Code:        {status: nethttp.StatusInternalServerError},
	command.ErrHomeReachable.Code: {status: nethttp.StatusConflict},
	command.ErrPlanChanged.Code:   {status: nethttp.StatusConflict},

	command.ErrInvalidSession.Code: {status: nethttp.StatusInternalServerError},
	command.ErrInvalidCommand.Code: {status: nethttp.StatusInternalServerError},
	command.ErrArchive.Code:        {status: nethttp.StatusInternalServerError},

	command.ErrSessionNotFound.Code: {status: nethttp.StatusNotFound},
	command.ErrKeyReused.Code:       {status: nethttp.StatusUnprocessableEntity},
	command.ErrOnceFull.Code:        {status: nethttp.StatusTooManyRequests},

	command.ErrNoTarget.Code: {status: nethttp.StatusInternalServerError, detail: true},

	command.ErrDataFull.Code: {status: nethttp.StatusInsufficientStorage},
	command.ErrDiskFull.Code: {status: nethttp.StatusInsufficientStorage},

	command.ErrKeyNotFound.Code:        {status: nethttp.StatusNotFound},
	command.ErrTooStale.Code:           {status: nethttp.StatusServiceUnavailable},
	command.ErrRevisionNotReached.Code: {status: nethttp.StatusGatewayTimeout},
	command.ErrCompacted.Code:          {status: nethttp.StatusGone},
	command.ErrDamaged.Code:            {status: nethttp.StatusInternalServerError},
	command.ErrDiverged.Code:           {status: nethttp.StatusServiceUnavailable},
	command.ErrBehind.Code:             {status: nethttp.StatusInternalServerError},
	command.ErrNotReady.Code:           {status: nethttp.StatusServiceUnavailable},
	command.ErrPaused.Code:             {status: nethttp.StatusServiceUnavailable},
	command.ErrNotLearner.Code:         {status: nethttp.StatusConflict},

	command.ErrWrongCluster.Code:  {status: nethttp.StatusInternalServerError},
	command.ErrWrongIdentity.Code: {status: nethttp.StatusInternalServerError},
	command.ErrNameInUse.Code:     {status: nethttp.StatusInternalServerError},
	command.ErrNotHome.Code:       {status: nethttp.StatusInternalServerError},
	command.ErrCommandLevel.Code:  {status: nethttp.StatusInternalServerError},
	command.ErrWentBack.Code:      {status: nethttp.StatusInternalServerError},
	command.ErrStaleEpoch.Code:    {status: nethttp.StatusInternalServerError},
	command.ErrRemoved.Code:       {status: nethttp.StatusInternalServerError},
}

var errNoDatacenter = &problem{
	status: nethttp.StatusInternalServerError, code: codeNoDatacenter,
	text: "No path to datacenter", hint: "a cluster has one datacenter: leave dc out",
}

// badRequest is the client's fault. The text says what was wrong, and by that often
// what to do; a hint that says more is put in by advise.
func badRequest(text string) *problem {
	return &problem{status: nethttp.StatusBadRequest, code: codeBadRequest, text: text, hint: "GET /v1/openapi.json describes all requests"}
}

// tooLarge refuses a request, or a part of one, for its size.
func tooLarge(text, hint string) *problem {
	return &problem{status: nethttp.StatusRequestEntityTooLarge, code: codeTooLarge, text: text, hint: hint}
}

// reworded is the problem that e is, in words that clients of the dialect know.
func reworded(e *command.Error, text string) *problem {
	return &problem{status: table[e.Code].status, code: e.Code, text: text, hint: e.Hint}
}

// advise returns p with a hint of its own.
func (p *problem) advise(hint string) *problem {
	q := *p
	q.hint = hint
	return &q
}

// explain finds the problem in err. known is false when nothing but a status
// 500 can be told of it, so that the cause belongs in the log.
func explain(err error) (p *problem, known bool) {
	if errors.As(err, &p) {
		return p, true
	}
	var e *command.Error
	if errors.As(err, &e) {
		if r, ok := table[e.Code]; ok {
			p = &problem{status: r.status, code: e.Code, text: e.Error(), hint: e.Hint}
			switch {
			case r.bare:
				p.text = e.Message
			case r.detail && e.Detail != "":
				p.text = e.Detail
			}
			return p, true
		}
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return &problem{
			status: nethttp.StatusInternalServerError, code: codeCancelled,
			text: "Request was cancelled", hint: "a write may or may not have happened",
		}, true
	}
	return &problem{
		status: nethttp.StatusInternalServerError, code: codeInternal,
		text: "Internal error", hint: "the cause is in the log of this node",
	}, false
}

// wantsJSON reports whether the client named application/json as something it
// accepts; it then gets errors in that form.
func wantsJSON(h nethttp.Header) bool {
	for _, v := range h["Accept"] {
		if strings.Contains(v, "application/json") {
			return true
		}
	}
	return false
}

// appendProblem writes the JSON form of p. status goes along where there is no
// status line to carry it.
func appendProblem(b []byte, p *problem, withStatus bool) []byte {
	b = append(b, `{"error":`...)
	b = appendString(b, p.code)
	b = append(b, `,"message":`...)
	b = appendString(b, p.text)
	b = append(b, `,"hint":`...)
	b = appendString(b, p.hint)
	if withStatus {
		b = append(b, `,"status":`...)
		b = appendUint(b, uint64(p.status))
	}
	return append(b, '}')
}
