package store

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	walfs "github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/holdfast-db/holdfast/command"
)

// Problem is one thing that Check found.
type Problem struct {
	// File is the part of the data directory, by its name there.
	File string
	// Table is the table of that file, when it is one with tables.
	Table string `json:",omitempty"`
	// At is the place: a revision, a key or a log index.
	At   string `json:",omitempty"`
	What string
	// Hint says what to do about it.
	Hint string `json:",omitempty"`
	// Note says that nothing is damaged: a start copes with it by itself.
	Note bool `json:",omitempty"`
}

// CheckStats is what Check saw.
type CheckStats struct {
	// ID is the node's; empty when its identity cannot be read.
	ID       string
	LogStore string
	// LogFirst and LogLast are 0 when the log is empty.
	LogFirst, LogLast, LogEntries uint64
	// RaftIndex is the log index the state stands for.
	RaftIndex        uint64
	Revision, Oldest uint64
	Keys, DataBytes  uint64
	// Records is how many changes the state file holds.
	Records         uint64
	Problems, Notes uint64
}

const (
	hintState  = "start the node: it repairs its state from another node; if it cannot, move the directory away and let the node join anew"
	hintRejoin = "move the directory away and let the node join anew"
)

// Check reads everything in the data directory of a node that does not run, and
// calls report for each thing that is not as it should be, in the order of the
// files. It writes nothing. Memory use does not depend on the number of keys,
// beyond some bytes for each page of a file.
//
// An error means that the directory cannot be checked: it is not one, a node is
// using it, or this user may not read it. Damage is no error.
func Check(dir string, report func(Problem)) (CheckStats, error) {
	names, err := listDir(dir)
	if err != nil {
		return CheckStats{}, err
	}
	lock, err := lockForCheck(dir)
	if err != nil {
		return CheckStats{}, err
	}
	if lock != nil {
		defer func() { _ = unlock(lock) }()
	}
	c := &checker{dir: dir, names: names, report: report}
	if err := c.identity(); err != nil {
		return c.stats, err
	}
	c.marker()
	c.stable()
	c.state()
	c.keptDelta()
	c.log()
	c.together()
	c.leftovers()
	return c.stats, c.err
}

// listDir returns the names in a data directory, and refuses any other.
func listDir(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, &DirError{Path: dir, Cause: "does not exist", Remedy: "name the --data-dir of a node"}
	case err != nil:
		return nil, &DirError{Path: dir, Cause: "cannot be read", Remedy: "name the --data-dir of a node, as a user who may read it", Err: err}
	}
	var names []string
	ours := false
	for _, e := range entries {
		names = append(names, e.Name())
		switch e.Name() {
		case identityFile, stateName, markerName, stableFile, walLogDir, boltLogFile:
			ours = true
		}
	}
	if !ours {
		return nil, &DirError{Path: dir, Cause: "holds no data of a node", Remedy: "name the --data-dir of a node"}
	}
	return names, nil
}

// lockForCheck keeps nodes out of the directory without leaving a trace. There is
// nothing to lock, and no node, in a copy without the lock file.
func lockForCheck(dir string) (*os.File, error) {
	f, err := os.Open(filepath.Join(dir, lockFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, &DirError{Path: dir, Cause: "cannot be locked", Remedy: "check it as a user who may read it", Err: err}
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	defer f.Close()
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return nil, &DirError{Path: dir, Cause: "cannot be locked", Remedy: "check it where the file system has file locks", Err: err}
	}
	return nil, &DirError{Path: dir, Cause: "is in use by " + lockHolder(f), Remedy: "stop the node first"}
}

// checker is one run of Check.
type checker struct {
	dir    string
	names  []string
	report func(Problem)
	stats  CheckStats
	err    error // why a part could not be checked

	id     Identity
	slot   markerSlot
	slotOK bool
	term   uint64 // Raft's current term, 0 when not known
	// stateOK and logOK say that what stats has of them can be relied on.
	stateOK, logOK bool
	kept           uint64 // the index that a kept delta leads to
}

func (c *checker) has(name string) bool { return slices.Contains(c.names, name) }

func (c *checker) path(name string) string { return filepath.Join(c.dir, name) }

func (c *checker) add(p Problem) {
	if p.Note {
		c.stats.Notes++
	} else {
		c.stats.Problems++
	}
	c.report(p)
}

// failed reports that a part cannot be read, or that it is not this user's to
// read.
func (c *checker) failed(p Problem, err error) {
	if errors.Is(err, fs.ErrPermission) {
		if c.err == nil {
			c.err = &DirError{Path: c.dir, Cause: "has a " + p.File + " that cannot be read", Remedy: "check it as a user who may read it", Err: err}
		}
		return
	}
	p.What = whatIs(err)
	c.add(p)
}

// whatIs is an error in the words of a Problem.
func whatIs(err error) string {
	if errors.Is(err, command.ErrDamaged) {
		return problemOf(err)
	}
	return plainPart(err)
}

func (c *checker) identity() error {
	hint := "put the file back from a copy, or " + hintRejoin
	id, err := readIdentity(c.dir)
	switch {
	case err != nil:
		c.failed(Problem{File: identityFile, Hint: hint}, err)
		switch { // no identity says which one counts
		case c.has(walLogDir):
			c.id.LogStore = LogStoreWAL
		case c.has(boltLogFile):
			c.id.LogStore = LogStoreBolt
		}
	case id.Format > identityFormat:
		return &DirError{Path: c.dir, Cause: fmt.Sprintf("was written by a newer release: its format is %d, this build knows up to %d", id.Format, identityFormat),
			Remedy: "check it with that release"}
	default:
		c.id = id
		if id.LogStore != "" && id.LogStore != LogStoreWAL && id.LogStore != LogStoreBolt {
			c.add(Problem{File: identityFile, What: fmt.Sprintf("its log store %q is not known", id.LogStore), Hint: hint})
		}
	}
	c.stats.ID, c.stats.LogStore = c.id.ID, c.id.LogStore
	return c.err
}

func (c *checker) marker() {
	b, err := os.ReadFile(c.path(markerName))
	if errors.Is(err, fs.ErrNotExist) && !c.id.HasMarker {
		return
	}
	p := Problem{File: markerName, Hint: hintRejoin}
	if err != nil {
		c.failed(p, err)
		return
	}
	bad := 0
	for i := range 2 {
		slot := b[min(i*markerSpacing, len(b)):min(i*markerSpacing+markerSize, len(b))]
		var s markerSlot
		switch {
		case s.decode(slot):
			if !c.slotOK || s.seq > c.slot.seq {
				c.slot, c.slotOK = s, true
			}
		case slices.ContainsFunc(slot, func(b byte) bool { return b != 0 }):
			bad++
		}
	}
	switch {
	case !c.slotOK:
		p.What = "has no valid slot"
		c.add(p)
	case bad > 0:
		c.add(Problem{File: markerName, Note: true, What: "one of its two slots is not valid, as a write that was cut short leaves it; the other one counts"})
	}
}

// openBoltToCheck verifies a bbolt file as a whole, before the library, which
// trusts what it reads, gets to see it. It reports what is wrong; then db is nil.
func (c *checker) openBoltToCheck(name, hint string) (db *bbolt.DB) {
	p := Problem{File: name, Hint: hint}
	path := c.path(name)
	if err := verifyBoltFile(path); err != nil {
		c.failed(p, err)
		return nil
	}
	if err := checkBoltMetas(path); err != nil {
		c.failed(p, err)
	}
	err := openGuarded(path, func() (err error) {
		db, err = bbolt.Open(path, 0, boltReadOnly())
		return err
	})
	if err != nil {
		c.failed(p, err)
		return nil
	}
	return db
}

func boltReadOnly() *bbolt.Options {
	return &bbolt.Options{ReadOnly: true, Timeout: time.Second, NoStatistics: true}
}

// checkBoltMetas returns an error when one of a file's two headers is not valid:
// the file then is as it was one write before, or would be after the next.
func checkBoltMetas(path string) error {
	p, err := openBoltPeek(path)
	if err != nil {
		return err
	}
	defer p.f.Close()
	for i := range int64(2) {
		if _, ok, err := p.readMeta(i * p.pageSize); err != nil {
			return err
		} else if !ok {
			return errors.New("one of its two headers is damaged: its last write may be lost")
		}
	}
	return nil
}

func (c *checker) stable() {
	if !c.has(stableFile) && c.id.LogStore == "" {
		return
	}
	p := Problem{File: stableFile, Hint: hintRejoin}
	db := c.openBoltToCheck(stableFile, hintRejoin)
	if db == nil {
		return
	}
	if err := db.Close(); err != nil {
		c.failed(p, err)
	}
	if err := openGuarded(c.path(stableFile), func() error {
		db, err := raftboltdb.New(raftboltdb.Options{Path: c.path(stableFile), BoltOptions: boltReadOnly()})
		if err != nil {
			return err
		}
		defer db.Close()
		s, err := newRaftStable(db, newLatch(), nil)
		if err != nil {
			return err
		}
		r := s.stored.Load()
		if c.term = r.Term; r.VoteTerm > r.Term {
			return fmt.Errorf("it voted in term %d, but its current term is %d", r.VoteTerm, r.Term)
		}
		return nil
	}); err != nil {
		c.failed(p, err)
	}
}

func knownSegments(tx *bbolt.Tx) error {
	if err := knownNames(tx, metadb.MetaBucket, metadb.MetaKey); err != nil {
		return err
	}
	return knownNames(tx, metadb.StableBucket, walInUse)
}

// knownNames returns an error when a table has a name in it that is never written:
// the value under it would be missed.
func knownNames(tx *bbolt.Tx, table string, names ...string) error {
	b := tx.Bucket([]byte(table))
	if b == nil {
		return fmt.Errorf("its table %s is missing", table)
	}
	return b.ForEach(func(k, _ []byte) error {
		if !slices.Contains(names, string(k)) {
			return fmt.Errorf("the name of a value, %q, is not known", k)
		}
		return nil
	})
}

// entryChecker takes the entries of a log in order.
type entryChecker struct {
	*checker
	file string
	last raft.Log
}

func (e *entryChecker) at(index uint64, what string) {
	e.logOK = false
	e.add(Problem{File: e.file, At: fmt.Sprintf("log index %d", index), What: what, Hint: hintRejoin})
}

// entry takes the next entry: what was read under an index.
func (e *entryChecker) entry(index uint64, l *raft.Log, err error) {
	e.stats.LogEntries++
	if e.stats.LogFirst == 0 {
		e.stats.LogFirst = index
	}
	before := e.stats.LogLast
	e.stats.LogLast = index
	if before > 0 && index != before+1 {
		e.gap(before, index)
	}
	switch {
	case err != nil:
		e.at(index, whatIs(err))
		return
	case l.Index != index:
		e.at(index, fmt.Sprintf("entry %d stands in its place", l.Index))
		return
	case l.Type > raft.LogConfiguration:
		e.at(index, fmt.Sprintf("its type %d is not known", l.Type))
	case l.Term < e.last.Term:
		e.at(index, fmt.Sprintf("it is of term %d, an entry before it of term %d", l.Term, e.last.Term))
	case e.term > 0 && l.Term > e.term:
		e.at(index, fmt.Sprintf("it is of term %d, the node's current term is %d", l.Term, e.term))
	}
	e.last.Term = max(e.last.Term, l.Term)
}

// gap reports that entries are missing between two. A boltdb log may lack some
// that are in the state.
func (e *entryChecker) gap(before, after uint64) {
	if e.file == boltLogFile && e.stateOK && after <= e.stats.RaftIndex+1 {
		e.add(Problem{File: e.file, At: fmt.Sprintf("log index %d", before+1), Note: true,
			What: fmt.Sprintf("entries up to %d are not there; they are in the state", after-1)})
		return
	}
	e.at(before+1, fmt.Sprintf("entries up to %d are missing", after-1))
}

func (c *checker) log() {
	problems := c.stats.Problems
	c.logOK = true
	switch c.id.LogStore {
	case LogStoreWAL:
		c.wal()
	case LogStoreBolt:
		c.boltLog()
	default:
		c.logOK = false
	}
	c.logOK = c.logOK && c.stats.Problems == problems
}

// wal reads a log of raft-wal as a start would, with the library's own recovery
// of the last segment, but through files that cannot be written.
func (c *checker) wal() {
	p := Problem{File: walLogDir, Hint: hintRejoin}
	dir := c.path(walLogDir)
	if err := checkWAL(dir); err != nil {
		c.failed(p, err)
		return
	}
	tableName := filepath.Join(walLogDir, metadb.FileName)
	db := c.openBoltToCheck(tableName, hintRejoin)
	if db == nil {
		return
	}
	err := openGuarded(tableName, func() error { return db.View(knownSegments) })
	if cerr := db.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		c.failed(Problem{File: tableName, Hint: hintRejoin}, err)
		return
	}
	var state types.PersistentState
	if err := func() error {
		table, err := openBoltPeek(c.path(tableName))
		if err != nil {
			return err
		}
		defer table.f.Close()
		raw, err := table.get(metadb.MetaBucket, metadb.MetaKey)
		if err != nil {
			return err
		}
		if err := json.Unmarshal(raw, &state); err != nil {
			return err
		}
		// It has no checksum; a name that is not known would be passed over.
		if again, err := json.Marshal(state); err != nil || !bytes.Equal(raw, again) {
			return errors.New("its list of segments is damaged")
		}
		return nil
	}(); err != nil {
		c.failed(Problem{File: tableName, Hint: hintRejoin}, err)
		return
	}
	files := segment.NewFiler(dir, walReader{walfs.New()})
	e := &entryChecker{checker: c, file: walLogDir}
	for i, s := range state.Segments {
		if s.SealTime.IsZero() != (i == len(state.Segments)-1) {
			c.add(Problem{File: tableName, What: "it does not have exactly one segment that takes entries, at the end", Hint: hintRejoin})
		}
		e.file = filepath.Join(walLogDir, segment.FileName(s))
		if s.ID >= state.NextSegmentID {
			c.add(Problem{File: tableName, What: fmt.Sprintf("segment %d is in use, the next one is to be %d", s.ID, state.NextSegmentID), Hint: hintRejoin})
		}
		if err := openGuarded(e.file, func() error { return e.segment(files, s) }); err != nil {
			c.failed(Problem{File: e.file, Hint: hintRejoin}, err)
		}
	}
}

func (e *entryChecker) segment(files *segment.Filer, s types.SegmentInfo) error {
	var from types.SegmentReader
	last := s.MaxIndex
	if s.SealTime.IsZero() {
		tail, err := files.RecoverTail(s)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // checkWAL has found that it was not in use
		}
		if err != nil {
			return err
		}
		from, last = tail, tail.LastIndex()
		if err := e.rest(s, tail); err != nil {
			return err
		}
	} else {
		sealed, err := files.Open(s)
		if err != nil {
			return err
		}
		from = sealed
	}
	defer from.Close()
	for i := s.MinIndex; i <= last; i++ {
		var l raft.Log
		raw, err := from.GetLog(i)
		if err == nil {
			err = walCodec{}.Decode(raw.Bs, &l)
			raw.Close()
		}
		e.entry(i, &l, err)
	}
	return nil
}

// rest notes when something follows the last whole entry of the last segment. It
// looks the same whether a crash cut a write short there or an entry is damaged:
// the library starts over behind the last one that it can make sense of.
func (e *entryChecker) rest(s types.SegmentInfo, tail types.SegmentWriter) error {
	f, err := os.Open(filepath.Join(e.dir, e.file))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := lostBehind(f.Name(), tail); err != nil {
		return err
	}
	if full, _, err := tail.Sealed(); full || err != nil {
		return err
	}
	end, err := walEnd(f, tail)
	if err != nil {
		return err
	}
	if tail.LastIndex() > 0 {
		end += walFrameHeader // its commit
	}
	r := bufio.NewReaderSize(io.NewSectionReader(f, end, 1<<62), 1<<20)
	for {
		switch b, err := r.ReadByte(); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case b != 0:
			e.add(Problem{File: e.file, Note: true, At: fmt.Sprintf("log index %d", max(tail.LastIndex()+1, s.MinIndex)),
				What: "the log ends here, but bytes follow: a write that a crash cut short, or an entry that is damaged"})
			return nil
		}
	}
}

// walReader lets raft-wal see files but not change any.
type walReader struct{ types.VFS }

func (walReader) Create(string, string, uint64) (types.WritableFile, error) {
	return nil, fs.ErrPermission
}
func (walReader) Delete(string, string) error { return fs.ErrPermission }

// OpenWriter opens a file whose writes fail.
func (walReader) OpenWriter(dir, name string) (types.WritableFile, error) {
	return os.Open(filepath.Join(dir, name))
}

func (c *checker) boltLog() {
	db := c.openBoltToCheck(boltLogFile, hintRejoin)
	if db == nil {
		return
	}
	defer db.Close()
	e := &entryChecker{checker: c, file: boltLogFile}
	if err := openGuarded(boltLogFile, func() error {
		entries, err := raftboltdb.New(raftboltdb.Options{Path: c.path(boltLogFile), BoltOptions: boltReadOnly()})
		if err != nil {
			return err
		}
		defer entries.Close()
		return db.View(func(tx *bbolt.Tx) error {
			logs := tx.Bucket([]byte("logs"))
			if logs == nil {
				return errors.New("its table of entries is missing")
			}
			return logs.ForEach(func(k, _ []byte) error {
				if len(k) != 8 {
					return fmt.Errorf("an entry's key has %d bytes", len(k))
				}
				var l raft.Log
				index := binary.BigEndian.Uint64(k)
				err := openGuarded(boltLogFile, func() error { return boltLog{entries}.GetLog(index, &l) })
				e.entry(index, &l, err)
				return nil
			})
		})
	}); err != nil {
		c.failed(Problem{File: boltLogFile, Hint: hintRejoin}, err)
	}
}

// keptDelta reads what is to get into the state file yet.
func (c *checker) keptDelta() {
	if !c.has(keptName) {
		return
	}
	m, err := verifyKept(c.path(keptName))
	if err != nil {
		c.failed(Problem{File: keptName, Hint: hintState}, err)
		return
	}
	c.kept = m.RaftIndex
}

// together compares the parts with each other, as far as they could be read.
func (c *checker) together() {
	s := &c.stats
	if !c.stateOK || !c.logOK {
		return
	}
	kind := logStorePath(c.id.LogStore)
	if s.LogFirst > s.RaftIndex+1 {
		c.add(Problem{File: kind, At: fmt.Sprintf("log index %d", s.RaftIndex+1), Hint: hintRejoin,
			What: fmt.Sprintf("the log begins at %d, but the state ends at %d", s.LogFirst, s.RaftIndex)})
	}
	if s.LogLast > 0 && s.LogLast < s.RaftIndex {
		c.add(Problem{File: kind, At: fmt.Sprintf("log index %d", s.LogLast+1), Note: true,
			What: fmt.Sprintf("the log ends at %d, the state stands for %d", s.LogLast, s.RaftIndex)})
	}
	if end := max(s.LogLast, s.RaftIndex, c.kept); c.slotOK && c.slot.index > end {
		c.add(Problem{File: markerName, At: fmt.Sprintf("log index %d", end+1), Hint: hintRejoin,
			What: fmt.Sprintf("the node has applied entries up to %d, but its log and state end at %d", c.slot.index, end)})
	}
}

// leftovers notes what the next start removes, and what nobody does.
func (c *checker) leftovers() {
	for _, name := range c.names {
		what := ""
		switch {
		case name == incomingName:
			what = "a copy from another node that was not finished; a start removes it"
		case name == keptName:
			what = "what came from another node and may not be in the state file; a start puts it there"
		case name == rewriteName:
			what = "a smaller state file that was not finished; a start removes it"
		case name == archivesName:
			what = "what archives were restored from; a start removes it"
		case name == identityTmpFile, name == stableFile+".tmp", name == boltLogFile+".tmp":
			what = "a file that was not finished; a start makes it anew when it needs it"
		case strings.HasPrefix(name, asideName):
			what = "a damaged state that a start has set aside; remove it when nobody wants to look at it"
		case c.stats.ID != "" && c.id.LogStore != "" && name == logStorePath(otherLogStore(c.id.LogStore)):
			what = fmt.Sprintf("a log that does not count, as the log store is %s; a start removes it", c.id.LogStore)
		}
		if what != "" {
			c.add(Problem{File: name, What: what, Note: true})
		}
	}
}
