package agent

import (
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// repeats leaves warnings out of the log that come again and again, word for word: a
// follower whose disk is full is asked a hundred times a second to append, and Raft
// logs each refusal, there and on the leader.
type repeats struct {
	mu    sync.Mutex
	began time.Time      // of the period
	seen  map[string]int // in this period
}

// The same warning is shown at most repeatsShown times in each repeatsPeriod.
const (
	repeatsPeriod = 10 * time.Second
	repeatsShown  = 3
)

// exclude is for hclog.LoggerOptions.
func (r *repeats) exclude(level hclog.Level, msg string, args ...any) bool {
	if level < hclog.Warn {
		return false
	}
	line := msg + fmt.Sprint(args...)
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); r.seen == nil || now.Sub(r.began) >= repeatsPeriod {
		r.began, r.seen = now, map[string]int{}
	}
	r.seen[line]++
	return r.seen[line] > repeatsShown
}
