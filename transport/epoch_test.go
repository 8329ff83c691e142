package transport

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/holdfast-db/holdfast/command"
)

// withForks is a node that lives in an epoch and knows of the beginnings of others.
func withForks(t *testing.T, b *book, name string, epoch uint64, told *atomic.Int32, forks ...command.Fork) *Transport {
	t.Helper()
	h := hello(name)
	h.Epoch = epoch
	cfg := testConfig(t, b, h)
	cfg.Forks = func() []command.Fork { return forks }
	cfg.Newer = func(f []command.Fork) {
		if len(f) == 1 && f[0].Site == "east" {
			told.Add(1)
		}
	}
	return start(t, b, cfg, nil)
}

// Who lives in an earlier epoch is told at the first contact, whoever of the two
// dials, also by one who lives there as well and has heard of it.
func TestWhoLivesInAnEarlierEpochIsToldAtTheFirstContact(t *testing.T) {
	fork := command.Fork{Epoch: 2, Site: "east", Begins: 7}
	for name, newer := range map[string]uint64{"the new home": 2, "one that has heard of it": 1} {
		for _, oldDials := range []bool{true, false} {
			b := newBook()
			var old, told atomic.Int32
			n1 := withForks(t, b, "n1", 1, &old)
			n2 := withForks(t, b, "n2", newer, &told, fork)
			from, to := n2, n1
			if oldDials {
				from, to = n1, n2
			}
			c, err := from.dial(context.Background(), purposeRaft, "", to.Addr())
			if err == nil {
				c.Close()
			}
			if refused := newer == 2; refused != errors.Is(err, command.ErrStaleEpoch) {
				t.Errorf("%s, the old one dials: %v: %v", name, oldDials, err)
			}
			if old.Load() != 1 || newer == 2 && told.Load() != 0 {
				t.Errorf("%s, the old one dials: %v: told %d and %d times", name, oldDials, old.Load(), told.Load())
			}
		}
	}
}

// Two sites that became home without each other do not mix, though they count alike.
func TestTwoHomesOfOneEpochDoNotTalk(t *testing.T) {
	b := newBook()
	var none atomic.Int32
	n1 := withForks(t, b, "n1", 2, &none, command.Fork{Epoch: 2, Site: "east", Begins: 7})
	n2 := withForks(t, b, "n2", 2, &none, command.Fork{Epoch: 2, Site: "west", Begins: 7})
	if _, err := n1.dial(context.Background(), purposeCall, "", n2.Addr()); err == nil || !strings.Contains(err.Error(), "two sites were promoted") {
		t.Errorf("they talk: %v", err)
	}
}
