// Package fakeclock gives programs under test a clock of their own, which can be
// made to jump, to swing, to run fast or slow, and to sleep while the programs run.
// The clocks of the machine are not touched. It is imported by tests only.
//
// It is for Go programs on Linux/amd64. They read the time, for time.Now and for
// everything the runtime times, by a function of the vDSO, a library that the kernel
// maps into each process (vdso(7)). A program is started under ptrace(2), which stops
// it between execve and its first instruction. There its copy of that function is
// replaced by one that makes the system call and adds how far the clock in question
// is ahead, taken from a table beside it. Then the program is let go. The table is
// written through /proc/PID/mem at any moment, so a change is seen by the next reading,
// and nobody waits for anybody: a program runs at its usual speed.
//
// What is shifted are CLOCK_REALTIME, the wall clock, and CLOCK_MONOTONIC, as they are
// read. CLOCK_BOOTTIME, which Go programs read by a system call, is the true one: it
// never jumps, and goes on while a host sleeps. Time-outs are counted by the kernel, by
// its own clock; all that Go uses are relative. Times of files are true, too.
package fakeclock
