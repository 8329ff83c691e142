package agent

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/holdfast-db/holdfast/node"
)

// A run that ends for the sake of another start is followed by one, any other is not.
func TestANodeIsStartedAgainOnlyWhenItAsksForIt(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct {
		name string
		runs []error
		want error
	}{
		{"an orderly stop", []error{nil}, nil},
		{"a failure", []error{broken}, broken},
		{"asked for, then a failure", []error{&node.Restart{Reason: "try"}, fmt.Errorf("wrapped: %w", &node.Restart{Reason: "once more"}), broken}, broken},
	} {
		t.Run(c.name, func(t *testing.T) {
			runs := 0
			err := runAgain(t.Context(), Config{}, Host{}, func(context.Context, Config, Host) error {
				runs++
				return c.runs[runs-1]
			})
			if !errors.Is(err, c.want) || runs != len(c.runs) {
				t.Errorf("%d runs, ended with %v; want %d and %v", runs, err, len(c.runs), c.want)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	runs := 0
	if err := runAgain(ctx, Config{}, Host{}, func(context.Context, Config, Host) error {
		runs++
		cancel()
		return &node.Restart{Reason: "too late"}
	}); err != nil || runs != 1 {
		t.Errorf("%d runs after the stop, ended with %v", runs, err)
	}
}
