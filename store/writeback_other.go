//go:build !linux

package store

import "os"

// pushToDisk makes the system write what it has of a file.
func pushToDisk(f *os.File) error { return f.Sync() }
