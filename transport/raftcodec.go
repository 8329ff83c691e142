package transport

//lint:file-ignore SA1019 the codec carries every field the library declares, deprecated ones too

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// Raft's messages travel as
//
//	length of the body (4) | kind (1) | body
//
// with the fields in the order of the library's declarations, numbers as
// varints, byte slices with their length before them.

type raftKind uint8

const (
	// raftAppend carries entries, raftBare is AppendEntries without any.
	raftAppend     raftKind = 1
	raftBare       raftKind = 2
	raftVote       raftKind = 3
	raftPreVote    raftKind = 4
	raftInstall    raftKind = 5 // its body is followed by Size bytes
	raftTimeoutNow raftKind = 6
	raftAnswer     raftKind = 7
	raftError      raftKind = 8 // the body is a text
	raftPacked     raftKind = 9 // raftAppend, compressed: see packing.go
)

const (
	raftHeader = 5
	// maxRaftBody is far above what AppendEntries batches come to, see
	// maxAppendBytes; only a single entry can be as large.
	maxRaftBody = 256 << 20
)

var errMessage = errors.New("raft message cannot be read")

// finishFrame writes the header into the raftHeader bytes left free before the
// body.
func finishFrame(b []byte, k raftKind) error {
	n := len(b) - raftHeader
	if n > maxRaftBody {
		return fmt.Errorf("raft message of %d bytes is too large", n)
	}
	binary.BigEndian.PutUint32(b, uint32(n))
	b[4] = byte(k)
	return nil
}

func appendBytes(b, v []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(v)))
	return append(b, v...)
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

func appendRPCHeader(b []byte, h raft.RPCHeader) []byte {
	b = binary.AppendVarint(b, int64(h.ProtocolVersion))
	b = appendBytes(b, h.ID)
	return appendBytes(b, h.Addr)
}

// maxEntryHead is what an entry takes beside its bytes, at most.
const maxEntryHead = 6*binary.MaxVarintLen64 + 1

// appendMessage encodes a request or an answer of Raft.
func appendMessage(b []byte, m any) []byte {
	switch m := m.(type) {
	case *raft.AppendEntriesRequest:
		size := 0
		for _, e := range m.Entries {
			size += len(e.Data) + len(e.Extensions) + maxEntryHead
		}
		b = slices.Grow(b, size) // a message of megabytes is not gathered by doubling
		b = appendRPCHeader(b, m.RPCHeader)
		b = binary.AppendUvarint(b, m.Term)
		b = appendBytes(b, m.Leader)
		b = binary.AppendUvarint(b, m.PrevLogEntry)
		b = binary.AppendUvarint(b, m.PrevLogTerm)
		b = binary.AppendUvarint(b, uint64(len(m.Entries)))
		for _, e := range m.Entries {
			b = binary.AppendUvarint(b, e.Index)
			b = binary.AppendUvarint(b, e.Term)
			b = append(b, byte(e.Type))
			b = appendBytes(b, e.Data)
			b = appendBytes(b, e.Extensions)
			var at int64
			if !e.AppendedAt.IsZero() {
				at = e.AppendedAt.UnixNano()
			}
			b = binary.AppendVarint(b, at)
		}
		b = binary.AppendUvarint(b, m.LeaderCommitIndex)
	case *raft.AppendEntriesResponse:
		b = appendRPCHeader(b, m.RPCHeader)
		b = binary.AppendUvarint(b, m.Term)
		b = binary.AppendUvarint(b, m.LastLog)
		b = appendBool(b, m.Success)
		b = appendBool(b, m.NoRetryBackoff)
	case *raft.RequestVoteRequest:
		b = appendRPCHeader(b, m.RPCHeader)
		b = binary.AppendUvarint(b, m.Term)
		b = appendBytes(b, m.Candidate)
		b = binary.AppendUvarint(b, m.LastLogIndex)
		b = binary.AppendUvarint(b, m.LastLogTerm)
		b = appendBool(b, m.LeadershipTransfer)
	case *raft.RequestVoteResponse:
		b = appendRPCHeader(b, m.RPCHeader)
		b = binary.AppendUvarint(b, m.Term)
		b = appendBytes(b, m.Peers)
		b = appendBool(b, m.Granted)
	case *raft.RequestPreVoteRequest:
		b = appendRPCHeader(b, m.RPCHeader)
		b = binary.AppendUvarint(b, m.Term)
		b = binary.AppendUvarint(b, m.LastLogIndex)
		b = binary.AppendUvarint(b, m.LastLogTerm)
	case *raft.RequestPreVoteResponse:
		b = appendRPCHeader(b, m.RPCHeader)
		b = binary.AppendUvarint(b, m.Term)
		b = appendBool(b, m.Granted)
	case *raft.InstallSnapshotRequest:
		b = appendRPCHeader(b, m.RPCHeader)
		b = binary.AppendVarint(b, int64(m.SnapshotVersion))
		b = binary.AppendUvarint(b, m.Term)
		b = appendBytes(b, m.Leader)
		b = binary.AppendUvarint(b, m.LastLogIndex)
		b = binary.AppendUvarint(b, m.LastLogTerm)
		b = appendBytes(b, m.Peers)
		b = appendBytes(b, m.Configuration)
		b = binary.AppendUvarint(b, m.ConfigurationIndex)
		b = binary.AppendVarint(b, m.Size)
	case *raft.InstallSnapshotResponse:
		b = appendRPCHeader(b, m.RPCHeader)
		b = binary.AppendUvarint(b, m.Term)
		b = appendBool(b, m.Success)
	case *raft.TimeoutNowRequest:
		b = appendRPCHeader(b, m.RPCHeader)
	case *raft.TimeoutNowResponse:
		b = appendRPCHeader(b, m.RPCHeader)
	default:
		panic(fmt.Sprintf("transport: raft message of unknown type %T", m))
	}
	return b
}

// reader takes fields off a body. After the first failure it yields zeros.
type reader struct {
	b      []byte
	failed bool
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.failed, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) varint() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.failed, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

// bytes shares memory with the body; nil when empty.
func (r *reader) bytes() []byte {
	n := r.uvarint()
	if n > uint64(len(r.b)) {
		r.failed, r.b = true, nil
		return nil
	}
	if n == 0 {
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.failed = true
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

func (r *reader) bool() bool { return r.byte() != 0 }

func (r *reader) header() raft.RPCHeader {
	return raft.RPCHeader{
		ProtocolVersion: raft.ProtocolVersion(r.varint()),
		ID:              r.bytes(),
		Addr:            r.bytes(),
	}
}

// minEntry is the least an encoded entry takes.
const minEntry = 6

func (r *reader) entries() []*raft.Log {
	n := r.uvarint()
	if n > uint64(len(r.b)/minEntry) {
		r.failed, r.b = true, nil
		return nil
	}
	if n == 0 {
		return nil
	}
	logs := make([]raft.Log, n)
	entries := make([]*raft.Log, n)
	for i := range logs {
		e := &logs[i]
		e.Index = r.uvarint()
		e.Term = r.uvarint()
		e.Type = raft.LogType(r.byte())
		e.Data = r.bytes()
		e.Extensions = r.bytes()
		if at := r.varint(); at != 0 {
			e.AppendedAt = time.Unix(0, at)
		}
		entries[i] = e
	}
	return entries
}

// decodeMessage is the inverse of appendMessage: it fills m, whose byte slices
// then share memory with b.
func decodeMessage(b []byte, m any) error {
	r := &reader{b: b}
	switch m := m.(type) {
	case *raft.AppendEntriesRequest:
		m.RPCHeader = r.header()
		m.Term = r.uvarint()
		m.Leader = r.bytes()
		m.PrevLogEntry = r.uvarint()
		m.PrevLogTerm = r.uvarint()
		m.Entries = r.entries()
		m.LeaderCommitIndex = r.uvarint()
	case *raft.AppendEntriesResponse:
		m.RPCHeader = r.header()
		m.Term = r.uvarint()
		m.LastLog = r.uvarint()
		m.Success = r.bool()
		m.NoRetryBackoff = r.bool()
	case *raft.RequestVoteRequest:
		m.RPCHeader = r.header()
		m.Term = r.uvarint()
		m.Candidate = r.bytes()
		m.LastLogIndex = r.uvarint()
		m.LastLogTerm = r.uvarint()
		m.LeadershipTransfer = r.bool()
	case *raft.RequestVoteResponse:
		m.RPCHeader = r.header()
		m.Term = r.uvarint()
		m.Peers = r.bytes()
		m.Granted = r.bool()
	case *raft.RequestPreVoteRequest:
		m.RPCHeader = r.header()
		m.Term = r.uvarint()
		m.LastLogIndex = r.uvarint()
		m.LastLogTerm = r.uvarint()
	case *raft.RequestPreVoteResponse:
		m.RPCHeader = r.header()
		m.Term = r.uvarint()
		m.Granted = r.bool()
	case *raft.InstallSnapshotRequest:
		m.RPCHeader = r.header()
		m.SnapshotVersion = raft.SnapshotVersion(r.varint())
		m.Term = r.uvarint()
		m.Leader = r.bytes()
		m.LastLogIndex = r.uvarint()
		m.LastLogTerm = r.uvarint()
		m.Peers = r.bytes()
		m.Configuration = r.bytes()
		m.ConfigurationIndex = r.uvarint()
		m.Size = r.varint()
	case *raft.InstallSnapshotResponse:
		m.RPCHeader = r.header()
		m.Term = r.uvarint()
		m.Success = r.bool()
	case *raft.TimeoutNowRequest:
		m.RPCHeader = r.header()
	case *raft.TimeoutNowResponse:
		m.RPCHeader = r.header()
	default:
		panic(fmt.Sprintf("transport: raft message of unknown type %T", m))
	}
	if r.failed || len(r.b) > 0 {
		return fmt.Errorf("%w: %T of %d bytes", errMessage, m, len(b))
	}
	return nil
}
