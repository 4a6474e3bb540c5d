package hybridize

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"

	"nha/atomicfile"
	"nha/attention"
	"nha/autograd"
	"nha/eval"
	"nha/model"
	"nha/train"
)

// reportName is the report's file in the hybrid's directory.
const reportName = "report.json"

// Report is what a conversion did and what it cost, as report.json holds it; report.md is for people (markdown.go).
type Report struct {
	Base     string  `json:"base"`
	BaseHash string  `json:"base_hash"`
	Out      string  `json:"out"`
	Command  string  `json:"command"` // repeats it
	Recipe   Recipe  `json:"recipe"`
	Windows  string  `json:"windows"`
	Slots    int     `json:"slots"`
	Backend  string  `json:"backend"`
	Seconds  float64 `json:"seconds"` // of training
	// What KL and perplexities are measured on, and the base's.
	MeasuredOn     string        `json:"measured_on"`
	BasePerplexity float64       `json:"base_perplexity"`
	Stages         []StageReport `json:"stages"`
	Layers         []LayerReport `json:"layers"`
	Bytes          []Bytes       `json:"bytes"`
	Tasks          []TaskNumber  `json:"tasks,omitempty"`
}

// StageReport is one stage; the first is the hybrid before any training.
type StageReport struct {
	Kind       string    `json:"kind"`
	Parameters int       `json:"parameters"` // that train
	Steps      int       `json:"steps"`
	Tokens     int64     `json:"tokens"`
	Seconds    float64   `json:"seconds"`
	Loss       float64   `json:"loss"` // of the last steps, in the stage's own measure
	KL         float64   `json:"kl"`   // KL(base || hybrid) afterwards, nats a token
	Perplexity float64   `json:"perplexity"`
	Errors     []float64 `json:"errors"` // of every layer's attention on the base's own stream, relative (objectives.go); 0 in full layers
}

// LayerReport is one layer.
type LayerReport struct {
	Window    string  `json:"window"`
	SlotShare float64 `json:"slot_share"` // mean over heads and held-out tokens
}

// Bytes is the memory of one sequence: the hybrid's state and the base's keys and values, float32.
type Bytes struct {
	Tokens int `json:"tokens"`
	State  int `json:"state"`
	KV     int `json:"kv"`
}

// TaskNumber is one metric of package eval.
type TaskNumber struct {
	Task   string  `json:"task"`
	Metric string  `json:"metric"`
	Base   float64 `json:"base"`
	Hybrid float64 `json:"hybrid"`
}

func newReport(c *conversion, hash string, hybrid *model.Config) *Report {
	r := &Report{Base: c.Base, BaseHash: hash, Out: c.Out, Command: c.Command, Recipe: c.Recipe, Windows: hybrid.LayerWindows.String(), Slots: c.Slots, Backend: c.b.Name() + ": " + c.b.Describe(),
		MeasuredOn: c.text.heldName()}
	for _, n := range []int{2 << 10, 32 << 10, 128 << 10} {
		r.Bytes = append(r.Bytes, Bytes{Tokens: n, State: hybrid.Account(n).StateBytes, KV: c.config.Account(n).StateBytes})
	}
	for _, w := range hybrid.LayerWindows {
		r.Layers = append(r.Layers, LayerReport{Window: model.Windows{w}.String()})
	}
	return r
}

// measureBase adds what the base is worth on the text to measure on.
func (r *Report) measureBase(ctx context.Context, base *model.Model, c *conversion) error {
	batches, err := c.text.heldBatches(c.Context)
	if err != nil {
		return err
	}
	t := autograd.New(base.Backend())
	defer t.Close()
	loss, err := meanLoss(ctx, base, t, batches)
	r.BasePerplexity = math.Exp(loss)
	return err
}

// resultName is what a stage's training leaves for the report, so that a conversion that goes on later still knows it.
const resultName = "stage.json"

func (r *stageRun) writeResult(result train.Result, parameters int) error {
	if math.IsNaN(result.Loss) {
		return errors.New("no loss of the last steps was finite: lower learning_rate or clip, or lengthen warmup")
	}
	s := StageReport{Kind: string(r.stage.Kind), Parameters: parameters, Steps: result.Steps, Tokens: result.Tokens, Seconds: result.Elapsed.Seconds(), Loss: result.Loss}
	return atomicfile.WriteFile(filepath.Join(r.dir, resultName), 0o644, func(w io.Writer) error { return json.NewEncoder(w).Encode(s) })
}

func readResult(dir string) (s StageReport, err error) {
	text, err := os.ReadFile(filepath.Join(dir, resultName))
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(text, &s)
}

// add adds a stage with what the text to measure on says of the hybrid after it.
func (r *Report) add(run *stageRun, t *autograd.Tape, s StageReport) error {
	batches, err := run.text.heldBatches(run.Context)
	if err != nil {
		return err
	}
	kl, nll := 0.0, 0.0
	s.Errors = make([]float64, len(r.Layers))
	for i := range batches {
		k, n := run.distill.divergence(t, &batches[i])
		kl, nll = kl+k/float64(len(batches)), nll+n/float64(len(batches))
		for layer, e := range run.transfer.errors(t, &batches[i]) {
			s.Errors[layer] += e / float64(len(batches))
		}
	}
	s.KL, s.Perplexity = kl, math.Exp(nll)
	if x := s.KL + s.Perplexity; math.IsNaN(x) || math.IsInf(x, 0) {
		return fmt.Errorf("%s: the hybrid is no use afterwards, KL %v and perplexity %v on %s: lower learning_rate, or begin with other gates", s.Kind, s.KL, s.Perplexity, r.MeasuredOn)
	}
	r.Seconds += s.Seconds
	r.Stages = append(r.Stages, s)
	return nil
}

// measure adds what the finished hybrid is worth: slot shares, and the tasks that were asked for on it and on the base.
func (r *Report) measure(ctx context.Context, c *conversion) error {
	hybrid, err := model.Load(c.Out, c.b, model.LoadOptions{})
	if err != nil {
		return err
	}
	defer hybrid.Close()
	batches, err := c.text.heldBatches(c.Context)
	if err != nil {
		return err
	}
	r.shares(hybrid, batches)
	if len(c.Tasks) == 0 {
		return nil
	}
	base, err := model.Load(c.path, c.b, model.LoadOptions{})
	if err != nil {
		return err
	}
	defer base.Close()
	o := eval.Options{Tasks: c.Tasks, Data: c.TaskData, Limit: c.Limit, Haystack: c.Haystack, Seed: 42}
	reports := make([]*eval.Report, 2)
	for i, m := range []*model.Model{base, hybrid} {
		name := []string{c.Base, c.Out}[i]
		c.Reporter.Notice("measuring " + name)
		if reports[i], err = eval.Run(ctx, m, c.tk, name, o); err != nil {
			return err
		}
	}
	for i, line := range reports[0].Lines() {
		other := reports[1].Lines()[i]
		r.Tasks = append(r.Tasks, TaskNumber{Task: line.Task, Metric: line.Metric, Base: line.Value, Hybrid: other.Value})
	}
	return nil
}

// shares is the mean slot share of every layer over some rows.
func (r *Report) shares(m *model.Model, batches []model.Batch) {
	t := autograd.New(m.Backend())
	t.Record(false)
	defer t.Close()
	tokens := 0
	for i := range batches {
		t.Reset()
		b := batches[i]
		tokens += len(b.Tokens)
		b.Shares = func(layer int, share *autograd.Value) {
			r.Layers[layer].SlotShare += t.Sum(share) / float64(share.Columns())
		}
		m.Hidden(t, &b)
	}
	for i := range r.Layers {
		r.Layers[i].SlotShare /= float64(tokens)
	}
}

// full reports whether a layer has the whole context.
func (l LayerReport) full() bool { return l.Window == model.Windows{attention.Full}.String() }
