package plot

import (
	"bytes"
	"encoding/xml"
	"image"
	"image/png"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func chart() *Chart {
	var x, y []float64
	for i := range 5000 {
		x = append(x, float64(i))
		y = append(y, 2+4*math.Exp(-float64(i)/800)+0.3*math.Sin(float64(i)*1.7))
	}
	return &Chart{Title: "Loss", X: Axis{Label: "step"}, Y: Axis{Label: "nats per token"}, Series: []Series{
		{X: x, Y: y, Faint: true, Color: 1}, {Name: "training", X: x, Y: Smooth(y, 100), Color: 1},
		{Name: "validation", X: []float64{1000, 2000, 4000}, Y: []float64{3.4, 2.7, math.NaN()}, Points: true}}}
}

// The SVG is well-formed and holds every text; the PNG decodes, is not blank and has the size the style says.
func TestWrite(t *testing.T) {
	base := filepath.Join(t.TempDir(), "loss")
	if dir := os.Getenv("NHA_PLOT_DIR"); dir != "" { // to look at them
		base = filepath.Join(dir, "loss")
	}
	if err := chart().Write(base); err != nil {
		t.Fatal(err)
	}
	svg, err := os.ReadFile(base + ".svg")
	if err != nil {
		t.Fatal(err)
	}
	for d := xml.NewDecoder(bytes.NewReader(svg)); ; {
		if _, err := d.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	for _, text := range []string{"Loss", "step", "nats per token", "training", "validation"} {
		if !strings.Contains(string(svg), ">"+text+"<") {
			t.Errorf("the SVG does not say %q", text)
		}
	}
	if len(svg) > 200_000 {
		t.Errorf("%d bytes of SVG for lines that were to be thinned", len(svg))
	}
	f, err := os.Open(base + ".png")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	picture, err := png.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	if got := picture.Bounds().Size(); got.X < 1000 || got.Y < 600 {
		t.Errorf("size %v", got)
	}
	if n := dots(picture, 0x00, 0x72, 0xb2); n < 500 {
		t.Errorf("%d dots in the colour of the first line", n)
	}
}

func dots(m image.Image, r, g, b uint32) (n int) {
	for y := m.Bounds().Min.Y; y < m.Bounds().Max.Y; y++ {
		for x := m.Bounds().Min.X; x < m.Bounds().Max.X; x++ {
			if cr, cg, cb, _ := m.At(x, y).RGBA(); cr>>8 == r && cg>>8 == g && cb>>8 == b {
				n++
			}
		}
	}
	return n
}

// No data, one point, equal values, logarithmic axes with values that have no place there: all draw.
func TestEdges(t *testing.T) {
	for name, c := range map[string]*Chart{
		"empty":     {},
		"not there": {Series: []Series{{Name: "a", X: []float64{1}, Y: []float64{math.NaN()}}}},
		"one point": {Series: []Series{{Name: "a", X: []float64{1}, Y: []float64{2}}}},
		"flat":      {Series: []Series{{Name: "a", X: []float64{1, 2}, Y: []float64{2, 2}}}},
		"log": {X: Axis{Log: true}, Y: Axis{Log: true},
			Series: []Series{{Name: "a", X: []float64{0, 1, 1000}, Y: []float64{1, -1, 5}, Dashed: true}}},
		"empty log": {X: Axis{Log: true}, Y: Axis{Log: true}},
		"range":     {Y: Axis{Min: 0, Max: 1}, Series: []Series{{X: []float64{1, 2}, Y: []float64{2, 3}}}},
	} {
		for _, write := range []func(io.Writer) error{c.SVG, c.PNG} {
			var b bytes.Buffer
			if err := write(&b); err != nil || b.Len() == 0 {
				t.Errorf("%s: %d bytes, error %v", name, b.Len(), err)
			}
		}
	}
	c := Chart{Series: []Series{{Name: "a", X: []float64{1}, Y: nil}}}
	if err := c.SVG(io.Discard); err == nil || !strings.Contains(err.Error(), `"a"`) {
		t.Errorf("unequal lengths: error %v", err)
	}
}

// Points that are skipped are marked and named where the chart says so, and widen the axis; elsewhere they are left out.
func TestSkipped(t *testing.T) {
	c := Chart{X: Axis{Log: true, Binary: true}, Y: Axis{Log: true}, Series: []Series{{Name: "a", X: []float64{128, 256, 1 << 20}, Y: []float64{1, 2, math.NaN()}, Points: true}}}
	var without, with bytes.Buffer
	if err := c.SVG(&without); err != nil {
		t.Fatal(err)
	}
	c.Skipped = "not measured"
	if err := c.SVG(&with); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{">not measured<", ">512K<"} {
		if strings.Contains(without.String(), text) || !strings.Contains(with.String(), text) {
			t.Errorf("%q must be where points are skipped, and there alone", text)
		}
	}
	c.Series[0].Y[2] = 3
	with.Reset()
	if err := c.SVG(&with); err != nil || strings.Contains(with.String(), "not measured") {
		t.Errorf("a legend for what is not there, error %v", err)
	}
	c.Series[0].Y = []float64{math.NaN(), math.NaN(), math.NaN()}
	if err := c.PNG(io.Discard); err != nil {
		t.Error(err)
	}
}

func TestSmooth(t *testing.T) {
	got := Smooth([]float64{math.NaN(), 4, 4, math.Inf(1), 0}, 2)
	if !math.IsNaN(got[0]) || got[1] != 4 || got[2] != 4 || got[3] != 4 || !(got[4] > 1 && got[4] < 3) {
		t.Errorf("smoothed %v", got)
	}
}

// An axis in powers of two has round numbers in units of 1024, and not too many.
func TestBinary(t *testing.T) {
	for _, c := range []struct {
		low, high float64
		want      string
	}{{128, 131072, "128 512 2K 8K 32K 128K"}, {1, 16, "1 2 4 8 16"}, {85, 1500, "128 256 512 1K"}, {3, 3.5, ""}} {
		var got []string
		for _, tick := range binaryTicks(c.low, c.high) {
			if tick.Label != "" {
				got = append(got, tick.Label)
			}
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("ticks from %v to %v: %s, want %s", c.low, c.high, s, c.want)
		}
	}
	for x, want := range map[float64]string{100: "100", 1000: "1000", 1536: "1536", 3 << 20: "3M", 0.5: "0.5"} {
		if got := Binary(x); got != want {
			t.Errorf("%v is written %s, want %s", x, got, want)
		}
	}
}

// What thin leaves has the same extremes, in order.
func TestThin(t *testing.T) {
	c := chart()
	var b bytes.Buffer
	if err := c.SVG(&b); err != nil {
		t.Fatal(err)
	}
	c.Series[0].Y[2345] = 50 // one outlier among 5000 points moves the axis and must be drawn
	var with bytes.Buffer
	if err := c.SVG(&with); err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(b.Bytes(), with.Bytes()) || !strings.Contains(with.String(), ">50<") && !strings.Contains(with.String(), ">40<") {
		t.Error("the outlier is not in the picture")
	}
}

func TestTicks(t *testing.T) {
	for _, c := range []struct {
		low, high float64
		whole     bool
		want      string
	}{
		{0, 5000, false, "0 1000 2000 3000 4000 5000"}, {1.7, 6.3, false, "2 3 4 5 6"}, {0, 1, false, "0.0 0.2 0.4 0.6 0.8 1.0"},
		{-0.03, 0.021, false, "-0.03 -0.02 -0.01 0.00 0.01 0.02"}, {99.5, 100.5, false, "99.6 99.8 100.0 100.2 100.4"},
		{0, 3, true, "0 1 2 3"}, {0, 29, true, "0 5 10 15 20 25"}, {0, 1, true, "0 1"},
	} {
		var got []string
		for _, tick := range ticks(c.low, c.high, c.whole) {
			got = append(got, tick.Label)
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("ticks from %v to %v: %s, want %s", c.low, c.high, s, c.want)
		}
	}
}
