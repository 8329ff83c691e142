package store

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"

	"github.com/holdfast-db/holdfast/command"
)

// identityFormat is the newest layout of a data directory this build knows.
// It goes up when an older build could no longer use the directory.
const identityFormat = 1

const (
	identityFile    = "identity.json"
	identityTmpFile = "identity.json.tmp"
)

// The log stores a data directory can use.
const (
	// LogStoreWAL keeps the Raft log in append-only segment files.
	LogStoreWAL = "wal"
	// LogStoreBolt keeps the Raft log in one B+tree file.
	LogStoreBolt = "boltdb"
)

// Identity says who a node is and what its data directory holds. It is made
// with the directory, and the ID stays the same for as long as the directory
// lives.
type Identity struct {
	// Format is the layout of the directory.
	Format int `json:"format"`
	// ID is the Raft server id: the name and 16 random hex digits.
	ID   string `json:"id"`
	Name string `json:"name"`
	Site string `json:"site"`
	// ClusterID and Epoch are those of the cluster the node belongs to; empty
	// and 0 until it met one.
	ClusterID string `json:"cluster_id,omitempty"`
	Epoch     uint64 `json:"epoch,omitempty"`
	// LogStore names the log store that holds the Raft log; empty until
	// OpenLogs made one. A log of the other kind beside it is a left-over.
	LogStore string `json:"log_store,omitempty"`
	// Paused says that an operator has stopped the syncing of this copy.
	Paused bool `json:"paused,omitempty"`
	// Starts counts how often the directory was opened.
	Starts uint64 `json:"starts"`
	// HasState and HasMarker say that the state file and the commit marker
	// have been there, so that their absence is a loss.
	HasState  bool `json:"has_state,omitempty"`
	HasMarker bool `json:"has_marker,omitempty"`
	// Promotion is the order to be the seed of a new home; nil when there is none.
	Promotion *command.Promotion `json:"promotion,omitempty"`
	// Promoted: the node became a voter as the seed of a new home, whatever role it is
	// started with, until it has once been started as a voter.
	Promoted bool `json:"promoted,omitempty"`
	// Forks are what it has learned of epochs later than its own at that time.
	Forks []command.Fork `json:"forks,omitempty"`
	// Emptied: what the cluster never saw of this directory was set aside, and the rest
	// of it is being removed.
	Emptied bool `json:"emptied,omitempty"`
}

// NewIdentity makes the identity of a node that does not exist yet. Nothing is
// written until OpenDir.
func NewIdentity(name, site string) Identity {
	var random [8]byte
	rand.Read(random[:]) // never fails; see crypto/rand
	return Identity{
		Format: identityFormat,
		ID:     name + "-" + hex.EncodeToString(random[:]),
		Name:   name,
		Site:   site,
	}
}

// identityEnvelope is the file around an identity. The checksum covers the
// identity's compact JSON, so that it may be indented for people.
type identityEnvelope struct {
	CRC32C   string          `json:"crc32c"`
	Identity json.RawMessage `json:"identity"`
}

var identityCRC = crc32.MakeTable(crc32.Castagnoli)

func identityChecksum(compact []byte) string {
	return fmt.Sprintf("%08x", crc32.Checksum(compact, identityCRC))
}

func encodeIdentity(id Identity) ([]byte, error) {
	compact, err := json.Marshal(id)
	if err != nil {
		return nil, err
	}
	b, err := json.MarshalIndent(identityEnvelope{CRC32C: identityChecksum(compact), Identity: compact}, "", "  ")
	if err != nil {
		return nil, err
	}
	return append(b, '\n'), nil
}

var errIdentityDamaged = errors.New("does not match its checksum")

// decodeIdentity is the inverse of encodeIdentity. It does not judge the
// format: a newer one is not damage.
func decodeIdentity(b []byte) (Identity, error) {
	var env identityEnvelope
	if err := json.Unmarshal(b, &env); err != nil {
		return Identity{}, err
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, env.Identity); err != nil {
		return Identity{}, err
	}
	if env.CRC32C != identityChecksum(compact.Bytes()) {
		return Identity{}, errIdentityDamaged
	}
	var id Identity
	if err := json.Unmarshal(compact.Bytes(), &id); err != nil {
		return Identity{}, err
	}
	if id.ID == "" {
		return Identity{}, errors.New("names no node")
	}
	return id, nil
}

func readIdentity(dir string) (Identity, error) {
	b, err := os.ReadFile(filepath.Join(dir, identityFile))
	if err != nil {
		return Identity{}, err
	}
	return decodeIdentity(b)
}

// writeIdentity replaces the identity in one step: after a crash at any moment
// the file is the old or the new one. It is durable on return. step is called
// after each change on disk.
func writeIdentity(dir string, id Identity, step func(string) error) error {
	b, err := encodeIdentity(id)
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, identityTmpFile)
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if err := step("create " + identityTmpFile); err != nil {
		f.Close()
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := step("write " + identityTmpFile); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(dir, identityFile)); err != nil {
		return err
	}
	if err := step("rename " + identityTmpFile); err != nil {
		return err
	}
	return syncPath(dir)
}

// syncPath makes a file, or the names in a directory, durable.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	err = f.Sync()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
