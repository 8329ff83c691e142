package http

import (
	"errors"
	nethttp "net/http"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/internal/planted"
)

const (
	// viewLimit is how long a listing may hold its view; the store wants views
	// back within ten seconds.
	viewLimit = 9 * time.Second
	// checkEvery is after how many records a listing looks at the clock.
	checkEvery = 256
	// skipAfter is how many keys of one folder a listing of folders passes by
	// before it jumps behind the folder.
	skipAfter = 16
)

// keyRead is the state of a read of package command's View, kept in the
// exchange so that the hot path makes no closure.
type keyRead struct {
	key string
	// past is the revision at which to read; 0 reads the state as it is.
	past  uint64
	found bool
	// index is the X-Consul-Index of the answer.
	index uint64
	// limit is how many entries or keys a page may hold, 0 for any number; after is
	// the last of the page before. more says that the list goes on.
	limit uint64
	after string
	more  bool
	// one and list are the exchange's methods, bound once.
	one, list func(command.View) error
}

func (r *keyRead) clear() { *r = keyRead{one: r.one, list: r.list} }

// past is a view of the state as it was at a revision, for what a read of keys
// asks of a view.
type past struct {
	command.View
	revision, kv uint64
}

// asOf returns the state to read: v, or what it was at the revision asked for.
func (r *keyRead) asOf(v command.View) (command.View, error) {
	if r.past == 0 {
		return v, nil
	}
	kv, err := v.KVRevisionAt(r.past)
	return past{View: v, revision: r.past, kv: kv}, err
}

func (p past) KVRevision() uint64 { return p.kv }

func (p past) PrefixRevision(prefix string) (uint64, error) {
	return p.View.PrefixRevisionAt(prefix, p.revision)
}

func (p past) Get(key string) (command.Record, error) { return p.View.GetAt(key, p.revision) }

func (p past) Scan(prefix, after string, fn func(command.Record) bool) error {
	return p.View.ScanAt(prefix, after, p.revision, fn)
}

func (p past) ScanKeys(prefix, after string, fn func(string, uint64) bool) error {
	return p.Scan(prefix, after, func(r command.Record) bool { return fn(r.Key, r.ModifyRevision) })
}

// getKey is GET /v1/kv/KEY.
func (s *Server) getKey(x *exchange) {
	key := x.named()
	if err := checkKey(key); err != nil {
		x.fail(err)
		return
	}
	listing := x.q.has(paramKeys) || x.q.has(paramRecurse)
	if key == "" && !listing {
		x.fail(errMissingKey)
		return
	}
	opts, err := x.readOptions()
	if err == nil {
		x.read.past, err = x.pastRevision(&opts)
	}
	target, evaluate := command.Target{Kind: command.TargetKey, Key: key}, x.read.one
	if err == nil && listing {
		target.Kind, evaluate = command.TargetPrefix, x.read.list
		x.read.limit, err = x.q.countedNumber(paramLimit)
		x.read.after = x.q.get(paramAfter)
	}
	if err != nil {
		x.fail(err)
		return
	}
	x.read.key = key
	var info command.ReadInfo
	if x.read.past > 0 { // which does not change: there is nothing to wait for
		info, err = s.node.Read(x.r.Context(), opts, evaluate)
	} else {
		info, err = x.block(target, opts, evaluate, &x.read.index)
	}
	if err != nil {
		x.failRead(&info, err)
		return
	}
	tag := x.readHeaders(&info, max(x.read.index, 1))
	if x.read.found && !listing {
		x.w.Header()["Etag"] = tag
	}
	if x.read.more {
		x.w.Header()["X-Holdfast-More"] = headTrue
	}
	switch {
	case !x.read.found:
		x.replyEmpty(nethttp.StatusNotFound)
	case !listing && x.has(tag[0]):
		x.replyEmpty(nethttp.StatusNotModified)
	case !listing && x.q.has(paramRaw):
		h := x.w.Header()
		h["X-Content-Type-Options"] = headNoSniff
		h["Content-Security-Policy"] = headSandbox
		x.reply(nethttp.StatusOK, kindText)
	default:
		x.replyJSON(nethttp.StatusOK)
	}
}

// readOne evaluates a read of one key.
func (x *exchange) readOne(v command.View) error {
	x.resetReply()
	v, err := x.read.asOf(v)
	if err != nil {
		return err
	}
	rec, err := v.Get(x.read.key)
	if err != nil {
		if !errors.Is(err, command.ErrKeyNotFound) {
			return err
		}
		x.read.found, x.read.index = false, v.KVRevision()
		return nil
	}
	x.read.found, x.read.index = true, rec.ModifyRevision
	if planted.Bug("index-of-the-newest") {
		x.read.index = v.KVRevision()
	}
	if x.knows(x.read.index) {
		return nil
	}
	if x.q.has(paramRaw) {
		x.out = append(x.out, rec.Value...)
		return nil
	}
	x.out = append(x.out, '[')
	x.out = appendEntry(x.out, &rec)
	x.out = append(x.out, ']')
	return nil
}

// readList evaluates a read of all keys under a prefix.
func (x *exchange) readList(v command.View) (err error) {
	x.resetReply()
	if v, err = x.read.asOf(v); err != nil {
		return err
	}
	prefix := x.read.key
	if prefix == "" {
		x.read.index = v.KVRevision()
	} else if x.read.index, err = v.PrefixRevision(prefix); err != nil {
		return err
	}
	if x.read.more = false; x.knows(x.read.index) {
		return nil
	}
	x.out = append(x.out, '[')
	var n int
	if x.q.has(paramKeys) {
		n, err = x.listKeys(v, prefix, x.q.get(paramSeparator))
		// Of no keys at all there is a list, of none under a prefix there is none.
		x.read.found = n > 0 || prefix == ""
	} else {
		n, err = x.listEntries(v, prefix)
		x.read.found = n > 0
	}
	x.out = append(x.out, ']')
	return err
}

// listEntries appends all entries under the prefix and returns their number.
func (x *exchange) listEntries(v command.View, prefix string) (n int, err error) {
	began := time.Now()
	var stop error
	err = v.Scan(prefix, x.read.after, func(r command.Record) bool {
		if x.endsPage(n) {
			return false
		}
		if n > 0 {
			x.out = append(x.out, ',')
		}
		x.out = appendEntry(x.out, &r)
		n++
		stop = x.mayGoOn(n, began)
		return stop == nil
	})
	return n, errors.Join(stop, err)
}

// listKeys appends all keys under the prefix, each cut after the first
// separator that follows the prefix, and returns their number.
func (x *exchange) listKeys(v command.View, prefix, separator string) (n int, err error) {
	began := time.Now()
	var (
		after, last = x.read.after, x.read.after
		seen, same  int
		stop        error
	)
	for jumped := true; jumped && err == nil && stop == nil; {
		jumped = false
		err = v.ScanKeys(prefix, after, func(key string, _ uint64) bool {
			shown := key
			if separator != "" {
				if i := strings.Index(key[len(prefix):], separator); i >= 0 {
					shown = key[:len(prefix)+i+len(separator)]
				}
			}
			seen++
			if stop = x.mayGoOn(seen, began); stop != nil {
				return false
			}
			if shown == last { // which may be the folder that ended the page before
				if same++; same < skipAfter {
					return true
				}
				// Keys are UTF-8, in which the byte 0xff does not occur: this
				// sorts behind all of the folder.
				after, jumped = shown+"\xff", true
				return false
			}
			if x.endsPage(n) {
				return false
			}
			if n > 0 {
				x.out = append(x.out, ',')
			}
			x.out = appendString(x.out, shown)
			last, same = shown, 0
			n++
			return true
		})
	}
	return n, errors.Join(stop, err)
}

// endsPage reports whether a list that goes on ends here all the same, since the
// page holds n already.
func (x *exchange) endsPage(n int) bool {
	x.read.more = x.read.limit > 0 && uint64(n) >= x.read.limit
	return x.read.more
}

// mayGoOn bounds a listing: in bytes, in time, and to clients that still wait.
func (x *exchange) mayGoOn(n int, began time.Time) error {
	x.spill()
	if x.gathered > x.s.cfg.MaxReply {
		return &problem{
			status: nethttp.StatusBadRequest, code: codeReplyTooLarge,
			text: "Reply is larger than " + strconv.FormatInt(x.s.cfg.MaxReply, 10) + " bytes",
			hint: "ask for a longer prefix, or stream all of it from /v1/bulk/",
		}
	}
	if n%checkEvery != 0 {
		return nil
	}
	if time.Since(began) > viewLimit {
		return &problem{
			status: nethttp.StatusInternalServerError, code: codeReplyTooLarge,
			text: "Listing took longer than " + viewLimit.String(),
			hint: "ask for a longer prefix, or stream all of it from /v1/bulk/",
		}
	}
	return x.r.Context().Err()
}

// putKey is PUT /v1/kv/KEY.
func (s *Server) putKey(x *exchange) {
	put := &command.Put{Key: x.named()}
	err := checkKey(put.Key)
	if err == nil && put.Key == "" {
		err = errMissingKey
	}
	if err == nil {
		err = x.putParams(put)
	}
	if err == nil {
		put.Value, err = x.value(put.Key)
	}
	if err != nil {
		x.fail(err)
		return
	}
	x.decide(put, put.Session)
}

// putParams reads the condition and the flags of a put.
func (x *exchange) putParams(put *command.Put) (err error) {
	if put.Flags, err = x.q.number(paramFlags); err != nil {
		return err
	}
	conditions := 0
	if x.q.has(paramCAS) {
		conditions++
		put.Mode = command.PutCAS
		if put.Index, err = x.q.number(paramCAS); err != nil {
			return err
		}
	}
	if x.q.has(paramAcquire) {
		conditions++
		put.Mode, put.Session = command.PutAcquire, x.q.get(paramAcquire)
	}
	if x.q.has(paramRelease) {
		conditions++
		put.Mode, put.Session = command.PutRelease, x.q.get(paramRelease)
	}
	if index, given, err := x.precondition(); err != nil {
		return err
	} else if given {
		conditions++
		put.Mode, put.Index = command.PutCAS, index
	}
	if conditions > 1 {
		return badRequest("Conflicting flags: only one of cas, acquire, release, If-Match and If-None-Match may be given")
	}
	if put.Session == "" && (put.Mode == command.PutAcquire || put.Mode == command.PutRelease) {
		return badRequest("missing session").advise("PUT /v1/session/create gives the id of a session to lock with")
	}
	return nil
}

// deleteKey is DELETE /v1/kv/KEY.
func (s *Server) deleteKey(x *exchange) {
	key := x.named()
	recurse := x.q.has(paramRecurse)
	cas, index, err := x.deleteParams()
	if err == nil {
		err = checkKey(key)
	}
	switch {
	case err != nil:
		x.fail(err)
	case recurse && cas:
		x.fail(badRequest("Conflicting flags: only one of recurse, cas, If-Match and If-None-Match may be given"))
	case recurse:
		x.decide(&command.DeleteTree{Prefix: key}, "")
	case key == "":
		x.fail(errMissingKey)
	default:
		x.decide(&command.Delete{Key: key, CAS: cas, Index: index}, "")
	}
}

// deleteParams reads the condition of a delete.
func (x *exchange) deleteParams() (cas bool, index uint64, err error) {
	cas = x.q.has(paramCAS)
	if index, err = x.q.number(paramCAS); err != nil {
		return cas, 0, err
	}
	at, given, err := x.precondition()
	switch {
	case err != nil || !given:
		return cas, index, err
	case cas:
		return cas, 0, badRequest("Conflicting flags: only one of cas, If-Match and If-None-Match may be given")
	}
	return true, at, nil
}
