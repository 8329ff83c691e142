package fault

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Disks is the ability of a target whose members' disks also fail, and hold something
// else than was written, as asked for.
type Disks interface {
	Power
	// Sicken makes a member's disk ill from its next operation on, in place of the
	// illness before.
	Sicken(ctx context.Context, name string, ill Illness) error
	// Cure ends the illness of members' disks; without a name, of all. What it has
	// destroyed stays so.
	Cure(ctx context.Context, names ...string) error
	// MayHang says whether a disk can be made to hang.
	MayHang() bool
	// Folder is where a member's data lies now, for Harm, Wipe, Save and RollBack.
	Folder(name string) string
}

// Illness is what a disk does instead of working.
type Illness struct {
	Name string
	// NoSpace: what needs space fails.
	NoSpace bool
	// Fails: every operation fails with an input/output error.
	Fails bool
	// FailsOneSync: the next sync of a file fails with an input/output error, and what
	// it should have made durable never will be, though it reads as written.
	FailsOneSync bool
	// Tears: the next write of more than one sector fails after its first one.
	Tears bool
	// Hangs: no operation ends until the disk is cured.
	Hangs bool
	// Delay is how much longer each sync takes.
	Delay time.Duration
	// Final: a process that met it stores nothing more, so that it must be started
	// again once the disk is cured.
	Final bool
}

// Illnesses are all that are known.
var Illnesses = []Illness{
	{Name: "full", NoSpace: true},
	{Name: "failing", Fails: true, Final: true},
	{Name: "one failed sync", FailsOneSync: true, Final: true},
	{Name: "a torn write", Tears: true, Final: true},
	{Name: "hanging", Hangs: true},
	{Name: "slow", Delay: 120 * time.Millisecond},
}

var disks = &Ability{
	Name: "disks",
	Has:  func(t Target) bool { d, ok := t.(Disks); return ok && d.OwnDisks() },
	Heal: func(ctx context.Context, t Target) error { return t.(Disks).Cure(ctx) },
}

var hangingDisks = &Ability{
	Name: "disks that hang",
	Has:  func(t Target) bool { return disks.Has(t) && t.(Disks).MayHang() },
}

func diskFault(name, what string, least, most time.Duration, act func(context.Context, *Scene) error) Fault {
	return Fault{Name: name, What: what, Group: "disks", Needs: []*Ability{disks}, Least: least, Most: most, Act: act}
}

// needing is the fault on targets that have one more ability.
func (f Fault) needing(a *Ability) Fault {
	f.Needs = append(f.Needs, a)
	return f
}

// diskFaults are those that leave a member able to go on, at the latest when it is
// started again. What asks for more, a harmed, wiped or rolled-back disk, is for scenes
// that know what the member may do then.
var diskFaults = []Fault{
	diskFault("disk-full", "the leader's disk takes nothing more", time.Second, 4*time.Second, sickened(theLeader, Illness{NoSpace: true})),
	diskFault("disk-fails", "the leader's disk fails", time.Second, 4*time.Second, sickened(theLeader, Illness{Fails: true, Final: true})),
	diskFault("disk-fails-follower", "a voter's disk fails", time.Second, 4*time.Second, sickened(any1(voter), Illness{Fails: true, Final: true})),
	diskFault("disk-sync-fails", "one sync of the leader's disk fails", time.Second, 3*time.Second, sickened(theLeader, Illness{FailsOneSync: true, Final: true})),
	diskFault("disk-tears", "one write of the leader's disk is cut short", time.Second, 3*time.Second, sickened(theLeader, Illness{Tears: true, Final: true})),
	diskFault("disk-hangs", "the leader's disk hangs", time.Second, 5*time.Second, sickened(theLeader, Illness{Hangs: true})).needing(hangingDisks),
	diskFault("disk-hangs-follower", "a voter's disk hangs", time.Second, 5*time.Second, sickened(any1(voter), Illness{Hangs: true})).needing(hangingDisks),
	diskFault("disk-slow", "the leader's disk is slow", time.Second, 5*time.Second, sickened(theLeader, Illness{Delay: 120 * time.Millisecond})),
}

// sickened makes disks ill for as long as the fault acts. Whose process then stores
// nothing more is started again.
func sickened(who whom, ill Illness) func(context.Context, *Scene) error {
	return func(ctx context.Context, s *Scene) error {
		names, err := who(ctx, s)
		if err != nil {
			return err
		}
		d := s.Target.(Disks)
		for _, name := range names {
			s.Undo(func(ctx context.Context) error {
				if err := d.Cure(ctx, name); err != nil || !ill.Final {
					return err
				}
				return errors.Join(s.Target.Kill(ctx, name), s.Target.Start(ctx, name))
			})
			if err := d.Sicken(ctx, name, ill); err != nil {
				return err
			}
		}
		s.Says("sick disks of %s", strings.Join(names, " "))
		return nil
	}
}

// Part is what of a data directory is struck.
type Part struct {
	Name string
	// Files are patterns, as of path/filepath.Match, relative to the directory.
	Files []string
}

// The parts of a data directory. A member may have none of a kind, as it has only one
// log, and a copy only while one comes in.
var (
	Log      = Part{"log", []string{"log/*.wal", "log.db"}}
	Segments = Part{"table of segments", []string{"log/wal-meta.db"}}
	Stable   = Part{"stable store", []string{"stable.db"}}
	State    = Part{"state", []string{"state.db"}}
	Marker   = Part{"commit marker", []string{"marker"}}
	Identity = Part{"identity", []string{"identity.json"}}
	Copy     = Part{"copy", []string{"delta.copy", "incoming/*"}}
)

// Parts are all of them.
var Parts = []Part{Log, Segments, Stable, State, Marker, Identity, Copy}

// ErrNothingThere says that a data directory has no file of a part.
var ErrNothingThere = errors.New("there is no such file")

// file is one of the files of a part in a data directory, the newest when there are
// several.
func (p Part) file(dir string) (string, error) {
	var found string
	var when time.Time
	for _, pattern := range p.Files {
		names, err := filepath.Glob(filepath.Join(dir, filepath.FromSlash(pattern)))
		if err != nil {
			return "", err
		}
		for _, name := range names {
			if fi, err := os.Stat(name); err == nil && fi.Mode().IsRegular() && !fi.ModTime().Before(when) {
				found, when = name, fi.ModTime()
			}
		}
	}
	if found == "" {
		return "", fmt.Errorf("%s: %s: %w", dir, p.Name, ErrNothingThere)
	}
	return found, nil
}

// read is that file and what it has. One of nothing but zeros, space taken in advance, is
// as good as none.
func (p Part) read(dir string) (name string, b []byte, err error) {
	if name, err = p.file(dir); err != nil {
		return "", nil, err
	}
	if b, err = os.ReadFile(name); err == nil && written(b) == 0 {
		err = fmt.Errorf("%s: %w", name, ErrNothingThere)
	}
	return name, b, err
}

// written is how long a file is without the zeros at its end.
func written(b []byte) int { return len(bytes.TrimRight(b, "\x00")) }

// Flip changes one bit of a part. The bit is a random one among the bytes that are not
// zero, so that it is one that was written. It says which one it was.
func Flip(dir string, p Part, r *rand.Rand) (string, error) {
	name, b, err := p.read(dir)
	if err != nil {
		return "", err
	}
	at, left := 0, r.IntN(len(b)-bytes.Count(b, []byte{0}))
	for ; b[at] == 0 || left > 0; at++ {
		if b[at] != 0 {
			left--
		}
	}
	return FlipAt(name, int64(at), byte(1)<<r.IntN(8))
}

// FlipAt changes bits of one byte of a file, also under a process that uses it.
func FlipAt(name string, at int64, bits byte) (string, error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	var b [1]byte
	if _, err = f.ReadAt(b[:], at); err == nil {
		b[0] ^= bits
		_, err = f.WriteAt(b[:], at)
	}
	return fmt.Sprintf("bits %08b of byte %d of %s", bits, at, filepath.Base(name)), errors.Join(err, f.Close())
}

// Truncate cuts a part's file off at a random length below its own, not counting zeros at
// its end.
func Truncate(dir string, p Part, r *rand.Rand) (string, error) {
	name, b, err := p.read(dir)
	if err != nil {
		return "", err
	}
	to := r.IntN(written(b))
	return fmt.Sprintf("%s cut from %d to %d bytes", filepath.Base(name), len(b), to), os.Truncate(name, int64(to))
}

// Wipe empties a data directory, as a new disk is empty.
func Wipe(dir string) error { return os.RemoveAll(dir) }

// Save copies a data directory as it is, whoever writes it meanwhile.
func Save(dir, to string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		target := filepath.Join(to, strings.TrimPrefix(path, dir))
		if d.IsDir() {
			return os.MkdirAll(target, 0o700)
		}
		return copySparse(path, target)
	})
}

// copySparse copies a file and leaves out what is zero: a log takes its space long
// before it needs it.
func copySparse(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	const block = 4096
	err = f.Truncate(int64(len(b)))
	for at := 0; at < len(b) && err == nil; at += block {
		part := b[at:min(at+block, len(b))]
		if slices.ContainsFunc(part, func(c byte) bool { return c != 0 }) {
			_, err = f.WriteAt(part, int64(at))
		}
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// RollBack puts what Save copied back in the place of a data directory.
func RollBack(dir, saved string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return Save(saved, dir)
}
