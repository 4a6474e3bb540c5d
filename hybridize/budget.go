package hybridize

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"nha/atomicfile"
	"nha/attention"
	"nha/backend"
	"nha/bench"
	"nha/model"
)

// Budget is what the windows of a model may cost together.
type Budget struct {
	Kind  BudgetKind
	Limit float64 // layers, bytes or milliseconds
	At    int     // tokens: the length of the sequence, the depth of a step
}

// BudgetKind is the unit of a budget.
type BudgetKind string

const (
	FullLayers BudgetKind = "full"  // layers with the whole context
	StateBytes BudgetKind = "bytes" // of the decode state at a length, float32
	StepTime   BudgetKind = "ms"    // of a decoding step at a depth, measured
)

// ParseBudget reads full=6, bytes=8M@32768 or ms=12.5@32768.
func ParseBudget(s string) (Budget, error) {
	use := fmt.Errorf("budget %q: write full=6 (layers), bytes=8M@32768 (of state at a length) or ms=12.5@32768 (a decoding step at a depth)", s)
	kind, rest, ok := strings.Cut(s, "=")
	if !ok {
		return Budget{}, use
	}
	b := Budget{Kind: BudgetKind(kind)}
	limit, at, placed := strings.Cut(rest, "@")
	if placed != (b.Kind == StateBytes || b.Kind == StepTime) || !placed && b.Kind != FullLayers {
		return Budget{}, use
	}
	factor := 1.0
	if b.Kind == StateBytes {
		for suffix, f := range map[string]float64{"K": 1 << 10, "M": 1 << 20, "G": 1 << 30} {
			if number, ok := strings.CutSuffix(limit, suffix); ok {
				limit, factor = number, f
				break
			}
		}
	}
	var err error
	if b.Limit, err = strconv.ParseFloat(limit, 64); err != nil || !(b.Limit >= 0) {
		return Budget{}, use
	}
	b.Limit *= factor
	if placed {
		if b.At, err = strconv.Atoi(at); err != nil || b.At < 1 {
			return Budget{}, use
		}
	}
	return b, nil
}

// Cost is the budget's unit for one layer at a window. times is a table of decoding steps with every window that is asked for, for a budget of
// milliseconds.
func (b Budget) Cost(c *model.Config, times CostTable) func(layer, window int) float64 {
	switch b.Kind {
	case FullLayers:
		return func(_, window int) float64 {
			if window == attention.Full {
				return 1
			}
			return 0
		}
	case StateBytes:
		return func(layer, window int) float64 {
			op, err := c.Attention(layer, nil)
			if err != nil {
				panic("hybridize: a loaded model's configuration: " + err.Error())
			}
			op.Window = window
			return float64(op.StateBytes(b.At, 4))
		}
	}
	return func(_, window int) float64 { return times.Step[windowName(window)] / float64(c.NumHiddenLayers) }
}

// CostTable is the time of a decoding step, in milliseconds, with all layers at one window. A layer's cost is its part of that:
// what the layers have in common is divided among them.
type CostTable struct {
	Model   string             `json:"model"` // hash
	Backend string             `json:"backend"`
	Depth   int                `json:"depth"`
	Step    map[string]float64 `json:"step_ms"` // by window
}

func windowName(window int) string { return model.Windows{window}.String() }

// MeasureCosts reads the table at path, measures what it lacks of the windows on b, and keeps each there once it is measured. A table of another
// model, backend or depth is an error.
func MeasureCosts(ctx context.Context, path, modelPath, hash string, b backend.Backend, depth int, windows []int) (CostTable, error) {
	t := CostTable{Model: hash, Backend: b.Name() + ": " + b.Describe(), Depth: depth, Step: map[string]float64{}}
	text, err := os.ReadFile(path)
	switch {
	case err == nil:
		var old CostTable
		if err := json.Unmarshal(text, &old); err != nil {
			return t, fmt.Errorf("%s: no cost table: %w: remove it or name another", path, err)
		}
		if old.Model != t.Model || old.Backend != t.Backend || old.Depth != t.Depth {
			return t, fmt.Errorf("%s was measured for another model, machine or depth (%d): remove it or name another", path, old.Depth)
		}
		if old.Step != nil {
			t.Step = old.Step
		}
	case !errors.Is(err, fs.ErrNotExist):
		return t, err
	}
	for _, w := range windows {
		if _, ok := t.Step[windowName(w)]; ok {
			continue
		}
		o := bench.Decode{Model: modelPath, Size: bench.ModelSize{Windows: windowName(w)}, Batches: []int{1}, Depths: []int{depth}, Timing: bench.Timing{Seconds: 1}}
		if err := o.Check(); err != nil {
			return t, err
		}
		err := o.Run(ctx, b, func(row any) error {
			t.Step[windowName(w)] = row.(bench.DecodeResult).StepMS
			return nil
		})
		if err == nil {
			err = atomicfile.WriteFile(path, 0o644, func(w io.Writer) error { return json.NewEncoder(w).Encode(t) })
		}
		if err != nil {
			return t, err
		}
	}
	return t, nil
}
