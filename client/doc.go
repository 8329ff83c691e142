// Package client is the Go client of Holdfast's HTTP API.
//
// A Client knows one or several servers, and with Discover all of them. It stays
// with the one that answered last and goes on to the next when that one cannot
// answer: always for reads, and for writes as long as it is certain that nothing was
// written. A write whose fate is not known comes back as command.ErrOutcomeUnknown,
// unless it is safe to repeat: with Once or IdempotencyKey, or as part of Import,
// whose repetition sets the same values again.
//
// Lock and Campaign are made of sessions; Watch follows changes from server to
// server.
//
// Errors that a server names arrive as *Error and match the sentinels of
// package command with errors.Is. Every answer comes with a Meta that says
// which node gave it and how old it may be.
package client
