// Package plot draws line charts in one style, as SVG and PNG: what training, the demo and the benchmarks show.
//
// The style: white ground, a faint horizontal grid instead of a frame, colours that colour-blind readers can tell apart
// (Okabe and Ito 2008), sans-serif letters.
package plot

import (
	"fmt"
	"image/color"
	"io"
	"math"
	"slices"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
	"gonum.org/v1/plot/vg/vgsvg"

	"nha/atomicfile"
)

// Chart is lines over a common pair of axes.
type Chart struct {
	Title  string
	X, Y   Axis
	Series []Series
	// Skipped is what the legend calls a point whose y is NaN, such as "not measured": it is marked by a cross at the upper edge. Empty: it is left out
	// without a word.
	Skipped string
}

// Axis is one axis. Min and Max, where they differ, replace the range of the data.
type Axis struct {
	Label    string
	Log      bool // logarithmic; values must be positive
	Binary   bool // of a logarithmic axis: ticks at powers of two, written 512, 1K, 1M
	Whole    bool // of a linear axis: ticks at whole numbers alone, such as those of layers
	Min, Max float64
}

// Series is one line. A point with a coordinate that is not finite, or not positive on a logarithmic axis, is left out.
type Series struct {
	Name   string // in the legend; "" keeps the line out of it
	X, Y   []float64
	Faint  bool // a background to the lines that matter, such as a curve before smoothing
	Dashed bool
	Points bool // mark the points: for few of them
	Color  int  // index into the palette, from 1; 0: the series' own place in the list
}

var (
	palette = []color.NRGBA{{0x00, 0x72, 0xb2, 0xff}, {0xd5, 0x5e, 0x00, 0xff}, {0x00, 0x9e, 0x73, 0xff}, {0xcc, 0x79, 0xa7, 0xff},
		{0xe6, 0x9f, 0x00, 0xff}, {0x56, 0xb4, 0xe9, 0xff}, {0x55, 0x55, 0x55, 0xff}}
	ink  = color.NRGBA{0x33, 0x33, 0x33, 0xff}
	grid = color.NRGBA{0xe6, 0xe6, 0xe6, 0xff}
)

const (
	width, height = 18 * vg.Centimeter, 11 * vg.Centimeter
	dpi           = 144
	margin        = 0.4 * vg.Centimeter
	legendDrop    = 1.2 * vg.Centimeter // below the title
)

// Write writes base.svg and base.png, each atomically.
func (c *Chart) Write(base string) error {
	if err := atomicfile.WriteFile(base+".svg", 0o644, c.SVG); err != nil {
		return err
	}
	return atomicfile.WriteFile(base+".png", 0o644, c.PNG)
}

// SVG writes the chart as SVG.
func (c *Chart) SVG(w io.Writer) error {
	canvas := vgsvg.New(width, height)
	if err := c.draw(canvas); err != nil {
		return err
	}
	_, err := canvas.WriteTo(w)
	return err
}

// PNG writes the chart as PNG.
func (c *Chart) PNG(w io.Writer) error {
	canvas := vgimg.PngCanvas{Canvas: vgimg.NewWith(vgimg.UseWH(width, height), vgimg.UseDPI(dpi))}
	if err := c.draw(canvas); err != nil {
		return err
	}
	_, err := canvas.WriteTo(w)
	return err
}

func (c *Chart) draw(canvas vg.CanvasSizer) error {
	p := plot.New()
	c.style(p)
	for i, s := range c.Series {
		if err := c.add(p, i, s); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(c.Series, func(s Series) bool { return len(c.missing(s)) > 0 }) {
		p.Legend.Add(c.Skipped, skippedMark{draw.GlyphStyle{Color: ink, Radius: 3, Shape: draw.CrossGlyph{}}})
	}
	c.X.limit(&p.X)
	c.Y.limit(&p.Y)
	area := draw.New(canvas)
	area.SetColor(color.White)
	area.Fill(area.Rectangle.Path())
	area = draw.Crop(area, margin, -margin, margin, -margin)
	legend := p.Legend
	if width := legend.Rectangle(area).Size().X; width > 0 { // beside the plot, where it covers no line
		strip := draw.Crop(area, area.Max.X-area.Min.X-width, 0, 0, -legendDrop)
		legend.Draw(strip)
		area = draw.Crop(area, 0, -width-margin, 0, 0)
	}
	p.Legend = plot.NewLegend()
	p.Draw(area)
	return nil
}

func (c *Chart) style(p *plot.Plot) {
	sans := func(size vg.Length) font.Font { return font.Font{Typeface: "Liberation", Variant: "Sans", Size: size} }
	p.Title.Text = c.Title
	p.Title.TextStyle.Font, p.Title.TextStyle.Color, p.Title.Padding = sans(14), ink, 10
	p.Legend.TextStyle.Font, p.Legend.TextStyle.Color = sans(10), ink
	p.Legend.Top, p.Legend.Left, p.Legend.ThumbnailWidth, p.Legend.Padding = true, true, 18, 3
	for _, a := range []struct {
		to   *plot.Axis
		from Axis
	}{{&p.X, c.X}, {&p.Y, c.Y}} {
		a.to.Label.Text = a.from.Label
		a.to.Label.TextStyle.Font, a.to.Label.TextStyle.Color, a.to.Label.Padding = sans(11), ink, 6
		a.to.Tick.Label.Font, a.to.Tick.Label.Color = sans(10), ink
		a.to.LineStyle.Color, a.to.Tick.LineStyle.Color = grid, grid
		a.to.Tick.Length, a.to.Padding = 4, 4
		a.to.Tick.Marker = plot.TickerFunc(func(low, high float64) []plot.Tick { return ticks(low, high, a.from.Whole) })
		if a.from.Log {
			a.to.Scale, a.to.Tick.Marker = plot.LogScale{}, plot.TickerFunc(logTicks)
		}
		if a.from.Log && a.from.Binary {
			a.to.Tick.Marker = plot.TickerFunc(binaryTicks)
		}
	}
	p.Y.LineStyle.Width, p.Y.Tick.Length = 0, 0
	lines := plotter.NewGrid()
	lines.Vertical.Color, lines.Horizontal.Color = nil, grid
	p.Add(lines)
}

// logTicks are the powers of ten, written 10, 1k, 1M, with small ticks between.
func logTicks(low, high float64) []plot.Tick {
	list := plot.LogTicks{Prec: -1}.Ticks(low, high)
	for i, t := range list {
		if t.Label == "" {
			continue
		}
		for unit, name := 1e12, "TGMk"; name != ""; unit, name = unit/1000, name[1:] {
			if t.Value >= unit {
				list[i].Label = strconv.FormatFloat(t.Value/unit, 'g', 4, 64) + name[:1]
				break
			}
		}
	}
	return list
}

// binaryTicks are powers of two, at most eight of them with a label.
func binaryTicks(low, high float64) []plot.Tick {
	first, last := int(math.Ceil(math.Log2(low)-1e-9)), int(math.Floor(math.Log2(high)+1e-9))
	step := max(1, (last-first)/8+1)
	var list []plot.Tick
	for e := first; e <= last; e++ {
		t := plot.Tick{Value: math.Exp2(float64(e))}
		if (e-first)%step == 0 {
			t.Label = Binary(t.Value)
		}
		list = append(list, t)
	}
	return list
}

// Binary writes a count as 512, 4K or 1M where that is exact, in units of 1024.
func Binary(x float64) string {
	for unit, name := float64(1<<40), "TGMK"; name != ""; unit, name = unit/1024, name[1:] {
		if x >= unit && math.Mod(x, unit) == 0 {
			return strconv.FormatFloat(x/unit, 'f', -1, 64) + name[:1]
		}
	}
	return strconv.FormatFloat(x, 'f', -1, 64)
}

// ticks are the multiples of 1, 2 or 5 times a power of ten, at least four of them and at most nine; of whole numbers perhaps fewer.
func ticks(low, high float64, whole bool) []plot.Tick {
	step := math.Pow(10, math.Floor(math.Log10(high-low)))
	for _, part := range []float64{1, 0.5, 0.2, 0.1} {
		if (high-low)/(step*part) >= 4 {
			step *= part
			break
		}
	}
	if whole {
		step = max(step, 1)
	}
	decimals := max(0, int(-math.Floor(math.Log10(step)+1e-9)))
	var list []plot.Tick
	for i := math.Ceil(low/step - 1e-9); i*step <= high+1e-9*step; i++ {
		list = append(list, plot.Tick{Value: i * step, Label: strconv.FormatFloat(i*step+0, 'f', decimals, 64)})
	}
	return list
}

func (c *Chart) add(p *plot.Plot, i int, s Series) error {
	if len(s.X) != len(s.Y) {
		return fmt.Errorf("plot: series %q has %d x and %d y", s.Name, len(s.X), len(s.Y))
	}
	var points plotter.XYs
	for k, x := range s.X {
		if c.X.shows(x) && c.Y.shows(s.Y[k]) {
			points = append(points, plotter.XY{X: x, Y: s.Y[k]})
		}
	}
	place := i
	if s.Color > 0 {
		i = s.Color - 1
	}
	col := palette[i%len(palette)]
	if missing := c.missing(s); len(missing) > 0 {
		p.Add(crosses{missing, place, draw.GlyphStyle{Color: col, Radius: 3, Shape: draw.CrossGlyph{}}})
	}
	if len(points) == 0 {
		return nil
	}
	points = thin(points)
	line, marks, err := plotter.NewLinePoints(points)
	if err != nil {
		return fmt.Errorf("plot: series %q: %w", s.Name, err)
	}
	line.LineStyle = draw.LineStyle{Color: col, Width: 1.8}
	if s.Faint {
		col.A = 0x50
		line.LineStyle = draw.LineStyle{Color: col, Width: 0.9}
	}
	if s.Dashed {
		line.LineStyle.Dashes = []vg.Length{5, 3}
	}
	p.Add(line)
	thumbnails := []plot.Thumbnailer{line}
	if s.Points || len(points) == 1 { // a line of one point would not be seen
		marks.GlyphStyle = draw.GlyphStyle{Color: col, Radius: 2.6, Shape: draw.CircleGlyph{}}
		p.Add(marks)
		thumbnails = append(thumbnails, marks)
	}
	if s.Name != "" {
		p.Legend.Add(s.Name, thumbnails...)
	}
	return nil
}

// missing is the x of a series' skipped points.
func (c *Chart) missing(s Series) (list []float64) {
	for k, x := range s.X {
		if c.Skipped != "" && math.IsNaN(s.Y[k]) && c.X.shows(x) {
			list = append(list, x)
		}
	}
	return list
}

// crosses are marks at the upper edge, in a row for every series.
type crosses struct {
	x     []float64
	row   int
	style draw.GlyphStyle
}

// Plot implements plot.Plotter.
func (c crosses) Plot(to draw.Canvas, p *plot.Plot) {
	at, _ := p.Transforms(&to)
	for _, x := range c.x {
		to.DrawGlyph(c.style, vg.Point{X: at(x), Y: to.Max.Y - vg.Length(c.row)*3*c.style.Radius})
	}
}

// DataRange implements plot.DataRanger: the marks widen the axis of x and say nothing of y.
func (c crosses) DataRange() (lowX, highX, lowY, highY float64) {
	return slices.Min(c.x), slices.Max(c.x), math.Inf(1), math.Inf(-1)
}

// skippedMark stands in the legend for all crosses.
type skippedMark struct{ style draw.GlyphStyle }

// Thumbnail implements plot.Thumbnailer.
func (m skippedMark) Thumbnail(c *draw.Canvas) { c.DrawGlyph(m.style, c.Center()) }

func (a Axis) shows(x float64) bool {
	return !math.IsNaN(x) && !math.IsInf(x, 0) && (!a.Log || x > 0)
}

// limit sets the range, which must not be empty and, on a logarithmic axis, must be positive.
func (a Axis) limit(to *plot.Axis) {
	if a.Min != a.Max {
		to.Min, to.Max = a.Min, a.Max
	}
	if math.IsInf(to.Min, 0) || math.IsInf(to.Max, 0) { // no data
		to.Min, to.Max = 1, 10
	}
	if a.Log && a.Min == a.Max { // room for marks at the ends
		to.Min, to.Max = to.Min/1.5, to.Max*1.5
	}
	if to.Min == to.Max {
		to.Min, to.Max = to.Min-0.5, to.Max+0.5
	}
}

// maxPoints is about two for every dot of the picture's width.
const maxPoints = 2000

// thin keeps, of a long line, the lowest and the highest point of every stretch, so that it looks the same.
func thin(points plotter.XYs) plotter.XYs {
	if len(points) <= maxPoints {
		return points
	}
	var kept plotter.XYs
	const stretches = maxPoints / 2
	for i := range stretches {
		part := points[i*len(points)/stretches : (i+1)*len(points)/stretches]
		low, high := 0, 0
		for k, q := range part {
			if q.Y < part[low].Y {
				low = k
			}
			if q.Y > part[high].Y {
				high = k
			}
		}
		kept = append(kept, part[min(low, high)])
		if low != high {
			kept = append(kept, part[max(low, high)])
		}
	}
	return kept
}

// Smooth is the exponential moving average of y, over about span points, without the pull towards zero at the beginning. What is
// not finite is passed over.
func Smooth(y []float64, span float64) []float64 {
	out := make([]float64, len(y))
	keep := 1 - 1/math.Max(1, span)
	sum, weight := 0.0, 0.0
	for i, v := range y {
		if !math.IsNaN(v) && !math.IsInf(v, 0) {
			sum, weight = keep*sum+(1-keep)*v, keep*weight+(1-keep)
		}
		out[i] = sum / weight
	}
	return out
}
