//go:build planted

package planted

import "os"

// Bug reports whether the bug of that name is to be shown: the one that
// HOLDFAST_PLANTED names.
func Bug(name string) bool { return os.Getenv("HOLDFAST_PLANTED") == name }
