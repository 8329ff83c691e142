package http

import (
	"errors"
	"io"
	nethttp "net/http"
	"os"
	"strconv"
	"time"
)

const (
	// firstBuffer is what a body is read into at first. What it grows to, its sender
	// must have sent: to declare a length costs nothing.
	firstBuffer = 32 << 10
	// renewEvery is how many bytes of a value must arrive to earn its sender
	// another BodyTimeout.
	renewEvery = 64 << 10
	// drainBytes is how much of an unwanted body is read, so that the sender
	// gets to see why it is not wanted instead of a reset connection.
	drainBytes = 32 << 20
	// drainPause is how long the sender of an unwanted body may pause.
	drainPause = 5 * time.Second
	// drainTotal is how long all of it may take.
	drainTotal = 30 * time.Second
)

// renewRead lets reads of the body block for at most d from now. Zero takes
// the limit away.
func (x *exchange) renewRead(d time.Duration) {
	var t time.Time
	if d > 0 {
		t = time.Now().Add(d)
	}
	_ = nethttp.NewResponseController(x.w).SetReadDeadline(t)
}

// value reads the whole body as the value of a key. The caller owns the result.
func (x *exchange) value(key string) ([]byte, error) {
	limit := x.s.cfg.MaxValue
	return x.body(limit, func(sizes string) error { return valueTooLarge(key, sizes) })
}

// body reads the whole body, of at most limit bytes, or gives what refuse makes of
// the sizes in question. The caller owns the result.
func (x *exchange) body(limit int64, refuse func(sizes string) error) ([]byte, error) {
	declared := x.r.ContentLength
	if declared > limit {
		return nil, refuse(x.leave(declared, limit))
	}
	if declared == 0 {
		return nil, nil
	}
	first, most := min(declared, firstBuffer), declared
	if declared < 0 {
		first, most = 512, limit+1 // one more tells too large from just fitting
	}
	buf := make([]byte, 0, first)
	renewed := 0
	for {
		if len(buf) == cap(buf) {
			if int64(len(buf)) == declared {
				break // net/http would stop here, too
			}
			grown := make([]byte, len(buf), min(most, int64(2*cap(buf))))
			copy(grown, buf)
			buf = grown
		}
		n, err := x.r.Body.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if int64(len(buf)) > limit {
			return nil, refuse(x.leave(-1, limit))
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			x.lastOfConn()
			return nil, x.brokenBody(err)
		}
		if len(buf)-renewed >= renewEvery {
			renewed = len(buf)
			x.renewRead(x.s.cfg.BodyTimeout)
		}
	}
	// From here on net/http listens for the client's going away, and must not
	// take a deadline for that.
	x.renewRead(0)
	return buf, nil
}

// leave takes leave of a body of size bytes, -1 when all we know is that it is
// above the limit, and says what is wrong with the size.
func (x *exchange) leave(size, limit int64) string {
	if size < 0 || x.r.Header.Get("Expect") == "" && size <= drainBytes { // else it was not sent yet
		x.drain()
	}
	if size < 0 {
		return "more than " + strconv.FormatInt(limit, 10) + " bytes"
	}
	return sizesOf(size, limit)
}

// sizesOf says that a size is above a limit.
func sizesOf(size, limit int64) string {
	return strconv.FormatInt(size, 10) + " > " + strconv.FormatInt(limit, 10) + " bytes"
}

// hintMaxValue is what to do about a value that is too large.
const hintMaxValue = "split the value, or raise --max-value on every node"

// valueTooLarge has the words that clients look for before they split a value.
func valueTooLarge(key, sizes string) error {
	return tooLarge("Value for key "+strconv.Quote(key)+" is too large ("+sizes+")", hintMaxValue)
}

// brokenBody says why a body could not be read to its end.
func (x *exchange) brokenBody(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return &problem{
			status: nethttp.StatusRequestTimeout, code: codeStalled,
			text: "Request body stalled: no progress for " + x.s.cfg.BodyTimeout.String(), hint: "send it again",
		}
	}
	return badRequest("Request body ended early: " + err.Error()).advise("send it again, whole")
}

// drain reads what is left of the body and forgets it, within bounds, and
// reports whether that was all of it.
func (x *exchange) drain() bool {
	scrap := make([]byte, renewEvery)
	ends := time.Now().Add(drainTotal)
	for left := drainBytes; left > 0; {
		pause := min(drainPause, time.Until(ends))
		if pause <= 0 {
			return false
		}
		x.renewRead(pause)
		n, err := x.r.Body.Read(scrap)
		if left -= n; err != nil {
			return err == io.EOF
		}
	}
	return false
}
