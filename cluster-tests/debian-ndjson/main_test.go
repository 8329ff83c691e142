package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

func TestEachRecordWithNameAndVersionBecomesALine(t *testing.T) {
	in := "Package: a\nVersion: 1:2~3+b\nDescription: x\n more\n\n\nPackage: b\nVersion: 1\n\nNothing: here\n\nPackage: a\nVersion: 1:2~3+b\nArchitecture: other"
	var out bytes.Buffer
	if err := convert(strings.NewReader(in), &out); err != nil {
		t.Fatal(err)
	}
	want := []record{
		{Key: "debian/a/1:2~3+b", Value: []byte("Package: a\nVersion: 1:2~3+b\nDescription: x\n more\n")},
		{Key: "debian/b/1", Value: []byte("Package: b\nVersion: 1\n")},
		{Key: "debian/a/1:2~3+b", Value: []byte("Package: a\nVersion: 1:2~3+b\nArchitecture: other\n")},
	}
	dec := json.NewDecoder(&out)
	for i, w := range want {
		var r record
		if err := dec.Decode(&r); err != nil || r.Key != w.Key || !bytes.Equal(r.Value, w.Value) {
			t.Errorf("line %d is %+v, %v; want %+v", i, r, err, w)
		}
	}
	if dec.More() {
		t.Error("more lines than records")
	}
}
