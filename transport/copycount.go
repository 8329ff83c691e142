package transport

import "sync/atomic"

// CopyCount counts copy streams in one direction since this process started.
type CopyCount struct {
	Streams uint64 // begun
	Open    int    // under way now
	Wire    uint64 // bytes as they travelled, without introductions and requests
	Payload uint64 // bytes of the streams themselves: sent whole, or verified
}

// Copies counts the copy streams this node sent and received in total, peers it
// was disconnected from included.
func (t *Transport) Copies() (sent, received CopyCount) {
	return t.copies.sent.count(), t.copies.received.count()
}

// copyCounters is both directions of a peer, or of this node.
type copyCounters struct{ sent, received copyCounter }

type copyCounter struct {
	streams, wire, payload atomic.Uint64
	open                   atomic.Int64
}

func (c *copyCounter) count() CopyCount {
	return CopyCount{Streams: c.streams.Load(), Open: int(c.open.Load()), Wire: c.wire.Load(), Payload: c.payload.Load()}
}

// copyMeter is where one stream counts: its peer's counter and the total.
type copyMeter [2]*copyCounter

func (m copyMeter) begin() {
	for _, c := range m {
		c.streams.Add(1)
		c.open.Add(1)
	}
}

func (m copyMeter) end() {
	for _, c := range m {
		c.open.Add(-1)
	}
}

func (m copyMeter) wire(n int) {
	for _, c := range m {
		c.wire.Add(uint64(n))
	}
}

func (m copyMeter) payload(n int) {
	for _, c := range m {
		c.payload.Add(uint64(n))
	}
}
