package http

import (
	"crypto/sha256"
	"strconv"

	"github.com/holdfast-db/holdfast/command"
)

// idempotent returns c, or, when the request has an idempotency key, the command
// that carries c out once for that key. c must be as the client asked for it, without
// anything that differs from node to node or from try to try: its encoding is what
// tells a repeat from another request. It may be completed afterwards.
func (x *exchange) idempotent(c command.Command) (command.Command, error) {
	keys := x.r.Header["Idempotency-Key"]
	if len(keys) == 0 {
		return c, nil
	}
	if len(keys) > 1 {
		return nil, badRequest("Invalid Idempotency-Key: it may be given once only")
	}
	key := keys[0]
	if key == "" || len(key) > command.MaxOnceKey || !printable(key) {
		return nil, badRequest("Invalid Idempotency-Key: it must be 1 to " + strconv.Itoa(command.MaxOnceKey) + " printable ASCII characters")
	}
	once := &command.Once{Key: key, Retention: x.s.cfg.OnceRetention, Limit: uint64(x.s.cfg.OnceBytes), Command: c}
	sum := sha256.Sum256(command.Append(nil, c))
	copy(once.Request[:], sum[:])
	return once, nil
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
