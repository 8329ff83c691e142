//go:build !linux

package clustertests

// lab is there on Linux only.
type lab struct{}

func (*lab) addresses(name string) (http, raft string) {
	panic("no network of namespaces on this system")
}

func (*lab) command(name string, program string, args []string) (string, []string) {
	panic("no network of namespaces on this system")
}

var netnsRuntime = platform{
	name:  "netns",
	lacks: func() string { return "networks of namespaces are there on Linux only" },
}
