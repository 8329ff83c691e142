package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"

	"github.com/holdfast-db/holdfast/command"
)

// A file never gets smaller by itself: what is dropped from it leaves free pages,
// which later changes fill. When more than half of a file is free it is rewritten:
// a builder makes a new one from it, in the background and without haste, and that
// takes its place.
const (
	rewriteName = "rewrite.db"
	// rewriteInterval is how often the file is looked at.
	rewriteInterval = time.Minute
	// rewriteRate is how many bytes of a new file are made per second, and
	// rewriteUnit how many are pushed to the disk at once, so that the syncs of the
	// log find the disk mostly idle and never wait long.
	rewriteRate = 32 << 20
	rewriteUnit = 1 << 20
	// rewriteRounds bounds how often a rewrite goes after what was flushed
	// meanwhile before it makes the flusher wait for the rest.
	rewriteRounds = 8
)

// runRewriter rewrites the file when much of it is free, until stop.
func (s *State) runRewriter() {
	tick := time.NewTicker(rewriteInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-s.stop:
			return
		}
		if due, err := s.rewriteDue(); err != nil || !due {
			continue // whoever reads the file finds out what is wrong with it
		}
		if err := s.rewrite(); err != nil && !errors.Is(err, command.ErrStopping) {
			s.log.Warn("state file is not made smaller", "error", err)
		}
	}
}

// rewriteDue reports whether more than half of the file is free, as much as is
// worth it, and the disk has room for both files.
func (s *State) rewriteDue() (bool, error) {
	free, size, err := freeBytes(filepath.Join(s.cfg.Dir, stateName))
	if err != nil || s.Err() != nil || free <= s.cfg.RewriteFree || free <= size/2 {
		return false, err
	}
	room, err := freeSpace(s.cfg.Dir)
	return int64(room) > size-free+2*int64(s.cfg.Disk.reserve()), err
}

// freeBytes is how much of a state file is free pages, and how long it is up to
// the last page that was ever used.
func freeBytes(path string) (free, size int64, err error) {
	p, err := openBoltPeek(path)
	if err != nil {
		return 0, 0, err
	}
	defer p.f.Close()
	pages, err := p.freePages()
	return int64(pages) * p.pageSize, int64(p.pages) * p.pageSize, err
}

// rewrite makes a new file with what the state's file holds and puts it in its
// place, while reads and writes go on. What is in memory is left there.
//
// On an error the file is as it was. A crash leaves one of the two.
func (s *State) rewrite() (err error) {
	if !s.copies.rewriting.TryLock() {
		return errors.New("the state file is being rewritten already")
	}
	defer s.copies.rewriting.Unlock()
	compaction, release := s.holdCompaction()
	defer release()
	start, path := time.Now(), filepath.Join(s.cfg.Dir, rewriteName)
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	s.mu.RLock()
	old, m := s.gen.Load().file, s.durable.Load().meta
	s.mu.RUnlock()
	b, err := newBuilder(path, &copyHeader{Revision: m.Revision, Lineage: m.Lineage, Compaction: compaction}, s.cfg.MaxData)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			b.discard()
			err = fmt.Errorf("rewrite state file: %w", err)
		}
	}()
	b.unit, b.pace = rewriteUnit, pace{stop: s.stop, rate: rewriteRate, began: start}
	b.start()
	from, err := s.rewriteFrom(old, b, m.Revision)
	if derr := b.drain(); err == nil {
		err = derr
	}
	if err != nil {
		return err
	}
	// What is left to be done under the lock is little, and already on its way to
	// the disk.
	if err := b.sync(); err != nil {
		return err
	}
	s.flushing.Lock()
	defer s.flushing.Unlock()
	return s.finishRewrite(old, b, from, start)
}

// rewriteFrom hands all of a file to a builder, and what is flushed meanwhile until
// that is little. It returns where history goes on.
func (s *State) rewriteFrom(old *stateFile, b *builder, anchor uint64) (from position, err error) {
	source := copySource{view: s.fileView, origin: old.origin, out: pagesTo{b}}
	if err := source.history(position{}, anchor); err != nil {
		return from, err
	}
	if err := source.pointers(""); err != nil {
		return from, err
	}
	from = position{rev: anchor + 1}
	for range rewriteRounds {
		m := s.durable.Load().meta
		if m.Revision < from.rev {
			break
		}
		few := m.Revision-from.rev < flushChanges
		if err := source.history(from, m.Revision); err != nil {
			return from, err
		}
		if from = (position{rev: m.Revision + 1}); few {
			break
		}
	}
	return from, nil
}

// finishRewrite adds what was flushed last and exchanges the files. Needs
// flushing: writes go on into memory.
func (s *State) finishRewrite(old *stateFile, b *builder, from position, start time.Time) error {
	if err := s.usable(); err != nil {
		return err
	}
	switch g := s.gen.Load(); {
	case g.file != old:
		return errors.New("the state was replaced meanwhile")
	case g.frozen != nil || g.ahead:
		return errors.New("the state file is unfinished")
	}
	m := s.durable.Load().meta
	b.pace = pace{}
	b.start()
	source := copySource{view: s.fileView, origin: old.origin, out: pagesTo{b}}
	err := source.history(from, m.Revision)
	if derr := b.drain(); err == nil {
		err = derr
	}
	if err == nil {
		err = b.check(&m)
	}
	if err != nil {
		return err
	}
	if err := b.finish(func(tx *bbolt.Tx) error { return copyMeta(tx, old) }); err != nil {
		return err
	}
	if err := b.close(); err != nil {
		return err
	}
	file, _, _, err := openStateFile(b.path, s.cfg.MaxData)
	if err != nil {
		return err
	}
	file.origin = old.origin
	if err := s.install(file); err != nil {
		return err
	}
	s.mu.Lock()
	n := *s.gen.Load()
	n.file = file
	s.gen.Store(&n)
	s.mu.Unlock()
	s.retireLater(old, file)
	s.log.Info("state file made smaller", "took", time.Since(start))
	return nil
}

// copyMeta copies the records of the meta bucket, except local, from another file.
func copyMeta(to *bbolt.Tx, from *stateFile) error {
	return from.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketMeta).ForEach(func(k, v []byte) error {
			if string(k) == string(recordLocal) || isMark(k, v) {
				return nil
			}
			return to.Bucket(bucketMeta).Put(k, append([]byte(nil), v...))
		})
	})
}

// fileView is a view of what the file holds, without what is in memory. While a
// layer is being written it may be ahead of its meta.
func (s *State) fileView() (*View, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return nil, command.ErrStopping
	}
	g := &generation{active: newLayer(), meta: s.durable.Load().meta, file: s.gen.Load().file}
	tx, err := g.file.begin()
	if err != nil {
		return nil, err
	}
	v := &View{overlay: overlay{top: g.active, oldest: g.meta.Oldest, file: tx}, gen: g}
	if s.gen.Load().ahead { // by a delta, which may be taken back
		v.limit = g.meta.Revision
	}
	return v, nil
}

// pagesTo hands pages to a builder in this process.
type pagesTo struct{ b *builder }

func (p pagesTo) writeHistory(page []byte, _ uint64) error {
	return p.b.history(append(p.b.buffer(), page...))
}

func (p pagesTo) writePointers(page []byte, _ uint64) error {
	return p.b.pointers(append(p.b.buffer(), page...))
}

// pace holds a writer back to a rate. Its zero value does not.
type pace struct {
	stop  <-chan struct{}
	rate  int64 // bytes per second
	began time.Time
	bytes int64
}

// after waits until bytes more may have been written, or until stop.
func (p *pace) after(bytes int) {
	if p.rate == 0 {
		return
	}
	p.bytes += int64(bytes)
	ahead := time.Duration(float64(p.bytes)/float64(p.rate)*float64(time.Second)) - time.Since(p.began)
	if ahead <= 0 {
		return
	}
	select {
	case <-time.After(ahead):
	case <-p.stop:
	}
}
