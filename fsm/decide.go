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
	res, err := carryOut(b, c)
	if err != nil {
		return command.Result{}, err
	}
	revision := b.Step()
	if res.Revision == 0 {
		res.Revision = revision
	}
	return res, nil
}

// carryOut is decide without closing the revision. A result that has a Revision
// keeps it: a repeated command has that of the first.
func carryOut(b *store.Batch, c command.Command) (res command.Result, err error) {
	res.OK = true
	switch c := c.(type) {
	case *command.Term:
	case *command.Init:
		initialise(b, c)
	case *command.MemberSet:
		var gone bool
		if gone, err = barred(b, c.Member.ID); gone {
			return command.Result{Err: command.ErrRemoved.With("%s", c.Member.Name)}, nil
		}
		setMember(b, c.Member)
	case *command.MemberRemove:
		if _, ok := b.Member(c.ID); ok {
			b.RemoveMember(c.ID)
		}
		if c.Barred {
			err = bar(b, c.ID)
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
	case *command.SessionCreate:
		err = createSession(b, &c.Session)
	case *command.SessionDestroy:
		err = destroySession(b, c.ID)
	case *command.Txn:
		res, _, err = txn(b, c)
	case *command.Once:
		res, err = once(b, c)
	case *command.SettingPut:
		res, err = putSetting(b, c)
	case *command.Compact:
		b.Compact(c.Revision)
	case *command.Stage:
		res, err = stage(b, c)
	case *command.Restore: // comes last in its entry: see restore
	default:
		res = command.Result{Err: command.ErrInvalidCommand.With("kind %d", c.Kind())}
	}
	return res, err
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

// bar keeps a member from coming back.
func bar(b *store.Batch, id string) error {
	done, err := barred(b, id)
	if err == nil && !done {
		b.Put(command.Record{Key: store.SpaceBarred + id, CreateRevision: b.NextRevision()})
	}
	return err
}

func barred(b *store.Batch, id string) (bool, error) {
	_, ok, err := b.Get(store.SpaceBarred + id)
	return ok, err
}

// putSetting is a put of the setting's record.
func putSetting(b *store.Batch, c *command.SettingPut) (command.Result, error) {
	p := command.Put{Key: store.SpaceSettings + c.Name, Value: c.Value, Index: c.Index}
	if c.CAS {
		p.Mode = command.PutCAS
	}
	return put(b, &p)
}
