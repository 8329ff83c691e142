// Package clustertests holds Holdfast to its promises from outside: it builds
// the binary, runs whole clusters of it as processes on the loopback
// interface, kills, pauses, stops and cuts them off, and judges what clients
// saw.
//
// It knows the system only by its flags, its HTTP API and its fault switch, so
// that no mistake inside can hide itself here.
//
//	imports_test.go     the import map of ARCHITECTURE.md, held against the sources
//	cluster_test.go     a cluster of processes: start, kill, stop, pause, cut, heal, wait
//	api_test.go         the HTTP API as this package speaks it
//	traffic_test.go     registers and journals of package workload on such a cluster, and their judgement
//	target_test.go      the cluster as something that faults act on
//	runtime_test.go     what clusters run on: namespaces, the loopback interface, containers
//	                    (runtime_linux_test.go, runtime_compose_test.go)
//	jepsen_test.go      TestJepsen: every workload under every fault (make jepsen)
//	jepsen_report_test.go what that came to, as a table
//	faults_test.go      scenes: leader killed, site cut, leader cut, all nodes killed, ...
//	failover_test.go    how soon a lost leader is replaced, and what replaces none;
//	                    -long makes the scenes in which nothing happens last for minutes
//	netns_linux_test.go a network of namespaces: hosts, sites, firewalls, bad lines
//	learner_test.go     what a copy promises while it is cut off, also across a restart
//	membership_test.go  voters that die, move and come back empty; spares; removal by itself
//	mainjob_test.go     the Debian package index through the whole cluster
//	dialect_test.go     answers that clients of other languages compare to the letter
//	diskfaults_linux_test.go disks that fail, lose power, go back, and hold what nobody wrote
//	badinput_test.go    refusals: one line, exit status 1, nothing changed on disk; what no
//	                    request should be, and clients that never finish theirs
//	planted_test.go     bugs built into the binary on purpose, and who must find them
//	compose_test.go     docker-compose.yml (make compose-test)
//	measure_test.go     throughput, latency, failover (make bench)
//	patient_test.go     clients of which no request may fail, whoever leads
//	clocks_test.go      clocks of their own for nodes: wall clocks that are wrong, hosts that sleep
//	reads_test.go       no read is stale, or older than it says, whatever happens to who leads and who reads
//	switchover_test.go  leadership handed over on purpose, and restarts one after the other
//	measure_switchover_test.go how long that holds requests back (make bench-switchover)
//	measure_store_test.go what the state costs (make bench-store)
//	measure_watch_test.go what waiting clients cost (make bench-watch)
//	measure_leader_test.go how long no write is acknowledged when the leader goes (make bench-leader)
//	measure_peers_test.go the same loads on Holdfast and its peers (make bench-peers)
//	measure_peers_report_test.go what that came to, as tables and pictures
//	measure_growth_test.go how cost grows with keys, values, connections, learners and watchers (make bench-growth)
//	measure_growth_report_test.go what that came to, as tables and pictures
//	measure_result_test.go figures, and where results are put for readers
//	measure_picture_test.go pictures
//	systems_test.go     clusters of Holdfast, etcd, rqlite and Consul that are measured alike
//
// Every scene ends with an inspection: the cut is healed, every node runs, and
// all must come to one revision with one lineage, without a panic in any log.
// Logs and data of a failed test stay on disk; its output says where.
//
// Nothing imports this package.
package clustertests
