package fsm

import (
	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/store"
)

// decide carries out one command on the batch and says what it came to. The
// error is of the store, never of the command: what is wrong with a command is
// in its result.
//
// A command that changes something makes exactly one revision. One that leaves
// everything equal makes none, and its result names the revision at which that
// was decided.
func decide(b *store.Batch, c command.Command) (command.Result, error) {
	res := command.Result{OK: true}
	var err error
	switch c := c.(type) {
	case *command.Term:
	case *command.Init:
		initialise(b, c)
	case *command.MemberSet:
		setMember(b, c.Member)
	case *command.MemberRemove:
		if _, ok := b.Member(c.ID); ok {
			b.RemoveMember(c.ID)
		}
	case *command.Put:
		res, err = put(b, c)
	case *command.Delete:
		res.OK, err = remove(b, c)
	case *command.DeleteTree:
		err = removeTree(b, c.Prefix)
	case *command.PutMany:
		for _, kv := range c.KVs {
			if err = b.Set(kv.Key, kv.Value, kv.Flags); err != nil {
				break
			}
		}
	case *command.Compact:
		b.Compact(c.Revision)
	default:
		res = command.Result{Err: command.ErrInvalidCommand.With("kind %d", c.Kind())}
	}
	if err != nil {
		return command.Result{}, err
	}
	res.Revision = b.Step()
	return res, nil
}

func initialise(b *store.Batch, c *command.Init) {
	if b.Cluster().ID != "" {
		return
	}
	b.SetCluster(c.Cluster)
	for _, m := range c.Members {
		setMember(b, m)
	}
}

func setMember(b *store.Batch, m command.Member) {
	if old, ok := b.Member(m.ID); ok && old == m {
		return
	}
	b.SetMember(m)
}

func put(b *store.Batch, c *command.Put) (command.Result, error) {
	switch c.Mode {
	case command.PutAlways:
		return command.Result{OK: true}, b.Set(c.Key, c.Value, c.Flags)
	case command.PutCAS:
		ok, err := matches(b, c.Key, c.Index)
		if err != nil || !ok {
			return command.Result{}, err
		}
		return command.Result{OK: true}, b.Set(c.Key, c.Value, c.Flags)
	case command.PutAcquire:
		// No command of this level creates a session, so none exists.
		return command.Result{Err: command.ErrInvalidSession.With("%q", c.Session)}, nil
	case command.PutRelease:
		return command.Result{}, nil // nobody holds a lock
	default:
		return command.Result{Err: command.ErrInvalidCommand.With("put mode %d", c.Mode)}, nil
	}
}

// matches is the condition of check-and-set: the key's ModifyRevision is index,
// or index is 0 and there is no such key.
func matches(b *store.Batch, key string, index uint64) (bool, error) {
	modified, exists, err := b.Modified(key)
	if err != nil {
		return false, err
	}
	if !exists {
		return index == 0, nil
	}
	return index != 0 && modified == index, nil
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
	case c.CAS && (c.Index == 0 || modified != c.Index):
		return false, nil
	}
	b.Delete(c.Key)
	return true, nil
}

func removeTree(b *store.Batch, prefix string) error {
	// Collected first: the batch must not change under its own scan.
	var keys []string
	if err := b.ScanKeys(prefix, func(key string) bool {
		keys = append(keys, key)
		return true
	}); err != nil {
		return err
	}
	for _, key := range keys {
		b.Delete(key)
	}
	return nil
}
