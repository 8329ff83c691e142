package store

import (
	"context"
	"fmt"

	"github.com/holdfast-db/holdfast/command"
)

// A view must not wait for whoever reads an export, so records are gathered in
// pages and handed out between views.
const (
	exportRecords = 4096
	exportBytes   = 1 << 20
)

// Export calls fn for every record whose key starts with prefix, in ascending
// byte order, exactly as they were at revision rev (0: the newest when Export
// begins). It may take any time: no view is open while fn runs. An error of fn
// ends it and comes back unchanged; otherwise errors are those of View.ScanAt
// and the context's.
func (s *State) Export(ctx context.Context, prefix string, rev uint64, fn func(command.Record) error) error {
	if rev == 0 {
		rev = s.Revision()
	}
	page := make([]command.Record, 0, 64)
	for after, more := "", true; more; {
		var err error
		if page, more, err = s.exportPage(page[:0], prefix, after, rev); err != nil {
			return fmt.Errorf("export %q at revision %d: %w", prefix, rev, err)
		}
		for _, rec := range page {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := fn(rec); err != nil {
				return err
			}
			after = rec.Key
		}
	}
	return ctx.Err()
}

func (s *State) exportPage(page []command.Record, prefix, after string, rev uint64) (_ []command.Record, more bool, err error) {
	v, err := s.view()
	if err != nil {
		return page, false, err
	}
	defer v.Close()
	size := 0
	err = v.ScanAt(prefix, after, rev, func(rec command.Record) bool {
		page = append(page, rec)
		size += len(rec.Key) + len(rec.Value)
		more = len(page) >= exportRecords || size >= exportBytes
		return !more
	})
	return page, more, err
}
