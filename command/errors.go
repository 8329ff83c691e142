package command

import (
	"encoding/json"
	"errors"
	"fmt"
)

// Error is a failure with a name that survives the wire: a node that forwards
// a request, and the Go client, turn the code back into the same sentinel, so
// errors.Is works on both sides.
//
// The message says what is wrong, in words for the person who sent the
// request; the hint says what to do about it. Detail, when there is any, is
// particular to one occurrence and is appended to the message.
type Error struct {
	Code    string
	Message string
	Hint    string
	Detail  string
}

// Error gives the message, with the occurrence's own detail when it has one.
func (e *Error) Error() string {
	if e.Detail == "" {
		return e.Message
	}
	return e.Message + ": " + e.Detail
}

// Is matches errors by code, so that an occurrence with a detail, or one that
// came over the wire, equals its sentinel.
func (e *Error) Is(target error) bool {
	var t *Error
	return errors.As(target, &t) && t.Code == e.Code
}

// With returns an occurrence of e that carries its own detail.
func (e *Error) With(format string, args ...any) *Error {
	o := *e
	o.Detail = fmt.Sprintf(format, args...)
	return &o
}

// The errors, grouped by the moment they occur.
var (
	// While looking for a leader or losing one.

	// ErrNoLeader: no leader was found within the time a request may wait.
	// Nothing was done.
	ErrNoLeader = sentinel("no_leader", "No cluster leader",
		"wait for an election to finish, or check that a majority of the voters is running and connected")
	// ErrNotLeader: the asked node does not lead, or led no longer when the write
	// reached the log; nothing was done, so the request may go to another node.
	ErrNotLeader = sentinel("not_leader", "node is not the leader", "ask the leader")
	// ErrOutcomeUnknown: leadership or the connection to the leader was lost
	// after the write was handed over. It may have happened or not.
	ErrOutcomeUnknown = sentinel("outcome_unknown", "leadership lost while committing; the write may or may not have happened",
		"read the key before you repeat the write")
	// ErrPeer: another node was asked and failed in a way that has no name, or
	// none this build knows. Whatever was asked may have happened.
	ErrPeer = sentinel("peer_failed", "another node failed to answer", "see the log of the leader")
	// ErrStopping: the node is shutting down. Nothing was proposed.
	ErrStopping = sentinel("stopping", "node is stopping", "ask another node")

	// ErrFenced: another site has become home while this node was cut off, in a later
	// epoch of the cluster, and this node holds what the new home never saw. It takes no
	// writes and knows no leader any more.
	ErrFenced = sentinel("fenced", "another site has become home, and this node does not belong to it yet",
		"write at the new home; to bring this node back, stop it and run holdfast rejoin, which sets aside what the new home never saw")

	// While deciding a write.

	// ErrInvalidSession: the session named by acquire does not exist.
	ErrInvalidSession = sentinel("invalid_session", "invalid session", "create a session first: it may have expired or been destroyed")
	// ErrSessionNotFound: there is no such session.
	ErrSessionNotFound = sentinel("session_not_found", "session not found", "it has expired or was destroyed: create a new one")
	// ErrKeyReused: the idempotency key was used for another request.
	ErrKeyReused = sentinel("idempotency_key_reused", "idempotency key was used for another request", "use a new key for each request")
	// ErrOnceFull: too many results of writes with idempotency keys are kept.
	ErrOnceFull = sentinel("idempotency_full", "too many writes with idempotency keys are remembered",
		"wait until some have passed their retention, or raise --idempotency-bytes on every node")
	// ErrNoTarget: an operator named a member that is none, or that the wish cannot be
	// fulfilled for. Nothing was changed.
	ErrNoTarget = sentinel("no_target", "member does not fit", "GET /v1/operator/autopilot/health shows all members")
	// ErrHomeReachable: a site is to become home, and the one that is home is not lost.
	// Nothing was changed.
	ErrHomeReachable = sentinel("home_reachable", "home site is not lost",
		"hand leadership over, or mend the home site; a site is promoted only when the voters of the home site are gone")
	// ErrPlanChanged: the confirmation is not that of the plan as it is now. Nothing
	// was changed.
	ErrPlanChanged = sentinel("plan_changed", "confirmation does not fit the plan", "ask for the plan again, read it, and confirm that one")
	// ErrArchive: an archive is not one of Holdfast's, or is damaged or not complete.
	// Nothing was changed.
	ErrArchive = sentinel("invalid_archive", "archive cannot be restored", "use an archive that Holdfast has written, whole and unchanged")
	// ErrInvalidCommand: the entry asks for something no version of the state
	// machine knows. It is a programming error, never caused by a client.
	ErrInvalidCommand = sentinel("invalid_command", "invalid command", "report this")

	// ErrDataFull: the data has reached the size limit of the leader. Nothing
	// was proposed.
	ErrDataFull = sentinel("data_full", "data has reached its size limit (--max-data-size)",
		"delete keys, or raise the limit on every voter; deletes and reads go on")

	// ErrDiskFull: the disk of the leader is full, and no other voter can take over.
	// Nothing was proposed. Also why a node's own disk took a write no more.
	ErrDiskFull = sentinel("disk_full", "disk is full",
		"free space on the disks of the voters, or enlarge them, or delete keys; deletes and reads go on")

	// While reading.

	// ErrKeyNotFound: there is no such key in the view that was read.
	ErrKeyNotFound = sentinel("not_found", "key not found", "")
	// ErrTooStale: no state within the asked bound could be reached.
	ErrTooStale = sentinel("too_stale", "no state within max_stale can be reached", "allow a larger max_stale, or repair the link to the leader")
	// ErrRevisionNotReached: a revision (min_index, rev) was not applied within the
	// wait.
	ErrRevisionNotReached = sentinel("revision_not_reached", "revision was not reached in time", "raise wait, or check the lag of this node")
	// ErrCompacted: the revision asked for is no longer kept.
	ErrCompacted = sentinel("compacted", "revision has been compacted", "read at a newer revision")
	// ErrDamaged: a stored record does not match its checksum. It is never served.
	ErrDamaged = sentinel("damaged", "stored record is damaged", "restore this node from its peers")
	// ErrDiverged: this node's contents differ from the leader's at the same
	// revision. It serves nothing until a full copy has replaced them.
	ErrDiverged = sentinel("diverged", "node's contents differ from the leader's", "ask another node; this one repairs itself by a full copy")
	// ErrBehind: there is a leader, but this node has not applied what the read
	// needs within the time a request may wait.
	ErrBehind = sentinel("behind", "node has not caught up with the leader in time",
		"ask another node, or read with ?stale")
	// ErrPaused: the syncing of this copy was paused, and what is asked for needs the
	// leader's state.
	ErrPaused = sentinel("paused", "this copy is paused",
		"resume it (PUT /v1/replica/resume), read with ?stale, or ask another node")
	// ErrNotLearner: what only a learner can do was asked of a node that votes. Nothing
	// was changed.
	ErrNotLearner = sentinel("not_learner", "only a learner can be paused", "ask a learner: a voter that takes no part would cost the cluster a majority")
	// ErrNotReady: this node holds no complete state yet.
	ErrNotReady = sentinel("not_ready", "node has no complete copy yet", "wait until it has caught up, or ask another node")

	// While joining or meeting another node. All of these are permanent: the
	// node that gets one ends with exit status 1.

	// ErrWrongCluster: the two nodes belong to different clusters.
	ErrWrongCluster = sentinel("wrong_cluster", "node belongs to another cluster",
		"check --join, or use an empty --data-dir to enter this cluster as a new member")
	// ErrWrongIdentity: the address reached is not the node that was meant.
	ErrWrongIdentity = sentinel("wrong_identity", "address belongs to another node", "check the advertised addresses")
	// ErrNameInUse: a live member has this name already.
	ErrNameInUse = sentinel("name_in_use", "node name is in use", "choose another --node")
	// ErrNotHome: a voter was started outside the home site.
	ErrNotHome = sentinel("not_home", "voters live in the home site only", "start it with --role learner and without --home")
	// ErrCommandLevel: the node knows fewer commands than the cluster uses.
	ErrCommandLevel = sentinel("command_level", "node is too old for this cluster", "upgrade its binary")
	// ErrWentBack: peers have seen a later state of this node than it has now.
	ErrWentBack = sentinel("went_back", "data directory is older than what peers have seen of this node",
		"it may have forgotten votes and writes: move the data directory away and let the node join anew")
	// ErrStaleEpoch: the peer lives in an older epoch of the cluster.
	ErrStaleEpoch = sentinel("stale_epoch", "peer is from an older epoch of the cluster", "another site has become home: see holdfast rejoin")
	// ErrRemoved: the cluster has removed this node.
	ErrRemoved = sentinel("removed", "node was removed from the cluster", "use an empty --data-dir to join again")
)

var sentinels = map[string]*Error{}

func sentinel(code, message, hint string) *Error {
	e := &Error{Code: code, Message: message, Hint: hint}
	if _, dup := sentinels[code]; dup {
		panic("command: error code declared twice: " + code)
	}
	sentinels[code] = e
	return e
}

// Permanent reports whether an error met while joining will be the same at the
// next try, so that the node should end instead of retrying.
func Permanent(err error) bool {
	for _, p := range []error{ErrWrongCluster, ErrNameInUse, ErrNotHome, ErrCommandLevel, ErrWentBack, ErrStaleEpoch, ErrRemoved} {
		if errors.Is(err, p) {
			return true
		}
	}
	return false
}

type wireError struct {
	Code   string `json:"code"`
	Detail string `json:"detail,omitempty"`
}

// EncodeError turns err into bytes for another node. An error without a code
// travels as its text.
func EncodeError(err error) []byte {
	var e *Error
	w := wireError{Detail: err.Error()}
	if errors.As(err, &e) {
		w = wireError{Code: e.Code, Detail: e.Detail}
	}
	b, merr := json.Marshal(w)
	if merr != nil {
		panic(merr) // two strings always marshal
	}
	return b
}

// DecodeError is the inverse of EncodeError. An error without a code, or with
// one this build does not know, becomes ErrPeer with its text: it came from the
// other side, so it must not be mistaken for a request that never left.
func DecodeError(b []byte) error {
	var w wireError
	if err := json.Unmarshal(b, &w); err != nil {
		return ErrPeer.With("its error cannot be read: %v", err)
	}
	if s, ok := sentinels[w.Code]; ok {
		if w.Detail == "" {
			return s
		}
		return s.With("%s", w.Detail)
	}
	if w.Code != "" {
		return ErrPeer.With("%s: %s", w.Code, w.Detail)
	}
	return ErrPeer.With("%s", w.Detail)
}
