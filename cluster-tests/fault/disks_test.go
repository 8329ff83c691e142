package fault

import (
	"bytes"
	"errors"
	"math/bits"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// Both strike what was written, not the space that was taken in advance.
func TestAPartIsStruckWhereItWasWritten(t *testing.T) {
	dir, r := t.TempDir(), rand.New(rand.NewPCG(1, 1))
	name := filepath.Join(dir, "log.db")
	for range 200 {
		whole := []byte("\x00ab\x00\x00c\x00\x00\x00")
		write := func(b []byte) {
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		read := func() []byte {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		write(whole)
		if what, err := Flip(dir, Log, r); err != nil {
			t.Fatal(what, err)
		}
		changed := 0
		for i, c := range read() {
			if flipped := bits.OnesCount8(c ^ whole[i]); flipped > 0 && whole[i] == 0 {
				t.Errorf("byte %d was never written", i)
			} else {
				changed += flipped
			}
		}
		if changed != 1 {
			t.Errorf("%d bits were flipped", changed)
		}
		write(whole)
		if what, err := Truncate(dir, Log, r); err != nil {
			t.Fatal(what, err)
		}
		if b := read(); len(b) > 5 || !bytes.HasPrefix(whole, b) {
			t.Errorf("it was cut to %q", b)
		}
		write(make([]byte, 9))
		for _, strike := range []func(string, Part, *rand.Rand) (string, error){Flip, Truncate} {
			if what, err := strike(dir, Log, r); !errors.Is(err, ErrNothingThere) {
				t.Errorf("of a file of zeros: %s, %v", what, err)
			}
			if what, err := strike(dir, Marker, r); !errors.Is(err, ErrNothingThere) {
				t.Errorf("of no file: %s, %v", what, err)
			}
		}
	}
}
