package node

import "github.com/hashicorp/raft"

// Raft lets tests do to Raft what no caller of a node can.
func (n *Node) Raft() *raft.Raft { return n.raft }

// The calls that tests spoil.
const (
	MethodPropose = methodPropose
	MethodPromise = methodPromise
)
