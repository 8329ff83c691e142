package transport

import (
	"errors"
	"net"

	"golang.org/x/sys/unix"
)

// limitUnsent makes writes to a connection wait while the kernel holds so many
// bytes that it has not sent. What is on its way does not count, so that the
// distance of the peer does not matter.
func limitUnsent(c *conn, bytes int) error {
	tc, ok := c.Conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tc.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, bytes)
	})
	return errors.Join(err, failed)
}
