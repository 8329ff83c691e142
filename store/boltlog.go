package store

import (
	"encoding/binary"
	"errors"
	"hash/crc32"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"github.com/holdfast-db/holdfast/command"
)

// A boltLog is raft-boltdb with a checksum for each entry: a CRC32C (4 bytes, big
// endian) of the whole entry, at the end of its extensions. Neither raft-boltdb nor
// bbolt checks what it reads, and a leader would send a damaged entry to all others.
type boltLog struct{ *raftboltdb.BoltStore }

const entrySumSize = 4

// entrySum is the checksum of an entry as it is handed to Raft.
func entrySum(l *raft.Log) (uint32, error) {
	e := *l
	e.AppendedAt = l.AppendedAt.UTC() // the same moment reads back in another zone
	b, err := appendEntry(make([]byte, 0, len(l.Data)+len(l.Extensions)+entryOverhead), &e)
	return crc32.Checksum(b, identityCRC), err
}

// StoreLogs implements raft.LogStore.
func (s boltLog) StoreLogs(logs []*raft.Log) error {
	summed := make([]*raft.Log, len(logs))
	for i, l := range logs {
		sum, err := entrySum(l)
		if err != nil {
			return err
		}
		e := *l
		e.Extensions = binary.BigEndian.AppendUint32(e.Extensions[:len(e.Extensions):len(e.Extensions)], sum)
		summed[i] = &e
	}
	return s.BoltStore.StoreLogs(summed)
}

// StoreLog implements raft.LogStore.
func (s boltLog) StoreLog(log *raft.Log) error { return s.StoreLogs([]*raft.Log{log}) }

// GetLog implements raft.LogStore.
func (s boltLog) GetLog(index uint64, log *raft.Log) error {
	// What is damaged may not be an entry at all.
	if err := s.BoltStore.GetLog(index, log); errors.Is(err, raft.ErrLogNotFound) {
		return err
	} else if err != nil {
		return command.ErrDamaged.With("an entry of the Raft log cannot be decoded: %v", err)
	}
	n := len(log.Extensions) - entrySumSize
	if n >= 0 {
		want := binary.BigEndian.Uint32(log.Extensions[n:])
		if log.Extensions = log.Extensions[:n:n]; n == 0 {
			log.Extensions = nil
		}
		if got, err := entrySum(log); err == nil && got == want {
			return nil
		}
	}
	return command.ErrDamaged.With("an entry of the Raft log does not match its checksum")
}
