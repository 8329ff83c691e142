package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/internal/problem"
	"github.com/holdfast-db/holdfast/node"
	"github.com/holdfast-db/holdfast/store"
)

// diskLost is the error with which a run ends whose disk has failed, or hangs for
// too long, when the node has another one to go on with.
type diskLost struct{ why error }

func (e *diskLost) Error() string { return "the disk of the data directory is lost: " + e.why.Error() }

func (e *diskLost) Unwrap() error { return e.why }

// onStandby is the configuration to start with: of a node that has gone over to its
// standby directory before, with that as the data directory. What the other directory
// holds is of a member that the cluster has replaced.
func onStandby(cfg Config, host Host) (Config, error) {
	if cfg.StandbyDir == "" {
		return cfg, nil
	}
	_, used, err := store.Inspect(cfg.StandbyDir)
	if err != nil {
		return cfg, fmt.Errorf("--standby-data-dir: %w", err)
	}
	if !used {
		return cfg, nil
	}
	newLogger(cfg, host, "").Warn("this node lives in its standby directory; to go back, move that away and empty the other one",
		"standby-data-dir", cfg.StandbyDir, "data-dir", cfg.DataDir)
	cfg.DataDir, cfg.BootstrapExpect = cfg.StandbyDir, 0
	return cfg, nil
}

// hasStandby reports whether there is a disk to go on with.
func (c *Config) hasStandby() bool { return c.StandbyDir != "" && c.DataDir != c.StandbyDir }

const (
	// diskLook is how often a disk that is down, or full, is looked at.
	diskLook = 200 * time.Millisecond
	// closeLimit is how long each part may take to close whose disk is down.
	closeLimit = time.Second
	// spaceRest is the pause between two tries to write again where there was no space.
	spaceRest = 2 * time.Second
)

// watchDisk tells the node when its disk has failed, and decides what then becomes of
// the run. It returns with ctx, or with the error that ends the run. A node that was
// only out of space starts again when there is some.
func watchDisk(ctx context.Context, cfg Config, disk *store.Disk, n *node.Node, failed chan<- error) error {
	tick := time.NewTicker(diskLook)
	defer tick.Stop()
	failure := disk.Failed()
	var hangs time.Time // since when
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failure:
			failure = nil // it is closed now
			failed <- err
			if errors.Is(err, command.ErrDiskFull) {
				again = time.After(spaceRest)
				continue
			}
			if cfg.hasStandby() {
				return &diskLost{err}
			}
		case now := <-tick.C:
			look := disk.Look()
			if !cfg.hasStandby() || look.State != command.DiskStalled {
				hangs = time.Time{}
			} else if hangs.IsZero() {
				hangs = now
			} else if now.Sub(hangs) > cfg.StandbyAfter {
				return &diskLost{fmt.Errorf("to %s takes %v by now", look.Call, look.Stalled.Round(time.Second))}
			}
		case <-again:
			if disk.Writable() {
				n.Restart("there is space on the disk again")
				<-ctx.Done()
				return nil
			}
			again = time.After(spaceRest)
		}
	}
}

// diskBroken reports whether an error, of a start, is one that a disk gives which has
// failed.
func diskBroken(err error) bool {
	return slices.ContainsFunc([]error{syscall.EIO, syscall.EROFS, syscall.ENODEV, syscall.ENXIO}, func(of error) bool { return errors.Is(err, of) })
}

// startFailed is the error of a start that the disk made fail.
func startFailed(disk *store.Disk, cfg Config, err error) error {
	switch failure := disk.Err(); {
	case failure == nil:
		return err
	case cfg.hasStandby() && !errors.Is(failure, command.ErrDiskFull):
		return &diskLost{failure}
	default:
		remedy := "check the disk and its free space"
		if errors.Is(failure, command.ErrDamaged) {
			remedy = "check the disk, move the directory away and let the node join anew"
		}
		return problem.Refuse(remedy, "the disk of %s fails: %w", cfg.DataDir, failure)
	}
}

// unlessItHangs closes a part of the node. When its disk is down it is left behind
// after a while: what hangs there ends with the process, or the disk.
func unlessItHangs(disk *store.Disk, log hclog.Logger, what string, close func() error) error {
	done := make(chan error, 1)
	go func() { done <- close() }()
	began := time.Now()
	tick := time.NewTicker(diskLook)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			if disk != nil && disk.Err() != nil {
				return nil // it says again what the disk has said
			}
			return err
		case <-tick.C:
			if time.Since(began) > closeLimit && disk.Look().State.Down() {
				log.Warn("left behind, since the disk hangs", "part", what)
				return nil
			}
		}
	}
}
