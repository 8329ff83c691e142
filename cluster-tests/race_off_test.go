//go:build !race

package clustertests

const raceDetector = false
