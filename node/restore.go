package node

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/holdfast-db/holdfast/command"
)

const (
	// stagePiece is how many bytes of an archive one write carries: few enough that
	// other writes do not wait for it.
	stagePiece = 128 << 10
	// stageInFlight bounds the pieces under way at once.
	stageInFlight = 4
	// restorePatience is for how long a piece, and the restore itself, is proposed
	// again while the cluster does not answer. A large archive keeps the nodes busy
	// for longer than a write may wait.
	restorePatience = 5 * time.Minute
)

// Archive writes an archive of this node's state, at the revision it tells begin.
// Errors: command.ErrDiverged; those of the store's Archive.
func (n *Node) Archive(ctx context.Context, begin func(revision uint64) io.Writer) error {
	if err := n.wrong(); err != nil {
		return err
	}
	return n.parts.State.Archive(ctx, begin)
}

// Restore puts what an archive holds in the place of the cluster's keys, sessions
// and settings, on all nodes, and returns the revision at which it did. All of the
// archive is verified here first; then it travels through the log in pieces, and a
// last entry puts it in place everywhere at once. When it returns, the leader and
// this node have done so.
//
// Errors, after which nothing has changed: command.ErrArchive, also when another
// restore came in between; command.ErrNoLeader; command.ErrDataFull; that of the
// context, or of archive. With command.ErrOutcomeUnknown it may have happened.
func (n *Node) Restore(ctx context.Context, archive io.Reader) (revision uint64, err error) {
	err = n.parts.State.SpoolArchive(ctx, archive, func(archive io.Reader, sum [sha256.Size]byte) error {
		c := command.Restore{ID: rand.Text(), SHA256: sum}
		if c.Pieces, err = n.stage(ctx, c.ID, archive); err == nil {
			revision, err = n.swap(ctx, &c)
		}
		if err != nil {
			n.unstage(ctx, c.ID)
		}
		return err
	})
	return revision, err
}

// stage puts an archive aside on all nodes and returns the number of its pieces.
func (n *Node) stage(ctx context.Context, id string, archive io.Reader) (pieces uint64, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var under sync.WaitGroup
	room := make(chan struct{}, stageInFlight)
	for ctx.Err() == nil {
		data := make([]byte, stagePiece)
		size, err := io.ReadFull(archive, data)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			cancel(err)
			break
		}
		piece := &command.Stage{ID: id, Piece: pieces, Data: data[:size]}
		pieces++
		room <- struct{}{}
		under.Go(func() {
			if _, err := n.insist(ctx, piece); err != nil {
				cancel(err)
			}
			<-room
		})
		if piece.Piece == 0 {
			under.Wait() // the others are refused before it
		}
	}
	under.Wait()
	return pieces, context.Cause(ctx)
}

// unstage drops the pieces of an archive that is not restored. Where it fails, the
// next restore does it.
func (n *Node) unstage(ctx context.Context, id string) {
	if _, err := n.Propose(context.WithoutCancel(ctx), &command.Stage{ID: id}); err != nil {
		n.log.Debug("pieces of an archive are left until the next restore", "error", err)
	}
}

// swap has the staged archive put in place. What came of an earlier try of it, the
// state tells.
func (n *Node) swap(ctx context.Context, c *command.Restore) (revision uint64, err error) {
	res, err := n.insist(ctx, c)
	if err != nil && !errors.Is(err, command.ErrArchive) {
		return 0, err
	}
	if werr := n.parts.State.WaitRevision(ctx, res.Revision); werr != nil {
		return 0, command.ErrOutcomeUnknown.With("%v", werr)
	}
	if id, at := n.parts.State.Restored(); id == c.ID {
		return at, nil
	}
	if err == nil {
		return res.Revision, nil // and yet another one since
	}
	return 0, err
}

// insist proposes a command that may be carried out twice until its outcome is
// known, and returns its result with the state machine's refusal as the error.
func (n *Node) insist(ctx context.Context, c command.Command) (command.Result, error) {
	end := time.Now().Add(restorePatience)
	var unknown error // of a try that may yet come true
	for {
		res, err := n.Propose(ctx, c)
		if err == nil {
			return res, res.Err
		}
		if errors.Is(err, command.ErrOutcomeUnknown) {
			unknown = err
		}
		again := unknown == err || errors.Is(err, command.ErrNoLeader)
		if !again || ctx.Err() != nil || time.Now().After(end) {
			return res, cmp.Or(unknown, err)
		}
	}
}
