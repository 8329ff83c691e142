package store

import (
	"archive/tar"
	"bufio"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/raft"

	"github.com/holdfast-db/holdfast/command"
)

const (
	// archivesName is the folder for archives that are being restored, and what is
	// made of them.
	archivesName = "archives"
	// smallFileMax bounds the files of an archive but state.bin.
	smallFileMax = 1 << 20
)

// CheckArchive reads a whole archive, verifies it, and says what it holds and what
// its meta.json says. Large ones have their keys sorted in temporary files in tmp,
// the system's folder when empty.
//
// Errors: command.ErrArchive when it is not one that could be restored; those of r.
func CheckArchive(r io.Reader, tmp string) (ArchiveInfo, raft.SnapshotMeta, error) {
	keys := keySorter{dir: tmp}
	defer keys.close()
	a, err := readArchive(r, archiveTaker{
		begin:  func(*ArchiveInfo) error { return nil },
		record: func(at position, rec *command.Record) error { return keys.add(rec.Key, pointer{at: at}) },
	})
	if err == nil {
		err = keys.each(func([]byte) error { return nil })
	}
	return a.info, a.meta, err
}

// SpoolArchive takes in an archive and, once it is whole and verified, calls use
// with it and the checksum of all its bytes. What was spooled is gone when it
// returns.
//
// Errors: command.ErrArchive, also when the archive does not fit on the disk;
// those of r, of use and of the context, as they are.
func (s *State) SpoolArchive(ctx context.Context, r io.Reader, use func(archive io.Reader, sum [sha256.Size]byte) error) error {
	folder := filepath.Join(s.cfg.Dir, archivesName)
	if err := os.MkdirAll(folder, dirMode); err != nil {
		return err
	}
	free, err := freeSpace(folder)
	if err != nil {
		return err
	}
	room := max(int64(free)-2*int64(s.cfg.Disk.reserve()), 0)
	spool, err := nameless(folder)
	if err != nil {
		return err
	}
	defer spool.Close()
	sum := sha256.New()
	switch n, err := io.Copy(io.MultiWriter(spool, sum), io.LimitReader(r, room+1)); {
	case err != nil:
		return err
	case n > room:
		return command.ErrArchive.With("this node has no space for it: %d MiB are free", room>>20)
	}
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if _, _, err := CheckArchive(contextReader{ctx, bufio.NewReaderSize(spool, 64<<10)}, folder); err != nil {
		return err
	}
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return use(spool, [sha256.Size]byte(sum.Sum(nil)))
}

// nameless creates a file that is gone when it is closed.
func nameless(folder string) (*os.File, error) {
	f, err := os.CreateTemp(folder, "holdfast-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	io.Reader
}

func (r contextReader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(b)
}

// archiveTaker takes what an archive holds.
type archiveTaker struct {
	begin func(*ArchiveInfo) error
	// record takes the next record; its value is valid during the call.
	record func(at position, rec *command.Record) error
}

// archiveReader reads one archive.
type archiveReader struct {
	to   archiveTaker
	info ArchiveInfo
	meta raft.SnapshotMeta
	buf  []byte
}

// sourceReader keeps the error of what it reads from, so that it is not taken for
// one of the archive.
type sourceReader struct {
	io.Reader
	err error
}

func (r *sourceReader) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}

// readArchive hands all that an archive holds to a taker, and refuses whatever
// differs from what Archive writes. Until it returns nothing is known to be right:
// the checksums come last.
func readArchive(r io.Reader, to archiveTaker) (*archiveReader, error) {
	source := &sourceReader{Reader: r}
	a := &archiveReader{}
	var taker error
	a.to = archiveTaker{
		begin: func(i *ArchiveInfo) error { taker = to.begin(i); return taker },
		record: func(at position, rec *command.Record) error {
			taker = to.record(at, rec)
			return taker
		},
	}
	err := a.read(bufio.NewReaderSize(source, 64<<10))
	var known *command.Error
	switch {
	case err == nil:
	case taker != nil:
		err = taker
	case source.err != nil:
		err = source.err
	case errors.As(err, &known):
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		err = command.ErrArchive.With("it is cut short")
	default:
		err = command.ErrArchive.With("%v", err)
	}
	return a, err
}

func (a *archiveReader) read(r *bufio.Reader) error {
	zip, err := gzip.NewReader(r)
	if err != nil {
		return err
	}
	zip.Multistream(false)
	files := tar.NewReader(zip)
	var sums strings.Builder
	for _, f := range []struct {
		name string
		read func(r io.Reader, size int64) error
	}{{archiveMeta, a.readMeta}, {archiveState, a.readState}} {
		size, err := nextFile(files, f.name)
		if err != nil {
			return err
		}
		sum := sha256.New()
		if err := f.read(io.TeeReader(files, sum), size); err != nil {
			return err
		}
		fmt.Fprintf(&sums, "%x  %s\n", sum.Sum(nil), f.name)
	}
	size, err := nextFile(files, archiveSums)
	if err != nil {
		return err
	}
	if b, err := readSmall(files, size); err != nil {
		return err
	} else if string(b) != sums.String() {
		return command.ErrArchive.With("its checksums do not match")
	}
	switch _, err := files.Next(); {
	case err == nil:
		return command.ErrArchive.With("something follows %s", archiveSums)
	case !errors.Is(err, io.EOF):
		return err
	}
	if n, err := io.Copy(io.Discard, io.LimitReader(zip, smallFileMax)); err != nil {
		return err
	} else if n == smallFileMax {
		return command.ErrArchive.With("something follows the tar file in it")
	}
	if _, err := r.ReadByte(); !errors.Is(err, io.EOF) {
		return cmp.Or(err, error(command.ErrArchive.With("something follows it")))
	}
	return nil
}

// nextFile goes to the next file, which must have the name.
func nextFile(files *tar.Reader, name string) (size int64, err error) {
	switch h, err := files.Next(); {
	case errors.Is(err, io.EOF):
		return 0, command.ErrArchive.With("%s is missing", name)
	case err != nil:
		return 0, err
	case h.Name != name || h.Typeflag != tar.TypeReg:
		return 0, command.ErrArchive.With("%q stands where %s should be", h.Name, name)
	default:
		return h.Size, nil
	}
}

func readSmall(r io.Reader, size int64) ([]byte, error) {
	if size > smallFileMax {
		return nil, command.ErrArchive.With("a file of %d bytes stands where a small one should be", size)
	}
	return io.ReadAll(r)
}

func (a *archiveReader) readMeta(r io.Reader, size int64) error {
	b, err := readSmall(r, size)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, &a.meta); err != nil {
		return command.ErrArchive.With("%s: %v", archiveMeta, err)
	}
	return nil
}

func (a *archiveReader) readState(file io.Reader, size int64) error {
	r := bufio.NewReaderSize(file, 64<<10)
	magic := make([]byte, len(archiveMagic))
	if _, err := io.ReadFull(r, magic); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	switch {
	case string(magic) != archiveMagic:
		return command.ErrArchive.With("it is a snapshot of another program; what Consul holds comes over by kv export and kv import")
	case a.meta.Size != size:
		return command.ErrArchive.With("%s has %d bytes, not %d as %s says", archiveState, size, a.meta.Size, archiveMeta)
	}
	kind, body, err := a.item(r)
	if err != nil {
		return err
	}
	if kind != itemHeader {
		return command.ErrArchive.With("it begins with item %q", kind)
	}
	if err := json.Unmarshal(body, &a.info); err != nil {
		return command.ErrArchive.With("header: %v", err)
	}
	if a.info.Format != archiveFormat {
		return command.ErrArchive.With("its format is %d, this build knows %d", a.info.Format, archiveFormat)
	}
	if a.info.Revision > math.MaxUint64/2 {
		return command.ErrArchive.With("revision %d leaves none to go on with", a.info.Revision)
	}
	if err := a.to.begin(&a.info); err != nil {
		return err
	}
	var found ArchiveInfo
	var last position
	for {
		kind, body, err := a.item(r)
		if err != nil {
			return err
		}
		switch kind {
		case itemRecord:
			at, rec, err := decodeArchived(body)
			if err != nil {
				return err
			}
			if !last.less(at) || at.rev > a.info.Revision {
				return command.ErrArchive.With("key %q of revision %d.%d comes after %d.%d", rec.Key, at.rev, at.k, last.rev, last.k)
			}
			last = at
			found.count(&rec)
			if err := a.to.record(at, &rec); err != nil {
				return err
			}
		case itemEnd:
			n, used := binary.Uvarint(body)
			if used != len(body) || n != found.records() || found.Keys != a.info.Keys || found.Bytes != a.info.Bytes ||
				found.Sessions != a.info.Sessions || found.Settings != a.info.Settings {
				return command.ErrArchive.With("it does not hold as much as it says")
			}
			if _, err := r.ReadByte(); !errors.Is(err, io.EOF) {
				return cmp.Or(err, error(command.ErrArchive.With("something follows the end of %s", archiveState)))
			}
			return nil
		default:
			return command.ErrArchive.With("item %q is not known", kind)
		}
	}
}

// item reads the next item; its body is valid until the next call. Memory grows
// with what is there, not with what a length claims.
func (a *archiveReader) item(r *bufio.Reader) (kind byte, body []byte, err error) {
	if kind, err = r.ReadByte(); err != nil {
		return 0, nil, err
	}
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return 0, nil, err
	}
	if n > itemMax {
		return 0, nil, command.ErrArchive.With("item of %d bytes", n)
	}
	a.buf = a.buf[:0]
	for left := int(n); left > 0; {
		step, have := min(left, max(cap(a.buf)-len(a.buf), 64<<10)), len(a.buf)
		a.buf = append(a.buf, make([]byte, step)...)
		if _, err := io.ReadFull(r, a.buf[have:]); err != nil {
			return 0, nil, err
		}
		left -= step
	}
	return kind, a.buf, nil
}

// decodeArchived reads a record and refuses what no state could hold. The value
// shares memory with the body.
func decodeArchived(body []byte) (at position, rec command.Record, err error) {
	f := fields{b: body}
	at.rev = f.number()
	k := f.number()
	at.k = uint32(k)
	rec.ModifyRevision = at.rev
	rec.CreateRevision, rec.Flags, rec.LockIndex = f.number(), f.number(), f.number()
	rec.Session, rec.Key, rec.Value = string(f.text()), string(f.text()), f.text()
	switch {
	case f.bad || len(f.b) > 0 || k > math.MaxUint32/2 || rec.CreateRevision == 0 || rec.CreateRevision > at.rev:
		return at, rec, command.ErrArchive.With("fields of revision %d.%d", at.rev, at.k)
	case !archived(rec.Key) || isSystem(rec.Key) && (rec.Session != "" || len(rec.Key) > command.MaxKey),
		!isSystem(rec.Key) && command.Validate(&command.Put{Key: rec.Key}) != nil:
		return at, rec, command.ErrArchive.With("key %q cannot be stored", rec.Key)
	}
	if id, ok := strings.CutPrefix(rec.Key, SpaceSessions); ok {
		if s, err := sessionOf(&rec); err != nil || s.ID != id || command.Validate(&command.SessionCreate{Session: s}) != nil {
			return at, rec, command.ErrArchive.With("session %q cannot be read", id)
		}
	}
	return at, rec, nil
}
