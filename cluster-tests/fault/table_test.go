package fault

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// The manual of the tests names every fault in the words used here.
func TestTheTableOfFaultsIsComplete(t *testing.T) {
	page, err := os.ReadFile("../../docs/TESTING.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range All() {
		if row := fmt.Sprintf("| `%s` | %s |", f.Name, f.What); !strings.Contains(string(page), row) {
			t.Errorf("docs/TESTING.md lacks\n%s", row)
		}
	}
}
