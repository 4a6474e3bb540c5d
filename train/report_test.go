package train

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"nha/data"
)

func TestReportLine(t *testing.T) {
	nan := Number(math.NaN())
	r := Report{Line: Line{Step: 120, Loss: 3.4117, ValidationLoss: nan, BitsPerByte: nan, LearningRate: 1.9e-3, TokensPerS: 4130}, Steps: 1000,
		Memory: 210_400_000, Remaining: 192*time.Second + 400*time.Millisecond}
	for _, c := range []struct {
		change func()
		want   string
	}{
		{func() {}, "step 120/1000  loss 3.412  lr 1.90e-03  4.1k tokens/s  210 MB  3m12s left"},
		{func() { r.ValidationLoss, r.BitsPerByte = 3.5, 2.3112 }, "step 120/1000  loss 3.412  validation 3.500 (2.311 bits/byte)  lr 1.90e-03  4.1k tokens/s  210 MB  3m12s left"},
		{func() { r.Line.Step, r.ValidationLoss, r.Loss, r.Line.Skipped = 1000, nan, nan, 2 }, "step 1000/1000  loss not finite  lr 1.90e-03  4.1k tokens/s  210 MB  2 skipped"},
	} {
		c.change()
		if got := r.String(); got != c.want {
			t.Errorf("%s\nwant %s", got, c.want)
		}
	}
}

// On a terminal only lines with something to keep end; a shorter line covers the longer one before it.
func TestTerminal(t *testing.T) {
	var b strings.Builder
	w := &Text{W: &b, Terminal: true}
	nan := Number(math.NaN())
	line := func(step int, validation Number, logged bool) {
		w.last = time.Time{} // long ago
		w.Step(Report{Line: Line{Step: step, Loss: 1, ValidationLoss: validation, BitsPerByte: nan}, Logged: logged, Steps: 20})
	}
	line(1, nan, false)
	line(2, nan, true)
	w.Step(Report{Line: Line{Step: 3}, Steps: 20}) // too soon
	line(4, 2, true)
	line(20, nan, true)
	w.Notice("short")
	out := b.String()
	if lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n"); len(lines) != 3 || !strings.Contains(lines[0], "validation") ||
		!strings.Contains(lines[1], "step 20/20") || strings.TrimLeft(lines[2], "\r") != "short" {
		t.Errorf("%q", out)
	}
	if strings.Contains(out, "step 3/") {
		t.Errorf("a line too soon: %q", out)
	}
	b.Reset()
	w.line("a long line", false)
	w.line("short", false)
	if out := b.String(); out != "\ra long line\rshort      " {
		t.Errorf("%q", out)
	}
}

// Elsewhere every line of metrics is a line, and nothing is overwritten.
func TestPlainLines(t *testing.T) {
	var b strings.Builder
	w := &Text{W: &b}
	w.Preparing(data.Progress{Read: 1, Size: 2})
	for step := range 4 {
		w.Step(Report{Line: Line{Step: step}, Logged: step%2 == 1, Steps: 20})
	}
	w.Notice("a notice")
	if out := b.String(); strings.Count(out, "\n") != 3 || strings.Contains(out, "\r") || !strings.HasSuffix(out, "a notice\n") {
		t.Errorf("%q", out)
	}
}

func TestNumberInJSON(t *testing.T) {
	for _, x := range []float64{0, 0.1, 1e-300, math.Pi, math.NaN(), math.Inf(1)} {
		text, err := json.Marshal(Number(x))
		if err != nil {
			t.Fatal(err)
		}
		var back Number
		if err := json.Unmarshal(text, &back); err != nil {
			t.Fatal(err)
		}
		if finite(x) != (string(text) != "null") || finite(x) && float64(back) != x || !finite(x) && !math.IsNaN(float64(back)) {
			t.Errorf("%v is %s is %v", x, text, back)
		}
	}
}

// The fields of metrics.jsonl are a promise (SPEC 5).
func TestLineFields(t *testing.T) {
	text, err := json.Marshal(Line{})
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(text, &fields); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"step", "tokens", "loss", "validation_loss", "learning_rate", "gradient_norm", "tokens_per_s", "skipped", "elapsed_s", "validation_bits_per_byte"} {
		if _, ok := fields[name]; !ok {
			t.Errorf("no field %s in %s", name, text)
		}
	}
}
