//go:build planted

package readreplica

import "os"

// planted reports whether the bug of that name is to be shown. The cluster
// tests build with the tag planted to prove that their checkers find real
// faults in running clusters; no released binary has it.
func planted(bug string) bool { return os.Getenv("HOLDFAST_PLANTED") == bug }
