package bench

import (
	"bytes"
	"encoding/xml"
	"io"
	"math"
	"regexp"
	"strings"
	"testing"

	"nha/plot"
)

// scripts are what an XML reader cannot read.
var scripts = regexp.MustCompile(`(?s)<(script|style)>.*?</(script|style)>`)

// checkHTML wants tags that close in order, and no address of anything outside; it returns the page's texts.
func checkHTML(t *testing.T, page []byte) string {
	t.Helper()
	d := xml.NewDecoder(bytes.NewReader(scripts.ReplaceAll(page, nil)))
	d.Strict, d.AutoClose, d.Entity = false, xml.HTMLAutoClose, xml.HTMLEntity
	var text strings.Builder
	var open []string
	for {
		token, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("the page does not parse: %v", err)
		}
		switch x := token.(type) {
		case xml.StartElement:
			open = append(open, x.Name.Local)
			for _, a := range x.Attr {
				if (a.Name.Local == "src" || a.Name.Local == "href") && !strings.HasPrefix(a.Value, "data:") {
					t.Errorf("<%s %s=%q> asks for something outside", x.Name.Local, a.Name.Local, a.Value)
				}
			}
		case xml.EndElement:
			if len(open) == 0 || open[len(open)-1] != x.Name.Local {
				t.Fatalf("</%s> closes %v", x.Name.Local, open)
			}
			open = open[:len(open)-1]
		case xml.CharData:
			text.Write(x)
			text.WriteByte('\n')
		}
	}
	if len(open) > 0 {
		t.Errorf("not closed: %v", open)
	}
	for _, word := range []string{"http://", "https://", "url(", "@import", "ZgotmplZ"} {
		if bytes.Contains(page, []byte(word)) {
			t.Errorf("the page has %s", word)
		}
	}
	return text.String()
}

// The page of the curves parses, has every point of every line as a mark in two scalings, and the headline.
func TestCurvesPage(t *testing.T) {
	var page bytes.Buffer
	s := example("org/model.gguf")
	if err := s.Page().Write(&page); err != nil {
		t.Fatal(err)
	}
	text := checkHTML(t, page.Bytes())
	for _, want := range []string{"What constant memory buys: model\n", "500 tokens", "4.6×", "8.0 MiB against 0.5 MiB", "91.9 ms against 20.0 ms", "windows 64, 64 slots", "64 added, untrained", "one & only",
		"nha bench curves 'org/model.gguf'", "commit 0123", "2 January 2026, 03:04 UTC", "synthetic state", "up to 2K tokens", "256 is left out: it would take about 2 min", "Figures as a table",
		"With windows of 64 and 64 slots a token costs 20.0\u00a0ms after 128 tokens and 20.0\u00a0ms after 8K tokens; full attention costs 4.6 times as much there.", "full ÷ 64\n", "\n0.564\n", "\n4.60\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	if n := strings.Count(page.String(), `class="c1 cross"`); n != 2 { // the prompt that is skipped, in two scalings
		t.Errorf("%d crosses", n)
	}
	points := 2 * (7 + 7 + 7 + 3 + 1 + 1) // decoding's three charts, batches, prompts with one that is skipped, of two variants
	if n := strings.Count(page.String(), "<circle "); n != 2*points {
		t.Errorf("%d marks, want %d in two scalings", n, 2*points)
	}
	if !strings.Contains(page.String(), `data-x="8K tokens" data-y="91.9 ms" data-name="full attention"`) {
		t.Error("a point's texts are missing")
	}
}

// Names are text, wherever they stand.
func TestPageEscapes(t *testing.T) {
	name := `<img src=x onerror="alert(1)">'&`
	var page bytes.Buffer
	s := example(name)
	s.Variants[1].Model = "other" + name // so that lines are named by their model
	for i := range s.Points {
		if s.Points[i].Windows == "64" {
			s.Points[i].Model = "other" + name
		}
	}
	if err := s.Page().Write(&page); err != nil {
		t.Fatal(err)
	}
	if text := checkHTML(t, page.Bytes()); !strings.Contains(text, name) {
		t.Error("the name is not on the page")
	}
	if strings.Contains(page.String(), "<img") {
		t.Error("the name is markup")
	}
}

// A chart without points, with one, with equal values or with values that its axes cannot show is still a chart.
func TestFigureEdges(t *testing.T) {
	for name, c := range map[string]plot.Chart{
		"empty": {}, "empty log": {X: plot.Axis{Log: true, Binary: true}, Y: plot.Axis{Log: true}},
		"one":  {X: plot.Axis{Log: true}, Y: plot.Axis{Log: true}, Series: []plot.Series{{Name: "a", X: []float64{5}, Y: []float64{7}}}},
		"flat": {Series: []plot.Series{{Name: "a", X: []float64{1, 2}, Y: []float64{0, 0}, Points: true}}},
		"bad":  {Y: plot.Axis{Log: true}, Series: []plot.Series{{Name: "a", X: []float64{1, 2, 3, 4}, Y: []float64{1, -1, math.NaN(), math.Inf(1)}, Points: true}}},
	} {
		var page bytes.Buffer
		p := Page{Title: name, Sections: []Section{{Title: "s", Figures: []Figure{{Chart: c}}}}}
		if err := p.Write(&page); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		checkHTML(t, page.Bytes())
		if s := page.String(); strings.Contains(s, "NaN") || strings.Contains(s, "Inf") {
			t.Errorf("%s: a number that is none", name)
		}
	}
}

func TestScaleTicks(t *testing.T) {
	for _, c := range []struct {
		s      scale
		binary bool
		want   string
	}{
		{scale{low: 128, high: 131072, log: true}, true, "128 512 2K 8K 32K 128K"},
		{scale{low: 0, high: 131072}, true, "0 32K 64K 96K 128K"},
		{scale{low: 2, high: 700, log: true}, false, "2 5 10 20 50 100 200 500"},
		{scale{low: 0.9, high: 1.2e7, log: true}, false, "1 100 10k 1M"},
		{scale{low: 18, high: 27, log: true}, false, "18 20 25"},
		{scale{low: -0.2, high: 1}, false, "-0.2 0 0.2 0.4 0.6 0.8 1"},
		{scale{low: 0, high: 2500}, false, "0 500 1000 1500 2000 2500"},
	} {
		var got []string
		for _, tick := range c.s.ticks(c.binary, false, 6) {
			got = append(got, tick.text)
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("ticks of %+v: %s, want %s", c.s, s, c.want)
		}
	}
}

func TestFormat(t *testing.T) {
	for x, want := range map[float64]string{0.01234: "0.0123", 1.234: "1.23", 12.34: "12.3", 1234: "1234", 12345: "12\u202f345", -1234567: "-1\u202f234\u202f567", math.NaN(): ""} {
		if got := FormatNumber(x); got != want {
			t.Errorf("%v is written %q, want %q", x, got, want)
		}
	}
	t2 := PageTable{Head: []string{"a", "b", "c", "d"}, Rows: [][]Cell{{{Text: "4*64 full"}, {Text: "1.5 ± 0.2"}, {Text: "8m15s"}, {Text: "skipped"}}, {{Text: "5"}, {Text: "12\u202f000"}, {Text: "2.0 MiB"}, {Text: "3"}}}}
	if got := t2.numeric(); got[0] || !got[1] || !got[2] || !got[3] {
		t.Errorf("numeric columns %v", got)
	}
}
