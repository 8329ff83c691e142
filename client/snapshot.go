package client

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"
)

// snapshotPatience is how long an archive may stand still. A server looks through
// all it has before it sends the first byte.
const snapshotPatience = 5 * time.Minute

// Snapshot returns an archive of all keys, sessions and settings as they are at one
// revision, Meta.Index, which the leader confirms to be the newest; with Stale, as
// the server that is asked has them, which needs no leader. The other options are
// of no use here. The reader must be closed. Only when it ends with io.EOF has all
// of the archive come.
//
// Another server is tried only as long as nothing was sent.
func (c *Client) Snapshot(ctx context.Context, opts ...ReadOption) (io.ReadCloser, Meta, error) {
	r := read(opts).request("/v1/snapshot")
	r.accept = "application/x-gzip, application/json"
	var (
		archive *snapshot
		meta    Meta
	)
	err := c.each(ctx, r, func(s server) (bool, error) {
		ctx, dog := watch(ctx, snapshotPatience)
		res, sent, err := c.send(ctx, s, r, dog)
		if err != nil {
			err = dog.cause(err)
			dog.stop()
			return sent, err
		}
		archive, meta = &snapshot{watchedReader{res.Body, dog}, res.Body}, parseMeta(s, res.Header)
		return true, nil
	})
	if err != nil {
		return nil, Meta{}, err
	}
	return archive, meta, nil
}

// snapshot is an archive on its way.
type snapshot struct {
	watchedReader
	body io.Closer
}

func (s *snapshot) Read(b []byte) (int, error) {
	n, err := s.watchedReader.Read(b)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("the snapshot was cut off: %w", s.dog.cause(err))
	}
	return n, err
}

func (s *snapshot) Close() error {
	s.dog.stop()
	return s.body.Close()
}

// Restore puts an archive in the place of all keys, sessions and settings of the
// cluster. When it returns nil, the nodes have done so, at revision Meta.Index. It
// takes as long as the cluster needs: bound it by the context.
//
// command.ErrArchive says that the archive is refused and nothing has changed;
// command.ErrOutcomeUnknown that it may have been restored. Another server is tried
// only if the one before certainly did nothing; the archive is then read anew.
func (c *Client) Restore(ctx context.Context, archive io.ReadSeeker) (Meta, error) {
	r := request{method: http.MethodPut, path: "/v1/snapshot", stream: archive, kind: "application/x-gzip", write: true}
	var meta Meta
	err := c.each(ctx, r, func(s server) (bool, error) {
		res, sent, err := c.send(ctx, s, r, nil)
		if err == nil {
			meta = parseMeta(s, res.Header)
			err = res.Body.Close()
		}
		return sent, err
	})
	return meta, err
}
