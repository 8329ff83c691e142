package node

// Unfit is why this node must not lead, though Raft might elect it: nil while it may.
// A leader that becomes unfit is to be replaced at once, also when it cannot hand
// over by itself any more.
func (n *Node) Unfit() error {
	if err := n.parted(); err != nil {
		return err
	}
	if err := n.Failure(); err != nil {
		return err
	}
	if why := n.disk.unfit.Load(); why != nil {
		return *why
	}
	return nil
}
