package bench

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"nha/atomicfile"
	"nha/plot"
)

// What a measurement of curves leaves: tables, pictures and a page.

// The files of Write, besides a picture for every chart.
const (
	CurvesJSON = "curves.json"
	CurvesCSV  = "curves.csv"
	CurvesPage = "bench.html"
)

// PrepareOut makes the folder and proves that files can be written into it: before an hour of measuring, not after.
func PrepareOut(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".nha-*")
	if err != nil {
		return fmt.Errorf("%s cannot be written to: %w", dir, err)
	}
	f.Close()
	return os.Remove(f.Name())
}

// Write writes curves.json, curves.csv, bench.html and the charts as SVG and PNG.
func (s *CurveSet) Write(dir string) error {
	for name, write := range map[string]func(io.Writer) error{
		CurvesJSON: func(w io.Writer) error {
			e := json.NewEncoder(w)
			e.SetIndent("", "  ")
			e.SetEscapeHTML(false)
			return e.Encode(s)
		},
		CurvesCSV:  s.CSV,
		CurvesPage: s.Page().Write,
	} {
		if err := atomicfile.WriteFile(filepath.Join(dir, name), 0o644, write); err != nil {
			return err
		}
	}
	for _, f := range s.charts() {
		if err := f.Chart.Write(filepath.Join(dir, f.file)); err != nil {
			return err
		}
	}
	return nil
}

// CSV writes the points as they were measured.
func (s *CurveSet) CSV(w io.Writer) error {
	c := csv.NewWriter(w)
	lines := [][]string{{"curve", "model", "windows", "slots", "depth", "batch", "ms", "tokens_per_s", "state_bytes", "resident_bytes", "runs", "skipped"}}
	for _, p := range s.Points {
		lines = append(lines, []string{p.Curve, p.Model, p.Windows, fmt.Sprint(p.Slots), fmt.Sprint(p.Depth), fmt.Sprint(p.Batch), fmt.Sprint(p.MS),
			fmt.Sprint(p.TokensPerSecond), fmt.Sprint(p.StateBytes), fmt.Sprint(p.ResidentBytes), fmt.Sprint(p.Runs), p.Skipped})
	}
	return c.WriteAll(lines)
}

// ReadCurves reads a curves.json.
func ReadCurves(path string) (*CurveSet, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	s := &CurveSet{}
	d := json.NewDecoder(bytes.NewReader(text))
	if err := d.Decode(s); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if s.Format != CurvesFormat {
		return nil, fmt.Errorf("%s: format %q: want %s", path, s.Format, CurvesFormat)
	}
	return s, nil
}

// several reports whether there is more than one model: then lines are named by it too.
func (s *CurveSet) several() bool {
	return slices.ContainsFunc(s.Variants, func(v Variant) bool { return v.Model != s.Variants[0].Model })
}

func (s *CurveSet) label(v Variant) string {
	if s.several() {
		return ShortName(v.Model) + ", " + v.Name()
	}
	return v.Name()
}

// curveChart is a chart and the name of its picture.
type curveChart struct {
	file string
	Figure
}

// charts are what the points show.
func (s *CurveSet) charts() []curveChart {
	depth := plot.Axis{Label: "tokens before the step", Log: true, Binary: true}
	length := plot.Axis{Label: "tokens of the prompt", Log: true, Binary: true}
	byDepth := func(p CurvePoint) float64 { return float64(p.Depth) }
	list := []curveChart{
		s.chart("curves_decode", CurveDecode, "Time of a token", "One decoding step of one session. Lower is better.", depth, plot.Axis{Label: "ms per token", Log: true}, "ms",
			byDepth, func(p CurvePoint) float64 { return p.MS }),
		s.chart("curves_state", CurveDecode, "Memory of a session", "What must be kept to go on: keys, values, slots. Lower is better.", depth, plot.Axis{Label: "MiB", Log: true}, "MiB",
			byDepth, func(p CurvePoint) float64 { return float64(p.StateBytes) / (1 << 20) }),
		s.chart("curves_prefill", CurvePrefill, "Time to the first token", "A prompt read from an empty state. Lower is better.", length, plot.Axis{Label: "seconds", Log: true}, "s",
			byDepth, func(p CurvePoint) float64 { return p.MS / 1e3 }),
		s.chart("curves_resident", CurveDecode, "Memory of the process", "Resident on the host with the weights and one session.", depth, plot.Axis{Label: "MiB", Log: true}, "MiB",
			byDepth, func(p CurvePoint) float64 { return float64(p.ResidentBytes) / (1 << 20) }),
		s.chart("curves_batch", CurveBatch, "Tokens a second against sessions", fmt.Sprintf("All sessions of a step at %s. Higher is better.", tokens(s.BatchDepth)),
			plot.Axis{Label: "sessions", Log: true, Binary: true}, plot.Axis{Label: "tokens/s", Log: true}, "tokens/s",
			func(p CurvePoint) float64 { return float64(p.Batch) }, func(p CurvePoint) float64 { return p.TokensPerSecond }),
	}
	list[0].Wide, list[4].XUnit = len(s.Variants) <= 3, "sessions" // a table of more has no room beside the chart
	return slices.DeleteFunc(list, func(c curveChart) bool { return !c.drawn() })
}

func (s *CurveSet) chart(file, curve, title, caption string, x, y plot.Axis, unit string, xOf, yOf func(CurvePoint) float64) curveChart {
	c := curveChart{file, Figure{Chart: plot.Chart{Title: title, X: x, Y: y, Skipped: skippedText}, Caption: caption, XUnit: "tokens", YUnit: unit}}
	for i, v := range s.Variants {
		line := plot.Series{Name: s.label(v), Points: true, Color: i + 1}
		for _, p := range s.Points {
			if p.Curve == curve && v.owns(p) {
				y := yOf(p)
				if p.Skipped != "" {
					y = math.NaN()
				}
				line.X, line.Y = append(line.X, xOf(p)), append(line.Y, y)
			}
		}
		if len(line.X) > 0 {
			c.Series = append(c.Series, line)
		}
		c.Notes = append(c.Notes, s.skipped(v, curve, xOf)...)
	}
	for _, pair := range s.pairs() {
		ratio := plot.Series{Name: "full ÷ " + pair[1].Windows}
		if s.several() {
			ratio.Name = ShortName(pair[0].Model) + ": " + ratio.Name
		}
		for _, f := range s.curve(pair[0], curve) {
			for _, p := range s.curve(pair[1], curve) {
				if xOf(p) == xOf(f) && yOf(p) > 0 {
					ratio.X, ratio.Y = append(ratio.X, xOf(f)), append(ratio.Y, yOf(f)/yOf(p))
				}
			}
		}
		if len(ratio.X) > 0 {
			c.Columns = append(c.Columns, ratio)
		}
	}
	return c
}

// skipped says which points of a curve are missing, and why: in one line where it is all from some point on.
func (s *CurveSet) skipped(v Variant, curve string, xOf func(CurvePoint) float64) (list []string) {
	from, reason, more := "", "", false
	end := func() {
		switch {
		case reason == "":
		case more:
			list = append(list, fmt.Sprintf("%s from %s on is left out: that point %s.", s.label(v), from, reason))
		default:
			list = append(list, fmt.Sprintf("%s at %s is left out: it %s.", s.label(v), from, reason))
		}
		reason, more = "", false
	}
	for _, p := range s.Points {
		switch {
		case p.Curve != curve || !v.owns(p):
		case p.Skipped == "":
			end()
		case reason == "":
			from, reason = plot.Binary(xOf(p)), p.Skipped
		default:
			more = true
		}
	}
	end()
	return list
}

// Figures are the charts of the curves.
func (s *CurveSet) Figures() (list []Figure) {
	for _, c := range s.charts() {
		list = append(list, c.Figure)
	}
	return list
}

// Findings are what the curves of a step say, a sentence for every model.
func (s *CurveSet) Findings() (list []string) {
	for _, pair := range s.pairs() {
		full, other := s.curve(pair[0], CurveDecode), s.curve(pair[1], CurveDecode)
		c, ok := crossing(full, other, func(p CurvePoint) float64 { return p.MS })
		if !ok {
			continue
		}
		at := func(list []CurvePoint, depth int) CurvePoint {
			return list[slices.IndexFunc(list, func(p CurvePoint) bool { return p.Depth == depth })]
		}
		text := fmt.Sprintf("With windows of %d", narrow)
		if pair[1].Slots > 0 {
			text += fmt.Sprintf(" and %d slots", pair[1].Slots)
		}
		if s.several() {
			text = ShortName(pair[1].Model) + ": " + strings.ToLower(text[:1]) + text[1:]
		}
		text += fmt.Sprintf(" a token costs %s\u00a0ms", FormatNumber(other[0].MS))
		if other[0].Depth < c.At {
			text += fmt.Sprintf(" after %s and %s\u00a0ms", tokens(other[0].Depth), FormatNumber(at(other, c.At).MS))
		}
		text += " after " + tokens(c.At)
		if c.Ratio >= 2 {
			text += fmt.Sprintf("; full attention costs %s times as much there.", strings.TrimSuffix(times(c.Ratio), "×"))
		} else {
			text += fmt.Sprintf("; full attention costs %s\u00a0ms there.", FormatNumber(at(full, c.At).MS))
		}
		list = append(list, text)
	}
	return list
}

// pairs are the variants with all windows full and with narrow ones, for every model that has both.
func (s *CurveSet) pairs() (list [][2]Variant) {
	for _, v := range s.Variants {
		if v.Windows != fmt.Sprint(narrow) {
			continue
		}
		if i := slices.IndexFunc(s.Variants, func(f Variant) bool { return f.Model == v.Model && f.Windows == "full" }); i >= 0 {
			list = append(list, [2]Variant{s.Variants[i], v})
		}
	}
	return list
}

// Headlines are where windows of 64 are ahead, and by how much, for every model.
func (s *CurveSet) Headlines() (list []Headline) {
	for _, c := range s.Crossings() {
		of, windows, less := "", "Windows", "Faster"
		if c.What == "memory" {
			less = "Less memory"
		}
		if s.several() {
			of, windows, less = ShortName(c.Model)+": ", "windows", strings.ToLower(less)
		}
		what := map[string][2]string{"time": {"are faster from", "are not faster up to"}, "memory": {"need less memory from", "do not need less memory up to"}}[c.What]
		h := Headline{Value: c.Tokens(), Label: fmt.Sprintf("%s%s of %d %s", of, windows, narrow, what[0]), Note: "against all windows full", Place: true}
		if math.IsNaN(c.Depth) {
			h.Label = fmt.Sprintf("%s%s of %d %s", of, windows, narrow, what[1])
			list = append(list, h)
			continue
		}
		list = append(list, h, Headline{Value: times(c.Ratio), Label: fmt.Sprintf("%s%s with windows of %d, at %s", of, less, narrow, tokens(c.At)), Note: s.pair(c)})
	}
	return list
}

// times writes a ratio.
func times(ratio float64) string {
	if ratio >= 20 {
		return thousands(fmt.Sprintf("%.0f", ratio)) + "×"
	}
	return fmt.Sprintf("%.1f×", ratio)
}

// pair is the two figures that a crossing's ratio is of.
func (s *CurveSet) pair(c Crossing) string {
	var words []string
	for _, windows := range []string{"full", fmt.Sprint(narrow)} {
		for _, p := range s.Points {
			if p.Curve == CurveDecode && p.Model == c.Model && p.Windows == windows && p.Depth == c.At && p.Skipped == "" {
				if c.What == "memory" {
					words = append(words, FormatBytes(float64(p.StateBytes)))
				} else {
					words = append(words, FormatNumber(p.MS)+" ms")
				}
				break
			}
		}
	}
	return strings.Join(words, " against ")
}

// Page is the page of the curves.
func (s *CurveSet) Page() *Page {
	var names []string
	rows := [][]Cell{}
	context := 0
	for _, v := range s.Variants {
		if !slices.Contains(names, ShortName(v.Model)) {
			names = append(names, ShortName(v.Model))
		}
		how := "all windows " + v.Windows
		if v.AsIs {
			how = "as it is"
		}
		slots := fmt.Sprint(v.Slots)
		if v.Added {
			slots += " added, untrained"
		}
		context = max(context, v.Context)
		rows = append(rows, []Cell{{Text: ShortName(v.Model)}, {Text: how}, {Text: v.Windows}, {Text: slots}, {Text: fmt.Sprintf("%.1f M", float64(v.Parameters)/1e6)},
			{Text: v.DType}, {Text: FormatBytes(float64(v.WeightBytes))}})
	}
	p := &Page{Title: "What constant memory buys: " + strings.Join(names, ", "), Findings: s.Findings(), Headline: s.Headlines(), Command: s.Command,
		Lead: "The cost of the next token, and of what must be remembered for it, against how much was read before: with full attention and with windows of " +
			fmt.Sprint(narrow) + " tokens."}
	if len(p.Findings) > 0 {
		p.Finding, p.Findings = p.Findings[0], p.Findings[1:]
	}
	p.Sections = []Section{{Title: "Curves", Text: s.remarks(context), Figures: s.Figures()}, {Title: "Models", Tables: []PageTable{{
		Head: []string{"model", "measured", "windows", "slots", "parameters", "weights", "bytes of weights"}, Rows: rows}}}}
	p.About = append(p.About, s.Machine...)
	p.About = append(p.About, Fact{"backend", s.Backend}, Fact{"nha", s.Version}, Fact{"date", s.Created.Format("2 January 2006, 15:04 MST")},
		Fact{"method", fmt.Sprintf("Medians after a warm-up; a call of which one takes long is made once. A decoding depth is reached with a synthetic state, filled with random numbers: a "+
			"step's time does not depend on them. Prompts are random tokens, read in full, in chunks as generation reads them. Points that would take longer than %s are left out.", span(s.Limit))})
	return p
}

// remarks are what a reader must know of the models.
func (s *CurveSet) remarks(context int) string {
	var words []string
	if slices.ContainsFunc(s.Variants, func(v Variant) bool { return v.Added }) {
		words = append(words, "Where slots were added nobody has trained them: these curves say what such a model costs, not how well it writes; nha hybridize makes one that does.")
	}
	deepest := 0
	for _, p := range s.Points {
		deepest = max(deepest, p.Depth)
	}
	if context > 0 && deepest > context {
		words = append(words, fmt.Sprintf("The models were made for up to %s: full attention beyond is measured for its cost alone.", tokens(context)))
	}
	return strings.Join(words, " ")
}
