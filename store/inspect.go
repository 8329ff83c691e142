package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const copyRemedy = "copy it again as a whole from a stopped node, or start with an empty --data-dir and let the node join anew"

// Inspect looks at a data directory and leaves no trace: nothing is created,
// changed or locked. ok is false when the directory is absent or empty and can
// be created.
//
// It refuses, with a *DirError or, without a path, a plain error: what is no directory or cannot be written; a
// directory of something else; the layout of a newer release; a damaged
// identity; and a directory of which only a part is there, because the
// identity is missing, a part it had is missing, or a file is shorter than its
// own header says. Whether name and site are the wanted ones is the caller's
// question.
func Inspect(path string) (id Identity, ok bool, err error) {
	// Another process may be using the directory, and a file can look wrong
	// while it is being written. What is wrong on disk is wrong each time.
	for range 3 {
		if id, ok, err = inspectOnce(path); err == nil {
			break
		}
	}
	return id, ok, err
}

func inspectOnce(path string) (Identity, bool, error) {
	fail := func(err error, remedy, cause string, args ...any) (Identity, bool, error) {
		return Identity{}, false, &DirError{Path: path, Cause: fmt.Sprintf(cause, args...), Remedy: remedy, Err: err}
	}
	if path == "" {
		return Identity{}, false, errors.New("no data directory is given; name one with --data-dir")
	}
	fi, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Identity{}, false, creatable(path)
	case errors.Is(err, unix.ENOTDIR):
		return fail(nil, "choose another --data-dir", "lies under a file")
	case err != nil:
		return fail(err, "check its permissions, or choose another --data-dir", "cannot be looked at")
	case !fi.IsDir():
		return fail(nil, "choose another --data-dir", "is not a directory")
	}
	if err := mayWrite(path); err != nil {
		return fail(err, "give this user the right to write it, or choose another --data-dir", "cannot be written")
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return fail(err, "give this user the right to read it, or choose another --data-dir", "cannot be read")
	}

	if !slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == identityFile }) {
		var ours, others []string
		for _, e := range entries {
			switch name := e.Name(); name {
			case stateName, markerName, stableFile, walLogDir, boltLogFile, incomingName, keptName, archivesName:
				ours = append(ours, name)
			case lockFile, identityTmpFile, ballastName, ballastName + ".new", probeName, "lost+found":
				// left by a first start that was cut short, or by the file system
			default:
				if !strings.HasPrefix(name, ".") && !strings.HasPrefix(name, AsidePrefix) {
					others = append(others, name)
				}
			}
		}
		switch {
		case len(ours) > 0:
			return fail(nil, copyRemedy, "holds %s but no %s: it was copied only in part", strings.Join(ours, ", "), identityFile)
		case len(others) > 0:
			return fail(nil, "choose an empty or new --data-dir", "is not empty and not Holdfast's: it holds %s", shortList(others))
		}
		return Identity{}, false, nil
	}

	id, err := readIdentity(path)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fail(err, "give this user the right to read it", "has an %s that cannot be read", identityFile)
	case err != nil:
		return fail(err, "put the file back from a copy, or start with an empty --data-dir and let the node join anew", "has a damaged %s", identityFile)
	case id.Format > identityFormat:
		return fail(nil, "start the newer release again", "was written by a newer release: its format is %d, this build knows up to %d", id.Format, identityFormat)
	}
	if id.Emptied {
		return fail(nil, "run holdfast rejoin again, which completes it", "is being made that of a new member")
	}
	if cause := missingPart(path, id); cause != "" {
		return fail(nil, copyRemedy, "is not complete: %s", cause)
	}
	return id, true, nil
}

// missingPart names the first part of a directory that is absent or cut short;
// "" when it is whole.
func missingPart(path string, id Identity) string {
	if id.HasState {
		if err := checkBoltFile(filepath.Join(path, stateName)); err != nil {
			return stateName + " " + plainPart(err)
		}
	}
	if id.HasMarker {
		fi, err := os.Stat(filepath.Join(path, markerName))
		if err != nil {
			return markerName + " " + plainPart(err)
		}
		if fi.Size() == 0 {
			return markerName + " is empty"
		}
	}
	if id.LogStore == "" {
		return ""
	}
	if err := checkBoltFile(filepath.Join(path, stableFile)); err != nil {
		return stableFile + " " + plainPart(err)
	}
	switch id.LogStore {
	case LogStoreWAL:
		if err := checkWAL(filepath.Join(path, walLogDir)); err != nil {
			return walLogDir + " " + plainPart(err)
		}
	case LogStoreBolt:
		if err := checkBoltFile(filepath.Join(path, boltLogFile)); err != nil {
			return boltLogFile + " " + plainPart(err)
		}
	default:
		return fmt.Sprintf("its log store %q is not known", id.LogStore)
	}
	return ""
}

func plainPart(err error) string {
	if errors.Is(err, fs.ErrNotExist) {
		return "is missing"
	}
	return plainCause(err)
}

// creatable says whether a directory that is absent can be made: its nearest
// existing parent must be a directory that can be written.
func creatable(path string) error {
	abs, err := filepath.Abs(path)
	if err != nil {
		return &DirError{Path: path, Cause: "cannot be located", Remedy: "give --data-dir as an absolute path", Err: err}
	}
	for p := filepath.Dir(abs); ; p = filepath.Dir(p) {
		fi, err := os.Stat(p)
		switch {
		case errors.Is(err, fs.ErrNotExist) && p != filepath.Dir(p):
			continue
		case errors.Is(err, unix.ENOTDIR), err == nil && !fi.IsDir():
			return &DirError{Path: path, Cause: "lies under a file", Remedy: "choose another --data-dir"}
		case err == nil:
			err = mayWrite(p)
		}
		if err != nil {
			return &DirError{Path: path, Cause: fmt.Sprintf("cannot be created in %s", p),
				Remedy: "create it for this user, or choose another --data-dir", Err: err}
		}
		return nil
	}
}

// mayWrite asks the system whether this process may create files in a
// directory, without creating one.
func mayWrite(path string) error {
	return unix.Faccessat(unix.AT_FDCWD, path, unix.R_OK|unix.W_OK|unix.X_OK, unix.AT_EACCESS)
}

func shortList(names []string) string {
	const most = 3
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}
