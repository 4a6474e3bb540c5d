// Package markdown writes the tables of reports.
package markdown

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// Table writes cells as a table with aligned columns; the first line is the head, and no line is longer.
func Table(w io.Writer, cells [][]string) error {
	width := make([]int, len(cells[0]))
	for _, line := range cells {
		for i, c := range line {
			width[i] = max(width[i], utf8.RuneCountInString(c), 3)
		}
	}
	var b strings.Builder
	for i, line := range cells {
		for k, c := range line {
			fmt.Fprintf(&b, "| %s%s ", c, strings.Repeat(" ", width[k]-utf8.RuneCountInString(c)))
		}
		b.WriteString("|\n")
		if i == 0 {
			for _, n := range width {
				fmt.Fprintf(&b, "|%s", strings.Repeat("-", n+2))
			}
			b.WriteString("|\n")
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
