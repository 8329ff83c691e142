package store

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestTheMarkerTellsHowFarReadsHaveGone(t *testing.T) {
	const boot = "this"
	for name, c := range map[string]struct {
		end   func(t *testing.T, path string, m *marker) // what happens to the process
		index uint64
		found bool
	}{
		"orderly stop": {func(t *testing.T, _ string, m *marker) {
			if err := m.close(true); err != nil {
				t.Fatal(err)
			}
		}, 7, true},
		"crash": {func(t *testing.T, _ string, m *marker) { m.file.Close() }, 7, true},
		"last slot torn": {func(t *testing.T, _ string, m *marker) {
			if _, err := m.file.WriteAt([]byte("torn"), int64(m.seq%2)*markerSpacing+20); err != nil {
				t.Fatal(err)
			}
		}, 6, true},
		"file cut": {func(t *testing.T, path string, m *marker) {
			if err := os.Truncate(path, 10); err != nil {
				t.Fatal(err)
			}
		}, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), markerName)
			m, _, found, err := openMarker(path, boot)
			if err != nil || found {
				t.Fatalf("new marker: %v, %v", found, err)
			}
			for i := range uint64(7) {
				if err := m.setIndex(i + 1); err != nil {
					t.Fatal(err)
				}
			}
			c.end(t, path, m)
			_, last, found, err := openMarker(path, boot)
			if err != nil || found != c.found || last.index != c.index {
				t.Errorf("found %v at %d, %v; want %v at %d", found, last.index, err, c.found, c.index)
			}
			if found && (last.boot != boot || last.clean != (name == "orderly stop")) {
				t.Errorf("slot %+v", last)
			}
		})
	}
}

func TestALossOfPowerIsTold(t *testing.T) {
	s := openTestState(t, StateConfig{})
	if i, clean := s.Marker(); i != 0 || !clean {
		t.Errorf("new state: %d, %v", i, clean)
	}
	putKey(t, s, "a", "1")
	other := copyOfFiles(t, s)
	m, _, _, err := openMarker(filepath.Join(other, markerName), "another boot")
	if err != nil {
		t.Fatal(err)
	}
	m.file.Close()
	if i, clean := openTestState(t, StateConfig{Dir: other}).Marker(); i != 1 || clean {
		t.Errorf("after a loss of power: %d, %v", i, clean)
	}
	mustFlush(t, s)
	lost := copyOfFiles(t, s)
	if err := os.Remove(filepath.Join(lost, markerName)); err != nil {
		t.Fatal(err)
	}
	if i, clean := openTestState(t, StateConfig{Dir: lost}).Marker(); i != 1 || clean {
		t.Errorf("without its marker: %d, %v", i, clean)
	}
	if i, clean := reopen(t, s).Marker(); i != 1 || !clean {
		t.Errorf("after an orderly stop: %d, %v", i, clean)
	}
}

func TestTheLastCertificateSurvivesACrash(t *testing.T) {
	s := openTestState(t, StateConfig{})
	if !s.LastCertified().IsZero() {
		t.Error("a new state is certified")
	}
	at := time.Unix(1000, 5)
	s.Certify(at)
	s.Certify(at.Add(-time.Second)) // never back
	putKey(t, s, "a", "1")
	if got := openTestState(t, StateConfig{Dir: copyOfFiles(t, s)}).LastCertified(); !got.Equal(at) {
		t.Errorf("certified at %v", got)
	}
}
