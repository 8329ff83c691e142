// Package fsm is the replicated state machine: it turns committed Raft entries
// into changes of the store, deterministically. Equal logs give equal stores,
// revision by revision, on every node and in every order of restarts.
//
// Everything a command needs to be decided is in its entry or in the state
// before it. The package reads no clock, draws no random number and knows no
// local setting: limits are judged before a command is proposed, and time is
// the entry's own stamp.
//
// The package runs no goroutine. Raft calls it from one goroutine of its own.
package fsm
