//go:build !planted

package planted

// Bug reports whether a bug is to be shown: never, in this build.
func Bug(string) bool { return false }
