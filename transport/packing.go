package transport

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"
)

// Replication to another site is compressed where that pays: when the peer has said
// that it understands it, the request is worth a look, its like has shrunk before,
// and the link is not so fast that plain bytes are there sooner. A packed request is
// of kind raftPacked, with the body
//
//	length of the plain body (uvarint) | a zstd frame of it
const (
	// packLeast is the least body that is packed: less is mostly headers.
	packLeast = 1 << 10
	// firstSkip and mostSkip are how many bytes travel plain after a request that
	// did not shrink: the first after one, doubled for each further one.
	firstSkip = 64 << 10
	mostSkip  = 64 << 20
)

// PackCount counts compressed replication to a peer since this process started.
type PackCount struct {
	Requests    uint64
	Plain, Wire uint64 // bytes before and after
}

type packCounter struct{ requests, plain, wire atomic.Uint64 }

func (c *packCounter) count() PackCount {
	return PackCount{Requests: c.requests.Load(), Plain: c.plain.Load(), Wire: c.wire.Load()}
}

// shrinkage is what is known of how requests to a peer shrink.
type shrinkage struct {
	mu     sync.Mutex
	skip   int // guarded by mu: bytes that travel plain before the next try
	misses int // guarded by mu: requests in a row that did not shrink
}

// worth reports whether a body of n bytes is to be packed.
func (p *shrinkage) worth(n int) bool {
	if n < packLeast {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.skip = max(p.skip-n, 0)
	return p.skip == 0
}

// shrank notes whether packing has made a request smaller.
func (p *shrinkage) shrank(yes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if yes {
		p.misses = 0
		return
	}
	p.skip = min(firstSkip<<min(p.misses, 20), mostSkip)
	p.misses++
}

// pack compresses a finished request of kind raftAppend if that pays; else it gives
// it back as it is.
func (rc *raftConn) pack(frame []byte) []byte {
	p := rc.peer
	plain := frame[raftHeader:]
	if !rc.packs || rc.far == nil || p.shortest.below(nearby) || p.pace.fast() || !p.shrinkage.worth(len(plain)) {
		return frame
	}
	if rc.zstd == nil {
		// As for copies: no goroutines, and options that cannot fail.
		rc.zstd, _ = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
			zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(true))
	}
	b := append(rc.packed[:0], make([]byte, raftHeader)...)
	b = binary.AppendUvarint(b, uint64(len(plain)))
	b = rc.zstd.EncodeAll(plain, b)
	if cap(b) <= keepScratch {
		rc.packed = b
	}
	ok := float64(len(b)) <= worthwhile*float64(len(frame))
	p.shrinkage.shrank(ok)
	if !ok || finishFrame(b, raftPacked) != nil {
		return frame
	}
	p.packs.requests.Add(1)
	p.packs.plain.Add(uint64(len(frame)))
	p.packs.wire.Add(uint64(len(b)))
	return b
}

// unpacker undoes pack, on the goroutine of a connection.
type unpacker struct{ zstd *zstd.Decoder }

// unpack returns the plain body. No more is made room for than it claims to have.
func (u *unpacker) unpack(body []byte) ([]byte, error) {
	size, n := binary.Uvarint(body)
	if n <= 0 || size > maxRaftBody {
		return nil, fmt.Errorf("%w: packed request of %d bytes", errMessage, size)
	}
	if u.zstd == nil {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxMemory(maxRaftBody), zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			return nil, err
		}
		u.zstd = d
	}
	plain, err := u.zstd.DecodeAll(body[n:], make([]byte, 0, size))
	if err != nil || uint64(len(plain)) != size {
		return nil, fmt.Errorf("%w: packed request: %w", errMessage, err)
	}
	return plain, nil
}

const (
	// requestTime is about how long one request may take on a slow link: what is
	// lost when it breaks, and how long it is until the next says what was committed.
	requestTime = 2 * time.Second
	// nearby is the round trip of a local network, on which plain bytes are there sooner
	// than packed ones, whatever site is at its other end.
	nearby = time.Millisecond
	// paceRequest is the least request by which a link's pace is measured.
	paceRequest = 32 << 10
	// leastAppendBytes is the least bound of a request, and farAppendBytes that of
	// the first one to another site.
	leastAppendBytes = 32 << 10
	farAppendBytes   = 256 << 10
	// fastLink is how many bytes per second need no packing: see slowLink.
	fastLink = float64(1<<20) / (float64(slowLink) / float64(time.Second))
)

// replicationPace is how many bytes of entries per second a peer has lately taken
// and answered.
type replicationPace struct {
	mu        sync.Mutex
	perSecond float64 // guarded by mu; 0: not known
}

// took notes how long a request with so many bytes of entries took to be answered.
func (p *replicationPace) took(bytes int, d time.Duration) {
	if bytes < paceRequest || d <= 0 {
		return
	}
	now := float64(bytes) / d.Seconds()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.perSecond > 0 {
		now = (p.perSecond + now) / 2
	}
	p.perSecond = now
}

// most is how many bytes of entries one request may carry.
func (p *replicationPace) most(far bool) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.perSecond > 0:
		return int(min(max(p.perSecond*requestTime.Seconds(), leastAppendBytes), maxAppendBytes))
	case far:
		return farAppendBytes
	}
	return maxAppendBytes
}

// fast reports whether the link was seen to be so fast that packing slows it down.
func (p *replicationPace) fast() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.perSecond > fastLink
}
