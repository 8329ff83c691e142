package fsm

import (
	"encoding/binary"
	"time"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/store"
)

// Lock-delays and the results of writes with idempotency keys are kept until a
// moment of cluster time. Each lies in its space under "k/" and its name, the
// moment (8 bytes) before its value, and an empty record under "t/", the moment and
// the name makes a queue, so that what is over is found without looking at the
// rest. Whether something still counts is judged by its moment, not by whether it
// has been dropped.

func queueName(space string, until uint64, name string) string {
	return string(binary.BigEndian.AppendUint64([]byte(space+"t/"), until)) + name
}

// now is the cluster time of the entry.
func now(b *store.Batch) uint64 {
	stamp, _ := b.Stamp()
	return uint64(stamp)
}

// keep puts a value in a space for some time, in place of one of the same name.
func keep(b *store.Batch, space, name string, d time.Duration, value []byte) error {
	if err := drop(b, space, name); err != nil {
		return err
	}
	until := now(b) + uint64(d)
	b.Put(command.Record{
		Key: store.KeptName(space, name), Value: append(binary.BigEndian.AppendUint64(nil, until), value...), CreateRevision: b.NextRevision(),
	})
	b.Put(command.Record{Key: queueName(space, until, name), CreateRevision: b.NextRevision()})
	return nil
}

// kept returns a value that is not over yet. It is valid until the batch ends.
func kept(b *store.Batch, space, name string) (value []byte, ok bool, err error) {
	rec, ok, err := b.Get(store.KeptName(space, name))
	if err != nil || !ok || binary.BigEndian.Uint64(rec.Value) <= now(b) {
		return nil, false, err
	}
	return rec.Value[8:], true, nil
}

// drop removes what is kept under a name, over or not.
func drop(b *store.Batch, space, name string) error {
	rec, ok, err := b.Get(store.KeptName(space, name))
	if err != nil || !ok {
		return err
	}
	until := binary.BigEndian.Uint64(rec.Value)
	b.Delete(rec.Key)
	b.Delete(queueName(space, until, name))
	return nil
}

// dropExpired removes what is over, the oldest first, up to a number.
func dropExpired(b *store.Batch, space string, most int) error {
	queue := space + "t/"
	var names []string
	// Collected first: the batch must not change under its own scan.
	err := b.ScanKeys(queue, func(key string) bool {
		until := binary.BigEndian.Uint64([]byte(key[len(queue):][:8]))
		if until > now(b) || len(names) == most {
			return false
		}
		names = append(names, key[len(queue)+8:])
		return true
	})
	for _, name := range names {
		if err == nil {
			err = drop(b, space, name)
		}
	}
	return err
}
