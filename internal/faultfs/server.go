//go:build linux

package faultfs

import (
	"errors"
	"fmt"
	"maps"
	"net/rpc"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// serveVar, set to the mount point, makes a process the server of the file
// systems. Its end of the connection to its parent is file 3.
const serveVar = "HOLDFAST_TEST_FAULTFS"

func init() {
	if dir := os.Getenv(serveVar); dir != "" {
		if err := serve(dir); err != nil {
			fmt.Fprintln(os.Stderr, "faultfs:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// serve mounts at dir and serves until the parent has gone.
func serve(dir string) error {
	// The parent's end is the end; a signal to the whole group must not leave a
	// mount behind.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	conn := os.NewFile(3, "parent")
	s := &server{RawFileSystem: fuse.NewDefaultRawFileSystem(), volumes: map[uint32]*volume{}}
	mounted, err := fuse.NewServer(s, dir, &fuse.MountOptions{
		FsName: "faultfs", Name: "faultfs", DirectMount: true,
		MaxWrite: 1 << 20,
		// Nobody but the kernel changes what it caches.
		ExplicitDataCacheControl: true,
		DisableXAttrs:            true,
		DisableReadDirPlus:       true,
		DisableSplice:            true,
	})
	if err != nil {
		// Say so in the parent's first call.
		s.refused = err.Error()
	} else {
		go mounted.Serve()
		if err := mounted.WaitMount(); err != nil {
			return err
		}
		s.kernel = mounted
	}
	calls := rpc.NewServer()
	if err := calls.RegisterName("Server", &Calls{s}); err != nil {
		return err
	}
	calls.ServeConn(conn) // until the parent closes its end, in whatever way
	if s.kernel != nil {
		_ = unix.Unmount(dir, unix.MNT_DETACH)
	}
	return os.Remove(dir)
}

// server answers the kernel. A node's id is that of its volume, shifted, and its
// inode number; the root holds one directory for each volume, named by its id.
type server struct {
	fuse.RawFileSystem
	kernel  *fuse.Server
	refused string

	mu      sync.Mutex
	volumes map[uint32]*volume
	last    uint32
}

const (
	volumeShift = 32
	inoMask     = 1<<volumeShift - 1
	// The kernel may keep names and attributes: it made them.
	cacheFor = time.Hour
)

func (s *server) String() string { return "faultfs" }

func (s *server) volume(nodeID uint64) *volume {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.volumes[uint32(nodeID>>volumeShift)]
}

func (s *server) addVolume(base *tree) uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	s.volumes[s.last] = newVolume(s.last, base)
	return s.last
}

func (v *volume) attr(n *node, a *fuse.Attr) {
	a.Ino = uint64(v.id)<<volumeShift | n.ino
	a.Mode = n.mode
	a.Nlink = 1
	a.Owner = fuse.Owner{Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid())}
	a.Blksize = pageSize
	if !n.isDir() {
		a.Size = uint64(n.now.size)
		a.Blocks = uint64(len(n.now.pages)) * (pageSize / sectorSize)
	}
}

func (v *volume) entry(n *node, out *fuse.EntryOut) {
	out.NodeId = uint64(v.id)<<volumeShift | n.ino
	out.SetEntryTimeout(cacheFor)
	v.attr(n, &out.Attr)
}

// with calls fn with a node and its volume, which is locked.
func (s *server) with(nodeID uint64, fn func(*volume, *node) fuse.Status) fuse.Status {
	v := s.volume(nodeID)
	if v == nil {
		return fuse.Status(syscall.ESTALE)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	n := v.live.nodes[nodeID&inoMask]
	if n == nil {
		return fuse.Status(syscall.ESTALE)
	}
	return fn(v, n)
}

// do carries out an operation on a node, and fills in the entry of one it made.
func (s *server) do(nodeID uint64, o *operation, out *fuse.EntryOut) fuse.Status {
	v := s.volume(nodeID)
	if v == nil {
		return fuse.Status(syscall.ESTALE)
	}
	o.ino = nodeID & inoMask
	made, errno := v.do(o)
	if errno == 0 && made != nil {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.entry(made, out)
	}
	return fuse.Status(errno)
}

func (s *server) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if in.NodeId == fuse.FUSE_ROOT_ID {
		id, err := strconv.ParseUint(name, 10, 32)
		if err != nil {
			return fuse.ENOENT
		}
		return s.with(id<<volumeShift|rootIno, func(v *volume, n *node) fuse.Status {
			v.entry(n, out)
			return fuse.OK
		})
	}
	return s.with(in.NodeId, func(v *volume, d *node) fuse.Status {
		if n := v.live.lookup(d.ino, name); n != nil {
			v.entry(n, out)
		} else {
			out.SetEntryTimeout(cacheFor) // of its absence
		}
		return fuse.OK
	})
}

func (s *server) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	if in.NodeId == fuse.FUSE_ROOT_ID {
		out.Ino, out.Mode, out.Nlink = fuse.FUSE_ROOT_ID, syscall.S_IFDIR|0o755, 1
		return fuse.OK
	}
	return s.with(in.NodeId, func(v *volume, n *node) fuse.Status {
		v.attr(n, &out.Attr)
		return fuse.OK
	})
}

func (s *server) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if size, ok := in.GetSize(); ok {
		if status := s.do(in.NodeId, &operation{kind: Truncate, end: int64(size)}, nil); status != fuse.OK {
			return status
		}
	}
	return s.with(in.NodeId, func(v *volume, n *node) fuse.Status {
		if mode, ok := in.GetMode(); ok {
			n.mode = n.mode&syscall.S_IFMT | mode&^syscall.S_IFMT
		}
		v.attr(n, &out.Attr)
		return fuse.OK
	})
}

func (s *server) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	if in.NodeId == fuse.FUSE_ROOT_ID {
		return fuse.EPERM
	}
	return s.do(in.NodeId, &operation{kind: Mkdir, name: name, mode: syscall.S_IFDIR | in.Mode}, out)
}

func (s *server) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	if in.NodeId == fuse.FUSE_ROOT_ID {
		return fuse.EPERM
	}
	out.OpenFlags |= fuse.FOPEN_KEEP_CACHE
	return s.do(in.NodeId, &operation{kind: Create, name: name, mode: syscall.S_IFREG | in.Mode}, &out.EntryOut)
}

func (s *server) Unlink(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return s.do(in.NodeId, &operation{kind: Unlink, name: name}, nil)
}

func (s *server) Rmdir(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return s.do(in.NodeId, &operation{kind: Rmdir, name: name}, nil)
}

func (s *server) Rename(_ <-chan struct{}, in *fuse.RenameIn, name, newName string) fuse.Status {
	switch {
	case in.Flags != 0:
		return fuse.EINVAL
	case in.NodeId>>volumeShift != in.Newdir>>volumeShift:
		return fuse.EXDEV
	}
	return s.do(in.NodeId, &operation{kind: Rename, name: name, to: in.Newdir & inoMask, newName: newName}, nil)
}

func (s *server) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.OK }

func (s *server) Open(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags |= fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

func (s *server) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	var got int
	status := s.with(in.NodeId, func(_ *volume, n *node) fuse.Status {
		got = n.read(buf[:min(len(buf), int(in.Size))], int64(in.Offset))
		return fuse.OK
	})
	return fuse.ReadResultData(buf[:got]), status
}

func (s *server) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	off := int64(in.Offset)
	o := &operation{kind: Write, off: off, end: off + int64(len(data)), data: slices.Clone(data)}
	if status := s.do(in.NodeId, o, nil); status != fuse.OK {
		s.forgetWrite(in.NodeId, off, len(data))
		return 0, status
	}
	return uint32(len(data)), fuse.OK
}

// forgetWrite makes the kernel read again what a write that is about to fail has
// left in its cache: other file systems refuse a write before they copy from it,
// so memory maps never show it. The kernel first takes the pages out of the maps
// and then waits for the write to end, so it must have been told before that.
func (s *server) forgetWrite(nodeID uint64, off int64, n int) {
	go s.kernel.InodeNotify(nodeID, off, int64(n))
	time.Sleep(2 * time.Millisecond)
}

func (s *server) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	if in.Mode != 0 {
		return fuse.Status(syscall.EOPNOTSUPP)
	}
	return s.do(in.NodeId, &operation{kind: Fallocate, off: int64(in.Offset), end: int64(in.Offset + in.Length)}, nil)
}

func (s *server) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return s.do(in.NodeId, &operation{kind: Fsync}, nil)
}

func (s *server) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if in.NodeId == fuse.FUSE_ROOT_ID {
		return fuse.OK
	}
	return s.do(in.NodeId, &operation{kind: FsyncDir}, nil)
}

func (s *server) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.OK }

func (s *server) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if in.NodeId == fuse.FUSE_ROOT_ID {
		return fuse.OK // volumes are known by their ids
	}
	return s.with(in.NodeId, func(v *volume, d *node) fuse.Status {
		names := slices.Sorted(maps.Keys(d.names))
		for i := int(in.Offset); i < len(names); i++ {
			n := v.live.nodes[d.names[names[i]]]
			if !out.AddDirEntry(fuse.DirEntry{Mode: n.mode, Name: names[i], Ino: n.ino, Off: uint64(i + 1)}) {
				break
			}
		}
		return fuse.OK
	})
}

func (s *server) StatFs(_ <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	free := uint64(plenty)
	if v := s.volume(in.NodeId); v != nil {
		v.mu.Lock()
		defer v.mu.Unlock()
		free = v.free
	}
	out.Bsize, out.Frsize, out.NameLen = pageSize, pageSize, 255
	out.Blocks, out.Bfree, out.Bavail = plenty/pageSize, free/pageSize, free/pageSize
	return fuse.OK
}

// Calls are what the parent may ask of the server.
type Calls struct{ s *server }

// Arg is the argument of every call: a volume and what is asked of it.
type Arg struct {
	Volume uint32
	Fault  Fault
	At     int
	Seed   uint64
	Whole  bool
	Free   uint64
}

// Report is what a volume has seen.
type Report struct {
	Ops     int
	Met     int // 0: nothing
	Hanging bool
	Trace   []string // when asked for with At
}

// Make makes a volume: an empty one, or what a crash of another leaves.
func (c *Calls) Make(a *Arg, id *uint32) error {
	if c.s.refused != "" {
		return errors.New(c.s.refused)
	}
	base := newTree()
	if a.Volume != 0 {
		v, err := c.find(a)
		if err != nil {
			return err
		}
		if a.Whole {
			base = v.copy()
		} else {
			base = v.crash(a.At, a.Seed)
		}
	}
	*id = c.s.addVolume(base)
	return nil
}

func (c *Calls) find(a *Arg) (*volume, error) {
	v := c.s.volume(uint64(a.Volume) << volumeShift)
	if v == nil {
		return nil, fmt.Errorf("there is no volume %d", a.Volume)
	}
	return v, nil
}

// Report tells what a volume has seen.
func (c *Calls) Report(a *Arg, r *Report) error {
	v, err := c.find(a)
	if err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	*r = Report{Ops: len(v.journal), Met: v.met, Hanging: v.hanging}
	if a.At != 0 {
		r.Trace = slices.Clone(v.trace)
	}
	return nil
}

// Plan sets the fault of a volume; the zero value heals it.
func (c *Calls) Plan(a *Arg, _ *Report) error {
	v, err := c.find(a)
	if err == nil {
		v.plan(a.Fault)
	}
	return err
}

// Release lets go on what hangs.
func (c *Calls) Release(a *Arg, _ *Report) error {
	v, err := c.find(a)
	if err == nil {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.release()
	}
	return err
}

// SetFree sets the space statfs tells of.
func (c *Calls) SetFree(a *Arg, _ *Report) error {
	v, err := c.find(a)
	if err == nil {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.free = a.Free
	}
	return err
}

// Drop forgets a volume.
func (c *Calls) Drop(a *Arg, _ *Report) error {
	c.s.mu.Lock()
	delete(c.s.volumes, a.Volume)
	c.s.mu.Unlock()
	// The kernel then drops its pages too.
	_ = c.s.kernel.EntryNotify(fuse.FUSE_ROOT_ID, strconv.Itoa(int(a.Volume)))
	return nil
}
