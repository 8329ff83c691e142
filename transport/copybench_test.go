package transport

import (
	"context"
	"fmt"
	"io"
	"testing"

	"github.com/holdfast-db/holdfast/command"
)

// recordBytes is n bytes as a store of small JSON values has them: they shrink
// to about a fifth.
func recordBytes(n int) []byte {
	b := make([]byte, 0, n+200)
	noise := randomBytes(1 << 16)
	for i := 0; len(b) < n; i++ {
		x := noise[i*8%(len(noise)-8):]
		b = fmt.Appendf(b, "app/%d/users/%06d{\"id\":\"%x\",\"name\":\"user %d\",\"enabled\":%v,\"seen\":\"2024-05-%02dT%02d:%02d:00Z\"}",
			i%7, i, x[:8], int(x[0])*i%9973, x[1]&1 == 0, x[2]%30+1, x[3]%24, x[4]%60)
	}
	return b[:n]
}

// BenchmarkCopyStream over loopback, both ends on this machine.
func BenchmarkCopyStream(b *testing.B) {
	const block = 1 << 20
	for _, bc := range []struct {
		name    string
		content []byte
		slow    bool
	}{
		{"plain", recordBytes(block), false},
		{"compressed", recordBytes(block), true},
		{"random", randomBytes(block), true},
	} {
		b.Run(bc.name, func(b *testing.B) {
			n1, n2, _ := pair(b, handlerFuncs{copy: func(_ context.Context, _ command.Hello, _ []byte, w io.Writer) error {
				for range b.N {
					if bc.slow { // whatever loopback seems to be
						w.(*copyWriter).pace = pace{packed: true}
					}
					if _, err := w.Write(bc.content); err != nil {
						return err
					}
				}
				return nil
			}})
			b.SetBytes(block)
			b.ResetTimer()
			r, err := n1.FetchCopy(context.Background(), "n2", nil)
			if err != nil {
				b.Fatal(err)
			}
			defer r.Close()
			buf := make([]byte, 64<<10)
			var got int64
			for err == nil {
				var n int
				n, err = r.Read(buf)
				got += int64(n)
			}
			if err != io.EOF || got != int64(b.N)*block {
				b.Fatal(got, err)
			}
			sent, _ := n2.Copies()
			b.ReportMetric(float64(sent.Wire)/float64(sent.Payload), "wire/payload")
		})
	}
}
