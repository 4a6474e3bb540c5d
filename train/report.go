package train

import (
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"nha/data"
)

// Reporter is told how a run goes. Its methods are called by one goroutine and should return quickly.
type Reporter interface {
	Preparing(data.Progress)   // tokenising, about once a megabyte
	Compiling(done, total int) // kernels for a card, the first time it sees the model's shapes
	Step(Report)               // after every step
	Notice(string)             // what the user may want to know and need not act on
}

// Report is where a run stands after a step.
type Report struct {
	Line           // as in metrics.jsonl; Loss is this step's where Logged is false
	Logged    bool // this is a line of metrics.jsonl
	Steps     int  // of the whole run
	Memory    int  // bytes of parameters, gradients, moments and activations
	Remaining time.Duration
}

// silent is the Reporter of those who want none.
type silent struct{}

func (silent) Preparing(data.Progress) {}
func (silent) Compiling(int, int)      {}
func (silent) Step(Report)             {}
func (silent) Notice(string)           {}

// Text is a Reporter in words. On a terminal the line of progress is overwritten, and lines with a validation stay; elsewhere
// there is one line for every line of metrics.jsonl.
type Text struct {
	W        io.Writer
	Terminal bool

	width int       // of the line that will be overwritten
	last  time.Time // of the last one
}

// redraw is how often a line of progress is overwritten.
const redraw = 100 * time.Millisecond

// Preparing implements Reporter.
func (t *Text) Preparing(p data.Progress) {
	if t.Terminal && (time.Since(t.last) > redraw || p.Read == p.Size) {
		t.line(fmt.Sprintf("tokenising: %s of %s read, %s tokens", size(float64(p.Read)), size(float64(p.Size)), count(float64(p.Tokens))), p.Read == p.Size)
	}
}

// Compiling implements Reporter.
func (t *Text) Compiling(done, total int) {
	if last := done == total; t.Terminal || last || done == 0 {
		t.line(fmt.Sprintf("compiling kernels for this card, kept for the next time: %d of %d", done, total), last)
	}
}

// Notice implements Reporter.
func (t *Text) Notice(s string) { t.line(s, true) }

// Step implements Reporter.
func (t *Text) Step(r Report) {
	stays := r.Logged && (!t.Terminal || finite(float64(r.ValidationLoss)) || r.Line.Step == r.Steps)
	if stays || t.Terminal && time.Since(t.last) > redraw {
		t.line(r.String(), stays)
	}
}

// String is the progress line.
func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "step %d/%d  loss %s", r.Line.Step, r.Steps, number(float64(r.Loss)))
	if finite(float64(r.ValidationLoss)) {
		fmt.Fprintf(&b, "  validation %s", number(float64(r.ValidationLoss)))
		if finite(float64(r.BitsPerByte)) {
			fmt.Fprintf(&b, " (%s bits/byte)", number(float64(r.BitsPerByte)))
		}
	}
	fmt.Fprintf(&b, "  lr %.2e  %s tokens/s  %s", float64(r.LearningRate), count(float64(r.TokensPerS)), size(float64(r.Memory)))
	if r.Line.Step < r.Steps {
		fmt.Fprintf(&b, "  %s left", r.Remaining.Round(time.Second))
	}
	if r.Line.Skipped > 0 {
		fmt.Fprintf(&b, "  %d skipped", r.Line.Skipped)
	}
	return b.String()
}

// line writes s over the line that does not stay.
func (t *Text) line(s string, stays bool) {
	t.last = time.Now()
	if !t.Terminal {
		fmt.Fprintln(t.W, s)
		return
	}
	fmt.Fprintf(t.W, "\r%-*s", t.width, s)
	if t.width = len(s); stays {
		fmt.Fprintln(t.W)
		t.width = 0
	}
}

func number(x float64) string {
	if !finite(x) {
		return "not finite"
	}
	return fmt.Sprintf("%.3f", x)
}

// count is a number with k, M or G; size one of bytes.
func count(x float64) string { return scaled(x, "", "k", "M", "G", "T") }
func size(x float64) string  { return scaled(x, " B", " kB", " MB", " GB", " TB") }

func scaled(x float64, units ...string) string {
	i := 0
	for ; math.Abs(x) >= 1000 && i+1 < len(units); i++ {
		x /= 1000
	}
	digits := 0
	if i > 0 && x < 100 {
		digits = 1
	}
	return fmt.Sprintf("%.*f%s", digits, x, units[i])
}
