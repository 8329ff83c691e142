package main

import (
	"golang.org/x/sys/unix"

	"github.com/holdfast-db/holdfast/http"
	"github.com/holdfast-db/holdfast/store"
)

// storeMetrics are the figures of the disk at /metrics.
func storeMetrics(dir string, state *store.State, logs *store.Logs) []http.Metric {
	stat := func(name, help string, counter bool, value func(store.StateStats) float64) http.Metric {
		return http.Metric{Name: "holdfast_store_" + name, Help: help, Counter: counter, Value: func() float64 { return value(state.Stats()) }}
	}
	return []http.Metric{
		stat("keys", "Keys in the store.", false, func(s store.StateStats) float64 { return float64(s.Keys) }),
		stat("history_records", "Changes kept in history.", false, func(s store.StateStats) float64 { return float64(s.HistoryRecords) }),
		stat("buffer_bytes", "Bytes of changes in memory that are not in the state file yet.", false, func(s store.StateStats) float64 { return float64(s.BufferBytes) }),
		stat("file_bytes", "Size of the state file.", false, func(s store.StateStats) float64 { return float64(s.FileBytes) }),
		stat("flushes_total", "Flushes of the buffer into the state file.", true, func(s store.StateStats) float64 { return float64(s.Flushes) }),
		{Name: "holdfast_disk_free_bytes", Help: "Free space on the disk of the data directory. Below 128 MiB the node takes no entries.", Value: func() float64 { return freeBytes(dir) }},
		{Name: "holdfast_raft_log_entry_bytes", Help: "Average size of recent log entries.", Value: func() float64 { return float64(logs.EntryBytes()) }},
		{Name: "holdfast_raft_log_stalled_seconds", Help: "How long the oldest write to the log under way has been running.", Value: func() float64 { return logs.Stalled().Seconds() }},
	}
}

func freeBytes(dir string) float64 {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return -1
	}
	return float64(fs.Bavail) * float64(fs.Bsize)
}
