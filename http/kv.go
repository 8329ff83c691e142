package http

import (
	"errors"
	nethttp "net/http"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-db/holdfast/command"
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
	// one and list are the exchange's methods, bound once.
	one, list func(command.View) error
}

func (r *keyRead) clear() { r.key, r.past, r.found, r.index = "", 0, false, 0 }

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
	key := keyOf(x.r.URL.Path, "/v1/kv")
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
	if err != nil {
		x.fail(err)
		return
	}
	x.read.key = key
	evaluate := x.read.one
	if listing {
		evaluate = x.read.list
	}
	info, err := s.node.Read(x.r.Context(), opts, evaluate)
	if err != nil {
		x.failRead(&info, err)
		return
	}
	x.readHeaders(&info, max(x.read.index, 1))
	switch {
	case !x.read.found:
		x.replyEmpty(nethttp.StatusNotFound)
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
	err = v.Scan(prefix, "", func(r command.Record) bool {
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
		after, last string
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
			if n > 0 && shown == last {
				if same++; same < skipAfter {
					return true
				}
				// Keys are UTF-8, in which the byte 0xff does not occur: this
				// sorts behind all of the folder.
				after, jumped = shown+"\xff", true
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
	put := &command.Put{Key: keyOf(x.r.URL.Path, "/v1/kv")}
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
	if conditions > 1 {
		return badRequest("Conflicting flags: only one of cas, acquire and release may be given")
	}
	if put.Session == "" && (put.Mode == command.PutAcquire || put.Mode == command.PutRelease) {
		return badRequest("missing session")
	}
	return nil
}

// deleteKey is DELETE /v1/kv/KEY.
func (s *Server) deleteKey(x *exchange) {
	key := keyOf(x.r.URL.Path, "/v1/kv")
	recurse, cas := x.q.has(paramRecurse), x.q.has(paramCAS)
	index, err := x.q.number(paramCAS)
	if err == nil {
		err = checkKey(key)
	}
	switch {
	case err != nil:
		x.fail(err)
	case recurse && cas:
		x.fail(badRequest("Conflicting flags: only one of cas and recurse may be given"))
	case recurse:
		x.decide(&command.DeleteTree{Prefix: key}, "")
	case key == "":
		x.fail(errMissingKey)
	default:
		x.decide(&command.Delete{Key: key, CAS: cas, Index: index}, "")
	}
}

// decide proposes a write and answers whether it happened, with the revision
// at which that was decided.
func (x *exchange) decide(c command.Command, session string) {
	res, err := x.s.node.Propose(x.r.Context(), c)
	if err == nil {
		err = res.Err
	}
	if err != nil {
		if errors.Is(err, command.ErrInvalidSession) {
			// Lock clients compare how this text begins.
			err = &problem{
				status: table[command.ErrInvalidSession.Code].status, code: command.ErrInvalidSession.Code,
				text: command.ErrInvalidSession.Message + " " + strconv.Quote(session), hint: command.ErrInvalidSession.Hint,
			}
		}
		x.fail(err)
		return
	}
	x.w.Header()["X-Consul-Index"] = []string{strconv.FormatUint(max(res.Revision, 1), 10)}
	x.out = strconv.AppendBool(x.out[:0], res.OK)
	x.replyJSON(nethttp.StatusOK)
}
