//go:build !(linux && amd64)

package fakeclock

import (
	"errors"
	"os/exec"
)

func possible() error { return errors.ErrUnsupported }

func start(*exec.Cmd, string, func(program) error) error { return errors.ErrUnsupported }
