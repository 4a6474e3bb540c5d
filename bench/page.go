package bench

import (
	"bytes"
	_ "embed"
	"html/template"
	"io"
	"regexp"
	"slices"
	"strings"

	"nha/plot"
)

// Page is a document that stands alone: one HTML file with its pictures and style inside, and a policy that forbids the browser to
// load anything. It reads without scripts; the script shows the figures of the nearest point.
type Page struct {
	Title    string
	Finding  string // what it comes to, in a sentence: stands as the heading, the title above it; may be empty
	Lead     string
	Findings []string // more sentences, one a line
	Headline []Headline
	Sections []Section
	About    []Fact // machine, version, date
	Command  string // repeats it; may be empty
}

// Headline is a number that one remembers.
type Headline struct {
	Value, Label, Note string
	Place              bool // it says from where on something holds, not how much it is worth
}

// Section is a part of a page.
type Section struct {
	Title, Text string
	Figures     []Figure
	Tables      []PageTable
}

// Figure is a chart with what is said about it. Chart.Skipped stands in the table too.
type Figure struct {
	plot.Chart
	Caption string
	XUnit   string        // after a value of x, such as tokens
	YUnit   string        // after a value of y, such as ms
	Notes   []string      // what is missing, and why
	Columns []plot.Series // that stand in the table alone
	Wide    bool          // takes a line of the page, its table open beside it
}

// PageTable is a table of texts; columns of numbers are set to the right.
type PageTable struct {
	Title string
	Head  []string
	Rows  [][]Cell
}

// Cell is one entry.
type Cell struct {
	Text string
	Best bool // in bold
}

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"svg":     func(f Figure, logarithmic bool) template.HTML { return f.svg(logarithmic) },
	"table":   func(f Figure) PageTable { return f.table() },
	"numeric": func(t PageTable) []bool { return t.numeric() },
	"skips":   func(f Figure) bool { return f.skips() },
	"lines":   strings.Fields,
	"colour":  colourOf,
}).Parse(pageText))

// Write writes the page as HTML.
func (p *Page) Write(w io.Writer) error {
	var b bytes.Buffer // a page that cannot be made leaves nothing
	if err := pageTemplate.Execute(&b, p); err != nil {
		return err
	}
	_, err := w.Write(b.Bytes())
	return err
}

// Charts reports whether a section has any: then a page offers to switch their scales.
func (p *Page) Charts() bool {
	for _, s := range p.Sections {
		for _, f := range s.Figures {
			if f.X.Log || f.Y.Log {
				return true
			}
		}
	}
	return false
}

// skippedText stands for a figure that was not measured.
const skippedText = "skipped"

// numberText is a number, with a unit or an error after it.
var numberText = regexp.MustCompile(`^-?[\d.,\x{202f}]+(e[-+]?\d+)?( ?(%|×|[KMGT]i?B?|h\d+m\d+s|m\d+s|s))?( ± [\d.]+)?$`)

// numeric says which columns hold numbers alone.
func (t PageTable) numeric() []bool {
	list := make([]bool, len(t.Head))
	for i := range list {
		list[i] = len(t.Rows) > 0
		for _, r := range t.Rows {
			if i < len(r) && r[i].Text != "" && r[i].Text != skippedText && !numberText.MatchString(r[i].Text) {
				list[i] = false
			}
		}
	}
	return list
}

// table is a figure's points: a line for every x, a column for every series with a name and for what stands in the table alone.
func (f Figure) table() PageTable {
	t := PageTable{Title: f.Y.Label, Head: []string{f.X.Label}}
	var xs []float64
	seen := map[float64]int{}
	columns := slices.DeleteFunc(slices.Concat(f.Series, f.Columns), func(s plot.Series) bool { return s.Name == "" || s.Faint })
	for _, s := range columns {
		t.Head = append(t.Head, s.Name)
		for i, x := range s.X {
			if _, ok := seen[x]; !ok && (f.shows(x, s.Y[i]) || f.Skipped != "") {
				seen[x] = 0
				xs = append(xs, x)
			}
		}
	}
	xs = ascendingFloats(xs)
	for i, x := range xs {
		seen[x] = i
		t.Rows = append(t.Rows, make([]Cell, len(t.Head)))
		t.Rows[i][0].Text = f.xText(x)
	}
	for column, s := range columns {
		for i, x := range s.X {
			switch row, shown := seen[x]; {
			case f.shows(x, s.Y[i]):
				t.Rows[row][column+1].Text = FormatNumber(s.Y[i])
			case shown:
				t.Rows[row][column+1].Text = f.Skipped
			}
		}
	}
	return t
}
