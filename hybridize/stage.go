package hybridize

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"nha/atomicfile"
	"nha/attention"
	"nha/autograd"
	"nha/data"
	"nha/model"
	"nha/train"
)

func specNames(c *model.Config) (names []string) {
	for _, s := range c.Specs() {
		names = append(names, s.Name)
	}
	return names
}

// gateName is the gate of a layer.
func gateName(layer int) string { return fmt.Sprintf("model.layers.%d.self_attn.g_proj.weight", layer) }

// selected are the tensors that stage i trains. The gate of a full layer is never read, and attention transfer leaves full
// layers as the base has them.
func (c *conversion) selected(hybrid *model.Config, i int) (map[string]bool, error) {
	s := &c.Stages[i]
	chosen := map[string]bool{}
	var list []string
	if len(s.Train) > 0 {
		var err error
		if list, err = Select(specNames(hybrid), s.Train); err != nil {
			return nil, err
		}
	}
	for _, name := range list {
		layer := layerOf(name)
		full := inFull(name, hybrid.LayerWindows)
		switch {
		case full && (s.Kind == Transfer || s.KeepFull || name == gateName(layer)):
		case s.Kind == Transfer && (layer < 0 || !strings.Contains(name, "self_attn") && !strings.Contains(name, "input_layernorm")):
			return nil, fmt.Errorf("train: %s is not part of the attention", name)
		default:
			chosen[name] = true
		}
	}
	switch {
	case len(chosen) > 0:
	case len(c.LoRA.Targets) == 0:
		return nil, errors.New("nothing is left to train: every layer is full")
	case s.KeepFull && !slices.ContainsFunc(hybrid.LayerWindows, func(w int) bool { return w != attention.Full }):
		return nil, errors.New("nothing is left to train: every layer is full, and keep_full keeps those")
	}
	return chosen, nil
}

// layerOf is the layer that a tensor belongs to, -1 for none.
func layerOf(name string) int {
	rest, ok := strings.CutPrefix(name, "model.layers.")
	if !ok {
		return -1
	}
	number, _, _ := strings.Cut(rest, ".")
	layer, err := strconv.Atoi(number)
	if err != nil {
		return -1
	}
	return layer
}

// inFull says that a tensor belongs to a layer with the whole context.
func inFull(name string, w model.Windows) bool {
	layer := layerOf(name)
	return layer >= 0 && w[layer] == attention.Full
}

// stageDir is where stage i leaves its model; -1: the start.
func (c *conversion) stageDir(i int) string {
	if i < 0 {
		return filepath.Join(c.stages, "0-start")
	}
	return filepath.Join(c.stages, fmt.Sprintf("%d-%s", i+1, c.Stages[i].Kind))
}

// lora is what the model needs to know of the updates of low rank; nil: there are none. Gates train as they are.
func (c *conversion) lora() *model.LoRA {
	if len(c.LoRA.Targets) == 0 {
		return nil
	}
	return &model.LoRA{Rank: c.LoRA.Rank, Seed: c.Seed, Targets: func(name string) bool {
		return !strings.HasSuffix(name, ".g_proj.weight") && slices.ContainsFunc(c.LoRA.Targets, func(p string) bool { return matches(p, name) })
	}}
}

// stage trains one stage, or finds that it is done.
func (c *conversion) stage(ctx context.Context, i int) error {
	s, dir := &c.Stages[i], c.stageDir(i)
	hybrid := c.config
	if err := c.hybridize(&hybrid); err != nil {
		return err
	}
	chosen, err := c.selected(&hybrid, i)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	from := c.stageDir(i - 1)
	done := model.Exists(dir)
	checkpoints, err := train.Checkpoints(dir)
	switch {
	case err != nil:
		return err
	case done:
		from = dir
	case len(checkpoints) > 0:
		from = checkpoints[len(checkpoints)-1]
	}
	if err := c.claim(i); err != nil {
		return err
	}
	student, err := model.Load(from, c.b, model.LoadOptions{Train: true, Trains: func(name string) bool { return chosen[name] }, LoRA: c.lora()})
	if err != nil {
		return err
	}
	defer student.Close()
	if from == c.stageDir(-1) {
		c.setUpdates(student)
	}
	base, err := model.Load(c.path, c.b, model.LoadOptions{Share: student, Shares: func(name string) bool { return c.trained[name] == "" }})
	if err != nil {
		return err
	}
	defer base.Close()
	run := &stageRun{conversion: c, stage: s, dir: dir, student: student, base: base, transfer: newTransfer(student, base, c.base), distill: newDistill(student, base, s.Mix)}
	defer run.close()
	if !done {
		if err := run.train(ctx, i); err != nil {
			return err
		}
	}
	for name := range chosen {
		c.trained[name] = dir
	}
	report, err := readResult(dir)
	if err != nil {
		return err
	}
	return run.measure(report)
}

// stageRun is one stage at work.
type stageRun struct {
	*conversion
	stage         *Stage
	dir           string
	student, base *model.Model
	transfer      *transfer
	distill       *distill
}

func (r *stageRun) close() {
	r.transfer.close()
	r.distill.close()
	if r.distill.kept != nil {
		r.distill.kept.close()
	}
}

func (r *stageRun) train(ctx context.Context, i int) error {
	s := r.stage
	settings := s.Settings
	settings.LearningRateFactors = map[string]float64{}
	if len(r.LoRA.Targets) > 0 {
		settings.LearningRateFactors["lora_B"] = r.LoRA.Alpha / float64(r.LoRA.Rank)
	}
	maps.Copy(settings.LearningRateFactors, s.LearningRateFactors)
	identity, err := r.identity(i)
	if err != nil {
		return err
	}
	source, err := r.text.source(r.Seed+uint64(i), r.Context, r.Batch)
	if err != nil {
		return err
	}
	if s.Kind == Distill && s.TopK > 0 {
		if err := r.keep(ctx, i, identity); err != nil {
			return err
		}
	}
	trains, all, tensors := 0, 0, 0
	for _, p := range r.student.Parameters() {
		if s.KeepFull && inFull(p.Name, r.student.Config.LayerWindows) { // an update of low rank
			settings.LearningRateFactors[fmt.Sprintf("layers.%d.", layerOf(p.Name))] = 0
			continue
		}
		trains, tensors = trains+p.Value.Len(), tensors+1
	}
	for _, p := range r.student.Tensors() {
		all += p.Value.Len()
	}
	ahead := train.NewAhead(source)
	defer ahead.Close()
	t, err := train.NewTrainer(r.student, settings, ahead)
	if err != nil {
		return err
	}
	defer t.Close()
	t.Compiling = r.Reporter.Compiling
	switch s.Kind {
	case Transfer:
		t.SetObjective(r.transfer.objective)
	case Distill:
		t.SetObjective(r.distill.objective)
	}
	r.Reporter.Notice(fmt.Sprintf("stage %d, %s: %d of %d parameters train, in %d tensors", i+1, s.Kind, trains, all, tensors))
	l := &train.Loop{Trainer: t, Dir: r.dir, Identity: identity, Reporter: r.Reporter}
	switch {
	case r.text.held != nil:
		l.Validate = func(ctx context.Context) (train.Validation, error) {
			return train.Evaluate(ctx, r.student, t.Tape(), r.text.held, data.LoaderOptions{Context: r.Context, Batch: 1}, validationRows)
		}
	case len(r.text.heldChats) > 0:
		l.Validate = func(ctx context.Context) (train.Validation, error) {
			loss, err := meanLoss(ctx, r.student, t.Tape(), r.text.heldChats)
			return train.Validation{Loss: train.Number(loss), BitsPerByte: train.Number(math.NaN())}, err
		}
	}
	if err := l.Restore(); err != nil {
		return err
	}
	result, err := l.Run(ctx)
	if err != nil {
		return err
	}
	return r.writeResult(result, trains)
}

// keep writes the base's words for the stage's batches, so that the base need not run beside the student.
func (r *stageRun) keep(ctx context.Context, i int, identity map[string]string) error {
	path := filepath.Join(r.dir, "teacher.top")
	source, err := r.text.source(r.Seed+uint64(i), r.Context, r.Batch)
	if err != nil {
		return err
	}
	settings := r.stage.Settings
	head := keptHead{K: r.stage.TopK, Batches: settings.Steps * max(1, settings.Accumulation), Identity: identity}
	last := time.Now()
	err = keepTeacher(ctx, path, head, r.base, source, func(done, total int) {
		if time.Since(last) > 10*time.Second || done == total {
			last = time.Now()
			r.Reporter.Notice(fmt.Sprintf("keeping the base's %d likeliest words: %d of %d batches", r.stage.TopK, done, total))
		}
	})
	if err != nil {
		return err
	}
	r.distill.kept, err = openKept(path)
	return err
}

// claimName is a file beside a stage's directory that says of which conversion it is.
func (c *conversion) claimName(i int) string { return c.stageDir(i) + ".json" }

// claim says that stage i is of this conversion. One that another conversion left there, under other options, is an error.
func (c *conversion) claim(i int) error {
	identity, err := c.identity(i)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(c.claimName(i))
	if errors.Is(err, fs.ErrNotExist) {
		return atomicfile.WriteFile(c.claimName(i), 0o644, func(w io.Writer) error { return json.NewEncoder(w).Encode(identity) })
	}
	if err != nil {
		return err
	}
	var old map[string]string
	if err := json.Unmarshal(text, &old); err != nil {
		return fmt.Errorf("%s: %w", c.claimName(i), err)
	}
	if d := differs(old, identity); d != "" {
		return fmt.Errorf("%s is of a conversion with other options (%s): go on with those, or remove it and %s to begin there anew", c.stageDir(i), d, c.claimName(i))
	}
	return nil
}

// identity is what makes the result of a stage what it is, the stages before it among that; -1: of the start.
func (c *conversion) identity(i int) (map[string]string, error) {
	stages, err := json.Marshal(c.Stages[:i+1])
	if err != nil {
		return nil, err
	}
	lora, err := json.Marshal(c.LoRA)
	if err != nil {
		return nil, err
	}
	id := map[string]string{"base": c.report.BaseHash, "windows": c.Windows, "slots": strconv.Itoa(c.Slots), "gates": c.Gates, "seed": strconv.FormatUint(c.Seed, 10),
		"context": strconv.Itoa(c.Context), "data": c.text.fingerprint()}
	if c.origin != nil {
		id["from"] = c.origin.hash
	}
	if i >= 0 {
		id["batch"], id["lora"], id["stages"] = strconv.Itoa(c.Batch), string(lora), string(stages)
	}
	return id, nil
}

// measure adds a stage to the report, with how far the hybrid is from its base on held-out text.
func (r *stageRun) measure(s StageReport) error {
	t := autograd.New(r.b)
	defer t.Close()
	return r.report.add(r, t, s)
}
