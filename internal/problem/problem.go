// Package problem holds errors for the person at the terminal: what is wrong, and what
// to do about it.
package problem

import (
	"errors"
	"fmt"
)

// Problem is such an error.
type Problem struct {
	Cause, Remedy string
	err           error // what it was made from, if anything
}

// Refuse returns a Problem. The remedy is an instruction; format and args are as of
// fmt.Errorf, and say what is wrong.
func Refuse(remedy, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &Problem{Cause: err.Error(), Remedy: remedy, err: errors.Unwrap(err)}
}

// Error gives the cause and the remedy in one line.
func (p *Problem) Error() string { return p.Cause + "; " + p.Remedy }

// Unwrap gives the error that was wrapped with %w.
func (p *Problem) Unwrap() error { return p.err }
