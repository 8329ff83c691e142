package http

import (
	"testing"

	"github.com/holdfast-db/holdfast/internal/allocs"
)

func TestAllocations(t *testing.T) {
	allocs.Check(t, 500, allocs.Ceilings{
		"BenchmarkHandler/GetKey":                3,
		"BenchmarkHandler/GetKeyStale":           3,
		"BenchmarkHandler/GetKeyRaw":             3,
		"BenchmarkHandler/PutKey":                4,
		"BenchmarkHandler/PutKeyCAS":             4,
		"BenchmarkLoopback/GetKey/hot":           6,
		"BenchmarkLoopback/GetKeyStale/hot":      6,
		"BenchmarkLoopback/GetKeyConsistent/hot": 6,
		"BenchmarkLoopback/PutKey/hot":           7,
		"BenchmarkLoopback/GetKey/net-http":      29,
		"BenchmarkLoopback/PutKey/net-http":      30,
	})
}
