package bench

import (
	"encoding/base64"
	"errors"
	"math/rand/v2"
	"slices"
	"strconv"
)

// Op is a kind of request.
type Op int

// The kinds of requests. What the reads promise depends on the target.
const (
	Put        Op = iota
	Get           // a read that names no mode
	Stale         // a read of what the asked server has
	Consistent    // a linearizable read
	Txn           // several keys set in one step
	ops
)

var opNames = [ops]string{"put", "get", "stale", "consistent", "txn"}

// String gives the name of a kind of request.
func (o Op) String() string { return opNames[o] }

// OpNames lists the names of all kinds of requests.
func OpNames() []string { return slices.Clone(opNames[:]) }

// OpNamed finds a kind of request by its name.
func OpNamed(name string) (Op, bool) {
	i := slices.Index(opNames[:], name)
	return Op(i), i >= 0
}

func (o Op) writes() bool { return o == Put || o == Txn }

// Mix says in which proportion kinds of requests are made: the weight of each.
type Mix map[Op]int

// Distribution is how keys are chosen.
type Distribution string

// The distributions.
const (
	// Uniform: each key as often as any other.
	Uniform Distribution = "uniform"
	// Zipf: the n-th key in the order of their popularity is asked for in proportion to 1/n to the
	// power of zipfExponent. Popular keys are scattered over all keys.
	Zipf Distribution = "zipf"
)

// Distributions lists them all.
func Distributions() []string { return []string{string(Uniform), string(Zipf)} }

// zipfExponent is as near to the 0.99 that is usual as math/rand/v2 can come.
const zipfExponent = 1.01

// request is one request of a connection, valid until the next one is drawn.
type request struct {
	op     Op
	keys   [][]byte // one; several with Txn
	values [][]byte // of writes, as many as keys
	mark   mark
}

// workload is what the requests of all connections are drawn from.
type workload struct {
	seed         uint64
	prefix       string
	keys         uint64
	distribution Distribution
	valueSize    int
	txnOps       int
	mix          Mix

	weights int // the sum of those in mix
	filler  []byte
	// The key of rank r is (r*stride + shift) mod keys: all keys, in a scattered order.
	stride, shift uint64
}

// fillerSpread is from how many places in the filler a value can begin. It makes values
// that differ, as users' do, where the servers compress.
const fillerSpread = 1 << 18

const (
	// maxKeys keeps a rank times the stride within 64 bits.
	maxKeys = 1 << 31
	// maxConnections leaves room in a mark for what fills.
	maxConnections = 1<<16 - 2
	fillConnection = 1<<16 - 1
	// leastValue is what a mark takes.
	leastValue = 8
)

func (w *workload) prepare() {
	for _, weight := range w.mix {
		w.weights += weight
	}
	rng := rand.New(rand.NewPCG(w.seed, 0))
	raw := make([]byte, (fillerSpread+w.valueSize)*3/4+3)
	for i := range raw {
		raw[i] = byte(rng.Uint32())
	}
	w.filler = base64.RawURLEncoding.AppendEncode(nil, raw)
	w.shift = rng.Uint64N(w.keys)
	w.stride = rng.Uint64N(w.keys) + 1
	for divisor(w.stride, w.keys) != 1 {
		w.stride++
	}
}

// divisor is the greatest one that both have.
func divisor(a, b uint64) uint64 {
	for b > 0 {
		a, b = b, a%b
	}
	return a
}

// keyOfRank is the number of the key that is in this place of popularity, from 0.
func (w *workload) keyOfRank(rank uint64) uint64 { return (rank*(w.stride%w.keys) + w.shift) % w.keys }

// appendKey appends the name of a key. All have the same length, so that none is
// a prefix of another.
func (w *workload) appendKey(b []byte, n uint64) []byte {
	b = append(b, w.prefix...)
	var digits [20]byte
	d := strconv.AppendUint(digits[:0], n, 10)
	for range 10 - len(d) {
		b = append(b, '0')
	}
	return append(b, d...)
}

// stream is the requests of one connection, one after the other.
type stream struct {
	w            *workload
	rng          *rand.Rand
	zipf         *rand.Zipf // nil: uniform
	count        uint32     // of requests that were drawn
	conn         uint16
	r            request
	numbers      []uint64 // of the request's keys
	keys, values [][]byte // what requests are made in
}

func (w *workload) stream(connection int) *stream {
	rng := rand.New(rand.NewPCG(w.seed, uint64(connection)+1))
	s := &stream{w: w, rng: rng, conn: uint16(connection)}
	if w.distribution == Zipf && w.keys > 1 {
		s.zipf = rand.NewZipf(rng, zipfExponent, 1, w.keys-1)
	}
	return s
}

// next draws a request.
func (s *stream) next() *request {
	r := &s.r
	left := s.rng.IntN(s.w.weights)
	for op := range ops {
		if left -= s.w.mix[op]; left < 0 {
			r.op = op
			break
		}
	}
	n := 1
	if r.op == Txn {
		n = s.w.txnOps
	}
	s.numbers = s.numbers[:0]
	for range n {
		rank := s.rank()
		for slices.Contains(s.numbers, s.w.keyOfRank(rank)) { // the keys of a transaction differ
			rank = (rank + 1) % s.w.keys
		}
		s.numbers = append(s.numbers, s.w.keyOfRank(rank))
	}
	return s.finish()
}

func (s *stream) rank() uint64 {
	if s.zipf != nil {
		return s.zipf.Uint64()
	}
	return s.rng.Uint64N(s.w.keys)
}

// fillStream is for the requests that write every key once.
func (w *workload) fillStream() *stream { return w.stream(fillConnection) }

// put is the request that writes the key with this number.
func (s *stream) put(number uint64) *request {
	s.r.op, s.count = Put, uint32(number)
	s.numbers = append(s.numbers[:0], number)
	return s.finish()
}

// finish names the keys of a request that is decided, and makes its values.
func (s *stream) finish() *request {
	r := &s.r
	for len(s.keys) < len(s.numbers) {
		s.keys, s.values = append(s.keys, nil), append(s.values, make([]byte, s.w.valueSize))
	}
	r.keys, r.values = s.keys[:len(s.numbers)], s.values[:len(s.numbers)]
	for i, n := range s.numbers {
		r.keys[i] = s.w.appendKey(r.keys[i][:0], n)
	}
	r.mark = mark{conn: s.conn, count: s.count}
	s.count++
	if !r.op.writes() {
		return r
	}
	for _, value := range r.values {
		from := s.rng.IntN(fillerSpread)
		copy(value, s.w.filler[from:from+len(value)])
		r.mark.put(value, s.w.seed)
	}
	return r
}

// mark tells a write from all others of its run. It stands at the beginning of each value, so no
// write leaves a key as it was, and who sees the value knows the write.
type mark struct {
	conn  uint16
	count uint32 // which request of the connection
}

// put writes the mark into the first 8 bytes of a value. Marks of runs with different seeds differ.
func (m mark) put(value []byte, seed uint64) {
	var b [6]byte
	bits := (uint64(m.conn)<<32 | uint64(m.count)) ^ scramble(seed)
	for i := range b {
		b[i] = byte(bits >> (40 - 8*i))
	}
	base64.RawURLEncoding.Encode(value[:8], b[:])
}

var errNoMark = errors.New("value without a mark")

// markOf reads the mark of a value. That of a value that was not written by a request is
// nonsense, or an error.
func markOf(value []byte, seed uint64) (mark, error) {
	var b [6]byte
	if len(value) < 8 {
		return mark{}, errNoMark
	}
	if _, err := base64.RawURLEncoding.Decode(b[:], value[:8]); err != nil {
		return mark{}, errNoMark
	}
	var bits uint64
	for _, c := range b {
		bits = bits<<8 | uint64(c)
	}
	bits ^= scramble(seed)
	return mark{conn: uint16(bits >> 32), count: uint32(bits)}, nil
}

// scramble makes 48 bits of a seed.
func scramble(seed uint64) uint64 { return seed * 0x9e3779b97f4a7c15 >> 16 }
