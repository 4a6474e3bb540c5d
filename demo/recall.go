package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"text/tabwriter"
	"time"

	"nha/backend"
	"nha/eval"
	"nha/model"
	"nha/plot"
	"nha/train"
)

// The recall task: MQAR at a size that learns in half a minute (EVAL C.3). Every step draws one number of pairs, in turn: with the largest alone
// nothing would be learnt in this time, by any model.
const (
	recallVocabulary = 256
	recallLength     = 64
	recallWindow     = 16
	recallSlots      = 32
	recallBatch      = 64
	recallExamples   = 500
	longContext      = 32768 // tokens at which state bytes are compared
)

var recallPairs = []int{1, 2, 4}

// Recall is one model's row of the table.
type Recall struct {
	Preset           string  `json:"preset"`
	Parameters       int     `json:"parameters"`
	All              float64 `json:"accuracy"`
	Within           float64 `json:"accuracy_within_window"`
	Beyond           float64 `json:"accuracy_beyond_window"`
	StateBytes       int     `json:"state_bytes"` // at the task's length
	StateBytesAtLong int     `json:"state_bytes_32768"`
	Seconds          float64 `json:"seconds"`

	steps, all []float64 // the curve
}

// recallSource draws batches of MQAR, a number of pairs a step.
type recallSource struct {
	seed uint64
	step uint64
	spot []eval.Query
}

// Next draws batch number step from a generator of its own.
func (s *recallSource) Next(b *model.Batch) error {
	r := rand.New(rand.NewPCG(s.seed, s.step))
	q := task(recallPairs[int(s.step)%len(recallPairs)])
	s.step++
	b.Tokens, b.Targets, b.Lengths = b.Tokens[:0], b.Targets[:0], b.Lengths[:0]
	for range recallBatch {
		b.Tokens, b.Targets, s.spot = q.Sample(r, b.Tokens, b.Targets, s.spot[:0])
		b.Lengths = append(b.Lengths, recallLength)
	}
	return nil
}

func (s *recallSource) State() (json.RawMessage, error)     { return json.Marshal(s.step) }
func (s *recallSource) Restore(state json.RawMessage) error { return json.Unmarshal(state, &s.step) }

func task(pairs int) eval.MQAR {
	return eval.MQAR{Vocabulary: recallVocabulary, Length: recallLength, Pairs: pairs, RandomFill: true}
}

// recallConfig is two small blocks of the preset. The Transformer has no gates and no output norm; a wider MLP makes it as large as NHA.
func recallConfig(preset string) (model.Config, error) {
	c := model.NewConfig(recallVocabulary, 64, 2)
	c.NumHeads, c.IntermediateSize, c.MaxPositionEmbeddings = 2, 128, recallLength
	if err := c.ApplyPreset(preset, recallWindow, recallSlots); err != nil {
		return c, err
	}
	c.GateBias = c.NumSlots > 0
	if c.NumSlots == 0 {
		c.IntermediateSize = 150
	}
	return c, c.Resolve()
}

// trainRecall trains one preset and measures it.
func trainRecall(ctx context.Context, b backend.Backend, preset string, o Options, say func(string)) (Recall, error) {
	c, err := recallConfig(preset)
	if err != nil {
		return Recall{}, err
	}
	started := time.Now()
	// Gates start as a spread of memories from 1 to about 400 tokens, and learn ten times as fast: with both, slots learn recall.
	// Weights start at twice the usual deviation and the embedding at 0.3: the plateau before recall is shorter (docs/LOG.md).
	m, err := model.New(c, b, model.Init{Seed: o.Seed, Std: 0.04, EmbeddingStd: 0.3, GateBiasLow: -8, GateBiasHigh: 4})
	if err != nil {
		return Recall{}, err
	}
	defer m.Close()
	s := train.DefaultSettings()
	s.Steps, s.LearningRate, s.Beta2, s.Warmup, s.MinimumRatio = o.RecallSteps, 3e-3, 0.99, min(50, o.RecallSteps/4), 0.05
	if c.NumSlots > 0 {
		s.LearningRateFactors = map[string]float64{"f_proj": 10}
	}
	t, err := train.NewTrainer(m, s, &recallSource{seed: o.Seed})
	if err != nil {
		return Recall{}, err
	}
	defer t.Close()
	hardest := task(recallPairs[len(recallPairs)-1])
	r := Recall{Preset: preset}
	for step := 1; step <= s.Steps; step++ {
		if err := ctx.Err(); err != nil {
			return r, err
		}
		stats, err := t.Step()
		if err != nil {
			return r, err
		}
		if step%max(1, s.Steps/20) == 0 || step == s.Steps {
			examples := 100
			if step == s.Steps {
				examples = recallExamples
			}
			a, err := hardest.Measure(t.Tape(), m, examples, recallWindow, o.Seed+1)
			if err != nil {
				return r, err
			}
			r.steps, r.all = append(r.steps, float64(step)), append(r.all, a.All)
			r.All, r.Within, r.Beyond = a.All, a.Within, a.Beyond
			say(fmt.Sprintf("%-12s step %d/%d  loss %.3f  recall %.2f", preset, step, s.Steps, float64(stats.Loss), a.All))
		}
	}
	account, long := c.Account(recallLength), c.Account(longContext)
	r.Parameters, r.StateBytes, r.StateBytesAtLong = account.Parameters, account.StateBytes, long.StateBytes
	r.Seconds = time.Since(started).Seconds()
	return r, nil
}

func printRecall(w io.Writer, rows []Recall) {
	fmt.Fprintf(w, "Recall: %d key-value pairs, then queries among noise, %d tokens; chance is 1/%d. Window %d, %d slots.\n",
		recallPairs[len(recallPairs)-1], recallLength, recallVocabulary/2, recallWindow, recallSlots)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "model\tparameters\trecall\twithin window\tbeyond it\tstate bytes\tat %d tokens\tseconds\t\n", longContext)
	for _, r := range rows {
		fmt.Fprintf(t, "%s\t%d\t%.3f\t%.3f\t%.3f\t%d\t%d\t%.1f\t\n", r.Preset, r.Parameters, r.All, r.Within, r.Beyond, r.StateBytes, r.StateBytesAtLong, r.Seconds)
	}
	t.Flush()
}

// plotRecall draws how each model learns, and accuracy within and beyond the window against the bytes it needs at 32768 tokens.
func plotRecall(dir string, rows []Recall) error {
	learning := plot.Chart{Title: "Recall while training", X: plot.Axis{Label: "step"}, Y: plot.Axis{Label: "accuracy", Min: 0, Max: 1}}
	memory := plot.Chart{Title: fmt.Sprintf("Recall against memory at %d tokens", longContext), X: plot.Axis{Label: "state bytes of a sequence", Log: true},
		Y: plot.Axis{Label: "accuracy within and beyond the window", Min: 0, Max: 1}}
	for _, r := range rows {
		bytes := float64(r.StateBytesAtLong)
		learning.Series = append(learning.Series, plot.Series{Name: r.Preset, X: r.steps, Y: r.all})
		memory.Series = append(memory.Series, plot.Series{Name: r.Preset, X: []float64{bytes, bytes}, Y: []float64{r.Within, r.Beyond}, Points: true})
	}
	if err := learning.Write(filepath.Join(dir, "recall")); err != nil {
		return err
	}
	return memory.Write(filepath.Join(dir, "recall-memory"))
}
