package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/hashicorp/raft"
	"github.com/spf13/cobra"

	"github.com/holdfast-db/holdfast/client"
	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/store"
)

func newSnapshot() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Save, restore and look into archives of a cluster",
		Long: `An archive holds all keys, sessions and settings of a cluster as they were at one
revision, in one file. History, members and lock-delays are not in it.`,
	}
	cmd.AddCommand(newSnapshotSave(), newSnapshotRestore(), newSnapshotInspect())
	group(cmd)
	return cmd
}

// archiveReport says what an archive holds, for programs.
type archiveReport struct {
	File string
	store.ArchiveInfo
	Meta raft.SnapshotMeta
	Size uint64 // of the file in bytes
}

func newSnapshotSave() *cobra.Command {
	var (
		conn  connectFlags
		stale bool
	)
	cmd := &cobra.Command{
		Use:   "save FILE",
		Short: "Write an archive of the cluster to a file",
		Long: `Write an archive of the cluster to a file, and verify it on the way. Reads and
writes go on meanwhile. The file appears, or is replaced, only once it is complete.
Exit status: 0 it is, 1 it is not.`,
		Args: exactArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := conn.open()
			if err != nil {
				return err
			}
			var opts []client.ReadOption
			if stale {
				opts = append(opts, client.Stale())
			}
			r := archiveReport{File: args[0]}
			p := newProgress(cmd.ErrOrStderr())
			err = replaceFile(r.File, func(w io.Writer) error {
				archive, _, err := c.Snapshot(cmd.Context(), opts...)
				if err != nil {
					return err
				}
				defer func() { _ = archive.Close() }()
				counted := &countingReader{r: io.TeeReader(archive, w)}
				r.ArchiveInfo, r.Meta, err = store.CheckArchive(shownReader{counted, p}, "")
				r.Size = uint64(counted.n.Load())
				return err
			})
			p.clear()
			if err != nil {
				return err
			}
			return conn.line(cmd, r, "saved %s and %s at index %d to %s (%s)",
				plural(r.Keys, "key"), plural(r.Sessions, "session"), r.Revision, r.File, size(r.Size))
		},
	}
	conn.add(cmd)
	cmd.Flags().BoolVar(&stale, "stale", false, "archive the copy of the node that is asked, whatever its age; needs no leader")
	return cmd
}

// shownReader shows how much was read through it.
type shownReader struct {
	*countingReader
	p *progress
}

func (r shownReader) Read(b []byte) (int, error) {
	n, err := r.countingReader.Read(b)
	r.p.show(transfer{bytes: uint64(r.n.Load())})
	return n, err
}

func newSnapshotRestore() *cobra.Command {
	var conn connectFlags
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Replace all that a cluster holds by an archive",
		Long: `Replace all keys, sessions and settings of a cluster by those of an archive, on all
nodes in one step. The archive is verified first; until then, and if anything fails,
nothing changes. Keys keep their indexes, sessions get their full time to live, and
the cluster's index goes on above both. Exit status: 0 it is restored, 1 it is not,
or an error says that this is not known.`,
		Args: exactArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, f, err := openArchive(args[0])
			if err != nil {
				return err
			}
			defer func() { _ = f.Close() }()
			c, err := conn.open()
			if err != nil {
				return err
			}
			began := time.Now()
			meta, err := c.Restore(cmd.Context(), f)
			if err != nil {
				return err
			}
			took := time.Since(began)
			return conn.line(cmd, struct {
				archiveReport
				Index   uint64 // at which it was restored
				Seconds float64
			}{r, meta.Index, took.Seconds()}, "restored %s and %s of index %d, now index %d, in %s",
				plural(r.Keys, "key"), plural(r.Sessions, "session"), r.Revision, meta.Index, span(took))
		},
	}
	conn.add(cmd)
	return cmd
}

func newSnapshotInspect() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Verify an archive and show what it holds",
		Long: `Read a whole archive, verify it, and show what it holds. No cluster is asked. Exit
status: 0 it can be restored, 1 it cannot, 2 the file could not be read.`,
		Args: func(cmd *cobra.Command, args []string) error {
			return withStatus(uncheckable, exactArgs(1, 1)(cmd, args))
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			r, f, err := openArchive(args[0])
			if errors.Is(err, command.ErrArchive) {
				return err
			}
			if err != nil {
				return withStatus(uncheckable, err)
			}
			_ = f.Close()
			if asJSON {
				return withStatus(uncheckable, writeJSON(cmd.OutOrStdout(), r))
			}
			return withStatus(uncheckable, table(cmd.OutOrStdout(), [][]string{
				{"File", fmt.Sprintf("%s (%s)", r.File, size(r.Size))},
				{"Cluster", r.Cluster},
				{"Datacenter", r.Datacenter},
				{"Index", fmt.Sprintf("%d (Raft index %d, term %d)", r.Revision, r.Meta.Index, r.Meta.Term)},
				{"Written", r.Wall.Local().Format(time.RFC3339)},
				{"Keys", fmt.Sprintf("%s (%s)", count(r.Keys), size(r.Bytes))},
				{"Sessions", count(r.Sessions)},
				{"Settings", count(r.Settings)},
			}))
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return withStatus(uncheckable, explainFlag(cmd, err))
	})
	return cmd
}

// openArchive opens an archive and verifies all of it.
func openArchive(path string) (r archiveReport, f *os.File, err error) {
	if f, err = os.Open(path); err != nil {
		return r, nil, fileProblem(path, err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return r, nil, fileProblem(path, err)
	}
	r = archiveReport{File: path, Size: uint64(info.Size())}
	if r.ArchiveInfo, r.Meta, err = store.CheckArchive(bufio.NewReaderSize(f, 64<<10), ""); err != nil {
		return r, nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, f, nil
}
