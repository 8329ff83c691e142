package store

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/internal/planted"
)

// The keys of Raft's stable values, as the library names them.
const (
	raftCurrentTerm  = "CurrentTerm"
	raftLastVoteTerm = "LastVoteTerm"
	raftLastVoteCand = "LastVoteCand"
)

// stableKey is the one name in stable.db.
const stableKey = "holdfast.stable"

// openBolt opens a raft-boltdb file, or creates it: under another name first,
// so that a crash leaves no half-made file under this one. begin puts into a new file
// what is always there.
func openBolt(path string, begin func(*raftboltdb.BoltStore) error) (*raftboltdb.BoltStore, error) {
	open := func(path string) (s *raftboltdb.BoltStore, err error) {
		err = openGuarded(path, func() error {
			s, err = raftboltdb.New(raftboltdb.Options{
				Path: path,
				NoSync: planted.Bug("unsynced-log") && strings.HasPrefix(filepath.Base(path), boltLogFile) ||
					planted.Bug("vote-not-synced") && filepath.Base(path) == stableFile,
				BoltOptions: &bbolt.Options{
					Timeout: time.Second, // the directory's lock is ours, so nobody has it
					// The list of free pages is made anew at each start instead of
					// being written with each commit.
					NoFreelistSync: true,
					FreelistType:   bbolt.FreelistMapType,
				},
			})
			return err
		})
		return s, err
	}
	if _, err := os.Stat(path); err == nil {
		if err := errors.Join(verifyBoltFile(path), checkBoltMetas(path)); err != nil {
			return nil, err
		}
		return open(path)
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	tmp := path + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	s, err := open(tmp)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(begin(s), s.Close()); err != nil {
		return nil, err
	}
	if err := os.Rename(tmp, path); err != nil {
		return nil, err
	}
	if err := syncPath(filepath.Dir(path)); err != nil {
		return nil, err
	}
	return open(path)
}

// openGuarded runs what opens a bbolt file. On pages that make no sense bbolt
// panics, or reads where no memory is; neither may end the process.
func openGuarded(path string, open func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = command.ErrDamaged.With("%s: %v", filepath.Base(path), r)
		}
	}()
	return open()
}

// openStable opens stable.db, or creates it.
func openStable(path string) (*raftboltdb.BoltStore, error) {
	return openBolt(path, func(db *raftboltdb.BoltStore) error {
		return (&stableRecord{}).write(db)
	})
}

// stableBackend is what keeps the stable values: raft-boltdb, or a test's.
type stableBackend interface {
	raft.StableStore
	Close() error
}

// stableRecord is all that the stable store holds. It is one record, so that no part of
// it can be lost alone, or be older than the rest: a promise that is forgotten is one
// that can be given twice. On disk it is JSON with a CRC32C (4 bytes, big endian) at its
// end.
type stableRecord struct {
	// Term is Raft's current term; 0 before there was one.
	Term uint64 `json:"term"`
	// VoteTerm and Candidate are the last vote; 0 and nil when none was given.
	VoteTerm  uint64 `json:"vote_term,omitempty"`
	Candidate []byte `json:"candidate,omitempty"`
	// Peers is what was last seen of each peer. It is replaced, never changed.
	Peers map[string]PeerSeen `json:"peers,omitempty"`
}

func (r *stableRecord) write(db stableBackend) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return db.Set([]byte(stableKey), binary.BigEndian.AppendUint32(b, crc32.Checksum(b, identityCRC)))
}

func (r *stableRecord) read(db stableBackend) error {
	b, err := db.Get([]byte(stableKey))
	if errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return command.ErrDamaged.With("term and vote are missing")
	}
	if err != nil {
		return err
	}
	n := len(b) - 4
	if n < 0 || binary.BigEndian.Uint32(b[n:]) != crc32.Checksum(b[:n], identityCRC) {
		return command.ErrDamaged.With("term and vote do not match their checksum")
	}
	return json.Unmarshal(b[:n], r)
}

// raftStable is Raft's stable store. What a call wrote is durable on return,
// with two exceptions:
//
//   - The library stores a vote as two values, the term first. The term is
//     held back until the candidate comes, and both are written at once.
//     Reads give the vote that is on disk.
//   - After the first failed write of this process a new current term is kept
//     in memory and reported as stored, where the library would otherwise end
//     the process. That is safe: such a node grants no vote and stores no
//     entry any more, so no majority ever counts on its term.
//
// The term never goes back, and to store the one there is costs nothing: see inTerm.
type raftStable struct {
	db    stableBackend
	latch *latch
	disk  *Disk
	// writing is held during a write. Reads do not wait for it.
	writing sync.Mutex
	// stored is what is on disk. What it points to is never changed.
	stored atomic.Pointer[stableRecord]
	// pendingTerm is that of a vote whose candidate has not come yet; 0: none.
	pendingTerm atomic.Uint64
	// unsavedTerm is the current term when it could not be stored; 0: it could.
	unsavedTerm atomic.Uint64
	// changing is held while a new current term is stored, and shared by inTerm.
	changing sync.RWMutex
}

var _ raft.StableStore = (*raftStable)(nil)

func newRaftStable(db stableBackend, l *latch, disk *Disk) (*raftStable, error) {
	s, r := &raftStable{db: db, latch: l, disk: disk}, &stableRecord{}
	if err := r.read(db); err != nil {
		return nil, err
	}
	s.stored.Store(r)
	return s, nil
}

// write changes the record, unless an earlier write failed.
func (s *raftStable) write(what string, fn func(r *stableRecord)) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if err := s.latch.get(); err != nil {
		return err
	}
	r := *s.stored.Load()
	fn(&r)
	defer s.disk.begin("store "+what, urgent)()
	if err := r.write(s.db); err != nil {
		return s.latch.fail(fmt.Errorf("store %s: %w", what, err))
	}
	s.stored.Store(&r)
	return nil
}

func unknownStable(key []byte) error { return fmt.Errorf("the stable store has no place for %q", key) }

// Set implements raft.StableStore.
func (s *raftStable) Set(key, val []byte) error {
	if string(key) != raftLastVoteCand {
		return unknownStable(key)
	}
	if err := s.write("vote", func(r *stableRecord) {
		if term := s.pendingTerm.Load(); term > 0 {
			r.VoteTerm = term
		}
		r.Candidate = bytes.Clone(val)
	}); err != nil {
		return err
	}
	s.pendingTerm.Store(0)
	return nil
}

// SetUint64 implements raft.StableStore.
func (s *raftStable) SetUint64(key []byte, val uint64) error {
	switch string(key) {
	case raftLastVoteTerm:
		s.pendingTerm.Store(val)
		return s.latch.get()
	case raftCurrentTerm:
		if now := s.term(); val == now {
			return nil
		} else if val < now {
			return fmt.Errorf("the term is %d already, and would go back to %d", now, val) // Raft ends the process
		}
		s.changing.Lock()
		defer s.changing.Unlock()
		if err := s.write("term", func(r *stableRecord) { r.Term = val }); err != nil {
			s.unsavedTerm.Store(val)
		}
		return nil
	}
	return unknownStable(key)
}

// term is Raft's current term; 0 before there was one.
func (s *raftStable) term() uint64 { return max(s.stored.Load().Term, s.unsavedTerm.Load()) }

// inTerm runs fn while the current term is term and stays so, or says that it is another
// one, or about to be.
//
// Raft handles heartbeats beside its main loop. One that finds a candidate makes it
// a follower and stores the heartbeat's term, which it has compared before. If the main
// loop had stored a new one meanwhile, the term went back, under a node that led in the
// new one by then. So this is how such a heartbeat is to be handled.
func (s *raftStable) inTerm(term uint64, fn func()) bool {
	if !s.changing.TryRLock() {
		return false
	}
	defer s.changing.RUnlock()
	if s.term() != term {
		return false
	}
	fn()
	return true
}

// Get implements raft.StableStore. A key that was never set is the error "not
// found", which the library compares by its text.
func (s *raftStable) Get(key []byte) ([]byte, error) {
	if string(key) != raftLastVoteCand {
		return nil, unknownStable(key)
	}
	if c := s.stored.Load().Candidate; c != nil {
		return bytes.Clone(c), nil
	}
	return nil, raftboltdb.ErrKeyNotFound
}

// GetUint64 implements raft.StableStore.
func (s *raftStable) GetUint64(key []byte) (uint64, error) {
	r := s.stored.Load()
	var val uint64
	switch string(key) {
	case raftLastVoteTerm:
		val = r.VoteTerm
	case raftCurrentTerm:
		val = s.term()
	default:
		return 0, unknownStable(key)
	}
	if val == 0 {
		return 0, raftboltdb.ErrKeyNotFound
	}
	return val, nil
}

// PeerSeen is what a node last saw of a peer. A peer that shows less later has
// gone back, and must not vote.
type PeerSeen = command.PeerSeen

// setPeer records a peer; the zero value forgets it.
func (s *raftStable) setPeer(id string, v PeerSeen) error {
	if s.stored.Load().Peers[id] == v {
		return nil // without waiting for a disk that hangs
	}
	return s.write("what was seen of a peer", func(r *stableRecord) {
		peers := maps.Clone(r.Peers)
		if peers == nil {
			peers = map[string]PeerSeen{}
		}
		if peers[id] = v; v == (PeerSeen{}) {
			delete(peers, id)
		}
		r.Peers = peers
	})
}

func (s *raftStable) peersSeen() map[string]PeerSeen {
	if peers := maps.Clone(s.stored.Load().Peers); peers != nil {
		return peers
	}
	return map[string]PeerSeen{}
}
