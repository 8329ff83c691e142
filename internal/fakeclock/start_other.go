//go:build !(linux && amd64)

package fakeclock

import (
	"errors"
	"os/exec"
)

// Possible says why programs cannot be given clocks here; nil when they can.
func Possible() error { return errors.ErrUnsupported }

func start(*exec.Cmd, string, func(program) error) error { return errors.ErrUnsupported }

func awaitStop(int) error { return errors.ErrUnsupported }
