package command

import (
	"encoding/binary"
	"fmt"
	"time"
)

// Once carries out a command unless one was with the same key within the
// retention: then its result is given again and nothing is changed. A key that
// was used for another request gives ErrKeyReused.
type Once struct {
	// Key is the client's, 1 to MaxOnceKey bytes.
	Key string
	// Request is a hash of all that the client asked for.
	Request [16]byte
	// Retention is how long the result is to be kept, by cluster time. Limit bounds
	// the bytes of all results kept; beyond it the command is refused with
	// ErrOnceFull. Both travel with the command, so that all nodes decide alike.
	Retention time.Duration
	Limit     uint64
	Command   Command // none that is a Once itself
}

// MaxOnceKey is the longest idempotency key in bytes.
const MaxOnceKey = 128

// Kind implements Command.
func (*Once) Kind() Kind { return KindOnce }

func (c *Once) append(b []byte) []byte {
	b = appendBytes(b, c.Key)
	b = append(b, c.Request[:]...)
	b = binary.AppendUvarint(b, uint64(c.Retention))
	b = binary.AppendUvarint(b, c.Limit)
	return Append(b, c.Command)
}

func decodeOnce(body *reader) (*Once, error) {
	c := &Once{Key: body.string()}
	if len(body.b) < len(c.Request) {
		body.fail("a hash")
	} else {
		copy(c.Request[:], body.b)
		body.b = body.b[len(c.Request):]
	}
	c.Retention, c.Limit = time.Duration(body.uint()), body.uint()
	if body.err != nil {
		return nil, body.err
	}
	if len(body.b) > 0 && Kind(body.b[0]) == KindOnce {
		return nil, fmt.Errorf("a command to be done once holds another one")
	}
	var err error
	c.Command, body.b, err = Decode(body.b)
	return c, err
}
