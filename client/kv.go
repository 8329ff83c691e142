package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/holdfast-db/holdfast/command"
)

// entry is a record as the API shows it.
type entry struct {
	LockIndex   uint64
	Key         string
	Flags       uint64
	Value       []byte
	CreateIndex uint64
	ModifyIndex uint64
	Session     string
}

func (e entry) record() command.Record {
	return command.Record{
		Key: e.Key, Value: e.Value, Flags: e.Flags,
		LockIndex: e.LockIndex, Session: e.Session,
		CreateRevision: e.CreateIndex, ModifyRevision: e.ModifyIndex,
	}
}

// Get returns the record of key, or command.ErrKeyNotFound, with which Meta is
// valid too.
func (c *Client) Get(ctx context.Context, key string, opts ...ReadOption) (command.Record, Meta, error) {
	var es []entry
	meta, err := c.readKV(ctx, key, read(opts), &es)
	if err != nil {
		return command.Record{}, meta, err
	}
	if len(es) != 1 {
		return command.Record{}, meta, fmt.Errorf("%s sent %d entries for one key", meta.Address, len(es))
	}
	return es[0].record(), meta, nil
}

// List returns all records whose key starts with prefix, in ascending byte
// order of keys. None is not an error.
func (c *Client) List(ctx context.Context, prefix string, opts ...ReadOption) ([]command.Record, Meta, error) {
	o := read(opts)
	o.query.Set("recurse", "")
	var es []entry
	meta, err := c.readKV(ctx, prefix, o, &es)
	if err != nil && !errors.Is(err, command.ErrKeyNotFound) {
		return nil, meta, err
	}
	records := make([]command.Record, len(es))
	for i, e := range es {
		records[i] = e.record()
	}
	return records, meta, nil
}

// Keys returns all keys that start with prefix, ascending. With a separator
// each is cut after its first occurrence behind the prefix, and what is equal
// then comes once. None is not an error.
func (c *Client) Keys(ctx context.Context, prefix, separator string, opts ...ReadOption) ([]string, Meta, error) {
	o := read(opts)
	o.query.Set("keys", "")
	if separator != "" {
		o.query.Set("separator", separator)
	}
	var keys []string
	meta, err := c.readKV(ctx, prefix, o, &keys)
	if err != nil && !errors.Is(err, command.ErrKeyNotFound) {
		return nil, meta, err
	}
	return keys, meta, nil
}

func (c *Client) readKV(ctx context.Context, key string, o readOptions, v any) (Meta, error) {
	path, err := kvPath(key)
	if err != nil {
		return Meta{}, err
	}
	a, err := c.doRead(ctx, o.request(path))
	if err != nil {
		return a.meta, err
	}
	return a.meta, a.decode(v)
}

// doRead is do for reads: a 404 that carries an index is the answer that there
// is no such key, and its Meta is worth as much as that of any other.
func (c *Client) doRead(ctx context.Context, r request) (answer, error) {
	a, err := c.do(ctx, r)
	var named *Error
	if errors.As(err, &named) && named.absent != nil {
		return answer{meta: *named.absent}, command.ErrKeyNotFound
	}
	return a, err
}

// Put sets key and returns whether it did: false only if a condition failed.
// On return with true it is on the disks of a majority of the voters.
func (c *Client) Put(ctx context.Context, key string, value []byte, opts ...WriteOption) (bool, Meta, error) {
	return c.writeKV(ctx, write(opts).request(http.MethodPut, value), key)
}

// Delete removes key. Removing an absent one succeeds; false means that a
// condition failed.
func (c *Client) Delete(ctx context.Context, key string, opts ...WriteOption) (bool, Meta, error) {
	return c.writeKV(ctx, write(opts).request(http.MethodDelete, nil), key)
}

// DeleteTree removes all keys that start with prefix, in one step. The empty
// prefix is all keys.
func (c *Client) DeleteTree(ctx context.Context, prefix string, opts ...WriteOption) (Meta, error) {
	o := write(opts)
	o.query.Set("recurse", "")
	_, meta, err := c.writeKV(ctx, o.request(http.MethodDelete, nil), prefix)
	return meta, err
}

func (c *Client) writeKV(ctx context.Context, r request, key string) (bool, Meta, error) {
	var err error
	if r.path, err = kvPath(key); err != nil {
		return false, Meta{}, err
	}
	a, err := c.do(ctx, r)
	if err != nil {
		return false, Meta{}, err
	}
	ok, err := a.decided()
	return ok, a.meta, err
}

// decided is the body of a write's answer.
func (a answer) decided() (bool, error) {
	switch body := bytes.TrimSpace(a.body); {
	case bytes.Equal(body, []byte("true")):
		return true, nil
	case bytes.Equal(body, []byte("false")):
		return false, nil
	default:
		return false, fmt.Errorf("%s answered a write with %.40q instead of true or false", a.meta.Address, body)
	}
}

// kvPath refuses what the path cannot carry: servers drop leading slashes, so
// the request would reach another key.
func kvPath(key string) (string, error) {
	if strings.HasPrefix(key, "/") {
		return "", leadingSlash("key", key)
	}
	return "/v1/kv/" + key, nil
}
