package bench

import (
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// small is a measurement of the preset in no time.
func small(models ...string) *Curves {
	size := tiny
	size.Windows = ""
	return &Curves{Models: models, Size: size, Slots: 4, Depths: []int{200, 4, 200}, Batches: []int{1, 2}, BatchDepth: 8, Limit: 30, Timing: quick}
}

func measured(t *testing.T, o *Curves) *CurveSet {
	t.Helper()
	if err := o.Check(); err != nil {
		t.Fatal(err)
	}
	emitted := 0
	set, err := o.Run(context.Background(), openBackend(t, "cpu"), func(CurvePoint) error { emitted++; return nil })
	if err != nil {
		t.Fatal(err)
	}
	if emitted != len(set.Points) {
		t.Errorf("%d points emitted, %d kept", emitted, len(set.Points))
	}
	return set
}

// Every model is measured as it is, full and narrow, what would be the same twice once; a model without slots gets some.
func TestCurvesVariants(t *testing.T) {
	set := measured(t, small("transformer", "nha"))
	var got []string
	for _, v := range set.Variants {
		got = append(got, fmt.Sprintf("%s %s %d %v %v", v.Model, v.Windows, v.Slots, v.Added, v.AsIs))
		if v.Parameters < 1000 || v.WeightBytes < 4000 || v.Context < 1 || v.DType != "float32" {
			t.Errorf("variant %+v", v)
		}
	}
	if want := []string{"transformer full 0 false true", "transformer 64 4 true false", "nha 32 4 false true", "nha full 4 false false", "nha 64 4 false false"}; !cmp.Equal(got, want) {
		t.Errorf("variants: %s", cmp.Diff(want, got))
	}
	if want := len(set.Variants) * (2 + 2 + 2); len(set.Points) != want {
		t.Fatalf("%d points, want %d", len(set.Points), want)
	}
	for i, p := range set.Points {
		if p.Skipped != "" || !(p.MS > 0) || !(p.TokensPerSecond > 0) || p.StateBytes < 1 || p.ResidentBytes < 1 || p.Runs < 1 {
			t.Errorf("point %d: %+v", i, p)
		}
	}
	for _, v := range set.Variants { // a full window's state grows, another's does not
		list := set.curve(v, CurveDecode)
		if grows := list[1].StateBytes > list[0].StateBytes; len(list) != 2 || list[0].Depth != 4 || grows != (v.Windows == "full") {
			t.Errorf("%s %s: %+v", v.Model, v.Windows, list)
		}
	}
}

// Points for which memory or time would not suffice say so, and are on every form of the result.
func TestCurvesSkips(t *testing.T) {
	o := small("nha")
	o.free = func() int { return 20000 }
	o.Depths, o.Limit = []int{4, 1 << 20}, 0.1 // a prompt of that length is left out for its time
	set := measured(t, o)
	found := false
	for _, p := range set.Points {
		if p.Windows == "full" && p.Depth == 1<<20 {
			found = true
			if p.MS != 0 || !strings.Contains(p.Skipped, "of memory, 0.0 MiB may be used") {
				t.Errorf("deep point %+v", p)
			}
		}
	}
	if !found {
		t.Error("the deep point is missing")
	}
	o = small("nha")
	o.Limit = 1e-9
	set = measured(t, o)
	for _, v := range set.Variants {
		if n := len(set.curve(v, CurveDecode)); n != 1 { // the first is always measured
			t.Errorf("%d points within no time", n)
		}
	}
	last := set.Points[len(set.Points)-1]
	if !strings.Contains(last.Skipped, "would take about") || !strings.Contains(last.Skipped, "the limit is 1e-09 s") {
		t.Errorf("skipped: %q", last.Skipped)
	}
	var page bytes.Buffer
	if err := set.Page().Write(&page); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"is left out: it would take about", ">skipped<"} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("the page does not say %q", want)
		}
	}
}

// What was measured before an interruption is returned with it.
func TestCurvesInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	o := small("nha")
	if err := o.Check(); err != nil {
		t.Fatal(err)
	}
	set, err := o.Run(ctx, openBackend(t, "cpu"), func(CurvePoint) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) || len(set.Points) != 1 {
		t.Errorf("%d points, error %v", len(set.Points), err)
	}
}

func TestCurvesCheck(t *testing.T) {
	for want, change := range map[string]func(*Curves){
		"give a MODEL":       func(o *Curves) { o.Models = nil },
		"no model nowhere":   func(o *Curves) { o.Models = []string{"nowhere"} },
		"model nha is given": func(o *Curves) { o.Models = []string{"nha", "nha"} },
		"depths 0":           func(o *Curves) { o.Depths = []int{128, 0} },
		"depths -5":          func(o *Curves) { o.Depths = []int{-5} },
		"depths: give":       func(o *Curves) { o.Depths = nil },
		"batches 0":          func(o *Curves) { o.Batches = []int{0} },
		"batch-depth 0":      func(o *Curves) { o.BatchDepth = 0 },
		"limit 0":            func(o *Curves) { o.Limit = 0 },
		"limit NaN":          func(o *Curves) { o.Limit = math.NaN() },
		"memory -1":          func(o *Curves) { o.Memory = -1 },
		"slots -1":           func(o *Curves) { o.Slots = -1 },
		"seconds -1":         func(o *Curves) { o.Seconds = -1 },
	} {
		o := small("nha")
		change(o)
		if err := o.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q in it", err, want)
		}
	}
}

func TestPredict(t *testing.T) {
	for _, c := range []struct {
		known [][2]float64
		n     int
		least float64
		want  float64
	}{{nil, 5, 0, 0}, {[][2]float64{{4, 10}}, 8, 0, 10}, {[][2]float64{{4, 10}}, 8, 1, 20}, {[][2]float64{{4, 10}, {8, 5}}, 16, 1, 10}, {[][2]float64{{4, 10}, {8, 20}}, 32, 0, 80}, {[][2]float64{{4, 10}, {8, 160}}, 16, 0, 640},
		{[][2]float64{{4, 10}, {8, 5}}, 16, 0, 5}, {[][2]float64{{1, 1}, {2, 9}, {4, 16}}, 8, 0, 64}} {
		if got := predict(c.known, c.n, c.least); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("after %v at %d: %v, want %v", c.known, c.n, got, c.want)
		}
	}
}

// example is a result with known crossings: time where 10 + d/100 meets 20, memory where d meets 500.
func example(name string) *CurveSet {
	s := &CurveSet{Format: CurvesFormat, Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Version: "commit 0123", Command: "nha bench curves '" + name + "'", BatchDepth: 2048, Limit: 30,
		Backend: "cpu: test", Machine: []Fact{{"processor", "one & only"}},
		Variants: []Variant{{Model: name, Windows: "full", AsIs: true, Parameters: 5e6, DType: "Q8_0", Context: 2048, WeightBytes: 5 << 20}, {Model: name, Windows: "64", Slots: 64, Added: true}}}
	for _, v := range s.Variants {
		for d := 128; d <= 8192; d *= 2 {
			p := CurvePoint{Curve: CurveDecode, Model: name, Windows: v.Windows, Slots: v.Slots, Depth: d, Batch: 1, MS: 20, StateBytes: 500 << 10, ResidentBytes: 90 << 20, TokensPerSecond: 50, Runs: 5}
			if v.Windows == "full" {
				p.MS, p.StateBytes = 10+float64(d)/100, d<<10
			}
			s.Points = append(s.Points, p)
		}
		for n := 1; n <= 4; n *= 2 {
			s.Points = append(s.Points, CurvePoint{Curve: CurveBatch, Model: name, Windows: v.Windows, Slots: v.Slots, Depth: 2048, Batch: n, MS: 20, TokensPerSecond: float64(50 * n), Runs: 5})
		}
		s.Points = append(s.Points, CurvePoint{Curve: CurvePrefill, Model: name, Windows: v.Windows, Slots: v.Slots, Depth: 128, Batch: 1, MS: 2500, TokensPerSecond: 50, Runs: 1},
			CurvePoint{Curve: CurvePrefill, Model: name, Windows: v.Windows, Slots: v.Slots, Depth: 256, Batch: 1, Skipped: "would take about 2 min, the limit is 30 s"})
	}
	return s
}

func TestCrossings(t *testing.T) {
	list := example("m").Crossings()
	if len(list) != 2 || list[0].What != "time" || list[1].What != "memory" {
		t.Fatalf("crossings %+v", list)
	}
	if c := list[0]; math.Abs(c.Depth-1000) > 25 || c.At != 8192 || math.Abs(c.Ratio-91.92/20) > 1e-9 || c.Least {
		t.Errorf("time %+v", c)
	}
	if c := list[1]; math.Abs(c.Depth-500) > 1e-6 || math.Abs(c.Ratio-8192.0/500) > 1e-9 || c.Tokens() != "500 tokens" {
		t.Errorf("memory %+v, %s", c, c.Tokens())
	}
	points := func(ms ...float64) (list []CurvePoint) {
		for i, x := range ms {
			list = append(list, CurvePoint{Depth: 1024 << i, MS: x})
		}
		return list
	}
	value := func(p CurvePoint) float64 { return p.MS }
	for _, c := range []struct {
		full, other []CurvePoint
		want        string
	}{{points(3, 4), points(1, 1), "1K tokens or less"}, {points(1, 1), points(2, 2), "2K tokens"}, {points(2, 1), points(1, 2), "2K tokens"},
		{points(1, 4, 1, 4), points(2, 2, 2, 2), "5800 tokens"}} { // ahead, behind, ahead again: the last time counts
		got, ok := crossing(c.full, c.other, value)
		if !ok || strings.ReplaceAll(got.Tokens(), "\u202f", "") != c.want {
			t.Errorf("%v against %v: %s, want %s", c.full, c.other, got.Tokens(), c.want)
		}
	}
	if _, ok := crossing(points(1), nil, value); ok {
		t.Error("a crossing of nothing")
	}
}

// All files are there and hold the same points; what is not a curves.json is refused.
func TestCurvesWrite(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	if err := PrepareOut(dir); err != nil {
		t.Fatal(err)
	}
	s := example("org/model,x.gguf")
	if err := s.Write(dir); err != nil {
		t.Fatal(err)
	}
	back, err := ReadCurves(filepath.Join(dir, CurvesJSON))
	if err != nil || !cmp.Equal(s, back) {
		t.Errorf("read back: %v %s", err, cmp.Diff(s, back))
	}
	text, err := os.ReadFile(filepath.Join(dir, CurvesCSV))
	if err != nil {
		t.Fatal(err)
	}
	lines, err := csv.NewReader(bytes.NewReader(text)).ReadAll()
	if err != nil || len(lines) != len(s.Points)+1 || lines[1][1] != "org/model,x.gguf" || lines[2][6] != "12.56" {
		t.Errorf("%d lines, error %v: %v", len(lines), err, lines[:3])
	}
	for _, name := range []string{"decode", "state", "prefill", "resident", "batch"} {
		for _, kind := range []string{".svg", ".png"} {
			if info, err := os.Stat(filepath.Join(dir, "curves_"+name+kind)); err != nil || info.Size() < 1000 {
				t.Errorf("picture %s%s: %v", name, kind, err)
			}
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".nha-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	for text, want := range map[string]string{"{": "unexpected EOF", `{"format":"x"}`: `format "x"`} {
		path := filepath.Join(dir, "bad.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadCurves(path); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: error %v", text, err)
		}
	}
	if err := PrepareOut(filepath.Join(dir, CurvesJSON)); err == nil {
		t.Error("a file passes for a folder")
	}
}

func TestParseCounts(t *testing.T) {
	for text, want := range map[string][]int{"128": {128}, "1,2K, 3m": {1, 2048, 3 << 20}, "128..1K": {128, 256, 512, 1024}, "3..10,20": {3, 6, 10, 20}, "5..5": {5}, "-1": {-1}, "0": {0}, "8G": {8 << 30}} {
		if got, err := ParseCounts(text); err != nil || !cmp.Equal(got, want) {
			t.Errorf("%s: %v, error %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "x", "1,", "K", "1..", "8..4", "0..4", "-2..4", "1.5K", "9223372036854775807K"} {
		if got, err := ParseCounts(text); err == nil {
			t.Errorf("%q passes as %v", text, got)
		}
	}
}

func TestFreeMemory(t *testing.T) {
	if n := freeMemory(); n < 1<<20 || n > 1<<50 {
		t.Errorf("%d bytes free", n)
	}
}
