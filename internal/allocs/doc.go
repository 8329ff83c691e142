// Package allocs holds benchmarks of the hot paths to a record of how many
// allocations one operation may cost, so that the number does not grow unnoticed.
// Each package has its record in a TestAllocations beside its benchmarks;
// docs/PERFORMANCE.md says how to read and to change one.
//
// Allocations are counted and time is not, because the count hardly depends on the
// machine and on what else it does. What is left of that is kept out: benchmarks run
// a fixed number of operations in a process of their own, on one P, with the garbage
// collector off, which would empty pools; a count that is not as recorded is taken
// again, and only one that never is counts. Integer division drops the few
// allocations of goroutines in the background.
package allocs
