package agent

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
)

func TestAWarningThatRepeatsDoesNotFillTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := hclog.New(&hclog.LoggerOptions{Level: hclog.Info, Output: &out, Exclude: new(repeats).exclude}).Named("raft")
		for range 2000 { // for 20 s
			log.Error("failed to append to logs", "error", errors.New("no space"))
			time.Sleep(10 * time.Millisecond)
		}
		log.Error("failed to append to logs", "error", errors.New("another reason"))
		for range 10 {
			log.Info("leading", "term", 2)
		}
		for text, want := range map[string]int{"no space": 2 * repeatsShown, "another reason": 1, "leading": 10} {
			if n := strings.Count(out.String(), text); n != want {
				t.Errorf("%q stands %d times in the log, want %d", text, n, want)
			}
		}
	})
}
