package markdown

import (
	"strings"
	"testing"
)

func TestTable(t *testing.T) {
	var b strings.Builder
	if err := Table(&b, [][]string{{"a", "größe"}, {"1234", "ü"}}); err != nil {
		t.Fatal(err)
	}
	if want := "| a    | größe |\n|------|-------|\n| 1234 | ü     |\n"; b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
}
