package command

// Target is what a blocking read waits for a change of.
type Target struct {
	Kind TargetKind
	Key  string // or the prefix
}

// TargetKind says what kind of thing is waited for.
type TargetKind uint8

// The kinds of targets.
const (
	TargetKey      TargetKind = iota // one key
	TargetPrefix                     // all keys that start with Key; with an empty one, any key
	TargetSessions                   // the creation and the end of sessions
	TargetMembers                    // members and cluster
)
