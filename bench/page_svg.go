package bench

import (
	"cmp"
	"fmt"
	"html"
	"html/template"
	"math"
	"slices"
	"strconv"
	"strings"

	"nha/plot"
)

// A chart of a page: SVG whose colours are the page's variables, so that they follow light and dark, and whose letters are sized by the page's
// style, so that they can be read on a phone. Points carry their texts for the script.

// The plane of a chart, in its own units.
const (
	planeWidth, planeHeight                      = 480.0, 300.0
	planeLeft, planeRight, planeTop, planeBottom = 52.0, 14.0, 12.0, 44.0
	endRoom                                      = 48.0 // on the right, for the figures at the ends of lines
	endStep                                      = 14.0 // from one to the next
	mostEnds                                     = 5    // lines whose last figure is written
	skipStep                                     = 10.0 // between rows of marks for what is skipped
	colours                                      = 7    // of the style sheet
)

// scale maps an axis to the plane.
type scale struct {
	low, high float64
	log       bool
	from, to  float64
}

func (s scale) at(x float64) float64 {
	low, high := s.low, s.high
	if s.log {
		low, high, x = math.Log(low), math.Log(high), math.Log(x)
	}
	return s.from + (x-low)/(high-low)*(s.to-s.from)
}

// tick is a place on an axis.
type tick struct {
	at   float64
	text string
}

// shows reports whether a point can be drawn on the axes as they are declared.
func (f Figure) shows(x, y float64) bool {
	ok := func(v float64, a plot.Axis) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) && (!a.Log || v > 0) }
	return ok(x, f.X) && ok(y, f.Y)
}

// drawn reports whether any point can be drawn.
func (f Figure) drawn() bool {
	return slices.ContainsFunc(f.Series, func(s plot.Series) bool {
		for i := range s.X {
			if f.shows(s.X[i], s.Y[i]) {
				return true
			}
		}
		return false
	})
}

// isSkipped reports whether a point stands for one that was not measured.
func (f Figure) isSkipped(s plot.Series, i int) bool {
	return f.Skipped != "" && s.Name != "" && math.IsNaN(s.Y[i]) && f.shows(s.X[i], 1)
}

// skips reports whether any point does.
func (f Figure) skips() bool {
	return slices.ContainsFunc(f.Series, func(s plot.Series) bool {
		for i := range s.X {
			if f.isSkipped(s, i) {
				return true
			}
		}
		return false
	})
}

// axis is the scale of the points' x or y.
func (f Figure) axis(a plot.Axis, logarithmic bool, value func(s plot.Series, i int) float64) scale {
	s := scale{low: math.Inf(1), high: math.Inf(-1), log: a.Log && logarithmic}
	for _, line := range f.Series {
		for i := range line.X {
			if f.shows(line.X[i], line.Y[i]) || f.isSkipped(line, i) {
				if v := value(line, i); !math.IsNaN(v) {
					s.low, s.high = min(s.low, v), max(s.high, v)
				}
			}
		}
	}
	if a.Min != a.Max {
		s.low, s.high = a.Min, a.Max
	}
	switch {
	case s.low > s.high: // no points
		s.low, s.high = 1, 10
	case s.log && s.low == s.high:
		s.low, s.high = s.low/2, s.high*2
	case !s.log && a.Log: // a linear view of what is measured in octaves begins at 0
		s.low = 0
	}
	if s.low == s.high {
		s.low, s.high = s.low-0.5, s.high+0.5
	}
	return s
}

// svg draws the figure with the logarithmic axes that it declares, or with linear ones.
func (f Figure) svg(logarithmic bool) template.HTML {
	x := f.axis(f.X, logarithmic, func(s plot.Series, i int) float64 { return s.X[i] })
	y := f.axis(f.Y, logarithmic, func(s plot.Series, i int) float64 { return s.Y[i] })
	room := 0.06 // so that lines do not touch the frame
	if y.log {
		grow := math.Pow(y.high/y.low, room)
		y.low, y.high = y.low/grow, y.high*grow
	} else {
		grow := room * (y.high - y.low)
		if y.low != 0 {
			y.low -= grow
		}
		y.high += grow
	}
	x.from, x.to, y.from, y.to = planeLeft, planeWidth-planeRight, planeHeight-planeBottom, planeTop
	ends := f.ends()
	if len(ends) > 0 {
		x.to = planeWidth - endRoom
	}
	if f.skips() {
		y.to += skipStep * float64(len(f.Series))
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg class="chart" viewBox="0 0 %g %g" role="img" aria-label="%s">`, planeWidth, planeHeight, html.EscapeString(f.Title+": "+f.Y.Label+" against "+f.X.Label))
	for _, t := range y.ticks(f.Y.Binary, f.Y.Whole, 5) {
		fmt.Fprintf(&b, `<line class="grid" x1="%g" x2="%g" y1="%.1f" y2="%.1f"/><text class="tick" x="%g" y="%.1f" text-anchor="end" dominant-baseline="central">%s</text>`,
			planeLeft, x.to, y.at(t.at), y.at(t.at), planeLeft-7, y.at(t.at), t.text)
	}
	for _, t := range x.ticks(f.X.Binary, f.X.Whole, 6) {
		fmt.Fprintf(&b, `<line class="axis" x1="%.1f" x2="%.1f" y1="%g" y2="%g"/><text class="tick" x="%.1f" y="%g" text-anchor="middle">%s</text>`,
			x.at(t.at), x.at(t.at), y.from, y.from+4, x.at(t.at), y.from+18, t.text)
	}
	fmt.Fprintf(&b, `<line class="axis" x1="%g" x2="%g" y1="%g" y2="%g"/>`, planeLeft, x.to, y.from, y.from)
	fmt.Fprintf(&b, `<text class="label" x="%.1f" y="%g" text-anchor="middle">%s</text>`, (x.from+x.to)/2, planeHeight-6, html.EscapeString(f.X.Label))
	b.WriteString(`<line class="cursor" y1="` + strconv.FormatFloat(y.to, 'g', -1, 64) + `" y2="` + strconv.FormatFloat(y.from, 'g', -1, 64) + `"/>`)
	for i, s := range f.Series {
		f.line(&b, i, s, x, y)
	}
	for i := range ends { // from the highest down, apart from each other
		e := &ends[i]
		e.y = y.at(e.value)
		if i > 0 {
			e.y = max(e.y, ends[i-1].y+endStep)
		}
	}
	for i := len(ends) - 1; i >= 0; i-- { // and up again from the foot
		limit := y.from - 4
		if i < len(ends)-1 {
			limit = ends[i+1].y - endStep
		}
		ends[i].y = min(ends[i].y, limit)
		fmt.Fprintf(&b, `<text class="end c%d" x="%.1f" y="%.1f" dominant-baseline="central">%s</text>`, ends[i].colour, x.at(ends[i].x)+7, ends[i].y, FormatNumber(ends[i].value))
	}
	b.WriteString("</svg>")
	return template.HTML(b.String()) // every text in it is escaped above
}

// end is the figure at the end of a line.
type end struct {
	x, value, y float64
	colour      int
}

// ends are the last figures of lines with marks, from the highest down; none where there are too many to tell apart.
func (f Figure) ends() (list []end) {
	for i, s := range f.Series {
		if s.Name == "" || !s.Points {
			continue
		}
		for k := len(s.X) - 1; k >= 0; k-- {
			if f.shows(s.X[k], s.Y[k]) {
				list = append(list, end{x: s.X[k], value: s.Y[k], colour: colourOf(i, s.Color)})
				break
			}
		}
	}
	if len(list) > mostEnds {
		return nil
	}
	slices.SortStableFunc(list, func(a, b end) int { return cmp.Compare(b.value, a.value) })
	return list
}

// line draws one series.
func (f Figure) line(b *strings.Builder, i int, s plot.Series, x, y scale) {
	class := fmt.Sprintf("c%d", colourOf(i, s.Color))
	if s.Faint {
		class += " faint"
	}
	if s.Dashed {
		class += " dashed"
	}
	var path, marks strings.Builder
	drawn := 0
	for k := range s.X {
		if f.isSkipped(s, k) { // a cross at the upper edge; the circle is for the pointer
			px, py := x.at(s.X[k]), planeTop+skipStep*float64(i)
			fmt.Fprintf(&marks, `<path class="%s cross" d="M%.1f %.1fl7 7m-7 0l7 -7"/><circle class="none" cx="%.1f" cy="%.1f" r="3.2" data-x="%s" data-y="%s" data-name="%s"/>`, class, px-3.5, py-3.5, px, py,
				html.EscapeString(strings.TrimSpace(f.xText(s.X[k])+" "+f.XUnit)), html.EscapeString(f.Skipped), html.EscapeString(s.Name))
		}
		if !f.shows(s.X[k], s.Y[k]) {
			continue
		}
		command := 'L'
		if drawn == 0 {
			command = 'M'
		}
		drawn++
		px, py := x.at(s.X[k]), y.at(s.Y[k])
		fmt.Fprintf(&path, "%c%.1f %.1f", command, px, py)
		if s.Name != "" && !s.Faint && (s.Points || len(s.X) == 1) { // a line without a name is a background
			fmt.Fprintf(&marks, `<circle class="%s" cx="%.1f" cy="%.1f" r="3.2" data-x="%s" data-y="%s" data-name="%s"/>`, class, px, py,
				html.EscapeString(strings.TrimSpace(f.xText(s.X[k])+" "+f.XUnit)), html.EscapeString(strings.TrimSpace(FormatNumber(s.Y[k])+" "+f.YUnit)), html.EscapeString(s.Name))
		}
	}
	if drawn > 0 {
		fmt.Fprintf(b, `<path class="%s" d="%s"/>`, class, path.String())
	}
	b.WriteString(marks.String())
}

// colourOf is a series' place in the style sheet's colours, from 1.
func colourOf(place, given int) int {
	if given > 0 {
		place = given - 1
	}
	return place%colours + 1
}

// ticks are some most round places on an axis.
func (s scale) ticks(binary, whole bool, most int) (list []tick) {
	switch {
	case s.log && binary:
		first, last := int(math.Ceil(math.Log2(s.low)-1e-9)), int(math.Floor(math.Log2(s.high)+1e-9))
		for e, step := first, max(1, (last-first)/most+1); e <= last; e += step {
			list = append(list, tick{math.Exp2(float64(e)), plot.Binary(math.Exp2(float64(e)))})
		}
	case s.log:
		decades := math.Log10(s.high / s.low)
		factors := []float64{1}
		switch {
		case decades < 0.4:
			factors = []float64{1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9}
		case decades < 1.2:
			factors = []float64{1, 1.5, 2, 3, 4, 6, 8}
		case decades < 3:
			factors = []float64{1, 2, 5}
		}
		step, first := int(decades)/most+1, math.Floor(math.Log10(s.low))
		if step > 1 {
			first = math.Ceil(math.Log10(s.low))
		}
		for e := int(first); e <= int(math.Ceil(math.Log10(s.high))); e += step {
			for _, k := range factors {
				if v := k * math.Pow(10, float64(e)); v >= s.low*(1-1e-9) && v <= s.high*(1+1e-9) {
					list = append(list, tick{v, short(v)})
				}
			}
		}
	default:
		step := roundStep((s.high-s.low)/float64(most), binary)
		if whole {
			step = max(step, 1)
		}
		for i := math.Ceil(s.low/step - 1e-9); i*step <= s.high*(1+1e-9); i++ {
			text := short(i * step)
			if binary {
				text = plot.Binary(i*step + 0) // -0 is 0
			}
			list = append(list, tick{i * step, text})
		}
	}
	return list
}

// roundStep is the least of 1, 2 or 5 times a power of ten that is not below x, or of a power of two.
func roundStep(x float64, binary bool) float64 {
	if binary {
		return math.Exp2(math.Ceil(math.Log2(x)))
	}
	unit := math.Pow(10, math.Floor(math.Log10(x)))
	for _, k := range []float64{1, 2, 5} {
		if k*unit >= x*(1-1e-9) {
			return k * unit
		}
	}
	return 10 * unit
}

// short writes a tick: 0.5, 20, 3000, 20k, 2M.
func short(v float64) string {
	for unit, name := 1e9, "GMk"; name != ""; unit, name = unit/1000, name[1:] {
		if math.Abs(v) >= max(unit, 1e4) {
			return strconv.FormatFloat(round(v/unit), 'f', -1, 64) + name[:1]
		}
	}
	return strconv.FormatFloat(round(v)+0, 'f', -1, 64) // -0 is 0
}

// round drops what is only of binary fractions.
func round(v float64) float64 {
	r, err := strconv.ParseFloat(strconv.FormatFloat(v, 'g', 6, 64), 64)
	if err != nil {
		return v
	}
	return r
}

// xText writes a value of x.
func (f Figure) xText(x float64) string {
	if f.X.Binary {
		return plot.Binary(x)
	}
	if x == math.Trunc(x) && math.Abs(x) < 1e15 {
		return thousands(strconv.FormatFloat(x, 'f', 0, 64))
	}
	return FormatNumber(x)
}

// FormatNumber writes a figure with three digits or more.
func FormatNumber(v float64) string {
	a := math.Abs(v)
	switch {
	case math.IsNaN(v):
		return ""
	case a >= 100:
		return thousands(strconv.FormatFloat(v, 'f', 0, 64))
	case a >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case a >= 1:
		return strconv.FormatFloat(v, 'f', 2, 64)
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}

// thousands parts the digits of a whole number with thin spaces, which no language mistakes for a point.
func thousands(s string) string {
	sign := ""
	if strings.HasPrefix(s, "-") {
		sign, s = "-", s[1:]
	}
	if len(s) <= 4 {
		return sign + s
	}
	var parts []string
	for ; len(s) > 3; s = s[:len(s)-3] {
		parts = append(parts, s[len(s)-3:])
	}
	parts = append(parts, s)
	slices.Reverse(parts)
	return sign + strings.Join(parts, "\u202f")
}

// tokens writes a number of tokens.
func tokens(n int) string {
	if n%1024 == 0 {
		return plot.Binary(float64(n)) + " tokens"
	}
	return thousands(strconv.Itoa(n)) + " tokens"
}

func ascendingFloats(list []float64) []float64 {
	return slices.Compact(slices.Sorted(slices.Values(list)))
}
