package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

// LockOptions says how a lock is taken.
type LockOptions struct {
	// TTL of the session the lock belongs to: how long after a holder's death, at
	// least, another can have it. 15 s when zero.
	TTL time.Duration
	// LockDelay is for how long nobody can have the lock after its holder's session
	// has ended by itself: time for the holder to notice. 15 s when nil.
	LockDelay *time.Duration
	// Value is what the key holds while the lock is held.
	Value []byte
	// Name is the session's, for people.
	Name string
	// Try: give up at once when somebody else has the lock.
	Try bool
}

// ErrLockHeld: somebody else has the lock, and LockOptions.Try was set.
var ErrLockHeld = errors.New("lock is held by somebody else")

// Lock is a lock that is held. It may be lost while it is: see Lost.
type Lock struct {
	Key     string
	Session string
	// Fence goes up with every holder: what is guarded can refuse who comes with a
	// lower one than it has seen.
	Fence uint64

	c      *Client
	ctx    context.Context
	end    context.CancelCauseFunc
	keeper sync.WaitGroup
	once   sync.Once
	err    error // of Unlock
}

// ErrLockLost is the cause of the context of a lock that was lost.
var ErrLockLost = errors.New("lock was lost")

// mayPass reports whether an error may be gone at the next try.
func mayPass(err error) bool {
	var named *Error
	var nowhere *UnreachableError
	switch {
	case errors.As(err, &nowhere), errors.Is(err, context.DeadlineExceeded), errors.Is(err, command.ErrOutcomeUnknown):
		return true
	case errors.As(err, &named):
		return named.Status >= 500 && !errors.Is(err, command.ErrInvalidSession)
	}
	return false
}

// Lock takes the lock of a key, and waits for it until ctx ends. The lock belongs to
// a session of its own, which is renewed until Unlock.
func (c *Client) Lock(ctx context.Context, key string, o LockOptions) (*Lock, error) {
	if o.TTL == 0 {
		o.TTL = 15 * time.Second
	}
	s := Session{Name: o.Name, TTL: o.TTL.String(), Behavior: command.BehaviorRelease}
	if o.LockDelay != nil {
		delay := Duration(*o.LockDelay)
		s.LockDelay = &delay
	}
	id, _, err := c.CreateSession(ctx, s)
	if err != nil {
		return nil, fmt.Errorf("create a session: %w", err)
	}
	l := &Lock{Key: key, Session: id, c: c}
	l.ctx, l.end = context.WithCancelCause(context.WithoutCancel(ctx))
	l.keeper.Go(func() {
		if err := c.keepSession(l.ctx, id, o.TTL); err != nil {
			l.end(fmt.Errorf("%w: %w", ErrLockLost, err))
		}
	})
	if err := l.acquire(ctx, o); err != nil {
		_ = l.drop() // the session ends by itself otherwise
		return nil, err
	}
	l.keeper.Go(l.watch)
	return l, nil
}

// acquire takes the lock, waiting for it.
func (l *Lock) acquire(ctx context.Context, o LockOptions) error {
	for {
		ok, _, err := l.c.Put(ctx, l.Key, o.Value, Acquire(l.Session))
		if err != nil && (!mayPass(err) || ctx.Err() != nil) {
			return err
		}
		// Whether it is held is read back, with the number to fence by; so also when
		// the answer was lost.
		rec, meta, rerr := l.c.Get(ctx, l.Key, Consistent())
		switch {
		case rerr == nil && rec.Session == l.Session:
			l.Fence = rec.LockIndex
			return nil
		case rerr != nil && !errors.Is(rerr, command.ErrKeyNotFound) && (!mayPass(rerr) || ctx.Err() != nil):
			return rerr
		case o.Try && err == nil && !ok:
			return ErrLockHeld
		}
		if err := l.await(ctx, rec, meta, rerr); err != nil {
			return err
		}
	}
}

// await waits until the key may be free: until it changes, or for a moment when
// nobody holds it, since a lock-delay ends without a change.
func (l *Lock) await(ctx context.Context, rec command.Record, meta Meta, rerr error) error {
	if l.ctx.Err() != nil {
		return context.Cause(l.ctx)
	}
	if rerr == nil && rec.Session != "" {
		if _, _, err := l.c.Get(ctx, l.Key, Consistent(), Block(meta.Index, 10*time.Second)); err == nil || ctx.Err() == nil {
			return nil
		}
	}
	return pause(ctx, 500*time.Millisecond)
}

// watch notices when the lock is no longer this session's.
func (l *Lock) watch() {
	var index uint64
	for l.ctx.Err() == nil {
		rec, meta, err := l.c.Get(l.ctx, l.Key, Consistent(), Block(index, 30*time.Second))
		switch {
		case l.ctx.Err() != nil:
			return
		case err == nil && rec.Session == l.Session && rec.LockIndex == l.Fence:
			index = meta.Index
		case err == nil, errors.Is(err, command.ErrKeyNotFound):
			l.end(ErrLockLost)
			return
		default:
			// The keeper of the session decides when not to know is to have lost it.
			_ = pause(l.ctx, leastRetry)
		}
	}
}

// Context ends when the lock is lost, with ErrLockLost as its cause, and at Unlock:
// the work that the lock guards should run under it.
func (l *Lock) Context() context.Context { return l.ctx }

// Lost is closed when the lock is lost, and at Unlock.
func (l *Lock) Lost() <-chan struct{} { return l.ctx.Done() }

// Unlock gives the lock back and ends its session. It does so once; a lock that was
// lost gives ErrLockLost. The key stays.
func (l *Lock) Unlock(ctx context.Context) error {
	l.once.Do(func() { l.err = l.unlock(ctx) })
	return l.err
}

func (l *Lock) unlock(ctx context.Context) error {
	lost := context.Cause(l.ctx)
	// Released first: a session that ends with its keys held leaves a lock-delay.
	var err error
	if lost == nil {
		var rec command.Record
		if rec, _, err = l.c.Get(ctx, l.Key, Consistent()); err == nil && rec.Session == l.Session {
			_, _, err = l.c.Put(ctx, l.Key, rec.Value, Release(l.Session), Flags(rec.Flags), Once())
		}
		if errors.Is(err, command.ErrKeyNotFound) {
			err = nil
		}
	}
	l.end(nil)
	l.keeper.Wait()
	if _, derr := l.c.DestroySession(ctx, l.Session); err == nil {
		err = derr
	}
	if lost != nil {
		return lost
	}
	return err
}

// drop ends the session of a lock that was not taken.
func (l *Lock) drop() error {
	l.end(nil)
	l.keeper.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err := l.c.DestroySession(ctx, l.Session)
	return err
}

// Campaign runs lead each time this client is elected, until ctx ends, whose cause
// it returns, or lead fails, whose error comes back unchanged. Who campaigns for one
// key is leader alone; name, the key's value meanwhile, says who it is. The context
// of lead ends when leadership is lost, and lead must return then.
func (c *Client) Campaign(ctx context.Context, key, name string, o LockOptions, lead func(context.Context) error) error {
	o.Value, o.Name, o.Try = []byte(name), name, false
	for {
		l, err := c.Lock(ctx, key, o)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && !mayPass(err) && !errors.Is(err, ErrLockLost):
			return err
		case err != nil:
			if err := pause(ctx, leastRetry); err != nil {
				return err
			}
			continue
		}
		err = c.lead(ctx, l, lead)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return err
		}
	}
}

// lead runs one term of office.
func (c *Client) lead(ctx context.Context, l *Lock, lead func(context.Context) error) error {
	term, end := context.WithCancelCause(ctx)
	defer end(nil)
	stop := context.AfterFunc(l.Context(), func() { end(ErrLockLost) })
	defer stop()
	err := lead(term)
	lost := errors.Is(context.Cause(l.Context()), ErrLockLost)
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	_ = l.Unlock(bounded) // its session ends by itself otherwise
	if lost && errors.Is(err, context.Canceled) {
		return nil // it has stopped because it was to
	}
	return err
}
