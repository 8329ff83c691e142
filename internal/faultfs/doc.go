// Package faultfs is a file system for tests that want to see what a program
// makes of a failing disk and of a loss of power. It is imported by tests only.
//
// It is a real file system, mounted with FUSE, because a fault must be met
// below memory maps and system calls, where a library that opens its own files
// cannot be reached from Go. It lives in memory and is served by a second
// process, which the test binary starts from itself: a thread that faults on a
// mapped page must not wait for a server it shares a scheduler with.
//
// # Operations and faults
//
// Every operation that changes something (write, truncate, fallocate, fsync,
// create, mkdir, rename, unlink, rmdir, and fsync of a directory) has a number,
// counted from 1 in each file system. A Fault makes one of them fail, or all
// from one on, or hang. A failed fsync drops what it should have made durable,
// as Linux does: the file still reads as written, the next fsync succeeds, and
// the data never reaches the disk.
//
// # What survives a loss of power
//
// The file system keeps a journal of all operations, from which Crash makes the
// disk as it could be found after any of them. The model is the strict reading
// of POSIX:
//
//   - What was written to a file, and its length, is durable once an fsync (or
//     fdatasync) of that file that began later has returned.
//   - A name is durable once its directory has been synced. To sync a new file
//     does not keep its name, nor does to sync a directory keep its own.
//   - A rename is one step: no crash shows both names or neither. It is durable
//     once the directory it leads to has been synced.
//   - A sync of names takes along what came before them at the same names.
//
// Of all else, any part may be there: with seed 0 nothing is, with any other a
// random choice of names, of lengths, and of sectors of 512 or 4096 bytes in any
// order. A sector holds what the file had in it at some moment since its last
// sync, never a mixture.
package faultfs
