package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/holdfast-db/holdfast/command"
)

// The names in a data directory; identity.json is in identity.go.
const (
	lockFile     = "lock"
	stateName    = "state.db"
	markerName   = "marker"
	stableFile   = "stable.db"
	walLogDir    = "log"
	boltLogFile  = "log.db"
	incomingName = "incoming"
	keptName     = "delta.copy"
	ballastName  = "ballast"
	probeName    = "ballast.probe"
	dirMode      = 0o700
	dataFileMode = 0o600
)

// DirError says why a data directory cannot be used and what to do about it.
// Its text is one line: cause; remedy.
type DirError struct {
	Path   string
	Cause  string
	Remedy string
	Err    error // what the system said, if it said something
}

func (e *DirError) Error() string {
	s := fmt.Sprintf("data directory %s %s", e.Path, e.Cause)
	if e.Err != nil {
		s += ": " + plainCause(e.Err)
	}
	return s + "; " + e.Remedy
}

// Unwrap returns what the system said.
func (e *DirError) Unwrap() error { return e.Err }

// plainCause drops the operation and path of a system error: the sentence
// around it names both already.
func plainCause(err error) string {
	var pe *os.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return strings.Join(strings.Fields(err.Error()), " ")
}

// Dir is a data directory that this process holds. Its methods may be called
// from any goroutine.
type Dir struct {
	path string
	log  hclog.Logger
	lock *os.File
	// hook, when set, is called after each change on disk that a conversion of
	// the log makes, with the name of the step; its error ends the conversion
	// there, as a crash would. For tests.
	hook func(step string) error
	// walSegment is the size of a raft-wal segment in bytes.
	walSegment int
	disk       *Disk

	// mu guards what follows.
	mu sync.Mutex
	// id is as identity.json has it.
	id     Identity
	logs   *Logs // open, or nil
	closed bool
}

// OpenDir takes the directory at path for this process. An absent or empty one
// becomes the directory of id; in any other, id must be what Inspect returned.
// On return the directory is locked against other processes and Starts has
// gone up by one, durably. A refusal leaves the directory as it was; its text
// is one line with cause and remedy, as Inspect's.
func OpenDir(path string, id Identity, log hclog.Logger) (*Dir, error) {
	if log == nil {
		log = hclog.NewNullLogger()
	}
	found, ok, err := Inspect(path)
	if err != nil {
		return nil, err
	}
	if err := sameNode(path, found, ok, id); err != nil {
		return nil, err
	}
	if err := makeDir(path); err != nil {
		return nil, &DirError{Path: path, Cause: "cannot be created", Remedy: "choose another --data-dir", Err: err}
	}
	lock, err := lockDir(path)
	if err != nil {
		return nil, err
	}
	// Look again: until the lock was ours another process could have changed it.
	found, ok, err = Inspect(path)
	if err == nil {
		err = sameNode(path, found, ok, id)
	}
	if err != nil {
		_ = unlock(lock)
		return nil, err
	}
	if ok {
		id = found
	}
	d := &Dir{path: path, log: log.Named("store"), lock: lock, id: id, walSegment: walSegmentBytes}
	d.disk = newDisk(path, d.log)
	id.Starts++
	err = d.writeLocked(id)
	if diskFull(err) && os.Remove(filepath.Join(path, ballastName)) == nil {
		err = d.writeLocked(id)
	}
	if err != nil {
		_ = unlock(lock)
		return nil, &DirError{Path: path, Cause: "cannot record this start", Remedy: "check the disk and its free space", Err: err}
	}
	return d, nil
}

// sameNode refuses an identity other than the one the directory has.
func sameNode(path string, found Identity, ok bool, id Identity) error {
	if id.ID == "" {
		return &DirError{Path: path, Cause: "was opened without an identity", Remedy: "make one with NewIdentity"}
	}
	if ok && found.ID != id.ID {
		return &DirError{Path: path, Cause: fmt.Sprintf("belongs to node %s, not to %s", found.ID, id.ID),
			Remedy: "choose another --data-dir, or start it as the node it belongs to"}
	}
	return nil
}

// makeDir creates path and its missing parents, and makes their names durable.
func makeDir(path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	var parents []string // of the directories that are missing
	for p := path; ; p = filepath.Dir(p) {
		if _, err := os.Stat(p); err == nil {
			break
		} else if !errors.Is(err, os.ErrNotExist) {
			return err
		}
		parents = append(parents, filepath.Dir(p))
	}
	if len(parents) == 0 {
		return nil
	}
	if err := os.MkdirAll(path, dirMode); err != nil {
		return err
	}
	for _, p := range parents {
		if err := syncPath(p); err != nil {
			return err
		}
	}
	return nil
}

// lockDir takes the lock of the directory, which the system gives back when
// the process ends in whatever way. The file holds the process id, for people.
func lockDir(path string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(path, lockFile), os.O_RDWR|os.O_CREATE, dataFileMode)
	if err != nil {
		return nil, &DirError{Path: path, Cause: "cannot be locked", Remedy: "give this user the right to write it", Err: err}
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, &DirError{Path: path, Cause: "cannot be locked", Remedy: "choose a file system with file locks", Err: err}
		}
		return nil, &DirError{Path: path, Cause: "is in use by " + lockHolder(f), Remedy: "stop it, or choose another --data-dir"}
	}
	if err := f.Truncate(0); err == nil {
		fmt.Fprintln(f, os.Getpid()) // only a help for people
	}
	return f, nil
}

// unlock gives a lock back at once. To close the file is not enough: a child that is
// being started has a copy of it for a moment.
func unlock(f *os.File) error {
	return errors.Join(unix.Flock(int(f.Fd()), unix.LOCK_UN), f.Close())
}

// lockHolder names the process that an open lock file was written by.
func lockHolder(f *os.File) string {
	if pid, err := io.ReadAll(io.LimitReader(f, 20)); err == nil && len(pid) > 0 {
		return "process " + strings.TrimSpace(string(pid))
	}
	return "another process"
}

// Guard sets the limits of the directory's disk and watches its space until Close.
// It makes the ballast, a file that is given up when space runs out, as soon as there
// is room. It is called at most once, before OpenLogs.
func (d *Dir) Guard(limits DiskLimits) {
	// Two segments must fit into what is kept free when the disk counts as full.
	d.walSegment = int(min(uint64(d.walSegment), max(limits.Reserve/2, minWALSegment)))
	d.disk.guard(limits)
}

// Disk is how the directory's disk does.
func (d *Dir) Disk() *Disk { return d.disk }

// Identity returns the identity as it is on disk.
func (d *Dir) Identity() Identity {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.id
}

// Path returns the path of the directory.
func (d *Dir) Path() string { return d.path }

// SetCluster records the cluster the node belongs to, durably. The cluster of
// a directory never changes (command.ErrWrongCluster), its epoch only goes up
// (command.ErrStaleEpoch). What is recorded already is not written again.
func (d *Dir) SetCluster(clusterID string, epoch uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	id := d.id
	switch {
	case clusterID == "":
		return errors.New("set cluster: the cluster has no id")
	case id.ClusterID != "" && id.ClusterID != clusterID:
		return command.ErrWrongCluster.With("data directory %s belongs to cluster %s, not to %s", d.path, id.ClusterID, clusterID)
	case epoch < id.Epoch:
		return command.ErrStaleEpoch.With("data directory %s has met epoch %d, not %d", d.path, id.Epoch, epoch)
	case id.ClusterID == clusterID && id.Epoch == epoch:
		return nil
	}
	id.ClusterID, id.Epoch = clusterID, epoch
	if err := d.writeLocked(id); err != nil {
		err = fmt.Errorf("record cluster in %s: %w", d.path, err)
		if !diskFull(err) && !errors.Is(err, os.ErrClosed) {
			d.disk.fail(err)
		}
		return err
	}
	return nil
}

// SetPaused records whether the copy in the directory is paused, durably.
func (d *Dir) SetPaused(paused bool) error {
	if d.Identity().Paused == paused {
		return nil
	}
	return d.change("whether it is paused", func(id *Identity) { id.Paused = paused })
}

// SetPromotion records the order to be the seed of a new home, durably; nil drops it.
func (d *Dir) SetPromotion(p *command.Promotion) error {
	return d.change("promotion", func(id *Identity) { id.Promotion = p })
}

// SetForks records what the node has learned of later epochs, durably.
func (d *Dir) SetForks(forks []command.Fork) error {
	return d.change("forks", func(id *Identity) { id.Forks = forks })
}

// EnterEpoch records that the node lives in an epoch of its cluster, and as the seed
// of its home, in one step and durably. Its promotion is done with that. The forks stay,
// for others to learn of before its state has them.
func (d *Dir) EnterEpoch(epoch uint64, promoted bool) error {
	return d.change("epoch", func(id *Identity) {
		id.Epoch, id.Promotion, id.Promoted = epoch, nil, promoted
	})
}

// ForgetPromoted records that the node was started as a voter, durably: from now on it
// is what it is started as.
func (d *Dir) ForgetPromoted() error {
	if !d.Identity().Promoted {
		return nil
	}
	return d.change("role", func(id *Identity) { id.Promoted = false })
}

// change changes the identity, durably.
func (d *Dir) change(what string, fn func(id *Identity)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	id := d.id
	fn(&id)
	if err := d.writeLocked(id); err != nil {
		return fmt.Errorf("record %s in %s: %w", what, d.path, err)
	}
	return nil
}

// writeLocked makes id the identity, durably, and notes on the way which parts
// of the directory have come to exist. On an error the identity stands as it
// was, or as written: both are whole. The caller holds mu, or is OpenDir.
func (d *Dir) writeLocked(id Identity) error {
	if d.closed {
		return os.ErrClosed
	}
	defer d.disk.begin("write "+identityFile, patient)()
	d.notePartsLocked(&id)
	if err := writeIdentity(d.path, id, d.step); err != nil {
		return err
	}
	d.id = id
	return nil
}

func (d *Dir) notePartsLocked(id *Identity) {
	if !id.HasState {
		id.HasState = checkBoltFile(filepath.Join(d.path, stateName)) == nil
	}
	if !id.HasMarker {
		fi, err := os.Stat(filepath.Join(d.path, markerName))
		id.HasMarker = err == nil && fi.Size() > 0
	}
}

func (d *Dir) step(name string) error {
	if d.hook == nil {
		return nil
	}
	return d.hook(name)
}

// Close gives the directory back. Logs and State must be closed before.
func (d *Dir) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	d.disk.unguard()
	return unlock(d.lock)
}
