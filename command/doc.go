// Package command holds the words every layer of Holdfast shares: the writes
// and how they are encoded in a Raft log entry, their results, the records
// reads return, the ways a read can be asked for, and the errors all layers
// recognise. It imports nothing else of this module, so every other package
// may import it.
package command
