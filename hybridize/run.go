package hybridize

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"nha/attention"
	"nha/autograd"
	"nha/backend"
	"nha/convert"
	"nha/data"
	"nha/model"
	"nha/tensor"
	"nha/tokenizer"
	"nha/train"
	"nha/weights"
)

// Options are a whole conversion.
type Options struct {
	Recipe
	Out     string // directory of the hybrid; its stages lie beside it, in OUT.stages, until it is complete
	Force   bool   // replace a model that is there
	Backend string
	Threads int
	Cache   string // folder of the token caches; empty: the user's
	Command string // how to repeat it, for the report

	Tasks    []string // of package eval, measured on the base and on the hybrid for the report
	TaskData string   // their folder of datasets
	Limit    int      // documents of a task
	Haystack string   // text for the passkey task

	Reporter train.Reporter
}

// conversion is one at work.
type conversion struct {
	*Options
	path    string // the base
	stages  string // folder of the stages
	config  model.Config
	b       backend.Backend
	tk      tokenizer.Tokenizer
	text    *text
	base    *calibration
	trained map[string]string // by tensor: the stage's directory that holds its last values
	report  *Report
}

// Run converts a base as the recipe says and returns the report that it has written beside the model. A conversion that was interrupted goes on
// when it is started again with the same options.
func Run(ctx context.Context, o Options) (_ *Report, err error) {
	c := &conversion{Options: &o, trained: map[string]string{}}
	if c.Reporter == nil {
		c.Reporter = &train.Text{W: os.Stderr}
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	if c.b, err = backend.OpenBest(o.Backend, o.Threads, c.Reporter.Notice); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.b.Close()) }()
	if c.tk, err = model.Tokenizer(c.path); err != nil {
		return nil, err
	}
	if c.text, err = c.openText(ctx); err != nil {
		return nil, err
	}
	defer c.text.close()
	began := time.Now()
	if err := c.start(ctx); err != nil {
		return nil, err
	}
	for i := range c.Stages {
		if err := c.stage(ctx, i); err != nil {
			return nil, fmt.Errorf("stage %d, %s: %w", i+1, c.Stages[i].Kind, err)
		}
	}
	if err := c.finish(ctx, began); err != nil {
		return nil, err
	}
	return c.report, nil
}

// check finds everything that can be wrong before anything is computed.
func (c *conversion) check() (err error) {
	if err := c.Recipe.Check(); err != nil {
		return err
	}
	if c.path, err = model.Find(c.Base); err != nil {
		return err
	}
	if c.config, err = model.ReadConfig(c.path); err != nil {
		return err
	}
	if c.Out == "" {
		return errors.New("out: name a directory for the hybrid")
	}
	if _, err := os.Stat(c.Out); err == nil && !c.Force {
		return fmt.Errorf("%s exists: choose another name, or --force to replace it", c.Out)
	}
	hybrid := c.config
	if err := c.hybridize(&hybrid); err != nil {
		return fmt.Errorf("%s: %w", c.Base, err)
	}
	if k, m := hybrid.HeadDim, c.Slots; GateStart(c.Gates) != GateRandom && k%m != 0 && m%k != 0 {
		return fmt.Errorf("slots %d: gates that start from the key rows want a number that divides the head size %d of %s, or a multiple of it; or gates random", m, k, c.Base)
	}
	names := specNames(&hybrid)
	for i := range c.Stages {
		chosen, err := c.selected(&hybrid, i)
		if err != nil {
			return fmt.Errorf("stage %d, %s: %w", i+1, c.Stages[i].Kind, err)
		}
		for name := range chosen {
			if l := c.lora(); l != nil && l.Targets(name) {
				return fmt.Errorf("stage %d, %s: %s trains as it is and through lora: name it in one of them", i+1, c.Stages[i].Kind, name)
			}
		}
	}
	if len(c.LoRA.Targets) > 0 {
		if _, err := Select(names, c.LoRA.Targets); err != nil {
			return fmt.Errorf("lora.targets: %w", err)
		}
	}
	if len(c.Stages) > 0 && len(c.Data) == 0 {
		return errors.New("data: stages train on text; name files, or leave the stages out")
	}
	c.stages = filepath.Clean(c.Out) + ".stages"
	return nil
}

// hybridize gives a base's configuration the slots and windows of the recipe.
func (c *conversion) hybridize(config *model.Config) error {
	if err := config.Hybridize(model.Hybrid{Slots: c.Slots}); err != nil {
		return err
	}
	return config.ApplyWindows(c.Windows)
}

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
	if len(s.Train) == 0 {
		return chosen, nil
	}
	list, err := Select(specNames(hybrid), s.Train)
	if err != nil {
		return nil, err
	}
	for _, name := range list {
		layer := layerOf(name)
		full := layer >= 0 && hybrid.LayerWindows[layer] == attention.Full
		switch {
		case full && (s.Kind == Transfer || name == gateName(layer)):
		case s.Kind == Transfer && (layer < 0 || !strings.Contains(name, "self_attn") && !strings.Contains(name, "input_layernorm")):
			return nil, fmt.Errorf("train: %s is not part of the attention", name)
		default:
			chosen[name] = true
		}
	}
	if len(chosen) == 0 && len(c.LoRA.Targets) == 0 {
		return nil, fmt.Errorf("nothing is left to train: every layer is full")
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

// start makes the hybrid as it is before training, in the first folder of the stages: the base's tensors and new gates.
func (c *conversion) start(ctx context.Context) error {
	base, err := model.Load(c.path, c.b, model.LoadOptions{})
	if err != nil {
		return err
	}
	defer base.Close()
	if len(c.text.calibration) == 0 {
		first, ok := c.tk.BOS()
		if !ok {
			first, _ = c.tk.EOS()
		}
		b, err := write(ctx, base, first, c.Seed)
		if err != nil {
			return err
		}
		c.text.calibration = []model.Batch{b}
	}
	if c.base, err = calibrate(ctx, base, c.text.calibration); err != nil {
		return err
	}
	hybrid := c.config
	if err := c.hybridize(&hybrid); err != nil {
		return err
	}
	hash, err := baseHash(c.path)
	if err != nil {
		return err
	}
	c.report = newReport(c, hash, &hybrid)
	if !model.Exists(c.stageDir(-1)) {
		if err := c.writeStart(base, &hybrid); err != nil {
			return err
		}
	}
	student, err := model.Load(c.stageDir(-1), c.b, model.LoadOptions{})
	if err != nil {
		return err
	}
	defer student.Close()
	run := &stageRun{conversion: c, student: student, base: base, transfer: newTransfer(student, base, c.base), distill: newDistill(student, base, 0)}
	defer run.close()
	return run.measure(StageReport{Kind: "start"})
}

// writeStart writes the base with its new gates.
func (c *conversion) writeStart(base *model.Model, hybrid *model.Config) error {
	if err := os.MkdirAll(c.stages, 0o777); err != nil {
		return err
	}
	added := map[string]tensor.Tensor{}
	for layer := range hybrid.NumHiddenLayers {
		k, ok := base.Parameter(fmt.Sprintf("model.layers.%d.self_attn.k_proj.weight", layer))
		if !ok {
			return fmt.Errorf("%s: layer %d has no key projection", c.Base, layer)
		}
		rows := gates(GateStart(c.Gates), base.Host(k, tensor.F32).F32(), c.base.means[layer], hybrid.NumKVHeads, hybrid.HeadDim, c.Slots, hybrid.HiddenSize, c.Seed, layer)
		added[gateName(layer)] = tensor.FromF32(rows, hybrid.NumKVHeads*c.Slots, hybrid.HiddenSize)
	}
	_, err := convert.Model(c.path, c.stageDir(-1), convert.Options{DType: tensor.F32, Edit: &convert.Edit{Config: c.hybridize, Added: added}})
	return err
}

// stageDir is where stage i leaves its model; -1: the start.
func (c *conversion) stageDir(i int) string {
	if i < 0 {
		return filepath.Join(c.stages, "0-start")
	}
	return filepath.Join(c.stages, fmt.Sprintf("%d-%s", i+1, c.Stages[i].Kind))
}

// lora is what the model needs to know of the updates of low rank; nil: there are none.
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
	student, err := model.Load(from, c.b, model.LoadOptions{Train: true, Trains: func(name string) bool { return chosen[name] }, LoRA: c.lora()})
	if err != nil {
		return err
	}
	defer student.Close()
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
	settings.LearningRateFactors = maps.Clone(settings.LearningRateFactors)
	if _, set := settings.LearningRateFactors["lora_B"]; !set && len(r.LoRA.Targets) > 0 {
		if settings.LearningRateFactors == nil {
			settings.LearningRateFactors = map[string]float64{}
		}
		settings.LearningRateFactors["lora_B"] = r.LoRA.Alpha / float64(r.LoRA.Rank)
	}
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
	trains, all := 0, 0
	for _, p := range r.student.Parameters() {
		trains += p.Value.Len()
	}
	for _, p := range r.student.Tensors() {
		all += p.Value.Len()
	}
	r.Reporter.Notice(fmt.Sprintf("stage %d, %s: %d of %d parameters train, in %d tensors", i+1, s.Kind, trains, all, len(r.student.Parameters())))
	l := &train.Loop{Trainer: t, Dir: r.dir, Identity: identity, Reporter: r.Reporter}
	if r.text.held != nil {
		l.Validate = func(ctx context.Context) (train.Validation, error) {
			return train.Evaluate(ctx, r.student, t.Tape(), r.text.held, data.LoaderOptions{Context: r.Context, Batch: 1}, validationRows)
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

// identity is what makes the result of a stage what it is.
func (c *conversion) identity(i int) (map[string]string, error) {
	stage, err := json.Marshal(c.Stages[i])
	if err != nil {
		return nil, err
	}
	lora, err := json.Marshal(c.LoRA)
	if err != nil {
		return nil, err
	}
	return map[string]string{"base": c.report.BaseHash, "windows": c.Windows, "slots": strconv.Itoa(c.Slots), "gates": c.Gates, "seed": strconv.FormatUint(c.Seed, 10),
		"context": strconv.Itoa(c.Context), "batch": strconv.Itoa(c.Batch), "lora": string(lora), "stage": string(stage), "data": c.text.fingerprint()}, nil
}

// finish writes the hybrid, the adapter and the report, and removes the stages.
func (c *conversion) finish(ctx context.Context, began time.Time) error {
	a, err := c.adapter()
	if err != nil {
		return err
	}
	dtype := tensor.Invalid
	if weights.IsGGUF(c.path) {
		dtype = tensor.F32
	}
	if c.DType != "" {
		if dtype, err = tensor.ParseDType(c.DType); err != nil {
			return err
		}
	}
	edit, err := a.Edit(c.config, c.report.BaseHash)
	if err != nil {
		return err
	}
	if _, err := convert.Model(c.path, c.Out, convert.Options{DType: dtype, Force: c.Force, Edit: edit}); err != nil {
		return err
	}
	if len(c.LoRA.Targets) > 0 {
		dir := filepath.Join(c.Out, "adapter")
		if err := os.MkdirAll(dir, 0o777); err != nil {
			return err
		}
		if err := a.Save(dir, tensor.BF16); err != nil {
			return err
		}
	}
	c.report.Seconds = time.Since(began).Seconds()
	if err := c.report.measure(ctx, c); err != nil {
		return err
	}
	if err := c.report.Write(c.Out); err != nil {
		return err
	}
	return os.RemoveAll(c.stages)
}

// adapter is everything that the conversion adds to the base, from where it was trained last.
func (c *conversion) adapter() (*Adapter, error) {
	hybrid := c.config
	if err := c.hybridize(&hybrid); err != nil {
		return nil, err
	}
	a := &Adapter{Rank: c.LoRA.Rank, Alpha: c.LoRA.Alpha, Base: c.Base, A: map[string]tensor.Tensor{}, B: map[string]tensor.Tensor{}, Modules: map[string]tensor.Tensor{},
		NHA: NHABlock{BaseHash: c.report.BaseHash, NumSlots: c.Slots, LayerWindows: hybrid.LayerWindows.String(), EmptySlots: hybrid.EmptySlots, GateLogitNormalizer: hybrid.GateLogitNormalizer}}
	where := maps.Clone(c.trained)
	for layer := range hybrid.NumHiddenLayers {
		if where[gateName(layer)] == "" {
			where[gateName(layer)] = c.stageDir(-1)
		}
	}
	for name, dir := range where {
		if err := readInto(a.Modules, dir, name); err != nil {
			return nil, err
		}
	}
	if l := c.lora(); l != nil && len(c.Stages) > 0 {
		last := c.stageDir(len(c.Stages) - 1)
		for _, name := range specNames(&c.config) {
			if !l.Targets(name) {
				continue
			}
			stem := strings.TrimSuffix(name, weightSuffix)
			pair := map[string]tensor.Tensor{}
			for _, suffix := range []string{loraASuffix, loraBSuffix} {
				if err := readInto(pair, last, stem+suffix); err != nil {
					return nil, err
				}
			}
			a.A[name], a.B[name] = pair[stem+loraASuffix], pair[stem+loraBSuffix]
			for i := range a.B[name].F32() { // the model's B holds the factor alpha / r
				a.B[name].F32()[i] *= float32(float64(a.Rank) / a.Alpha)
			}
		}
	}
	return a, nil
}

// readInto copies one tensor of a model directory, as float32.
func readInto(into map[string]tensor.Tensor, dir, name string) error {
	s, err := weights.OpenDir(dir)
	if err != nil {
		return err
	}
	defer s.Close()
	t, ok := s.Tensor(name)
	if !ok {
		return fmt.Errorf("%s: no tensor %s", dir, name)
	}
	into[name] = tensor.New(tensor.F32, t.Shape)
	tensor.Convert(into[name], t)
	return nil
}

// measure adds a stage to the report, with how far the hybrid is from its base on held-out text.
func (r *stageRun) measure(s StageReport) error {
	t := autograd.New(r.b)
	defer t.Close()
	return r.report.add(r, t, s)
}
