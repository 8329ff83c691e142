package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/fsm"
	"github.com/holdfast-db/holdfast/node"
	"github.com/holdfast-db/holdfast/store"
	"github.com/holdfast-db/holdfast/transport"
)

// rejoinLimit bounds what rejoin asks of the new home.
const rejoinLimit = 30 * time.Second

// rejoinReport is what rejoin did, for programs.
type rejoinReport struct {
	Node     string
	Home     string // the site that is home now
	Epoch    uint64 // in which it is
	Revision uint64 // at which the directory ended
	// Common is the last revision at which the directory and the new home are equal.
	Common uint64
	store.Aside
	// File holds what was set aside; empty when there was nothing.
	File string
}

func newRejoin() *cobra.Command {
	var (
		dir, join, out string
		asJSON         bool
	)
	cmd := &cobra.Command{
		Use:   "rejoin --data-dir DIR --join ADDR",
		Short: "Bring back a node that was left behind when another site became home",
		Long: `Bring back a node that was left behind when another site became home. The node must
not run, and ADDR is the node port of a member of the new home.

All changes in the data directory that the new home never saw are written to a file,
one JSON object per line, in order: revision, at, op (put or delete), key, flags and
value (base64). The directory is emptied only when that file is durable, and the node
can then be started as a new member with --role learner:

  holdfast agent --data-dir DIR --role learner --join ADDR ...

What was set aside is for people to judge. A value that is still wanted can be set
again; holdfast kv import takes the lines whose op is put.`,
		Args: exactArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case dir == "":
				return refuse("name the data directory of the node", "--data-dir is missing")
			case join == "":
				return refuse("give the node port of a member of the new home", "--join is missing")
			}
			done, err := store.EmptyRest(dir)
			if err != nil {
				return err
			}
			if done {
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s is empty now: what an earlier rejoin had begun is done\n", dir)
				return err
			}
			r, err := rejoin(cmd.Context(), dir, join, out)
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), r)
			}
			_, err = fmt.Fprint(cmd.OutOrStdout(), r.text(dir, join))
			return err
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&dir, "data-dir", "", "data directory of the node, which must not run")
	fs.StringVar(&join, "join", "", "node port of a member of the new home")
	fs.StringVar(&out, "out", "", "file for what the new home never saw (default: set-aside-... in the data directory)")
	fs.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (r *rejoinReport) text(dir, join string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "site %s is home, in epoch %d; %s ended at revision %d, and is equal to the new home up to revision %d\n", r.Home, r.Epoch, r.Node, r.Revision, r.Common)
	if r.File == "" {
		b.WriteString("nothing had to be set aside\n")
	} else {
		fmt.Fprintf(&b, "set aside: %s of %s, revisions %d to %d, in %s\n", plural(r.Changes, "change"), plural(r.Keys, "key"), r.First, r.Last, r.File)
	}
	if r.Compacted > 0 {
		fmt.Fprintf(&b, "history before revision %d had been dropped: of the changes before it there is the last of each key, and no delete\n", r.Compacted)
	}
	fmt.Fprintf(&b, "%s is empty now; start the node with --role learner --join %s, and without --home\n", dir, join)
	return b.String()
}

// rejoin sets aside what the new home never saw, and empties the directory.
func rejoin(ctx context.Context, path, join, out string) (r rejoinReport, err error) {
	id, ok, err := store.Inspect(path)
	switch {
	case err != nil:
		return r, err
	case !ok || id.ClusterID == "" || id.LogStore == "":
		return r, refuse("start the node with --role learner", "%s belongs to no cluster: there is nothing to bring back", path)
	}
	ctx, cancel := context.WithTimeout(ctx, rejoinLimit)
	defer cancel()
	tr, err := stranger(id)
	if err != nil {
		return r, err
	}
	defer tr.Close()
	theirs, epoch, err := node.FindForks(ctx, tr, join, id.ClusterID)
	if err != nil {
		return r, refuse("give --join a node of the new home that runs", "%s does not tell where the new home began: %w", join, err)
	}
	never := func() error {
		return refuse("start the node as it was; or give --join a node of the new home",
			"nothing was changed: %s lives in epoch %d, as the data directory does: no other site has become home", join, epoch)
	}
	if len(theirs) == 0 {
		return r, never()
	}
	dir, err := store.OpenDir(path, id, nil)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	err = withWholeState(dir, id, func(state *store.State) error {
		fork, parted := command.Parting(command.AllForks(state.Forks(), id.Forks), theirs, id.Epoch)
		if !parted {
			return never()
		}
		if out, err = asideFile(path, out, fork); err != nil {
			return err
		}
		r = rejoinReport{Node: id.Name, Home: fork.Site, Epoch: fork.Epoch, Revision: state.Revision()}
		if r.Common, err = node.LastCommon(ctx, tr, join, fork, r.Revision, state.LineageAt); err != nil {
			return fmt.Errorf("ask %s: %w", join, err)
		}
		if r.Common == r.Revision {
			return nil
		}
		// As long as it takes from here on.
		if r.Aside, err = state.SetAside(context.WithoutCancel(ctx), r.Common, out); err == nil && r.Changes > 0 {
			r.File = out
		}
		return err
	})
	if err != nil {
		return r, err
	}
	return r, dir.Empty()
}

// stranger is a transport that asks as one who is in no cluster.
func stranger(id store.Identity) (*transport.Transport, error) {
	return transport.Listen(transport.Config{
		Listen: "127.0.0.1:0", Log: hclog.NewNullLogger(),
		Hello: func() command.Hello { return command.Hello{ID: id.ID, Name: id.Name, Site: id.Site} },
	})
}

// asideFile is where to write what is set aside. It must survive the directory's being
// emptied.
func asideFile(dir, out string, fork command.Fork) (string, error) {
	if out == "" {
		return filepath.Join(dir, fmt.Sprintf("%sbefore-epoch-%d-%s.jsonl", store.AsidePrefix, fork.Epoch, time.Now().UTC().Format("20060102T150405Z"))), nil
	}
	full, err := filepath.Abs(out)
	if err != nil {
		return "", err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", err
	}
	if rel, err := filepath.Rel(dir, full); err == nil && filepath.IsLocal(rel) && !strings.HasPrefix(rel, store.AsidePrefix) {
		return "", refuse("give a path outside it", "--out %s lies in the data directory, which is to be emptied", out)
	}
	if _, err := os.Lstat(out); err == nil {
		return "", refuse("give another --out", "%s exists already", out)
	}
	return out, nil
}

// withWholeState opens the state, applies all of the log to it, and closes it again
// after use. Whatever is in the log may have been acknowledged.
func withWholeState(dir *store.Dir, id store.Identity, use func(*store.State) error) (err error) {
	logs, err := dir.OpenLogs(id.LogStore)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, logs.Close()) }()
	state, err := store.OpenState(store.StateConfig{Dir: dir.Path()})
	if err != nil {
		return fmt.Errorf("open the state: %w", err)
	}
	defer func() { err = errors.Join(err, state.Close()) }()
	first, last, err := logs.Bounds()
	if err != nil {
		return err
	}
	holds := state.Stats().DurableIndex
	if applied, _ := state.Applied(); applied > holds {
		holds = applied
	}
	if last > holds && first > holds+1 {
		return fmt.Errorf("the log begins at entry %d and the state ends at %d: %w", first, holds, errIncomplete)
	}
	var failed error
	machine := fsm.New(state, func(err error) { failed = err })
	if err := node.Replay(logs.Log, machine, holds, last); err != nil {
		return err
	}
	if failed != nil {
		return failed
	}
	return use(state)
}

var errIncomplete = errors.New("what lies between is not here")
