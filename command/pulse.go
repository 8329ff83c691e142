package command

// Condition is what a node says of itself to those who watch it.
type Condition struct {
	// Term is Raft's current term there; 0 while Raft does not run.
	Term uint64
	// Leads: it is the leader of that term.
	Leads bool
	// Unfit is why it must not lead; empty while it may.
	Unfit string
}

// Pulse is what a watch has learnt of the life of another node's process since it
// began.
type Pulse struct {
	// Missed counts the beats, one after the other until now, in which nothing of the
	// node arrived on any connection. They are beats of the watching process: time in
	// which that was itself held up does not count.
	Missed int
	// Refused: the connection was lost, or never made, and its host refuses a new one.
	// It ends when the same process answers again.
	Refused bool
	// Replaced: another process has answered in its place.
	Replaced bool
	// Said is the last that the process said of itself since the watch began; zero
	// when it has not spoken.
	Said Condition
}
