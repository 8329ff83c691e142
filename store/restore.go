package store

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.etcd.io/bbolt"

	"github.com/holdfast-db/holdfast/command"
)

// A restore makes a new state file of an archive, beside the one in use, and puts
// it in its place with the entry that asks for it. Of this cluster it keeps what an
// archive does not have: identity, members, who is barred, Raft's configuration and
// cluster time. History and lineage begin anew at the restore's revision,
//
//	L(r) = first 16 bytes of SHA-256( first 16 bytes of the archive's SHA-256 | r | bodies of its changes )
//
// whose changes are what was kept, and the locks' holds. The archive's records lie
// below it, at the revisions they had.

// StagePrefix is what the system's keys of an archive's pieces start with.
func StagePrefix(id string) string { return SpaceStage + id + "/" }

// StageKey is the system's key of a piece of an archive.
func StageKey(id string, piece uint64) string { return fmt.Sprintf("%s%08x", StagePrefix(id), piece) }

// restored says of a state that an archive took the place of another one.
type restored struct {
	ID string `json:"id"`
	// Revision is that of the restore. There is no record of what it changed.
	Revision uint64 `json:"revision"`
}

// Restored is the id and the revision of the last restore of this state; zero when
// there was none.
func (s *State) Restored() (id string, revision uint64) {
	r := &s.gen.Load().meta.Restored
	return r.ID, r.Revision
}

// Restore puts the staged archive that c names in the place of the state, in one
// step: durably, and visible to views. The batch ends with it, as with Publish;
// what is in it counts, as far as a restore keeps it. Views that are open go on
// reading the state before. It returns the revision of the restore.
//
// With command.ErrArchive, the archive is not all there or not what c says, nothing
// has changed and the batch goes on. Any other error ends it.
func (b *Batch) Restore(c *command.Restore) (revision uint64, err error) {
	switch {
	case b.err != nil:
		return 0, b.err
	case b.done:
		return 0, command.ErrStopping.With("batch has ended")
	case len(b.revision) > 0:
		panic("store: Restore with a revision still open")
	}
	revision, err = b.restore(c)
	switch {
	case err == nil:
		b.Discard()
	case !errors.Is(err, command.ErrArchive):
		err = b.fail(fmt.Errorf("restore archive: %w", err))
	}
	return revision, err
}

func (b *Batch) restore(c *command.Restore) (uint64, error) {
	s := b.s
	b.overlay.close()
	b.overlay.open = s.beginTx // the view of the batch so far would be open for long
	folder := filepath.Join(s.cfg.Dir, archivesName)
	r := &restorer{batch: b, command: c, folder: folder, path: filepath.Join(folder, stateName)}
	err := s.onceThereIsSpace(func() error {
		if err := s.Err(); err != nil {
			return fmt.Errorf("%v", err) // which space would not heal
		}
		if err := r.build(); err != nil {
			return err
		}
		return s.swapRestored(r.path, r.meta)
	})
	return r.meta.Revision, err
}

// swapRestored puts a complete state file in place of the state. Needs applying.
func (s *State) swapRestored(path string, m meta) error {
	s.flushing.Lock()
	defer s.flushing.Unlock()
	s.copies.mu.Lock()
	defer s.copies.mu.Unlock()
	if err := s.usable(); err != nil {
		return err
	}
	now := s.gen.Load()
	m.raise(m.Applied, m.AppliedTerm, nil, 0)
	m.raise(now.meta.RaftIndex, now.meta.RaftTerm, now.meta.Conf, now.meta.ConfIndex)
	return s.exchange(path, m)
}

// restorer builds the state file of a restore.
type restorer struct {
	batch        *Batch
	command      *command.Restore
	folder, path string

	meta    meta
	members []member

	out      *builder
	page     []byte
	enc      []byte
	keys     keySorter
	sessions map[string]bool
	holds    []string
}

// build makes the file, durable and complete. On an error there is none.
func (r *restorer) build() (err error) {
	if err := os.MkdirAll(r.folder, dirMode); err != nil {
		return err
	}
	if err := os.RemoveAll(r.path); err != nil {
		return err
	}
	b := r.batch
	r.meta, r.members = b.meta, nil
	r.out, r.page, r.sessions, r.holds = nil, nil, map[string]bool{}, nil
	r.keys = keySorter{dir: r.folder}
	defer r.keys.close()
	defer func() {
		if r.out != nil && err != nil {
			r.out.discard()
		}
	}()
	pieces := &stagedReader{batch: b, id: r.command.ID, pieces: r.command.Pieces, sum: sha256.New()}
	if _, err := readArchive(bufio.NewReaderSize(pieces, copyPage), archiveTaker{begin: r.begin, record: r.record}); err != nil {
		return err
	}
	if [sha256.Size]byte(pieces.sum.Sum(nil)) != r.command.SHA256 {
		return command.ErrArchive.With("its pieces do not have the checksum of the whole")
	}
	if err := r.begins(); err != nil {
		return err
	}
	if err := r.keys.each(r.pointer); err != nil {
		return err
	}
	if err := r.out.pointers(r.page); err != nil {
		return err
	}
	if err := r.out.drain(); err != nil {
		return err
	}
	if err := r.out.check(&r.meta); err != nil {
		return err
	}
	if err := r.out.finish(func(tx *bbolt.Tx) error { return putMeta(tx, r.meta, r.members, true) }); err != nil {
		return err
	}
	return r.out.close()
}

// begin begins the file once the restore's revision is known.
func (r *restorer) begin(info *ArchiveInfo) error {
	m := &r.meta
	rev := max(m.Revision, info.Revision) + 1
	m.Revision, m.KVRevision, m.MembersRevision, m.SessionsRevision = rev, rev, rev, rev
	// Who knew any prefix before learns that it may have changed.
	m.LastDelete, m.Oldest, m.Buried = rev, rev, rev
	m.Keys, m.DataBytes, m.SystemKeys, m.SystemBytes, m.OnceBytes = 0, 0, 0, 0, 0
	m.Changes, m.ChangeBytes = 0, 0
	m.Restored = restored{ID: r.command.ID, Revision: rev}
	m.rollHash(rev)
	// There is nothing superfluous in the file.
	h := copyHeader{Revision: rev, Compaction: local{Target: rev, NextRev: rev + 1}}
	var err error
	if r.out, err = newBuilder(r.path, &h, r.batch.s.cfg.MaxData); err != nil {
		return err
	}
	r.out.start()
	r.page = r.out.buffer()
	return nil
}

// record takes a record of the archive. Sessions come before the locks they hold,
// since they were made before.
func (r *restorer) record(at position, rec *command.Record) error {
	if id, ok := strings.CutPrefix(rec.Key, SpaceSessions); ok {
		r.sessions[id] = true
	}
	if rec.Session != "" {
		if r.sessions[rec.Session] {
			r.holds = append(r.holds, SpaceHolds+rec.Session+"/"+rec.Key)
		} else {
			rec.Session = "" // nobody could ever release it
		}
	}
	c := change{at: at, table: tableKV, rec: *rec}
	r.enc = c.encode(r.enc[:0], header{})
	c.seal(command.Lineage{})
	return r.take(&c)
}

// take puts a change into the file and counts it.
func (r *restorer) take(c *change) error {
	m := &r.meta
	m.Changes++
	m.ChangeBytes += uint64(len(c.enc))
	if c.table == tableKV {
		m.count(c.rec.Key, 1, len(c.rec.Key)+len(c.rec.Value))
		if err := r.keys.add(c.rec.Key, c.pointer()); err != nil {
			return err
		}
	}
	r.page = appendChange(r.page, c.at, c.enc)
	if len(r.page) < copyPage {
		return nil
	}
	err := r.out.history(r.page)
	r.page = r.out.buffer()
	return err
}

// begins makes the revision that history begins with.
func (r *restorer) begins() error {
	m, b := &r.meta, r.batch
	h := header{stamp: m.Stamp, wall: m.Wall, changes: m.Changes, bytes: m.ChangeBytes}
	var changes []*change
	add := func(of table, rec command.Record) position {
		rec.ModifyRevision = m.Revision
		c := &change{at: position{m.Revision, uint32(len(changes))}, table: of, rec: rec}
		c.encode(nil, h)
		changes = append(changes, c)
		return c.at
	}
	at := add(tableCluster, command.Record{Value: mustJSON(m.Cluster)})
	m.ClusterRev, m.ClusterK = at.rev, at.k
	for _, row := range b.members {
		at := add(tableMember, command.Record{Key: row.ID, Value: mustJSON(row.Member)})
		r.members = append(r.members, member{Member: row.Member, Rev: at.rev, K: at.k})
	}
	err := b.scan(SpaceBarred, "", false, func(key string, l located) (bool, error) {
		rec, err := b.record(strings.Clone(key), l, nil)
		rec.CreateRevision = m.Revision
		add(tableKV, rec)
		return err == nil, err
	})
	b.overlay.close()
	b.overlay.open = b.s.beginTx
	if err != nil {
		return err
	}
	slices.Sort(r.holds)
	for _, key := range r.holds {
		add(tableKV, command.Record{Key: key, CreateRevision: m.Revision})
	}
	var archive digest
	copy(archive[:], r.command.SHA256[:])
	m.Lineage = extendLineage(sha256.New(), archive, m.Revision, changes)
	for _, c := range changes {
		c.seal(command.Lineage(m.Lineage))
		if err := r.take(c); err != nil {
			return err
		}
	}
	err = r.out.history(r.page)
	r.page = r.out.buffer()
	return err
}

// pointer puts what a key leads to into the file.
func (r *restorer) pointer(pointer []byte) error {
	r.page = append(r.page, pointer...)
	if len(r.page) < copyPage {
		return nil
	}
	err := r.out.pointers(r.page)
	r.page = r.out.buffer()
	return err
}

// stagedReader reads a staged archive, piece by piece, each under a view of its
// own.
type stagedReader struct {
	batch        *Batch
	id           string
	next, pieces uint64
	rest         []byte
	sum          hash.Hash
}

func (r *stagedReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.next == r.pieces {
			return 0, io.EOF
		}
		if err := r.fetch(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (r *stagedReader) fetch() error {
	b := r.batch
	o := overlay{top: b.top, under: b.under, oldest: b.oldest, open: b.s.beginTx}
	defer o.close()
	key := StageKey(r.id, r.next)
	l, ok, err := o.find(key, false)
	switch {
	case err != nil:
		return err
	case !ok || l.deleted:
		return command.ErrArchive.With("piece %d of %d is missing", r.next, r.pieces)
	}
	rec, err := o.record(key, l, nil)
	if err != nil {
		return err
	}
	r.rest = rec.Value
	r.next++
	_, err = r.sum.Write(rec.Value)
	return err
}
