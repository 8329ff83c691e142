package bench

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httputil"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// address is where a server is.
type address struct {
	given string // as the user wrote it
	host  string // host:port
	tls   bool
}

// parseAddress reads host:port, or a URL without a path. A port that is not given is port.
func parseAddress(given, port string) (address, error) {
	text := strings.TrimSpace(given)
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || (u.Scheme != "http" && u.Scheme != "https") ||
		strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
		return address{}, fmt.Errorf("%q is not a server address", given)
	}
	if u.Port() != "" {
		port = u.Port()
	}
	return address{given: strings.TrimSpace(given), host: net.JoinHostPort(u.Hostname(), port), tls: u.Scheme == "https"}, nil
}

// Conn is an HTTP/1.1 connection that has one request under way at a time, reduced to what
// load needs. After an error it is of no use any more.
type Conn struct {
	net.Conn
	// Index is the X-Consul-Index of the last answer that had one.
	Index uint64

	in   *bufio.Reader
	head head
	body []byte // of the last answer, until the next request
}

// head is what of an answer's head matters.
type head struct {
	status  int
	length  int64 // of the body; -1 when the head does not say
	chunked bool  // then length does not count
	closes  bool  // the server closes the connection after this answer
}

// Dial connects to a server at host:port.
func Dial(host string, timeout time.Duration) (*Conn, error) {
	return dial(address{host: host}, time.Now().Add(timeout))
}

// dial connects to a server, within a deadline.
func dial(a address, deadline time.Time) (*Conn, error) {
	d := &net.Dialer{Deadline: deadline}
	var c net.Conn
	var err error
	if a.tls {
		c, err = tls.DialWithDialer(d, "tcp", a.host, nil)
	} else {
		c, err = d.Dial("tcp", a.host)
	}
	if err != nil {
		return nil, err
	}
	return newConn(c), nil
}

func newConn(c net.Conn) *Conn { return &Conn{Conn: c, in: bufio.NewReaderSize(c, 4<<10)} }

// Do sends a request, the bytes of it as they go over the wire, and reads the answer to it, both
// within the deadline; the zero time is none. A status that tells of a failure is no error.
func (c *Conn) Do(request []byte, deadline time.Time) (status int, err error) {
	if err := c.ask(request, deadline); err != nil {
		return 0, err
	}
	return c.head.status, c.readBody()
}

// ask is Do up to the body of the answer.
func (c *Conn) ask(request []byte, deadline time.Time) error {
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := c.Write(request); err != nil {
		return err
	}
	for {
		if err := c.readHead(); err != nil {
			return err
		}
		if c.head.status >= 200 { // what is below only says that the answer is to come
			return nil
		}
	}
}

var errAnswer = errors.New("answer not understood")

func (c *Conn) readHead() error {
	c.head = head{length: -1}
	line, err := c.readLine()
	if err != nil {
		return err
	}
	if len(line) < 12 || !bytes.HasPrefix(line, []byte("HTTP/1.")) {
		return fmt.Errorf("%w: status line %.40q", errAnswer, line)
	}
	c.head.closes = line[7] == '0'
	if c.head.status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return fmt.Errorf("%w: status line %.40q", errAnswer, line)
	}
	for {
		if line, err = c.readLine(); err != nil {
			return err
		}
		if len(line) == 0 {
			return nil
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		if err := c.field(name, bytes.TrimSpace(value)); err != nil {
			return err
		}
	}
}

// field takes note of a field of the head. Most are told apart by the length of their name.
func (c *Conn) field(name, value []byte) (err error) {
	is := func(known string) bool { return len(name) == len(known) && strings.EqualFold(string(name), known) }
	switch {
	case is("Content-Length"):
		if c.head.length, err = strconv.ParseInt(string(value), 10, 63); err != nil || c.head.length < 0 {
			return fmt.Errorf("%w: Content-Length %.40q", errAnswer, value)
		}
	case is("X-Consul-Index"):
		if c.Index, err = strconv.ParseUint(string(value), 10, 64); err != nil {
			return fmt.Errorf("%w: X-Consul-Index %.40q", errAnswer, value)
		}
	case is("Transfer-Encoding"):
		c.head.chunked = strings.EqualFold(string(value), "chunked")
	case is("Connection"):
		c.head.closes = strings.EqualFold(string(value), "close")
	}
	return nil
}

// readLine returns a line without its end, valid until the next read.
func (c *Conn) readLine() ([]byte, error) {
	line, err := c.in.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, fmt.Errorf("%w: a line of the head is longer than %d bytes", errAnswer, c.in.Size())
	case errors.Is(err, io.EOF) && len(line) > 0:
		return nil, io.ErrUnexpectedEOF
	case err != nil:
		return nil, err
	}
	return bytes.TrimSuffix(line[:len(line)-1], []byte("\r")), nil
}

func (c *Conn) readBody() error {
	c.body = c.body[:0]
	h := &c.head
	switch {
	case h.status == 204, h.status == 304:
		return nil
	case h.chunked:
		if err := c.readAll(httputil.NewChunkedReader(c.in)); err != nil {
			return err
		}
		for { // what may follow the last chunk
			line, err := c.readLine()
			if err != nil || len(line) == 0 {
				return err
			}
		}
	case h.length >= 0:
		c.body = slices.Grow(c.body, int(h.length))[:h.length]
		_, err := io.ReadFull(c.in, c.body)
		return err
	default: // it ends with the connection
		h.closes = true
		return c.readAll(c.in)
	}
}

// readAll reads what there is into body.
func (c *Conn) readAll(r io.Reader) error {
	for {
		c.body = slices.Grow(c.body, 512)
		n, err := r.Read(c.body[len(c.body):cap(c.body)])
		c.body = c.body[:len(c.body)+n]
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// refusal is an answer that tells of a failure where there is no dialect to judge it.
type refusal struct{ trouble string }

func (r *refusal) Error() string { return r.trouble }

// troubleOf names why a request has no answer.
func troubleOf(err error) string {
	var refused *refusal
	switch {
	case errors.As(err, &refused):
		return refused.trouble
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "no answer in time"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, errAnswer):
		return errAnswer.Error()
	}
	if op := new(net.OpError); errors.As(err, &op) && op.Op == "dial" {
		if op.Timeout() {
			return "no connection in time"
		}
		return "no connection"
	}
	return "connection lost"
}
