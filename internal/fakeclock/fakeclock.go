package fakeclock

import (
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"
)

// Clock is the clock of a host: all programs started by it show it. It is right until
// it is told otherwise. Its methods may be called from several goroutines.
type Clock struct {
	mu         sync.Mutex
	wall       time.Duration // how far the wall clock is ahead, without what is below
	asleep     time.Duration // how far CLOCK_MONOTONIC is behind
	fellAsleep time.Time     // zero while awake
	course     course
	since      time.Time     // when the course began
	stop       chan struct{} // ends the course; nil when there is none
	programs   []program
}

// course is how the wall clock goes wrong as time passes.
type course struct {
	gain   float64       // per unit of true time
	swing  time.Duration // how much further ahead it is in every second period
	period time.Duration
}

// shifts are how far clocks are ahead of the true ones.
type shifts struct{ wall, monotonic time.Duration }

// program is a process whose clock is ours.
type program interface {
	// set changes the shifts, each in one step. It fails once the process has ended.
	set(shifts) error
	close()
}

// New makes a clock, which lives until the test ends. Where programs cannot be given
// one, it skips the test.
func New(t testing.TB) *Clock {
	t.Helper()
	if err := Possible(); err != nil {
		t.Skipf("SKIPPED: programs cannot be given clocks here; it takes Linux on amd64, ptrace, and /proc/PID/mem that can be written: %v", err)
	}
	c := &Clock{}
	t.Cleanup(c.close)
	return c
}

// close leaves the programs their clock as it is.
func (c *Clock) close() {
	c.follow(course{})
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.programs {
		p.close()
	}
	c.programs = nil
}

// Start starts a command in place of cmd.Start. The program at path gets the clock: the
// command itself, or what it executes in its own place, as `ip netns exec` does. When
// there is an error the process has ended. A host that slept is awake.
func (c *Clock) Start(cmd *exec.Cmd, path string) error {
	c.Wake()
	return start(cmd, path, func(p program) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.programs = append(c.programs, p)
		return p.set(c.now())
	})
}

// Jump sets the wall clock forward, or back.
func (c *Clock) Jump(by time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wall += by
	c.show()
}

// Strobe sets the wall clock forward (or back) by that much and back again, over and
// over: it is wrong in every second period of some milliseconds. With a swing of 0 it ends.
// It takes the place of a skew.
func (c *Clock) Strobe(swing, period time.Duration) {
	to := course{swing: swing, period: period}
	if swing == 0 {
		to = course{}
	}
	c.follow(to)
}

// Skew makes the wall clock gain that much in each unit of time, or lose it: with 0.5 it
// is half as fast again. With 0 it runs as it should; what it has gained stays. It takes the
// place of a strobe.
func (c *Clock) Skew(gain float64) { c.follow(course{gain: gain}) }

// Right sets the wall clock right.
func (c *Clock) Right() {
	c.follow(course{})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wall = 0
	c.show()
}

// Sleep begins a sleep of the host, the program of which, a child of this process, has been
// sent SIGSTOP. It returns when that has stopped.
func (c *Clock) Sleep(p *os.Process) error {
	if err := awaitStop(p.Pid); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fellAsleep = time.Now()
	return nil
}

// Wake ends the sleep, before the program is sent SIGCONT: CLOCK_MONOTONIC, and with it what
// Go measures time by, will have stood still. If the host does not sleep, it does nothing.
func (c *Clock) Wake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.fellAsleep.IsZero() {
		c.asleep += time.Since(c.fellAsleep)
		c.fellAsleep = time.Time{}
		c.show()
	}
}

// Ahead is how far the wall clock is ahead of the true time.
func (c *Clock) Ahead() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now().wall
}

// resolution is how often a clock that follows a course is set.
const resolution = time.Millisecond

// follow puts the wall clock on a course in place of the one before.
func (c *Clock) follow(to course) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stop != nil {
		close(c.stop)
		c.stop = nil
		c.course.swing = 0
		c.wall = c.now().wall
	}
	c.course, c.since = to, time.Now()
	if to != (course{}) {
		stop := make(chan struct{})
		c.stop = stop
		go func() {
			tick := time.NewTicker(resolution)
			defer tick.Stop()
			for {
				select {
				case <-stop:
					return
				case <-tick.C:
					c.mu.Lock()
					c.show()
					c.mu.Unlock()
				}
			}
		}()
	}
	c.show()
}

// now is what the clock shows. c.mu is held.
func (c *Clock) now() shifts {
	passed := time.Since(c.since)
	s := shifts{wall: c.wall + time.Duration(c.course.gain*float64(passed)), monotonic: -c.asleep}
	if c.course.period > 0 && passed/c.course.period%2 == 1 {
		s.wall += c.course.swing
	}
	return s
}

// show lets the programs see the clock. c.mu is held.
func (c *Clock) show() {
	s, running := c.now(), c.programs[:0]
	for _, p := range c.programs {
		if p.set(s) != nil {
			p.close()
			continue
		}
		running = append(running, p)
	}
	clear(c.programs[len(running):])
	c.programs = running
}
