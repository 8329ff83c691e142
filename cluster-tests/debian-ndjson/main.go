// Command debian-ndjson turns the package index of a Debian machine, as
// `apt-cache dumpavail` prints it, into lines for `holdfast kv import`: key
// debian/<package>/<version>, value the record's text. It reads standard input
// and writes standard output.
//
// It is a data set that every Debian machine has: some 60,000 records of half a
// kilobyte to a few.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
)

func main() {
	if err := convert(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "debian-ndjson:", err)
		os.Exit(1)
	}
}

// record is one line of the output.
type record struct {
	Key   string `json:"key"`
	Flags uint64 `json:"flags"`
	Value []byte `json:"value"` // base64 in JSON
}

// convert writes one line per record that has a name and a version, in the
// order of the index. Of records with equal key the last one counts when they
// are imported, as they are written in order.
func convert(in io.Reader, out io.Writer) error {
	w := bufio.NewWriterSize(out, 1<<20)
	enc := json.NewEncoder(w)
	lines := bufio.NewReaderSize(in, 1<<20)
	var text []byte
	var name, version string
	flush := func() error {
		defer func() { text, name, version = text[:0], "", "" }()
		if name == "" || version == "" {
			return nil
		}
		return enc.Encode(record{Key: "debian/" + name + "/" + version, Value: text})
	}
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil && err != io.EOF {
			return err
		}
		if v, ok := bytes.CutPrefix(line, []byte("Package: ")); ok {
			name = string(bytes.TrimSpace(v))
		} else if v, ok := bytes.CutPrefix(line, []byte("Version: ")); ok {
			version = string(bytes.TrimSpace(v))
		}
		if len(bytes.TrimSpace(line)) > 0 {
			text = append(text, bytes.TrimRight(line, "\n")...)
			text = append(text, '\n')
		} else if ferr := flush(); ferr != nil {
			return ferr
		}
		if err == io.EOF {
			if err := flush(); err != nil {
				return err
			}
			return w.Flush()
		}
	}
}
