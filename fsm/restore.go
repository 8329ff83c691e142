package fsm

import (
	"errors"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/store"
)

// stage puts a piece of an archive aside. The first one drops those of any other
// archive, so that what a node that ended has left behind goes, and of two restores
// under way at once only one can end well.
func stage(b *store.Batch, c *command.Stage) (command.Result, error) {
	own := store.StageKey(c.ID, c.Piece)
	switch {
	case len(c.Data) == 0:
		return command.Result{OK: true}, removeTree(b, store.StagePrefix(c.ID))
	case c.Piece > 0:
		_, begun, err := b.Get(store.StageKey(c.ID, 0))
		if err != nil || !begun {
			return command.Result{Err: command.ErrArchive.With("another restore took its place")}, err
		}
	default:
		if err := dropOtherPieces(b, own); err != nil {
			return command.Result{}, err
		}
	}
	return command.Result{OK: true}, b.Set(own, c.Data, 0)
}

func dropOtherPieces(b *store.Batch, own string) error {
	var others []string
	if err := b.ScanKeys(store.SpaceStage, func(key string) bool {
		if key != own {
			others = append(others, key)
		}
		return true
	}); err != nil {
		return err
	}
	for _, key := range others {
		b.Delete(key)
	}
	return nil
}

// restore carries out the restores of an entry. Whatever else is in it comes before
// them: writes that share an entry were all under way at once, so any order of
// theirs is as good. Once an archive has taken the place of the state, which
// replaced says, the batch has ended and what it led to is visible.
func restore(b *store.Batch, commands []command.Command, results []command.Result) (replaced bool, err error) {
	for k, c := range commands {
		c, ok := c.(*command.Restore)
		if !ok {
			continue
		}
		if replaced {
			results[k] = command.Result{Err: command.ErrArchive.With("another restore took its place")}
			continue
		}
		revision, err := b.Restore(c)
		switch {
		case err == nil:
			results[k], replaced = command.Result{OK: true, Revision: revision}, true
		case errors.Is(err, command.ErrArchive):
			results[k] = command.Result{Revision: b.Revision(), Err: err}
		default:
			return false, err
		}
	}
	return replaced, nil
}
