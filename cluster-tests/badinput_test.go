package clustertests

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-db/holdfast/cluster-tests/workload"
	"github.com/holdfast-db/holdfast/command"
)

// refusal is an agent that must not start.
type refusal struct {
	name string
	// args are the agent's flags. dir is an empty directory of the case, in
	// which the node's data directory would be.
	args func(t *testing.T, dir string) []string
	// says are parts of the one line, in lower case: of its cause and of its
	// remedy.
	says []string
	// watch names a file or directory that must not change, besides dir.
	watch string
}

// TestAgentRefusesBadInput demands of each refusal one line on stderr with
// cause and remedy, exit status 1, and that nothing on disk was changed.
func TestAgentRefusesBadInput(t *testing.T) {
	// A cluster to be refused by, and another one.
	ours := startCluster(t, []spec{voters[0], threeSites[3], threeSites[4]})
	other := startCluster(t, []spec{{"o1", "home", true, command.RoleVoter}})
	n1, e1, w1 := ours.nodes[0], ours.nodes[1], ours.nodes[2]
	if w := put(n1, "some", "data", ""); !w.ok {
		t.Fatalf("put: %+v", w)
	}
	ours.waitLevel(10 * time.Second)
	ours.stop(w1)

	// fresh are the flags of a sound learner in dir, to be spoiled.
	fresh := func(t *testing.T, dir string, more ...string) []string {
		args := []string{"--node", "x1", "--site", "east", "--role", "learner", "--data-dir", filepath.Join(dir, "data"),
			"--http", freePort(t), "--raft", freePort(t), "--join", n1.raft}
		return append(args, more...)
	}
	spoil := func(more ...string) func(*testing.T, string) []string {
		return func(t *testing.T, dir string) []string { return fresh(t, dir, more...) }
	}
	// copyOf copies the data of the stopped w1, spoils it, and starts the node on it.
	copyOf := func(spoil func(t *testing.T, data string)) func(*testing.T, string) []string {
		return func(t *testing.T, dir string) []string {
			data := filepath.Join(dir, "data")
			if err := os.CopyFS(data, os.DirFS(w1.data)); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(data, 0o700); err != nil {
				t.Fatal(err)
			}
			spoil(t, data)
			return removeFlag(replaceFlag(w1.args[1:], "--data-dir", data), "--fault-switch")
		}
	}
	whole := copyOf(func(*testing.T, string) {})
	with := func(args func(*testing.T, string) []string, flag, value string) func(*testing.T, string) []string {
		return func(t *testing.T, dir string) []string { return replaceFlag(args(t, dir), flag, value) }
	}
	without := func(flag string) func(*testing.T, string) []string {
		return func(t *testing.T, dir string) []string { return removeFlag(fresh(t, dir), flag) }
	}
	remove := func(part string) func(*testing.T, string) {
		return func(t *testing.T, data string) {
			if _, err := os.Stat(filepath.Join(data, part)); err != nil {
				t.Fatalf("a data directory has no %s any more: correct this test", part)
			}
			if err := os.RemoveAll(filepath.Join(data, part)); err != nil {
				t.Fatal(err)
			}
		}
	}
	cutShort := func(part string, size int64) func(*testing.T, string) {
		return func(t *testing.T, data string) {
			if err := os.Truncate(filepath.Join(data, part), size); err != nil {
				t.Fatal(err)
			}
		}
	}
	config := func(name, text string) func(*testing.T, string) []string {
		return func(t *testing.T, dir string) []string {
			file := filepath.Join(dir, name)
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			return fresh(t, dir, "--config", file)
		}
	}

	for _, r := range []refusal{
		// Wrong flags.
		{name: "a flag that does not exist", args: spoil("--nod", "x"), says: []string{"--nod", "did you mean --node"}},
		{name: "a flag without its value", args: spoil("--log-level"), says: []string{"--log-level"}},
		{name: "an argument", args: spoil("surplus"), says: []string{"argument"}},
		{name: "no name", args: without("--node"), says: []string{"--node", "missing"}},
		{name: "no site", args: without("--site"), says: []string{"--site", "missing"}},
		{name: "no data directory", args: without("--data-dir"), says: []string{"--data-dir", "missing"}},
		{name: "a name that is none", args: spoil("--node", "a b/c"), says: []string{"--node", "a b/c", "letters"}},
		{name: "a role that does not exist", args: spoil("--role", "boss"), says: []string{"boss", "voter, spare or learner"}},
		{name: "a voter that is not at home", args: spoil("--role", "voter"), says: []string{"voter", "--home"}},
		{name: "a learner that would form a cluster", args: spoil("--bootstrap-expect", "3"), says: []string{"--bootstrap-expect", "learner"}},
		{name: "a number that is none", args: spoil("--bootstrap-expect", "many"), says: []string{"--bootstrap-expect", "many", "number"}},
		{name: "an address without a port", args: spoil("--http", "localhost"), says: []string{"--http", "localhost", "host:port"}},
		{name: "a port that does not exist", args: spoil("--raft", "127.0.0.1:70000"), says: []string{"--raft", "70000", "65535"}},
		{name: "one address for both ports", args: spoil("--http", "127.0.0.1:9999", "--raft", "127.0.0.1:9999"), says: []string{"--http", "--raft", "port"}},
		{name: "an address nobody can reach it at", args: spoil("--raft", "0.0.0.0:9999"), says: []string{"--raft", "--advertise-raft"}},
		{name: "no way to find a cluster", says: []string{"--join", "--bootstrap-expect"}, args: func(t *testing.T, dir string) []string {
			return removeFlag(spoil()(t, dir), "--join")
		}},
		{name: "a member to join without a port", args: spoil("--join", "n9"), says: []string{"--join", "n9", "host:port"}},
		{name: "a log store that does not exist", args: spoil("--log-store", "tape"), says: []string{"--log-store", "tape", "wal or boltdb"}},
		{name: "a log level that does not exist", args: spoil("--log-level", "loud"), says: []string{"--log-level", "loud", "debug"}},

		// Configuration files.
		{name: "a configuration file that is not there", args: spoil("--config", "/nowhere/holdfast.yaml"), says: []string{"/nowhere/holdfast.yaml", "--config"}},
		{name: "a damaged configuration file", args: config("c.json", `{"log-level": `), says: []string{"c.json", "damaged"}},
		{name: "an unknown key in YAML", args: config("c.yaml", "log-levle: debug\n"), says: []string{"c.yaml", "log-levle", "did you mean log-level"}},
		{name: "an unknown key in TOML", args: config("c.toml", "raft_multiplyer = 2\n"), says: []string{"c.toml", "raft_multiplyer", "did you mean raft-multiplier"}},
		{name: "an unknown key in JSON", args: config("c.json", `{"sitte": "east"}`), says: []string{"c.json", "sitte", "did you mean site"}},
		{name: "a bad value in a configuration file", args: config("c.yaml", "raft-multiplier: often\n"), says: []string{"c.yaml", "raft-multiplier", "often"}},

		// Ports.
		{name: "its port for clients is in use", args: spoil("--http", n1.http), says: []string{n1.http, "in use", "--http"}},
		{name: "its port for nodes is in use", args: spoil("--raft", n1.raft), says: []string{n1.raft, "in use", "--raft"}},
		{name: "its port for clients is taken by something else", says: []string{"in use", "--http"}, args: func(t *testing.T, dir string) []string {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			return fresh(t, dir, "--http", l.Addr().String())
		}},
		{name: "an address that is not of this machine", args: spoil("--http", "192.0.2.1:8500"), says: []string{"192.0.2.1:8500", "--http"}},

		// Data directories.
		{name: "a data directory that is a file", says: []string{"data directory", "--data-dir"}, args: func(t *testing.T, dir string) []string {
			file := filepath.Join(dir, "file")
			if err := os.WriteFile(file, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			return fresh(t, dir, "--data-dir", file)
		}},
		{name: "a data directory under a file", says: []string{"data directory", "--data-dir"}, args: func(t *testing.T, dir string) []string {
			file := filepath.Join(dir, "file")
			if err := os.WriteFile(file, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			return fresh(t, dir, "--data-dir", filepath.Join(file, "data"))
		}},
		{name: "a data directory that cannot be written", args: spoil("--data-dir", unwritable(t)), says: []string{"data directory", "--data-dir"}},
		{name: "a directory of something else", says: []string{"not empty", "--data-dir"}, args: func(t *testing.T, dir string) []string {
			if err := os.WriteFile(filepath.Join(dir, "holiday.jpg"), []byte("x"), 0o644); err != nil {
				t.Fatal(err)
			}
			return fresh(t, dir, "--data-dir", dir)
		}},
		{name: "a copy without its identity", args: copyOf(remove("identity.json")), says: []string{"identity.json", "in part", "empty --data-dir"}},
		{name: "a copy without its state", args: copyOf(remove("state.db")), says: []string{"state.db", "missing", "empty --data-dir"}},
		{name: "a copy without its votes", args: copyOf(remove("stable.db")), says: []string{"stable.db", "missing", "empty --data-dir"}},
		{name: "a copy without its log", args: copyOf(remove("log")), says: []string{"log", "missing", "empty --data-dir"}},
		// The file keeps room to grow at its end: a part of it may hold all there is.
		{name: "a copy with the beginning of its state", args: copyOf(cutShort("state.db", 12<<10)), says: []string{"state.db", "empty --data-dir"}},
		{name: "a copy with half of its identity", args: copyOf(cutShort("identity.json", 100)), says: []string{"identity.json", "damaged"}},
		{name: "a data directory of a newer release", args: copyOf(makeNewer), says: []string{"newer release", "format is 1000"}},
		{name: "a data directory of another node", args: with(whole, "--node", "x9"), says: []string{"w1", "x9", "--node"}},
		{name: "a data directory from another site", args: with(whole, "--site", "north"), says: []string{"west", "north", "--site"}},
		{name: "a data directory in use", says: []string{"in use"}, watch: filepath.Join(e1.data, "identity.json"), args: func(t *testing.T, dir string) []string {
			args := replaceFlag(e1.args[1:], "--http", freePort(t))
			return removeFlag(replaceFlag(args, "--raft", freePort(t)), "--fault-switch")
		}},

		// What only the cluster can know.
		{name: "a name that a member has", args: spoil("--node", "e1"), says: []string{"e1", "in use", "--node"}},
		{name: "a voter at another site than home", args: spoil("--home", "--role", "voter"), says: []string{"home", "--role learner"}},
		{name: "a learner's data started as a voter of its site", says: []string{"home", "--role learner"}, args: func(t *testing.T, dir string) []string {
			return append(replaceFlag(whole(t, dir), "--role", "voter"), "--home")
		}},
		{name: "a data directory of another cluster", args: with(whole, "--join", other.nodes[0].raft), says: []string{"another cluster", "--join"}},
	} {
		t.Run(r.name, func(t *testing.T) {
			dir := t.TempDir()
			args := append([]string{"agent", "--log-level", "error"}, r.args(t, dir)...)
			before, watched := treeHash(t, dir), treeHash(t, r.watch)

			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			cmd := exec.CommandContext(ctx, ours.bin, args...)
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			cmd.SysProcAttr = dieWithParent()
			err := cmd.Run()

			if ctx.Err() != nil {
				t.Fatalf("did not end\nholdfast %s\n%s", strings.Join(args, " "), stderr.String())
			}
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 1 {
				t.Errorf("ended with %v, want exit status 1", err)
			}
			line, rest, _ := strings.Cut(stderr.String(), "\n")
			if rest != "" {
				t.Errorf("stderr has more than one line:\n%s", stderr.String())
			}
			if stdout.Len() > 0 {
				t.Errorf("stdout has %q", stdout.String())
			}
			cause, remedy, ok := strings.Cut(strings.TrimPrefix(line, "holdfast: "), "; ")
			if !strings.HasPrefix(line, "holdfast: ") || !ok || cause == "" || remedy == "" {
				t.Errorf("%q does not read holdfast: cause; remedy", line)
			}
			for _, part := range r.says {
				if !strings.Contains(strings.ToLower(line), part) {
					t.Errorf("%q does not say %q", line, part)
				}
			}
			if after := treeHash(t, dir); after != before {
				t.Errorf("files were changed.\nbefore:\n%s\nafter:\n%s", before, after)
			}
			if treeHash(t, r.watch) != watched {
				t.Errorf("%s was changed", r.watch)
			}
		})
	}
}

// replaceFlag gives a flag another value; of a repeated one only that value
// remains.
func replaceFlag(args []string, flag, value string) []string {
	return append(removeFlag(args, flag), flag, value)
}

// removeFlag drops a flag and its value, wherever it stands.
func removeFlag(args []string, flag string) []string {
	args = slices.Clone(args)
	for i := slices.Index(args, flag); i >= 0; i = slices.Index(args, flag) {
		args = slices.Delete(args, i, i+2)
	}
	return args
}

// unwritable is the path of a directory that this user, who may be root,
// cannot make.
func unwritable(t *testing.T) string {
	t.Helper()
	if os.Geteuid() == 0 {
		return "/proc/holdfast" // the kernel makes files there, nobody else
	}
	parent := filepath.Join(t.TempDir(), "locked")
	if err := os.Mkdir(parent, 0o500); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(parent, "data")
}

// makeNewer marks a data directory as written by a later release.
func makeNewer(t *testing.T, data string) {
	t.Helper()
	file := filepath.Join(data, "identity.json")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var envelope struct {
		CRC32C   string         `json:"crc32c"`
		Identity map[string]any `json:"identity"`
	}
	if err := json.Unmarshal(text, &envelope); err != nil || envelope.Identity["format"] == nil {
		t.Fatalf("identity.json has no format any more (%v): correct this test", err)
	}
	envelope.Identity["format"] = 1000
	compact, err := json.Marshal(envelope.Identity)
	if err != nil {
		t.Fatal(err)
	}
	envelope.CRC32C = fmt.Sprintf("%08x", crc32.Checksum(compact, crc32.MakeTable(crc32.Castagnoli)))
	if text, err = json.Marshal(envelope); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// treeHash describes everything under a path, a line per file: what is there,
// with which rights and contents. It is empty for no path.
func treeHash(t *testing.T, path string) string {
	t.Helper()
	if path == "" {
		return ""
	}
	var b strings.Builder
	err := filepath.WalkDir(path, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(path, file)
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %v", rel, info.Mode())
		if info.Mode().IsRegular() {
			content, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %d %x", len(content), sha256.Sum256(content))
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// raw sends bytes to a node and returns all that comes back until it closes the
// connection. ends says that no more will come, though the request is not complete.
func raw(t *testing.T, n *node, request string, ends bool) string {
	t.Helper()
	conn, err := net.Dial("tcp", n.http)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(workload.Patience))
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatalf("%.60q: %v", request, err)
	}
	if ends {
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
	}
	reply, err := io.ReadAll(conn)
	if err != nil {
		t.Errorf("%.60q: the answer %.100q broke off: %v", request, reply, err)
	}
	return string(reply)
}

// TestRequestsThatMakeNoSenseAreRefusedAndChangeNothing sends a node what no client
// should: each gets the error that fits, and the revision stays where it is.
func TestRequestsThatMakeNoSenseAreRefusedAndChangeNothing(t *testing.T) {
	c := startCluster(t, voters[:1])
	n := c.nodes[0]
	if w := put(n, "there", "before", ""); !w.ok {
		t.Fatalf("%+v", w)
	}
	before := c.waitLevel(10 * time.Second)

	const large = 2<<20 + 1
	head := func(line string, fields ...string) string {
		return line + " HTTP/1.1\r\nHost: n\r\nConnection: close\r\n" + strings.Join(append(fields, "\r\n"), "\r\n")
	}
	body := func(line, body string) string {
		return head(line, fmt.Sprintf("Content-Length: %d", len(body))) + body
	}
	chunked := func(line, body string) string {
		return head(line, "Transfer-Encoding: chunked") + fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body)
	}
	type misfit struct {
		request string
		status  int
		text    string
	}
	check := func(m misfit, reply string) {
		t.Helper()
		if !strings.HasPrefix(reply, fmt.Sprintf("HTTP/1.1 %d ", m.status)) || !strings.Contains(reply, m.text) {
			t.Errorf("%.80q: %.300q, want %d %q", m.request, reply, m.status, m.text)
		}
	}
	for _, m := range []misfit{
		// Not HTTP, or not quite.
		{"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, ""},
		{"PUT /v1/kv/x HTTP/1.1\r\n\r\n", 400, "Host"},
		{head("PUT /v1/kv/x", "Content-Length: -5"), 400, ""},
		{head("PUT /v1/kv/x", "Content-Length: 1", "Content-Length: 2") + "v", 400, ""},
		{head("PUT /v1/kv/x", "Transfer-Encoding: gzip"), 501, ""},
		{head("PUT /v1/kv/%zz", "Content-Length: 0"), 400, ""},
		{head("GET /v1/kv/x", "X-Long: "+strings.Repeat("x", 100<<10)), 431, ""},
		{head("CONNECT example.org:80"), 404, "Invalid path"},
		{head("BREW /v1/kv/x"), 405, "method BREW not allowed"},
		{head("PRI *"), 404, "Invalid path"},
		// Bodies that are too large are read, so that their sender sees why.
		{body("PUT /v1/kv/x", strings.Repeat("v", large)), 413, "is too large"},
		{chunked("PUT /v1/kv/x", strings.Repeat("v", large)), 413, "is too large"},
		{head("PUT /v1/kv/x", "Content-Length: 99999999999999") + "v", 413, "is too large"},
		{body("PUT /v1/txn", "["+strings.Repeat(" ", large)), 413, "is too large"},
		{chunked("PUT /v1/txn", "["+strings.Repeat(" ", large)), 413, "is too large"},
		{body("PUT /v1/bulk/", `{"key":"x","value":"`+strings.Repeat("A", large)), 413, "is too large"},
		// Bodies that say nothing one could do.
		{body("PUT /v1/txn", strings.Repeat("[", 100<<10)), 400, "Failed to parse body"},
		{body("PUT /v1/txn", `[{"KV":{"Verb":"set","Key":"x","Flags":18446744073709551616}}]`), 400, "Failed to parse body"},
		{body("PUT /v1/txn", `[{"KV":{"Verb":"set","Key":"x"}},{"KV":{"Verb":"sett","Key":"x"}}]`), 409, "unknown KV operation: sett"},
		{body("PUT /v1/txn", `[{"KV":{"Verb":"set","Key":"x`+"\xff"+`"}}]`), 400, "not valid UTF-8"},
		{body("PUT /v1/session/create", `{"LockDelay":{}}`), 400, "Request decode failed"},
		{body("PUT /v1/bulk/", `{"key":"x","flags":-1}`), 400, "Record 1"},
		{body("PUT /v1/kv/x?cas=18446744073709551616", "v"), 400, "Invalid cas"},
		{body("PUT /v1/kv/x?acquire=%00", "v"), 500, "invalid session"},
	} {
		check(m, raw(t, n, m.request, false))
	}
	for _, m := range []misfit{
		{head("PUT /v1/kv/x", "Content-Length: 9") + "half", 400, "Request body ended early"},
		{head("PUT /v1/kv/x", "Transfer-Encoding: chunked") + "9\r\nhalf", 400, "Request body ended early"},
		{head("PUT /v1/kv/x", "Transfer-Encoding: chunked") + "zz\r\nhalf", 400, "Request body ended early"},
		{head("PUT /v1/txn", "Content-Length: 99") + `[{"KV":{"Verb":"set","Key":"x"}}]`, 400, "Request body ended early"},
		{head("PUT /v1/session/create", "Content-Length: 9") + "{}", 400, "Request body ended early"},
		{head("PUT /v1/operator/autopilot/configuration", "Content-Length: 9") + "{}", 400, "Request body ended early"},
	} {
		check(m, raw(t, n, m.request, true))
	}
	if after := c.waitLevel(10 * time.Second); after.Applied != before.Applied || after.Lineage != before.Lineage {
		t.Errorf("the state was changed: %+v, was %+v", after, before)
	}

	// Any byte in a key is kept as it was sent, or refused.
	for b := range 256 {
		key := string([]byte{'k', byte(b), 'k'})
		reply := raw(t, n, body(fmt.Sprintf("PUT /v1/kv/k%%%02Xk", b), "v"), false)
		printable := b >= ' ' && b < 0x7f
		if kept := strings.HasPrefix(reply, "HTTP/1.1 200 "); kept != printable || !kept && !strings.Contains(reply, "Invalid key") {
			t.Errorf("%q: %.300q", key, reply)
		}
		if a, err := read(n, key, ""); printable && (err != nil || len(a.entries) != 1 || a.entries[0].Key != key) {
			t.Errorf("%q came back as %+v %v", key, a, err)
		}
	}
}

// TestClientsThatNeverFinishHoldUpNobody opens a thousand connections, half of which
// never send the end of their headers and half never the body they declare. The others
// are served meanwhile, and what the thousand cost is little and comes back.
func TestClientsThatNeverFinishHoldUpNobody(t *testing.T) {
	const (
		count = 1000
		costs = 128 << 20 // of all of them; the bodies declared are half a gigabyte
		slow  = 5 * time.Second
	)
	c := startCluster(t, voters[:1])
	n := c.nodes[0]
	before := c.memory(n)
	for range 2 { // the second time on memory that was used
		var open []net.Conn
		for i := range count {
			conn, err := net.Dial("tcp", n.http)
			if err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
			defer conn.Close()
			open = append(open, conn)
			request := "PUT /v1/kv/never HTTP/1.1\r\nHost: n\r\nContent-Length: 524288\r\n"
			if i%2 == 0 {
				request += "\r\nbegun"
			}
			if _, err := io.WriteString(conn, request); err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
		}
		c.wait(10*time.Second, "the bodies are waited for", func() bool { return c.requestsInFlight(n) > count/2 })
		for i := range 100 {
			began := time.Now()
			value := strconv.Itoa(i)
			if w := put(n, "served", value, ""); !w.ok {
				t.Fatalf("%+v", w)
			}
			if a, err := read(n, "served", "consistent"); err != nil || len(a.entries) != 1 || string(a.entries[0].Value) != value {
				t.Fatalf("%+v %v", a, err)
			}
			if took := time.Since(began); took > slow {
				t.Errorf("a write and a read took %v", took)
			}
		}
		if now := c.memory(n); now > before+costs {
			t.Errorf("%d bytes of memory, %d before", now, before)
		}
		for _, conn := range open {
			conn.Close()
		}
		c.wait(10*time.Second, "their requests end", func() bool { return c.requestsInFlight(n) == 1 })
	}
	c.wait(20*time.Second, "the memory comes back", func() bool { return c.memory(n) < before+costs/2 })
	if a, err := read(n, "never", "consistent"); err != nil || a.status != http.StatusNotFound {
		t.Errorf("%+v %v", a, err)
	}
}

// memory is what a node's process holds of the system's memory, in bytes.
func (c *cluster) memory(n *node) int64 {
	c.t.Helper()
	return int64(c.metric(n, "go_memstats_sys_bytes") - c.metric(n, "go_memstats_heap_released_bytes"))
}
