//go:build !linux

package store

import (
	"os"

	"golang.org/x/sys/unix"
)

// reserveSpace is for Linux; elsewhere the file is written.
func reserveSpace(*os.File, int64) error { return unix.EOPNOTSUPP }
