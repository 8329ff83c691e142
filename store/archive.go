package store

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/internal/planted"
)

// An archive is what an operator keeps of a state: all keys, sessions and settings
// at one revision, without history. It is a gzipped tar file of exactly
//
//	meta.json   raft.SnapshotMeta, with the size of state.bin
//	state.bin   below
//	SHA256SUMS  a line "<hex>  <name>" for each of the two
//
// state.bin is
//
//	magic (8) | items
//
// and each item
//
//	type (1) | length of the body (uvarint) | body
//
// First comes the header, an ArchiveInfo as JSON; then one record for each key,
//
//	revision | k | created | flags | lock index | session | key | value
//
// in the order of the changes that made them, numbers as uvarints, strings as a
// uvarint length and their bytes; then the end, with the number of records. What
// restores it can so append to its history, and needs to sort nothing but keys.
const (
	archiveMagic  = "HFSTATE\n"
	archiveFormat = 1

	archiveMeta  = "meta.json"
	archiveState = "state.bin"
	archiveSums  = "SHA256SUMS"

	itemHeader = 'H'
	itemRecord = 'R'
	itemEnd    = 'E'

	// itemMax is what a copy could carry, too.
	itemMax = frameMax - 64<<10
)

// ArchiveInfo says what an archive holds.
type ArchiveInfo struct {
	Format     int
	Cluster    string
	Datacenter string
	Revision   uint64
	Wall       time.Time // of the entry that made the revision
	Keys       uint64    // of users
	Bytes      uint64    // of these and their values
	Sessions   uint64
	Settings   uint64
}

// count takes a record into account.
func (i *ArchiveInfo) count(rec *command.Record) {
	switch {
	case strings.HasPrefix(rec.Key, SpaceSessions):
		i.Sessions++
	case strings.HasPrefix(rec.Key, SpaceSettings):
		i.Settings++
	default:
		i.Keys++
		i.Bytes += uint64(len(rec.Key) + len(rec.Value))
	}
}

func (i *ArchiveInfo) records() uint64 { return i.Keys + i.Sessions + i.Settings }

// archived reports whether a record belongs in an archive: users' keys, sessions
// and settings do. All else of the system's is of this cluster and this moment.
func archived(key string) bool {
	return !isSystem(key) || strings.HasPrefix(key, SpaceSessions) || strings.HasPrefix(key, SpaceSettings)
}

// Archive writes an archive of the state at one revision, the newest when it
// begins, while reads and writes go on. Once that is known begin is called with it,
// and returns where to write to. It may take any time: no view is open while the
// writer is waited for. Until then no superfluous record is dropped from the file.
//
// It walks over history three times and keeps 16 bytes in memory for each change of
// it that replaced another one.
//
// Errors: those of the writer and of the context; command.ErrDamaged;
// command.ErrStopping. What was written until then is not an archive.
func (s *State) Archive(ctx context.Context, begin func(revision uint64) io.Writer) error {
	_, release := s.holdCompaction()
	defer release()
	g := s.gen.Load()
	a := &archiver{ctx: ctx, revision: g.meta.Revision, source: copySource{view: s.view, origin: g.file.origin}}
	if err := a.write(&g.meta, begin); err != nil {
		return fmt.Errorf("archive revision %d: %w", a.revision, err)
	}
	return nil
}

// archiver makes one archive.
type archiver struct {
	ctx      context.Context
	source   copySource
	revision uint64
	// replaced are the changes that later ones up to the revision followed, in order.
	replaced []position
	item     []byte
}

func (a *archiver) write(m *meta, begin func(revision uint64) io.Writer) error {
	if err := a.findReplaced(); err != nil {
		return err
	}
	info := ArchiveInfo{
		Format: archiveFormat, Cluster: m.Cluster.ID, Datacenter: m.Cluster.Datacenter,
		Revision: m.Revision, Wall: time.Unix(0, m.Wall).UTC(),
	}
	size := len(archiveMagic)
	if err := a.live(func(at position, rec *command.Record) error {
		info.count(rec)
		size += len(a.record(at, rec))
		return nil
	}); err != nil {
		return err
	}
	header := appendItem(nil, itemHeader, mustJSON(&info))
	end := appendItem(nil, itemEnd, binary.AppendUvarint(nil, info.records()))
	size += len(header) + len(end)

	zip, err := gzip.NewWriterLevel(begin(a.revision), gzip.BestSpeed)
	if err != nil {
		return err
	}
	out := archiveWriter{tar: tar.NewWriter(zip), made: info.Wall}
	out.file(archiveMeta, mustJSON(raft.SnapshotMeta{
		Version: 1, ID: fmt.Sprintf("%d-%d-%d", m.RaftTerm, m.RaftIndex, info.Wall.UnixMilli()), Index: m.RaftIndex, Term: m.RaftTerm,
		Configuration: m.configuration(), ConfigurationIndex: m.ConfIndex, Size: int64(size),
	}))
	state := bufio.NewWriterSize(out.begin(archiveState, size), 64<<10)
	_, _ = state.WriteString(archiveMagic) // a bufio.Writer keeps its first error
	_, _ = state.Write(header)
	if err := a.live(func(at position, rec *command.Record) error {
		_, err := state.Write(a.record(at, rec))
		return err
	}); err != nil {
		return err
	}
	_, _ = state.Write(end)
	if err := state.Flush(); err != nil {
		return err
	}
	out.end()
	out.file(archiveSums, []byte(out.sums.String()))
	if out.err == nil {
		out.err = out.tar.Close()
	}
	if out.err == nil {
		out.err = zip.Close()
	}
	return out.err
}

// walk calls fn for each change of a key that may be in the archive. The change is
// valid during the call.
func (a *archiver) walk(fn func(c *change) error) error {
	a.source.out = pagesOf(func(page []byte) error {
		if err := a.ctx.Err(); err != nil {
			return err
		}
		return eachChange(page, func(at position, enc []byte) error {
			var c change
			if err := c.decode(at, enc, ""); err != nil {
				return err
			}
			if c.table != tableKV || !archived(c.rec.Key) {
				return nil
			}
			return fn(&c)
		})
	})
	upTo := a.revision
	if planted.Bug("archive-one-short") {
		upTo--
	}
	return a.source.history(position{}, upTo)
}

// findReplaced learns from history which of its changes hold no longer. The way
// back from what the keys lead to now would not do: of a key that was deleted after
// the revision, and made anew once that delete was forgotten, it does not reach the
// revision.
func (a *archiver) findReplaced() error {
	err := a.walk(func(c *change) error {
		if !c.prev.zero() {
			a.replaced = append(a.replaced, c.prev)
		}
		return nil
	})
	slices.SortFunc(a.replaced, comparePositions)
	return err
}

// live calls fn for each record that holds at the revision, in the order of their
// changes.
func (a *archiver) live(fn func(at position, rec *command.Record) error) error {
	replaced := a.replaced
	return a.walk(func(c *change) error {
		for len(replaced) > 0 && replaced[0].less(c.at) {
			replaced = replaced[1:]
		}
		if c.deleted || len(replaced) > 0 && replaced[0] == c.at {
			return nil
		}
		return fn(c.at, &c.rec)
	})
}

// record returns a record's item, which is valid until the next call.
func (a *archiver) record(at position, rec *command.Record) []byte {
	var body [7 * binary.MaxVarintLen64]byte
	b := body[:0]
	for _, n := range [...]uint64{at.rev, uint64(at.k), rec.CreateRevision, rec.Flags, rec.LockIndex} {
		b = binary.AppendUvarint(b, n)
	}
	texts := textSize(rec.Session) + textSize(rec.Key) + textSize(rec.Value)
	a.item = append(a.item[:0], itemRecord)
	a.item = binary.AppendUvarint(a.item, uint64(len(b)+texts))
	a.item = append(a.item, b...)
	a.item = appendText(a.item, rec.Session)
	a.item = appendText(a.item, rec.Key)
	a.item = appendText(a.item, rec.Value)
	return a.item
}

// textSize is how many bytes appendText appends.
func textSize[T string | []byte](v T) int {
	var b [binary.MaxVarintLen64]byte
	return binary.PutUvarint(b[:], uint64(len(v))) + len(v)
}

func appendItem(b []byte, kind byte, body []byte) []byte {
	b = append(b, kind)
	b = binary.AppendUvarint(b, uint64(len(body)))
	return append(b, body...)
}

// pagesOf takes pages of history for a function.
type pagesOf func(page []byte) error

func (p pagesOf) writeHistory(page []byte, _ uint64) error { return p(page) }
func (p pagesOf) writePointers([]byte, uint64) error       { return nil }

// archiveWriter writes the files of an archive and adds up their checksums. After
// an error it does nothing.
type archiveWriter struct {
	tar  *tar.Writer
	made time.Time
	name string
	sum  hash.Hash // of the file being written
	sums strings.Builder
	err  error
}

// begin begins a file of a size.
func (w *archiveWriter) begin(name string, size int) io.Writer {
	if w.err == nil {
		w.err = w.tar.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(size), ModTime: w.made})
	}
	w.name, w.sum = name, sha256.New()
	return io.MultiWriter(w.tar, w.sum)
}

// end ends it.
func (w *archiveWriter) end() { fmt.Fprintf(&w.sums, "%x  %s\n", w.sum.Sum(nil), w.name) }

func (w *archiveWriter) file(name string, content []byte) {
	to := w.begin(name, len(content))
	if w.err == nil {
		_, w.err = to.Write(content)
	}
	w.end()
}
