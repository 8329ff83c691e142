//go:build race

package clustertests

// raceDetector is on in the tests, so the nodes are built with it too.
const raceDetector = true
