package transport

import (
	"errors"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// limitUnsent makes writes to a connection wait while the kernel holds so many
// bytes that it has not sent. What is on its way does not count, so that the
// distance of the peer does not matter.
func limitUnsent(c *conn, bytes int) error {
	var failed error
	err := c.control(func(fd int) {
		failed = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, bytes)
	})
	return errors.Join(err, failed)
}

// unacked is how many of the bytes written to a connection the peer's system has
// not acknowledged; ok is false when that cannot be told.
func unacked(c *conn) (bytes int, ok bool) {
	failed := errNoSocket
	_ = c.control(func(fd int) { bytes, failed = unix.IoctlGetInt(fd, unix.SIOCOUTQ) })
	return bytes, failed == nil
}

// roundTrips are the present and the shortest round trip of a connection as the
// kernel measures them; ok is false when it does not tell.
func roundTrips(c *conn) (now, shortest time.Duration, ok bool) {
	var info *unix.TCPInfo
	failed := errNoSocket
	_ = c.control(func(fd int) { info, failed = unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO) })
	if failed != nil || info.Rtt == 0 {
		return 0, 0, false
	}
	return time.Duration(info.Rtt) * time.Microsecond, time.Duration(info.Min_rtt) * time.Microsecond, true
}

var errNoSocket = errors.New("connection is no TCP socket")

// control runs f on the socket of a connection, if it is one of TCP.
func (c *conn) control(f func(fd int)) error {
	tc, ok := c.Conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tc.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(func(fd uintptr) { f(int(fd)) })
}
