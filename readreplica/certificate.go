package readreplica

import (
	"sync"
	"time"

	"github.com/holdfast-db/holdfast/node"
)

// certificate is the freshest proven moment of the local state.
type certificate struct {
	mu   sync.Mutex
	asOf node.Instant // guarded by mu; zero until the first proof of this process
}

// prove records that the local state holds all that was acknowledged before t.
// It returns false when that was known.
func (c *certificate) prove(t node.Instant) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.asOf.IsZero() && t.Steady <= c.asOf.Steady {
		return false
	}
	c.asOf = t
	return true
}

// get returns the freshest moment; ok is false when there is none.
func (c *certificate) get() (t node.Instant, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asOf, !c.asOf.IsZero()
}

// age is how old an answer evaluated now may be under t.
func age(t node.Instant, clock node.Clock) time.Duration { return t.Age(node.Now(clock)) }
