package node

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"

	"github.com/hashicorp/go-hclog"

	"github.com/holdfast-db/holdfast/command"
)

// brokenState takes copies in as a script says. Its requests name how far it has
// come, and whether everything is asked for.
type brokenState struct {
	State
	reached byte
	asked   []string
	receive func(s *brokenState, try int, full bool) error
}

func (s *brokenState) CopyRequest(full bool) []byte {
	if full {
		return []byte{'f', s.reached}
	}
	return []byte{'r', s.reached}
}

func (s *brokenState) ReceiveCopy(_ context.Context, r io.Reader) (command.CatchUp, error) {
	req, err := io.ReadAll(r)
	if err != nil {
		return command.CatchUp{}, err
	}
	s.asked = append(s.asked, string(req[:1]))
	return command.CatchUp{Kind: command.CopyDelta}, s.receive(s, len(s.asked), req[0] == 'f')
}

// echo opens a stream that says what was asked for.
func echo(_ context.Context, req []byte) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(req)), nil
}

func takeFrom(t *testing.T, s *brokenState, open opener, check func(c command.CatchUp, err error)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := &Node{parts: Parts{State: s}, cfg: Config{Clock: SystemClock{}}, log: hclog.NewNullLogger()}
		c, err := n.takeCopy(t.Context(), false, open)
		check(c, err)
	})
}

func TestACopyIsTakenUpAgainForAsLongAsItComesFurther(t *testing.T) {
	const breaks = 5 * copyTries
	s := &brokenState{receive: func(s *brokenState, try int, _ bool) error {
		if try%(copyTries-1) == 0 {
			s.reached++
		}
		if try <= breaks {
			return io.ErrUnexpectedEOF
		}
		return nil
	}}
	takeFrom(t, s, echo, func(c command.CatchUp, err error) {
		if err != nil || len(s.asked) != breaks+1 || c.Bytes != 2*uint64(breaks+1) {
			t.Errorf("after %d tries: %+v, %v", len(s.asked), c, err)
		}
	})
}

func TestACopyThatComesNoFurtherIsGivenUp(t *testing.T) {
	s := &brokenState{receive: func(*brokenState, int, bool) error { return io.ErrUnexpectedEOF }}
	takeFrom(t, s, echo, func(_ command.CatchUp, err error) {
		if !errors.Is(err, io.ErrUnexpectedEOF) || len(s.asked) != copyTries {
			t.Errorf("after %d tries: %v", len(s.asked), err)
		}
	})
}

// Who cannot begin has no copy to go on with: somebody else may have.
func TestACopyThatDoesNotBeginIsNotWaitedFor(t *testing.T) {
	s := &brokenState{}
	opened := 0
	refuse := func(context.Context, []byte) (io.ReadCloser, error) {
		opened++
		return nil, command.ErrNotReady
	}
	takeFrom(t, s, refuse, func(_ command.CatchUp, err error) {
		if !errors.Is(err, command.ErrNotReady) || opened != 1 {
			t.Errorf("asked %d times: %v", opened, err)
		}
	})
}

func TestWhatIsDamagedTwiceAtOnePlaceIsTakenWhole(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		asks string
	}{
		"damaged":                    {command.ErrDamaged, "rrf"},
		"the contents differ":        {command.ErrDiverged, "rf"},
		"only the connection breaks": {io.ErrUnexpectedEOF, "rrrrrrrr"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &brokenState{receive: func(_ *brokenState, _ int, full bool) error {
				if full {
					return nil
				}
				return c.err
			}}
			takeFrom(t, s, echo, func(command.CatchUp, error) {
				var asks string
				for _, a := range s.asked {
					asks += a
				}
				if asks != c.asks {
					t.Errorf("asked %q, want %q", asks, c.asks)
				}
			})
		})
	}
}
