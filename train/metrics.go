package train

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"nha/atomicfile"
	"nha/plot"
)

// Line is one line of metrics.jsonl (SPEC 5). What is not known at a step is null.
type Line struct {
	Step           int     `json:"step"`
	Tokens         int64   `json:"tokens"` // so far
	Loss           Number  `json:"loss"`   // mean over the tokens since the last line, nats
	ValidationLoss Number  `json:"validation_loss"`
	BitsPerByte    Number  `json:"validation_bits_per_byte"`
	LearningRate   Number  `json:"learning_rate"`
	GradientNorm   Number  `json:"gradient_norm"` // of this step, before clipping
	TokensPerS     Number  `json:"tokens_per_s"`  // since the last line, validation and checkpoints not counted
	Skipped        int     `json:"skipped"`       // steps so far
	Elapsed        float64 `json:"elapsed_s"`     // so far, over all starts
}

// interval sums what lies between two lines.
type interval struct {
	Loss      float64 `json:"loss"` // summed over tokens
	Predicted int     `json:"predicted"`
	Tokens    int     `json:"tokens"`
	Seconds   float64 `json:"seconds"`
}

func (i *interval) add(s Stats, seconds float64) {
	i.Tokens += s.Tokens
	i.Seconds += seconds
	if !s.Skipped {
		i.Loss += float64(s.Loss) * float64(s.Predicted)
		i.Predicted += s.Predicted
	}
}

// metrics is the file metrics.jsonl and its lines.
type metrics struct {
	path  string
	file  *os.File
	lines []Line
}

// openMetrics opens the file of a run that goes on after the given step, without the lines after it and without a last line
// that was torn.
func openMetrics(dir string, step int) (*metrics, error) {
	m := &metrics{path: filepath.Join(dir, metricsFile)}
	text, err := os.ReadFile(m.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var kept bytes.Buffer
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		var l Line
		if json.Unmarshal(s.Bytes(), &l) != nil || l.Step > step {
			break
		}
		m.lines = append(m.lines, l)
		kept.Write(s.Bytes())
		kept.WriteByte('\n')
	}
	if !bytes.Equal(kept.Bytes(), text) {
		if err := atomicfile.Write(m.path, 0o644, kept.Bytes()); err != nil {
			return nil, err
		}
	}
	m.file, err = os.OpenFile(m.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	return m, err
}

func (m *metrics) add(l Line) error {
	text, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("%s: %w", m.path, err)
	}
	m.lines = append(m.lines, l)
	_, err = m.file.Write(append(text, '\n'))
	return err
}

// curve draws the loss so far.
func (m *metrics) curve(dir string) error {
	var x, loss, vx, validation []float64
	for _, l := range m.lines {
		x, loss = append(x, float64(l.Step)), append(loss, float64(l.Loss))
		if finite(float64(l.ValidationLoss)) {
			vx, validation = append(vx, float64(l.Step)), append(validation, float64(l.ValidationLoss))
		}
	}
	c := plot.Chart{Title: "Loss", X: plot.Axis{Label: "step"}, Y: plot.Axis{Label: "nats per token"},
		Series: []plot.Series{{Name: "training", X: x, Y: loss}, {Name: "validation", X: vx, Y: validation, Points: len(vx) <= 50}}}
	return c.Write(filepath.Join(dir, curveFile))
}
