package store

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

	"github.com/holdfast-db/holdfast/command"
)

// The keys of Raft's stable values, as the library names them.
const (
	raftCurrentTerm  = "CurrentTerm"
	raftLastVoteTerm = "LastVoteTerm"
	raftLastVoteCand = "LastVoteCand"
)

// Our own keys in stable.db, beside the library's.
const (
	stableVote  = "holdfast.vote"
	stablePeers = "holdfast.peers"
)

// openBolt opens a raft-boltdb file, or creates it: under another name first,
// so that a crash leaves no half-made file under this one.
func openBolt(path string) (*raftboltdb.BoltStore, error) {
	open := func(path string) (s *raftboltdb.BoltStore, err error) {
		err = openGuarded(path, func() error {
			s, err = raftboltdb.New(raftboltdb.Options{
				Path: path,
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
		if err := verifyBoltFile(path); err != nil {
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
	if err := s.Close(); err != nil {
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

// stableBackend is what keeps the stable values: raft-boltdb, or a test's.
type stableBackend interface {
	raft.StableStore
	Close() error
}

// raftStable is Raft's stable store. What a call wrote is durable on return,
// with two exceptions:
//
//   - The library stores a vote as two values, the term first. The term is
//     held back until the candidate comes, and both are written as one record.
//     Reads give the vote that is on disk.
//   - After the first failed write of this process a new current term is kept
//     in memory and reported as stored, where the library would otherwise end
//     the process. That is safe: such a node grants no vote and stores no
//     entry any more, so no majority ever counts on its term.
type raftStable struct {
	db    stableBackend
	latch *latch
	disk  *Disk
	// writing is held during a write.
	writing sync.Mutex

	// mu makes a vote's two halves, and the table of peers, one step each.
	mu          sync.Mutex
	pendingTerm uint64 // of a vote whose candidate has not come yet; 0: none
	unsavedTerm uint64 // the current term when it could not be stored
	peers       map[string]PeerSeen
}

var _ raft.StableStore = (*raftStable)(nil)

func newRaftStable(db stableBackend, l *latch, disk *Disk) (*raftStable, error) {
	s := &raftStable{db: db, latch: l, disk: disk, peers: map[string]PeerSeen{}}
	b, err := db.Get([]byte(stablePeers))
	switch {
	case errors.Is(err, raftboltdb.ErrKeyNotFound):
		return s, nil
	case err != nil:
		return nil, err
	}
	if err := json.Unmarshal(b, &s.peers); err != nil {
		return nil, fmt.Errorf("%s: what was seen of the peers is damaged: %w", stableFile, err)
	}
	return s, nil
}

// write stores one value, unless an earlier write failed.
func (s *raftStable) write(key string, val []byte) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if err := s.latch.get(); err != nil {
		return err
	}
	defer s.disk.begin("store "+key, urgent)()
	if err := s.db.Set([]byte(key), val); err != nil {
		return s.latch.fail(fmt.Errorf("store %s: %w", key, err))
	}
	return nil
}

// Set implements raft.StableStore.
func (s *raftStable) Set(key, val []byte) error {
	if string(key) != raftLastVoteCand {
		return s.write(string(key), val)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	term := s.pendingTerm
	if term == 0 {
		v, err := s.vote()
		if err != nil {
			return err
		}
		term = v.term
	}
	if err := s.write(stableVote, encodeVote(vote{term: term, candidate: val})); err != nil {
		return err
	}
	s.pendingTerm = 0
	return nil
}

// SetUint64 implements raft.StableStore.
func (s *raftStable) SetUint64(key []byte, val uint64) error {
	switch string(key) {
	case raftLastVoteTerm:
		s.mu.Lock()
		defer s.mu.Unlock()
		s.pendingTerm = val
		return s.latch.get()
	case raftCurrentTerm:
		if err := s.write(raftCurrentTerm, binary.BigEndian.AppendUint64(nil, val)); err != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.unsavedTerm = val
		}
		return nil
	}
	return s.write(string(key), binary.BigEndian.AppendUint64(nil, val))
}

// Get implements raft.StableStore. A key that was never set is the error "not
// found", which the library compares by its text.
func (s *raftStable) Get(key []byte) ([]byte, error) {
	if string(key) == raftLastVoteCand {
		v, err := s.vote()
		if err == nil && v.candidate == nil {
			err = raftboltdb.ErrKeyNotFound
		}
		return v.candidate, err
	}
	return s.db.Get(key)
}

// GetUint64 implements raft.StableStore.
func (s *raftStable) GetUint64(key []byte) (uint64, error) {
	switch string(key) {
	case raftLastVoteTerm:
		v, err := s.vote()
		if err == nil && v.candidate == nil {
			err = raftboltdb.ErrKeyNotFound
		}
		return v.term, err
	case raftCurrentTerm:
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.unsavedTerm > 0 {
			return s.unsavedTerm, nil
		}
	}
	return s.db.GetUint64(key)
}

// vote is a vote as it is on disk; the zero value when none was given.
type vote struct {
	term      uint64
	candidate []byte
}

func (s *raftStable) vote() (vote, error) {
	b, err := s.db.Get([]byte(stableVote))
	if errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return vote{}, nil
	}
	if err != nil {
		return vote{}, err
	}
	return decodeVote(b)
}

// A vote is term (8 bytes, big endian), candidate, CRC32C of both (4).
func encodeVote(v vote) []byte {
	b := binary.BigEndian.AppendUint64(nil, v.term)
	b = append(b, v.candidate...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, identityCRC))
}

func decodeVote(b []byte) (vote, error) {
	n := len(b) - 4
	if n < 8 || binary.BigEndian.Uint32(b[n:]) != crc32.Checksum(b[:n], identityCRC) {
		return vote{}, fmt.Errorf("%s: the last vote is damaged", stableFile)
	}
	return vote{term: binary.BigEndian.Uint64(b), candidate: b[8:n:n]}, nil
}

// PeerSeen is what a node last saw of a peer. A peer that shows less later has
// gone back, and must not vote.
type PeerSeen = command.PeerSeen

// setPeer records a peer; the zero value forgets it.
func (s *raftStable) setPeer(id string, v PeerSeen) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.peers[id] == v {
		return nil
	}
	peers := maps.Clone(s.peers)
	if peers[id] = v; v == (PeerSeen{}) {
		delete(peers, id)
	}
	b, err := json.Marshal(peers)
	if err != nil {
		return err
	}
	if err := s.write(stablePeers, b); err != nil {
		return err
	}
	s.peers = peers
	return nil
}

func (s *raftStable) peersSeen() map[string]PeerSeen {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.peers)
}
