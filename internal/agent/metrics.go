package agent

import (
	"slices"

	"github.com/holdfast-db/holdfast/command"
	"github.com/holdfast-db/holdfast/http"
	"github.com/holdfast-db/holdfast/node"
	"github.com/holdfast-db/holdfast/store"
	"github.com/holdfast-db/holdfast/transport"
)

// storeMetrics are the figures of the disk and of what is on it at /metrics.
func storeMetrics(disk *store.Disk, state *store.State, logs *store.Logs, tr *transport.Transport) []http.Metric {
	stat := func(name, help string, counter bool, value func(store.StateStats) float64) http.Metric {
		return http.Metric{Name: "holdfast_store_" + name, Help: help, Counter: counter, Value: func() float64 { return value(state.Stats()) }}
	}
	look := func(name, help string, value func(command.Disk) float64) http.Metric {
		return http.Metric{Name: "holdfast_disk_" + name, Help: help, Value: func() float64 { return value(disk.Look()) }}
	}
	is := func(state command.DiskState, help string) http.Metric {
		return look(string(state), help, func(d command.Disk) float64 {
			if d.State == state {
				return 1
			}
			return 0
		})
	}
	copies := func(name, help string, counter bool, value func(transport.CopyCount) float64) []http.Metric {
		return []http.Metric{
			{Name: "holdfast_copies_sent_" + name, Help: help + " sent to other nodes.", Counter: counter, Value: func() float64 { c, _ := tr.Copies(); return value(c) }},
			{Name: "holdfast_copies_received_" + name, Help: help + " received from other nodes.", Counter: counter, Value: func() float64 { _, c := tr.Copies(); return value(c) }},
		}
	}
	return slices.Concat([]http.Metric{
		stat("keys", "Keys in the store.", false, func(s store.StateStats) float64 { return float64(s.Keys) }),
		{Name: "holdfast_store_data_bytes", Help: "Size of all keys and values. --max-data-size bounds it.", Value: func() float64 { return float64(state.DataBytes()) }},
		stat("history_records", "Changes kept in history.", false, func(s store.StateStats) float64 { return float64(s.HistoryRecords) }),
		stat("oldest_revision", "Oldest revision that can be read: the compaction point.", false, func(s store.StateStats) float64 { return float64(s.OldestRevision) }),
		stat("buffer_bytes", "Bytes of changes in memory that are not in the state file yet.", false, func(s store.StateStats) float64 { return float64(s.BufferBytes) }),
		stat("file_bytes", "Size of the state file.", false, func(s store.StateStats) float64 { return float64(s.FileBytes) }),
		stat("scrubbed_timestamp_seconds", "When everything in the state file had been read last (Unix time), 0 when never.", false, func(s store.StateStats) float64 {
			if s.Scrubbed.IsZero() {
				return 0
			}
			return float64(s.Scrubbed.Unix())
		}),
		stat("flushes_total", "Flushes of the buffer into the state file.", true, func(s store.StateStats) float64 { return float64(s.Flushes) }),
		look("free_bytes", "Free space on the disk of the data directory.", func(d command.Disk) float64 { return float64(d.Free) }),
		look("reserve_bytes", "Free space below which the disk is full: --disk-reserve.", func(d command.Disk) float64 { return float64(d.Reserve) }),
		look("stalled_seconds", "How long the oldest call to the disk under way has been running.", func(d command.Disk) float64 { return d.Stalled.Seconds() }),
		look("append_seconds", "Moving mean of the time that an append to the Raft log takes.", func(d command.Disk) float64 { return d.Latency.Seconds() }),
		is(command.DiskSlow, "1 while appends to the Raft log take longer than --slow-disk-limit."),
		is(command.DiskFull, "1 while there is less free space than --disk-reserve."),
		is(command.DiskStalled, "1 while a call to the disk takes longer than --disk-stall-limit."),
		is(command.DiskFailed, "1 after a write failed: this node takes part no longer."),
		{Name: "holdfast_raft_log_entry_bytes", Help: "Average size of recent log entries.", Value: func() float64 { return float64(logs.EntryBytes()) }},
	},
		copies("total", "Copies, and parts of them after a break,", true, func(c transport.CopyCount) float64 { return float64(c.Streams) }),
		copies("open", "Copies being", false, func(c transport.CopyCount) float64 { return float64(c.Open) }),
		copies("bytes_total", "Bytes of copies on the wire", true, func(c transport.CopyCount) float64 { return float64(c.Wire) }),
	)
}

// nodeMetrics are the figures of what the node has done at /metrics.
func nodeMetrics(n *node.Node) []http.Metric {
	count := func(name, help string, value func(node.Counts) uint64) http.Metric {
		return http.Metric{Name: "holdfast_" + name, Help: help, Counter: true, Value: func() float64 { return float64(value(n.Counts())) }}
	}
	return []http.Metric{
		count("read_index_requests_total", "Messages to the leader that asked which index reads need; reads that wait at the same time share one.", func(c node.Counts) uint64 { return c.IndexRequests }),
		count("leadership_rounds_total", "Rounds in which this leader asked the voters whether it still leads.", func(c node.Counts) uint64 { return c.Rounds }),
		count("leadership_hand_overs_total", "Times this node gave leadership away on purpose.", func(c node.Counts) uint64 { return c.HandOvers }),
	}
}
