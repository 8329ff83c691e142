package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/holdfast-db/holdfast/command"
)

// Error is a refusal or failure with a name, mostly one a server gave it.
// errors.Is matches it with the sentinel of package command that has its Code.
type Error struct {
	Address string // of the server; empty when none was asked
	Status  int    // HTTP status; 0 when there was no answer
	Code    string // stable; empty when what answered was not Holdfast
	Message string
	Hint    string // what to do about it; may be empty
	// Applied is, with command.ErrRevisionNotReached, the revision that was
	// reached.
	Applied uint64
	// Oldest is, with command.ErrCompacted, the oldest revision that is kept.
	Oldest uint64

	sentinel error
	// absent is set when a 404 says that there is no such key.
	absent *Meta
}

// Error gives the server's message.
func (e *Error) Error() string { return e.Message }

// Unwrap gives the sentinel, if the code is one of package command.
func (e *Error) Unwrap() error { return e.sentinel }

// UnreachableError: no server could be reached, or none answered a read.
// Nothing was written.
type UnreachableError struct{ Tries []Try }

// Try is one server and why it did not answer.
type Try struct {
	Address string
	Err     error
}

// Error lists every server with its reason.
func (e *UnreachableError) Error() string {
	var each []string
	for _, t := range e.Tries {
		reason := t.Err
		var op *net.OpError
		if errors.As(reason, &op) && op.Op == "dial" {
			reason = op.Err // without the address once more
		}
		each = append(each, fmt.Sprintf("%s (%v)", t.Address, reason))
	}
	return "no server answers: " + strings.Join(each, ", ")
}

// Unwrap gives the reasons.
func (e *UnreachableError) Unwrap() []error {
	var errs []error
	for _, t := range e.Tries {
		errs = append(errs, t.Err)
	}
	return errs
}

// maxErrorBody is far above any error a server sends.
const maxErrorBody = 64 << 10

// readError makes an *Error of a reply with an error status: from its JSON
// form, or from the plain text that proxies and other servers send.
func readError(s server, res *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(res.Body, maxErrorBody))
	var wire struct{ Error, Message, Hint string }
	if json.Unmarshal(b, &wire) != nil || wire.Message == "" {
		wire.Message = strings.Join(strings.Fields(string(b)), " ")
	}
	if wire.Message == "" {
		wire.Message = res.Status
	}
	meta := parseMeta(s, res.Header)
	e := &Error{
		Address: s.address, Status: res.StatusCode,
		Code: wire.Error, Message: wire.Message, Hint: wire.Hint,
		Applied:  meta.Applied,
		Oldest:   meta.Oldest,
		sentinel: sentinelOf(wire.Error),
	}
	if res.StatusCode == http.StatusNotFound && meta.Index > 0 {
		e.absent = &meta
	}
	return e
}

// sentinelOf finds the error of package command with this code, or nil.
func sentinelOf(code string) error {
	if code == "" {
		return nil
	}
	b, err := json.Marshal(map[string]string{"code": code})
	if err != nil {
		panic(err) // a map of strings always marshals
	}
	var known *command.Error
	if errors.As(command.DecodeError(b), &known) {
		return known
	}
	return nil
}

// leadingSlash refuses what would reach another key. No server is asked.
func leadingSlash(what, key string) error {
	return &Error{
		Code:    "invalid_key",
		Message: fmt.Sprintf("%s %q begins with a slash, which the HTTP API drops", what, key),
		Hint:    "leave the slash away",
	}
}

// lostAnswer is the error of a write that was sent and not answered.
func lostAnswer(s server, cause error) error {
	return &Error{
		Address: s.address,
		Code:    command.ErrOutcomeUnknown.Code,
		Message: fmt.Sprintf("%s did not answer (%v): the write may or may not have happened", s.address, cause),
		Hint:    command.ErrOutcomeUnknown.Hint,
		sentinel: lost{
			sentinel: command.ErrOutcomeUnknown, cause: cause,
		},
	}
}

// lost matches both the sentinel and what ended the connection.
type lost struct{ sentinel, cause error }

func (l lost) Error() string   { return l.cause.Error() }
func (l lost) Unwrap() []error { return []error{l.sentinel, l.cause} }
