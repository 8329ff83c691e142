package store

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	walfs "github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"

	"github.com/holdfast-db/holdfast/command"
)

// walSegmentBytes is the size at which raft-wal starts a new file, and the
// space it takes for one in advance. On a disk that is full it is less, and no less
// than minWALSegment.
const (
	walSegmentBytes = 64 << 20
	minWALSegment   = 1 << 20
)

// raft-wal's own layout, as far as it is looked at from outside.
const (
	walMagic      = 0x58eb6b0d
	walFileHeader = 32
	// walFrameHeader is the header of an entry, all of a commit, and what both are
	// aligned to.
	walFrameHeader = 8
	// walInUse is our key in raft-wal's own table of stable values: the id of
	// the newest segment that holds an entry.
	walInUse = "holdfast.segment-in-use"
)

// A walLog is raft-wal with five gaps closed:
//
//   - raft-wal does not check what it reads, and a damaged entry can end the
//     process. Here each entry carries a checksum (walCodec).
//   - raft-wal ends a log at whatever it can make nothing of, as at a write that
//     a crash has cut short. Where whole writes follow, it is damage (lostBehind).
//   - raft-wal takes an absent last segment for one it had no time to create,
//     and starts it empty. Here the first entry of a segment is acknowledged
//     only after the segment is noted as in use, so checkWAL can tell a loss
//     from a crash.
//   - A crash between the append that fills a segment and the start of the
//     next one leaves a log that takes no entry ever again. It is mended when
//     the log is opened.
//   - Close closes the table of segments too, so that the log can be opened
//     again by the same process.
type walLog struct {
	*wal.WAL
	meta  *walMeta
	files *walFiles
}

// openWAL opens the log in a directory, or creates it there. A crash while it
// is created leaves a directory that can be opened again.
func openWAL(dir string, segmentBytes int, disk *Disk, log hclog.Logger) (*walLog, error) {
	if err := os.Mkdir(dir, dirMode); err == nil {
		if err := syncPath(filepath.Dir(dir)); err != nil {
			return nil, err
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	table := filepath.Join(dir, metadb.FileName)
	if err := errors.Join(verifyBoltFile(table), checkBoltMetas(table)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s %w", metadb.FileName, err)
	}
	db := &metadb.BoltMetaDB{}
	files := &walFiles{Filer: segment.NewFiler(dir, walfs.New()), dir: dir, meta: db, disk: disk}
	meta := &walMeta{BoltMetaDB: db, files: files}
	var w *wal.WAL
	err := openGuarded(dir, func() (err error) {
		w, err = wal.Open(dir, wal.WithMetaStore(meta), wal.WithSegmentFiler(files),
			wal.WithCodec(walCodec{}), wal.WithSegmentSize(segmentBytes), wal.WithLogger(log.Named("wal")))
		return err
	})
	if err != nil {
		files.dropTail()
		meta.Close()
		return nil, err
	}
	return &walLog{WAL: w, meta: meta, files: files}, nil
}

// StoreLogs implements raft.LogStore. raft-wal starts a new segment beside its
// callers and only logs when that fails: what it then says of the full one it went on
// with is given its cause.
func (w *walLog) StoreLogs(logs []*raft.Log) error {
	err := w.WAL.StoreLogs(logs)
	if why := w.files.refused.Load(); why != nil && errors.Is(err, wal.ErrSealed) {
		return fmt.Errorf("start a segment: %w", *why)
	}
	return err
}

// StoreLog implements raft.LogStore.
func (w *walLog) StoreLog(log *raft.Log) error { return w.StoreLogs([]*raft.Log{log}) }

func (w *walLog) Close() error {
	err := w.WAL.Close()
	if merr := w.meta.Close(); err == nil {
		err = merr
	}
	return err
}

// walCodec is raft-wal's own encoding of an entry, made in one piece, with its
// CRC32C at the end (4 bytes, big endian).
type walCodec struct{ binary wal.BinaryCodec }

const walCodecID = wal.FirstExternalCodecID + 1

// ID implements wal.Codec. raft-wal asks for it when it opens a segment, but
// notes its own codec in those it makes; walMeta and walFiles put it right.
func (walCodec) ID() uint64 { return walCodecID }

// Encode implements wal.Codec.
func (walCodec) Encode(l *raft.Log, w io.Writer) error {
	var b []byte
	if buf, ok := w.(*bytes.Buffer); ok {
		buf.Grow(len(l.Data) + len(l.Extensions) + entryOverhead)
		b = buf.AvailableBuffer()
	}
	b, err := appendEntry(b, l)
	if err != nil {
		return err
	}
	_, err = w.Write(binary.BigEndian.AppendUint32(b, crc32.Checksum(b, identityCRC)))
	return err
}

// appendEntry appends raft-wal's own encoding of an entry.
func appendEntry(b []byte, l *raft.Log) ([]byte, error) {
	b = binary.AppendUvarint(b, l.Index)
	b = binary.AppendUvarint(b, l.Term)
	b = binary.AppendUvarint(b, uint64(l.Type))
	b = binary.AppendUvarint(b, uint64(len(l.Data)))
	b = append(b, l.Data...)
	b = binary.AppendUvarint(b, uint64(len(l.Extensions)))
	b = append(b, l.Extensions...)
	return l.AppendedAt.AppendBinary(b)
}

// Decode implements wal.Codec.
func (c walCodec) Decode(b []byte, l *raft.Log) error {
	n := len(b) - 4
	if n < 0 || binary.BigEndian.Uint32(b[n:]) != crc32.Checksum(b[:n], identityCRC) {
		return command.ErrDamaged.With("an entry of the Raft log does not match its checksum")
	}
	return c.binary.Decode(b[:n], l)
}

// walMeta is raft-wal's table of segments. Loading it mends a full last
// segment.
type walMeta struct {
	*metadb.BoltMetaDB
	files *walFiles
}

// CommitState implements types.MetaStore.
func (m *walMeta) CommitState(state types.PersistentState) error {
	for i := range state.Segments {
		s := &state.Segments[i]
		s.Codec = walCodecID
		if i == len(state.Segments)-1 && s.SealTime.IsZero() {
			s.SizeLimit = m.files.limit(s.ID, s.SizeLimit)
		}
	}
	return m.BoltMetaDB.CommitState(state)
}

// Load reads the table. When the last segment is full, its entries first move
// to a longer one, which takes its place in one step: the file itself does not
// tell whether the index it ends with was written whole.
func (m *walMeta) Load(dir string) (types.PersistentState, error) {
	state, err := m.BoltMetaDB.Load(dir)
	if err != nil || len(state.Segments) == 0 {
		return state, err
	}
	last := &state.Segments[len(state.Segments)-1]
	m.files.begun.id, m.files.begun.limit = last.ID, last.SizeLimit
	if !last.SealTime.IsZero() {
		return state, nil
	}
	tail, err := m.files.RecoverTail(*last)
	if errors.Is(err, fs.ErrNotExist) {
		return state, nil // raft-wal creates it
	}
	if err != nil {
		return state, err
	}
	full, _, err := tail.Sealed()
	if err != nil || !full {
		m.files.tail, m.files.tailID = tail, last.ID
		return state, err
	}
	defer tail.Close()
	fi, err := os.Stat(filepath.Join(dir, segment.FileName(*last)))
	if err != nil {
		return state, err
	}
	longer := types.SegmentInfo{
		ID:         state.NextSegmentID,
		BaseIndex:  last.MinIndex,
		MinIndex:   last.MinIndex,
		SizeLimit:  uint32(fi.Size()) + 1<<20,
		Codec:      walCodecID,
		CreateTime: time.Now(),
	}
	m.files.begun.id, m.files.begun.limit = longer.ID, longer.SizeLimit
	if err := m.files.copySegment(longer, tail); err != nil {
		return state, fmt.Errorf("mend full segment: %w", err)
	}
	state.NextSegmentID++
	*last = longer
	return state, m.CommitState(state)
}

// walFiles makes raft-wal's segment files.
type walFiles struct {
	*segment.Filer
	dir  string
	meta *metadb.BoltMetaDB
	disk *Disk
	// tail is the last segment as Load recovered it, until Open asks for it.
	tail   types.SegmentWriter
	tailID uint64
	// begun is the newest segment and the size it was given. raft-wal serialises the
	// calls that make one.
	begun struct {
		id    uint64
		limit uint32
	}
	// refused is why the last segment could not be made, nil when it was.
	refused atomic.Pointer[error]
}

// limit is the size of a segment: as wanted, or less while the disk is full, so that
// there is one for votes and deletes. A segment keeps the size it was given first.
func (f *walFiles) limit(id uint64, wanted uint32) uint32 {
	if f.begun.limit == 0 || f.begun.id != id {
		f.begun.id, f.begun.limit = id, wanted
		if left, full := f.disk.short(); full {
			f.begun.limit = uint32(min(uint64(wanted), max(left/8, minWALSegment)))
		}
	}
	return min(wanted, f.begun.limit)
}

// Create implements types.SegmentFiler.
func (f *walFiles) Create(info types.SegmentInfo) (types.SegmentWriter, error) {
	info.Codec, info.SizeLimit = walCodecID, f.limit(info.ID, info.SizeLimit)
	w, err := f.Filer.Create(info)
	if err != nil {
		f.refused.Store(&err)
		return nil, err
	}
	f.refused.Store(nil)
	return &walTail{SegmentWriter: w, id: info.ID, meta: f.meta}, nil
}

// RecoverTail implements types.SegmentFiler. It also completes what a crash
// right after Create may have left undone: the file's length and the
// durability of its name.
func (f *walFiles) RecoverTail(info types.SegmentInfo) (types.SegmentWriter, error) {
	if f.tail != nil && f.tailID == info.ID {
		tail := f.tail
		f.tail = nil
		return tail, nil
	}
	path := filepath.Join(f.dir, segment.FileName(info))
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if fi.Size() < int64(info.SizeLimit) {
		if err := os.Truncate(path, int64(info.SizeLimit)); err != nil {
			return nil, err
		}
	}
	if err := syncPath(f.dir); err != nil {
		return nil, err
	}
	w, err := f.Filer.RecoverTail(info)
	if err != nil {
		return nil, err
	}
	if err := lostBehind(path, w); err != nil {
		w.Close()
		return nil, err
	}
	noted, err := f.meta.GetStable([]byte(walInUse))
	if err != nil {
		w.Close()
		return nil, err
	}
	t := &walTail{SegmentWriter: w, id: info.ID, meta: f.meta, noted: walSegmentID(noted) == info.ID && noted != nil}
	if w.LastIndex() > 0 {
		// A crash came between the first append and the note. From now on the
		// entries count.
		if err := t.note(); err != nil {
			w.Close()
			return nil, err
		}
	}
	return t, nil
}

// walEnd is the offset behind the last entry that raft-wal has found in its last segment.
// A commit follows there, or the index of a full segment and a commit.
func walEnd(b io.ReaderAt, tail types.SegmentWriter) (int64, error) {
	last := tail.LastIndex()
	if last == 0 {
		return walFileHeader, nil
	}
	o, ok := tail.(interface{ OffsetForFrame(uint64) (uint32, error) })
	if !ok {
		return 0, errors.New("raft-wal does not say where an entry is")
	}
	off, err := o.OffsetForFrame(last)
	if err != nil {
		return 0, err
	}
	var head [walFrameHeader]byte
	if _, err := b.ReadAt(head[:], int64(off)); err != nil {
		return 0, err
	}
	return int64(off) + walFrameSize(head[:]), nil
}

// walFrameSize is how many bytes a frame takes, by its header. A commit has the checksum
// of what it commits in the place of a length.
func walFrameSize(head []byte) int64 {
	if head[0] == segment.FrameCommit {
		return walFrameHeader
	}
	size := int64(binary.LittleEndian.Uint32(head[4:]))
	return walFrameHeader + (size+walFrameHeader-1)/walFrameHeader*walFrameHeader
}

// lostBehind returns an error when a whole write lies behind the end that raft-wal has
// found of a segment. Each write is begun when the one before it is durable, so what
// raft-wal could make nothing of was durable then, and is lost now. What a crash leaves
// is never that: of the last write of all there may be any part, or, if another one has
// been written over its beginning, its end, which its checksum does not fit.
func lostBehind(path string, tail types.SegmentWriter) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	end, err := walEnd(f, tail)
	if err != nil {
		return err
	}
	rest, err := io.ReadAll(io.NewSectionReader(f, end, 1<<62))
	if err != nil {
		return err
	}
	rest = bytes.TrimRight(rest, "\x00")
	for at := 0; at+walFrameHeader <= len(rest); at += walFrameHeader {
		if rest[at] == segment.FrameCommit && wholeWrite(rest[at+walFrameHeader:]) {
			return command.ErrDamaged.With("entry %d cannot be read, and whole ones follow", tail.LastIndex()+1)
		}
	}
	return nil
}

// wholeWrite reports whether b begins with entries and the commit that fits them.
func wholeWrite(b []byte) bool {
	for at := int64(0); at+walFrameHeader <= int64(len(b)); {
		head := b[at : at+walFrameHeader]
		switch head[0] {
		case segment.FrameEntry, segment.FrameIndex:
			at += walFrameSize(head)
		case segment.FrameCommit:
			return at > 0 && binary.LittleEndian.Uint32(head[4:]) == crc32.Checksum(b[:at], identityCRC)
		default:
			return false
		}
	}
	return false
}

// dropTail closes a recovered segment nobody asked for.
func (f *walFiles) dropTail() {
	if f.tail != nil {
		f.tail.Close()
		f.tail = nil
	}
}

// copySegment writes the entries of a segment into a new one, durably.
func (f *walFiles) copySegment(info types.SegmentInfo, from types.SegmentWriter) error {
	if err := f.Delete(info.BaseIndex, info.ID); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err // an earlier attempt's file is in the way
	}
	to, err := f.Create(info)
	if err != nil {
		return err
	}
	defer to.Close()
	const batchBytes = 1 << 20
	var batch []types.LogEntry
	size := 0
	for i := info.BaseIndex; i <= from.LastIndex(); i++ {
		raw, err := from.GetLog(i)
		if err != nil {
			return err
		}
		batch = append(batch, types.LogEntry{Index: i, Data: append([]byte(nil), raw.Bs...)})
		size += len(raw.Bs)
		raw.Close()
		if size < batchBytes && i < from.LastIndex() {
			continue
		}
		if err := to.Append(batch); err != nil {
			return err
		}
		batch, size = batch[:0], 0
	}
	return nil
}

// walTail is the segment that takes entries. It notes that it is in use before
// its first append returns. raft-wal serialises the calls.
type walTail struct {
	types.SegmentWriter
	id    uint64
	meta  *metadb.BoltMetaDB
	noted bool
}

// Append implements types.SegmentWriter.
func (t *walTail) Append(entries []types.LogEntry) error {
	if err := t.SegmentWriter.Append(entries); err != nil {
		return err
	}
	return t.note()
}

func (t *walTail) note() error {
	if t.noted {
		return nil
	}
	if err := t.meta.SetStable([]byte(walInUse), binary.BigEndian.AppendUint64(nil, t.id)); err != nil {
		return fmt.Errorf("note segment in use: %w", err)
	}
	t.noted = true
	return nil
}

func walSegmentID(b []byte) uint64 {
	if len(b) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

// checkWAL returns an error when a raft-wal directory lacks its table of
// segments, or a segment of that table, or when one is cut short. It writes
// nothing and takes no lock.
func checkWAL(dir string) error {
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return errors.New("is not a directory")
	}
	table, err := openBoltPeek(filepath.Join(dir, metadb.FileName))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("lacks %s, its table of segments", metadb.FileName)
	}
	if err != nil {
		return fmt.Errorf("has a bad table of segments: %s %s", metadb.FileName, plainCause(err))
	}
	defer table.f.Close()
	raw, err := table.get(metadb.MetaBucket, metadb.MetaKey)
	if err != nil {
		return fmt.Errorf("has a bad table of segments: %s %s", metadb.FileName, plainCause(err))
	}
	var state types.PersistentState
	if err := json.Unmarshal(raw, &state); err != nil {
		return fmt.Errorf("has a bad table of segments: %s %s", metadb.FileName, plainCause(err))
	}
	inUse, err := table.get(metadb.StableBucket, walInUse)
	if err != nil {
		return fmt.Errorf("has a bad table of segments: %s %s", metadb.FileName, plainCause(err))
	}
	for _, s := range state.Segments {
		open := s.SealTime.IsZero()
		if open && (inUse == nil || walSegmentID(inUse) != s.ID) {
			continue // holds no entry yet, so it need not be there
		}
		if err := checkWALSegment(dir, s); err != nil {
			return err
		}
	}
	return nil
}

func checkWALSegment(dir string, s types.SegmentInfo) error {
	name := segment.FileName(s)
	f, err := os.Open(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("lacks segment %s", name)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	// A full segment ends with an index of its entries; another has its whole
	// space from the start.
	least := int64(s.SizeLimit)
	if !s.SealTime.IsZero() {
		least = walFileHeader
		if s.IndexStart > 0 && s.MaxIndex >= s.BaseIndex {
			least = int64(s.IndexStart) + 4*int64(s.MaxIndex-s.BaseIndex+1)
		}
	}
	if fi.Size() < least {
		return fmt.Errorf("has a segment cut short: %s has %d bytes of at least %d", name, fi.Size(), least)
	}
	var head [walFileHeader]byte
	if _, err := io.ReadFull(f, head[:]); err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(head[:]) != walMagic ||
		binary.LittleEndian.Uint64(head[8:]) != s.BaseIndex || binary.LittleEndian.Uint64(head[16:]) != s.ID {
		return fmt.Errorf("has a segment with another's content: %s", name)
	}
	return nil
}
