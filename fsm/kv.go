package fsm

import (
	"time"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/internal/planted"
	"github.com/holdfast-db/holdfast/store"
)

func put(b *store.Batch, c *command.Put) (command.Result, error) {
	switch c.Mode {
	case command.PutAlways:
		if planted.Bug("clock-in-apply") {
			c.Flags = uint64(time.Now().UnixNano())
		}
		return command.Result{OK: true}, b.Set(c.Key, c.Value, c.Flags)
	case command.PutCAS:
		modified, exists, err := b.Modified(c.Key)
		if err != nil || !command.Unchanged(c.Index, modified, exists) {
			return command.Result{}, err
		}
		return command.Result{OK: true}, b.Set(c.Key, c.Value, c.Flags)
	case command.PutAcquire:
		return acquire(b, c)
	case command.PutRelease:
		return alone(b, command.VerbUnlock, c)
	default:
		return command.Result{Err: command.ErrInvalidCommand.With("put mode %d", c.Mode)}, nil
	}
}

// remove deletes a key. Deleting an absent one succeeds, with any condition;
// a condition on 0 never fits an existing key.
func remove(b *store.Batch, c *command.Delete) (bool, error) {
	modified, exists, err := b.Modified(c.Key)
	switch {
	case err != nil:
		return false, err
	case !exists:
		return true, nil
	case c.CAS && !command.Unchanged(c.Index, modified, exists):
		return false, nil
	}
	return true, erase(b, c.Key)
}

// erase deletes a key, locked or not.
func erase(b *store.Batch, key string) error {
	session, _, err := b.Holder(key)
	if err != nil {
		return err
	}
	b.Delete(key)
	if session != "" {
		b.Delete(hold(session, key))
	}
	return nil
}

func removeTree(b *store.Batch, prefix string) error {
	// Collected first: the batch must not change under its own scan.
	keys, err := keysUnder(b, prefix)
	if err != nil {
		return err
	}
	for _, key := range keys {
		if err := erase(b, key); err != nil {
			return err
		}
	}
	return nil
}

func keysUnder(b *store.Batch, prefix string) (keys []string, err error) {
	err = b.ScanKeys(prefix, func(key string) bool {
		keys = append(keys, key)
		return true
	})
	return keys, err
}
