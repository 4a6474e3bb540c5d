package hybridize

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nha/attention"
	"nha/backend"
	"nha/model"
)

func TestParseBudget(t *testing.T) {
	for text, want := range map[string]Budget{"full=6": {FullLayers, 6, 0}, "bytes=8M@32768": {StateBytes, 8 << 20, 32768}, "bytes=1.5K@7": {StateBytes, 1536, 7},
		"ms=12.5@100": {StepTime, 12.5, 100}} {
		if b, err := ParseBudget(text); err != nil || b != want {
			t.Errorf("%s: %+v, %v", text, b, err)
		}
	}
	for _, text := range []string{"", "full", "full=x", "full=-1", "full=NaN", "full=6@3", "bytes=8M", "bytes=8M@0", "bytes=8M@x", "ms=1", "layers=3", "full=6M"} {
		if b, err := ParseBudget(text); err == nil || !strings.Contains(err.Error(), "write full=6") {
			t.Errorf("%q: %+v, %v", text, b, err)
		}
	}
}

// TestMeasureCosts: every window is measured once, kept in the file, and a layer's part of the step is its cost.
func TestMeasureCosts(t *testing.T) {
	b, err := backend.Open("cpu", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	base, path := tinyBase(t), filepath.Join(t.TempDir(), "costs.json")
	windows := []int{8, attention.Full}
	measured, err := MeasureCosts(context.Background(), path, base, "abc", b, 64, windows)
	if err != nil {
		t.Fatal(err)
	}
	if len(measured.Step) != 2 || !(measured.Step["8"] > 0) || !(measured.Step["full"] > 0) {
		t.Errorf("%+v", measured)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(text), `"step_ms":{`, `"step_ms":{"16":4.5,`, 1) // by hand: to see that it is read
	if err := os.WriteFile(path, []byte(changed), 0o644); err != nil {
		t.Fatal(err)
	}
	again, err := MeasureCosts(context.Background(), path, base, "abc", b, 64, append(windows, 16))
	if err != nil || again.Step["16"] != 4.5 || again.Step["8"] != measured.Step["8"] || again.Step["full"] != measured.Step["full"] {
		t.Errorf("a second time: %+v, %v", again, err)
	}
	c, err := model.ReadConfig(base)
	if err != nil {
		t.Fatal(err)
	}
	if cost := (Budget{Kind: StepTime}).Cost(&c, again); cost(0, 16) != 1.5 {
		t.Errorf("a layer at window 16 costs %v, want a third of 4.5", cost(0, 16))
	}
	for want, ask := range map[string]func() (CostTable, error){
		"another model": func() (CostTable, error) {
			return MeasureCosts(context.Background(), path, base, "xyz", b, 64, windows)
		},
		"depth": func() (CostTable, error) {
			return MeasureCosts(context.Background(), path, base, "abc", b, 65, windows)
		},
	} {
		if _, err := ask(); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "remove it") {
			t.Errorf("%s: %v", want, err)
		}
	}
	if err := os.WriteFile(path, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := MeasureCosts(context.Background(), path, base, "abc", b, 64, windows); err == nil || !strings.Contains(err.Error(), "no cost table") {
		t.Errorf("a torn table: %v", err)
	}
}

// TestTune finds the layer that a model is nothing without, again out of its journal, and draws the picture.
func TestTune(t *testing.T) {
	o := DefaultTuneOptions()
	o.Model, o.Data, o.Out, o.Cache, o.Backend, o.Threads = tinyBase(t), []string{someText(t)}, filepath.Join(t.TempDir(), "windows.toml"), t.TempDir(), "cpu", 1
	o.Budget, o.Choices, o.Context, o.Rows, o.RecallLength, o.Pareto, o.Randoms = Budget{Kind: FullLayers, Limit: 1}, []int{4, attention.Full}, 48, 2, 0, []int{0, 1, 3}, 2
	r, err := Tune(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	full := 0
	for _, w := range r.Windows {
		if w == attention.Full {
			full++
		}
	}
	if full != 1 || r.Points[0].Placement != "search" || r.Points[0].Full != 1 || len(r.Points) != 1+3+3 {
		t.Errorf("windows %v, points %+v", r.Windows, r.Points)
	}
	for _, w := range []model.Windows{{attention.Full, 4, 4}, {4, attention.Full, 4}, {4, 4, attention.Full}} {
		for _, p := range r.Points {
			if p.Windows.String() == w.String() && p.Quality.Loss < r.Quality.Loss {
				t.Errorf("%v has loss %v, %v was chosen with %v", w, p.Quality.Loss, r.Windows, r.Quality.Loss)
			}
		}
	}
	lines, err := os.ReadFile(o.Out + ".jsonl")
	if err != nil {
		t.Fatal(err)
	}
	again, err := Tune(context.Background(), o)
	if err != nil || again.Windows.String() != r.Windows.String() || again.Quality != r.Quality {
		t.Errorf("a second time %v, %v", again, err)
	}
	if after, _ := os.ReadFile(o.Out + ".jsonl"); string(after) != string(lines) {
		t.Error("a second search measured anew")
	}
	if err := os.WriteFile(o.Data[0], []byte(strings.Repeat("another text altogether. ", 40)), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Tune(context.Background(), o); err == nil || !strings.Contains(err.Error(), "was measured with data") {
		t.Errorf("another text of the same name: %v", err)
	}
	for want, change := range map[string]func(o *TuneOptions){
		"pareto: -1 full layers": func(o *TuneOptions) { o.Pareto = []int{-1} },
		"has 3 layers":           func(o *TuneOptions) { o.Pareto = []int{4} },
		"less than a context":    func(o *TuneOptions) { o.Context = 1 << 20 },
	} {
		other := o
		change(&other)
		if _, err := Tune(context.Background(), other); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}
