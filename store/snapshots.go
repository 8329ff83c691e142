package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/raft"
)

// snapshotDescriptor is all that Raft sees of a snapshot. The data travels by
// WriteCopy and ReceiveCopy, before the descriptor does.
const snapshotDescriptor = "holdfast: the state travels by its own stream\n"

// snapshotStore implements raft.SnapshotStore over the state file, which is the
// one and only snapshot.
type snapshotStore struct{ s *State }

// Snapshots returns Raft's snapshot store.
//
// List names at most one snapshot: the state, at the Raft index that is durable in
// its file or in a kept delta, and nothing while that is 0. Open gives a small descriptor
// whose size is known. Closing the sink of a local snapshot makes the state
// durable up to the index Create named, and that index, term and configuration
// with it. A sink that was written to belongs to a snapshot coming in: it is
// remembered, and never listed, until SwapCopy.
func (s *State) Snapshots() raft.SnapshotStore { return snapshotStore{s} }

// Create implements raft.SnapshotStore.
func (st snapshotStore) Create(version raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	if version != 1 {
		return nil, fmt.Errorf("snapshot version %d is not supported", version)
	}
	return &snapshotSink{s: st.s, meta: raft.SnapshotMeta{
		Version: version, ID: snapshotID("incoming", index, term), Index: index, Term: term,
		Configuration: conf, ConfigurationIndex: confIndex, Size: int64(len(snapshotDescriptor)),
	}}, nil
}

func snapshotID(kind string, index, term uint64) string {
	return fmt.Sprintf("%s-%d-%d", kind, term, index)
}

// List implements raft.SnapshotStore.
func (st snapshotStore) List() ([]*raft.SnapshotMeta, error) {
	kept := st.s.copies.kept.Load() // first: it goes once the file holds it
	m := &st.s.durable.Load().meta
	if kept != nil && kept.meta.RaftIndex > m.RaftIndex {
		m = &kept.meta
	}
	if m.RaftIndex == 0 {
		return nil, nil
	}
	return []*raft.SnapshotMeta{{
		Version: 1, ID: snapshotID("state", m.RaftIndex, m.RaftTerm), Index: m.RaftIndex, Term: m.RaftTerm,
		Configuration: m.configuration(), ConfigurationIndex: m.ConfIndex, Size: int64(len(snapshotDescriptor)),
	}}, nil
}

// Open implements raft.SnapshotStore. The state may have been flushed since it
// was listed: it is then opened as it stands now.
func (st snapshotStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	body := io.NopCloser(bytes.NewReader([]byte(snapshotDescriptor)))
	st.s.copies.mu.Lock()
	in := st.s.copies.created
	st.s.copies.mu.Unlock()
	if in != nil && in.ID == id {
		m := *in
		return &m, body, nil
	}
	list, err := st.List()
	if err != nil {
		return nil, nil, err
	}
	if len(list) == 0 || !bytes.HasPrefix([]byte(id), []byte("state-")) {
		return nil, nil, fmt.Errorf("there is no snapshot %q", id)
	}
	return list[0], body, nil
}

// snapshotSink is one snapshot being made, used by one goroutine.
type snapshotSink struct {
	s    *State
	meta raft.SnapshotMeta
	got  []byte
	done bool
	err  error
}

// ID implements raft.SnapshotSink.
func (k *snapshotSink) ID() string { return k.meta.ID }

// Write implements raft.SnapshotSink. Only a descriptor is accepted.
func (k *snapshotSink) Write(p []byte) (int, error) {
	if k.done {
		return 0, errors.New("snapshot has been closed")
	}
	if len(k.got)+len(p) > len(snapshotDescriptor) {
		return 0, errors.New("snapshot is not of this kind: the peers run incompatible builds")
	}
	k.got = append(k.got, p...)
	return len(p), nil
}

// Close implements raft.SnapshotSink. After a local snapshot, all that Raft may
// now drop from its log is durable in the state file.
func (k *snapshotSink) Close() error {
	if k.done {
		return k.err
	}
	k.done = true
	if len(k.got) == 0 {
		k.err = k.s.settle(k.meta)
	} else if string(k.got) != snapshotDescriptor {
		k.err = errors.New("snapshot is not of this kind: the peers run incompatible builds")
	} else {
		k.s.copies.mu.Lock()
		k.s.copies.created = &k.meta
		k.s.copies.mu.Unlock()
	}
	return k.err
}

// Cancel implements raft.SnapshotSink.
func (k *snapshotSink) Cancel() error {
	k.done = true
	return nil
}

// settleLimit is far above what a flush takes.
const settleLimit = 10 * time.Second

// settle makes the state durable, and with it what a local snapshot claims: the
// snapshot's index may be that of a barrier, which the state never saw.
func (s *State) settle(m raft.SnapshotMeta) error {
	s.mu.Lock()
	n := *s.gen.Load()
	if n.meta.raise(m.Index, m.Term, raft.EncodeConfiguration(m.Configuration), m.ConfigurationIndex) {
		n.seq++
		s.gen.Store(&n)
	}
	s.mu.Unlock()
	// Not for ever: with a full disk the flush waits for space, and whoever stops
	// the node must not wait with it. Raft tries again later.
	ctx, cancel := context.WithTimeout(context.Background(), settleLimit)
	defer cancel()
	if err := s.Flush(ctx); err != nil {
		return fmt.Errorf("make snapshot durable: %w", err)
	}
	return nil
}
