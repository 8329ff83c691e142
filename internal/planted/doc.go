// Package planted guards bugs that stand in the code on purpose, to prove that the
// checkers of cluster-tests find real faults in running clusters. Each stands at the
// place it breaks, as `if planted.Bug("its name")`. Only a build with the tag planted
// can show them: in every other one Bug is a constant, and the compiler leaves the
// bug out. No released binary has the tag.
//
// docs/TESTING.md lists them, with who must find each.
package planted
