package report

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"nha/bench"
	"nha/train"
)

// folder is a copy of testdata/runs that a test may write into.
func folder(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "runs")
	if err := os.CopyFS(dir, os.DirFS("testdata/runs")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func collect(t *testing.T, dir string) *Report {
	t.Helper()
	r, err := Collect(dir)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

var scripts = regexp.MustCompile(`(?s)<(script|style)>.*?</(script|style)>`)

// texts parses a page and returns what it says.
func texts(t *testing.T, page []byte) string {
	t.Helper()
	d := xml.NewDecoder(bytes.NewReader(scripts.ReplaceAll(page, nil)))
	d.Strict, d.AutoClose, d.Entity = false, xml.HTMLAutoClose, xml.HTMLEntity
	var b strings.Builder
	for {
		token, err := d.Token()
		if err == io.EOF {
			return b.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		if x, ok := token.(xml.CharData); ok {
			b.Write(x)
			b.WriteByte('\n')
		}
	}
}

// Every kind of run is found, with its numbers.
func TestCollect(t *testing.T) {
	r := collect(t, folder(t))
	if got := r.String(); got != "2 training runs, 2 evaluations, 1 slot share, 1 set of curves, 1 conversion" {
		t.Fatal(got)
	}
	run := r.Training[0]
	if run.Name != "train/a" || run.Last.Step != 40 || len(run.lines) != 4 || run.Best != 3.5 || run.TokensPerS != 1000 {
		t.Errorf("run %+v", run)
	}
	if m := run.Memory; m == nil || m.Windows != "8" || m.Slots != 4 || m.States[0].State != m.States[2].State || m.States[2].KV != 64*m.States[0].KV {
		t.Errorf("memory %+v", run.Memory)
	}
	if other := r.Training[1]; other.Name != "train/b" || other.Memory != nil || !math.IsNaN(float64(other.Best)) || len(other.lines) != 2 {
		t.Errorf("run without a model, validation and the end of a line: %+v", other)
	}
	if c := r.Conversions[0]; c.Name != "hybrid" || c.Report.Slots != 64 || len(c.Report.Stages) != 2 {
		t.Errorf("conversion %+v", c)
	}
	if best := r.bestRun(); best.Name != "train/a" {
		t.Errorf("best run %+v", best)
	}
}

// The table has the newest score of a model, averages first, the best in bold whichever way is better.
func TestEvaluationTable(t *testing.T) {
	r := collect(t, folder(t))
	got := table(append(r.Evaluations, Evaluation{Model: "org/one.gguf", Windows: "full", Date: 1, Scores: []Score{{Task: "lambada_openai", Metric: "acc", Value: 0.99}}}))
	if head := strings.Join(got.Head, "|"); head != "model|windows|commonsense average|lambada_openai acc|lambada_openai perplexity" {
		t.Errorf("head %s", head)
	}
	want := [][]bench.Cell{{{Text: "two"}, {Text: "64"}, {Text: "0.5500", Best: true}, {Text: "0.3000"}, {Text: "40.0000"}},
		{{Text: "one"}, {Text: "full"}, {Text: "0.5000"}, {Text: "0.4000 ± 0.0100", Best: true}, {Text: "30.0000", Best: true}}}
	if len(got.Rows) != 2 {
		t.Fatalf("rows %v", got.Rows)
	}
	for i, row := range want {
		for k, cell := range row {
			if got.Rows[i][k] != cell {
				t.Errorf("row %d, %s: %+v, want %+v", i, got.Head[k], got.Rows[i][k], cell)
			}
		}
	}
}

// The page says what the files hold; report.json reads back; a second report replaces the first and is not taken for a run.
func TestWrite(t *testing.T) {
	dir := folder(t)
	for range 2 {
		if err := collect(t, dir).Write(dir); err != nil {
			t.Fatal(err)
		}
	}
	page, err := os.ReadFile(filepath.Join(dir, PageFile))
	if err != nil {
		t.Fatal(err)
	}
	text := texts(t, page)
	for _, want := range []string{"Report: runs", "2 training runs", "Training loss", "train/a", "train/b", "Evaluations", "lambada_openai perplexity", "Time of a token", "Conversions", "calibrate",
		"Slot share by layer", "Memory of a sequence", "128K tokens", "Best validation loss", "3.50",
		"train/a has the lowest validation loss, 3.50 nats per token, after 0.04 million tokens in 40s.", "two is first in commonsense average: 0.5500.", "share reads its slots most in layer 1: 75% of the attention there.",
		"With windows of 64 and 64 slots a token costs", "Slot share by position: share", "Loss by position"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	if !bytes.Contains(page, []byte("<strong>30.0000</strong>")) {
		t.Error("the best is not in bold")
	}
	file, err := os.ReadFile(filepath.Join(dir, JSONFile))
	if err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(file, &back); err != nil || back.Format != Format || len(back.Training) != 2 || len(back.Curves[0].Set.Points) == 0 {
		t.Errorf("read back: %v, %+v", err, back)
	}
}

// hybridize's own report.json is not replaced.
func TestWriteKeeps(t *testing.T) {
	dir := filepath.Join(folder(t), "hybrid")
	before, err := os.ReadFile(filepath.Join(dir, JSONFile))
	if err != nil {
		t.Fatal(err)
	}
	r := collect(t, dir)
	if err := r.Write(dir); err == nil || !strings.Contains(err.Error(), "--out") {
		t.Errorf("error %v", err)
	}
	after, err := os.ReadFile(filepath.Join(dir, JSONFile))
	if err != nil || !bytes.Equal(before, after) {
		t.Error("the file was touched")
	}
	if _, err := os.Stat(filepath.Join(dir, PageFile)); err == nil {
		t.Error("a page without its report.json")
	}
	if err := r.Write(filepath.Join(t.TempDir(), "new", "folder")); err != nil {
		t.Error(err)
	}
}

// What cannot be read is an error that names the file; nothing found says what is looked for.
func TestCollectErrors(t *testing.T) {
	write := func(name, text string) string {
		dir := t.TempDir()
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	for want, dir := range map[string]string{
		"holds no runs: looked below it for metrics.jsonl (nha train), results_*.json and slot_share.json (nha eval --output), curves.json": t.TempDir(),
		"metrics.jsonl, line 1":                   write("a/metrics.jsonl", "{\n{}\n"),
		"results_x.json: unexpected end":          write("results_x.json", "{"),
		"curves.json: format":                     write("curves.json", "{}"),
		"report.json: invalid character":          write("report.json", "x"),
		"not a file of nha eval --tasks share":    write("a/slot_share.json", `{"layers":[0.5],"heads":[]}`),
		"slot_share.json: unexpected end":         write("slot_share.json", "["),
		"holds no runs":                           write("checkpoints/metrics.jsonl", `{"step":1}`),
		" holds no runs":                          write("a/results_table.json", `{"other":1}`),
		"holds no runs: looked":                   write("a/report.json", `{"base":"x"}`),
		"is a file: give the folder":              filepath.Join(write("x", ""), "x"),
		"no such file or directory":               filepath.Join(t.TempDir(), "nowhere"),
		"holds no runs: looked below it for metr": write("metrics.jsonl", `{"step":`),
	} {
		if _, err := Collect(dir); err == nil || !strings.Contains(err.Error(), want) && !(strings.HasPrefix(want, "no such") && os.IsNotExist(err)) {
			t.Errorf("error %v, want %q in it", err, want)
		}
	}
}

// Many lines become few points with the same mean; what is not known is left out.
func TestThinned(t *testing.T) {
	var lines []train.Line
	for i := range 3 * most {
		lines = append(lines, train.Line{Step: i, Tokens: int64(i+1) * 1e6, Loss: train.Number(i)}, train.Line{Loss: train.Number(math.NaN())})
	}
	x, y := thinned(lines, func(l train.Line) train.Number { return l.Loss })
	if len(x) != most || x[0] != 3 || y[0] != 1 || x[most-1] != 3*most || y[most-1] != 3*most-2 {
		t.Errorf("%d points from %v, %v to %v, %v", len(x), x[0], y[0], x[len(x)-1], y[len(y)-1])
	}
	if x, _ := thinned(nil, func(l train.Line) train.Number { return l.Loss }); len(x) > 0 {
		t.Error("points of nothing")
	}
}

// Names of folders are text on the page.
func TestNames(t *testing.T) {
	name := "b&amp;'" // Windows has no folders with < in their names
	dir := filepath.Join(t.TempDir(), name)
	if err := os.CopyFS(dir, os.DirFS("testdata/runs/train/a")); err != nil {
		t.Fatal(err)
	}
	var page bytes.Buffer
	if err := collect(t, dir).Page().Write(&page); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(page.String(), name) || !strings.Contains(texts(t, page.Bytes()), name) {
		t.Error("the name is markup, or missing")
	}
}
