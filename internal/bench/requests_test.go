package bench

import (
	"bytes"
	"fmt"
	"math"
	"testing"
)

func newWorkload(change func(*workload)) *workload {
	w := &workload{seed: 7, prefix: "p/", keys: 1000, distribution: Uniform, valueSize: 32, txnOps: 3, mix: Mix{Put: 3, Get: 6, Txn: 1}}
	if change != nil {
		change(w)
	}
	w.prepare()
	return w
}

// sample is the first requests of a connection, as bytes.
func sample(w *workload, connection, n int) string {
	var b bytes.Buffer
	s := w.stream(connection)
	for range n {
		r := s.next()
		fmt.Fprintf(&b, "%s %q", r.op, r.keys)
		if r.op.writes() {
			fmt.Fprintf(&b, " %q", r.values)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func TestASeedFixesTheRequestsOfEachConnection(t *testing.T) {
	for _, d := range []Distribution{Uniform, Zipf} {
		of := func(seed uint64, connection int, mix Mix) string {
			return sample(newWorkload(func(w *workload) { w.seed, w.distribution, w.mix = seed, d, mix }), connection, 200)
		}
		all, reads := Mix{Put: 3, Get: 6, Txn: 1}, Mix{Get: 1}
		if first, again := of(7, 3, all), of(7, 3, all); first != again {
			t.Errorf("%s: the same seed makes other requests", d)
		}
		if of(7, 3, reads) == of(8, 3, reads) || of(7, 3, reads) == of(7, 4, reads) {
			t.Errorf("%s: another seed or connection makes the same requests", d)
		}
	}
}

func TestRequestsAreAsAskedFor(t *testing.T) {
	w := newWorkload(nil)
	s, n := w.stream(0), 20_000
	var of [ops]int
	values := map[string]bool{}
	for range n {
		r := s.next()
		of[r.op]++
		keys := map[string]bool{}
		for _, k := range r.keys {
			keys[string(k)] = true
		}
		if want := map[Op]int{Put: 1, Get: 1, Txn: 3}[r.op]; len(keys) != want {
			t.Fatalf("%s of the keys %q", r.op, r.keys)
		}
		if !r.op.writes() {
			continue
		}
		if len(r.values) != len(r.keys) {
			t.Fatalf("%d keys, %d values", len(r.keys), len(r.values))
		}
		if len(r.values[0]) != w.valueSize || values[string(r.values[0])] {
			t.Fatalf("value %q is of another size, or comes again", r.values[0])
		}
		values[string(r.values[0])] = true
		if m, err := markOf(r.values[0], w.seed); err != nil || m != r.mark {
			t.Fatalf("mark %+v of %q, %v; want %+v", m, r.values[0], err, r.mark)
		}
	}
	for op, share := range map[Op]float64{Put: 0.3, Get: 0.6, Txn: 0.1} {
		if got := float64(of[op]) / float64(n); math.Abs(got-share) > 0.03 {
			t.Errorf("%s is %.2f of the requests; want %.2f", op, got, share)
		}
	}
}

func TestRanksGoOnceThroughAllKeys(t *testing.T) {
	for _, keys := range []uint64{1, 2, 3, 10, 1000, 1 << 12, maxKeys} {
		w := newWorkload(func(w *workload) { w.keys = keys })
		seen := map[uint64]bool{}
		for rank := range min(keys, 5000) {
			k := w.keyOfRank(rank)
			if k >= keys || seen[k] {
				t.Fatalf("of %d keys, rank %d is key %d, which is none or another rank's", keys, rank, k)
			}
			seen[k] = true
		}
	}
}

// The shares of keys follow the law, and popular keys do not stand side by side.
func TestZipfShape(t *testing.T) {
	w := newWorkload(func(w *workload) { w.distribution, w.mix = Zipf, Mix{Get: 1} })
	const n = 400_000
	asked := map[string]int{}
	s := w.stream(0)
	for range n {
		asked[string(s.next().keys[0])]++
	}
	var sum float64
	for k := range w.keys {
		sum += math.Pow(float64(k+1), -zipfExponent)
	}
	for _, rank := range []uint64{0, 1, 9, 99} {
		want := math.Pow(float64(rank+1), -zipfExponent) / sum
		got := float64(asked[string(w.appendKey(nil, w.keyOfRank(rank)))]) / n
		if math.Abs(got-want) > want/5 {
			t.Errorf("the key of rank %d has a share of %.5f; want %.5f", rank, got, want)
		}
	}
	if d := int64(w.keyOfRank(0)) - int64(w.keyOfRank(1)); d == 1 || d == -1 {
		t.Error("the most popular keys are neighbours")
	}
}

func TestUniformShape(t *testing.T) {
	w := newWorkload(func(w *workload) { w.keys, w.mix = 100, Mix{Get: 1} })
	asked := map[string]int{}
	s := w.stream(0)
	for range 100_000 {
		asked[string(s.next().keys[0])]++
	}
	for k, n := range asked {
		if n < 800 || n > 1200 {
			t.Errorf("%s was asked for %d times; want about 1000", k, n)
		}
	}
	if len(asked) != 100 {
		t.Errorf("%d keys were asked for; want 100", len(asked))
	}
}

// BenchmarkRequest is what a request costs here, all but the calls to the system: it is drawn, put
// together, and its answer is parsed and noted.
func BenchmarkRequest(b *testing.B) {
	w := newWorkload(func(w *workload) { w.keys, w.valueSize, w.mix = 10_000, 256, Mix{Put: 1} })
	text := "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nVary: Accept-Encoding\r\nX-Consul-Index: 123456\r\n" +
		"X-Holdfast-Applied: 123456\r\nX-Holdfast-Node: n1\r\nX-Holdfast-Site: home\r\nDate: Sun, 22 Nov 2026 03:56:24 GMT\r\nContent-Length: 4\r\n\r\ntrue"
	r := &run{load: w, seen: newRecord(w.mix, false)}
	p := &peer{dialect: products[Holdfast].dialect(fields("127.0.0.1:8500", "", "")), conn: newConn(&script{text: text})}
	s := w.stream(0)
	b.ReportAllocs()
	for b.Loop() {
		q := s.next()
		v := p.do(b.Context(), q, 1e9)
		if v.trouble != "" {
			b.Fatal(v)
		}
		r.seen.note(q.op.String(), 1e6, v, true, true)
	}
}
