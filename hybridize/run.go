package hybridize

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"nha/backend"
	"nha/convert"
	"nha/eval"
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
	origin  *origin           // what the recipe starts from; nil: the base
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
	defer func() { err = errors.Join(err, c.origin.close()) }()
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
	if err := c.start(ctx); err != nil {
		return nil, err
	}
	for i := range c.Stages {
		if err := c.stage(ctx, i); err != nil {
			return nil, fmt.Errorf("stage %d, %s: %w", i+1, c.Stages[i].Kind, err)
		}
	}
	if err := c.finish(ctx); err != nil {
		return nil, err
	}
	return c.report, nil
}

// check finds everything that can be wrong before anything is computed.
func (c *conversion) check() (err error) {
	if err := c.Recipe.Check(); err != nil {
		return err
	}
	if name, ok := strings.CutPrefix(c.Windows, "@"); ok {
		if c.Windows, err = ReadWindows(name); err != nil {
			return fmt.Errorf("windows: %w", err)
		}
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
	c.stages = filepath.Clean(c.Out) + ".stages"
	if _, err := os.Stat(c.Out); err == nil && !c.Force && !c.began() {
		return fmt.Errorf("%s exists: choose another name, or --force to replace it", c.Out)
	}
	hybrid := c.config
	if err := c.hybridize(&hybrid); err != nil {
		return fmt.Errorf("%s: %w", c.Base, err)
	}
	if k, m := hybrid.HeadDim, c.Slots; m > 0 && GateStart(c.Gates) != GateRandom && k%m != 0 && m%k != 0 {
		return fmt.Errorf("slots %d: gates that start from the key rows want a number that divides the head size %d of %s, or a multiple of it; or gates random", m, k, c.Base)
	}
	updated := c.lora().Projections(&hybrid)
	if len(c.LoRA.Targets) > 0 {
		if _, err := Select(specNames(&hybrid), c.LoRA.Targets); err != nil {
			return fmt.Errorf("lora.targets: %w", err)
		}
		if len(updated) == 0 {
			return fmt.Errorf("lora.targets %q: no projection of a layer is among them: name some, such as q_proj", c.LoRA.Targets)
		}
	}
	for i, s := range c.Stages {
		chosen, err := c.selected(&hybrid, i)
		if err != nil {
			return fmt.Errorf("stage %d, %s: %w", i+1, s.Kind, err)
		}
		for _, p := range updated {
			if chosen[p.Name] {
				return fmt.Errorf("stage %d, %s: %s trains as it is and through lora: name it in one of them", i+1, s.Kind, p.Name)
			}
		}
		if s.TopK >= hybrid.VocabSize {
			return fmt.Errorf("stage %d, %s: top_k %d: must be below the vocabulary of %s, %d words", i+1, s.Kind, s.TopK, c.Base, hybrid.VocabSize)
		}
	}
	if len(c.Tasks) > 0 {
		if _, err := eval.Select(c.Tasks); err != nil {
			return err
		}
	}
	if len(c.Stages) > 0 && len(c.Data) == 0 {
		return errors.New("data: stages train on text; name files, or leave the stages out")
	}
	if c.From != "" {
		c.origin, err = c.openOrigin(&hybrid)
	}
	return err
}

// newGates is the number of layers that get a gate: all of them, or with no slots none.
func (c *conversion) newGates(hybrid *model.Config) int {
	if c.Slots == 0 {
		return 0
	}
	return hybrid.NumHiddenLayers
}

// hybridize gives a base's configuration the slots and windows of the recipe. Without slots it is the base under other windows.
func (c *conversion) hybridize(config *model.Config) error {
	if c.Slots > 0 {
		if err := config.Hybridize(model.Hybrid{Slots: c.Slots}); err != nil {
			return err
		}
	}
	return config.ApplyWindows(c.Windows)
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
	if c.origin != nil {
		if err := c.origin.checkBase(hash, c.Base); err != nil {
			return err
		}
	}
	c.report = newReport(c, hash, &hybrid)
	if err := c.report.measureBase(ctx, base, c); err != nil {
		return err
	}
	if err := os.MkdirAll(c.stages, 0o777); err != nil {
		return err
	}
	if err := c.claim(-1); err != nil {
		return err
	}
	began, err := c.beginning(base, &hybrid)
	if err != nil {
		return err
	}
	if !model.Exists(c.stageDir(-1)) {
		if err := c.writeStart(ctx, began); err != nil {
			return err
		}
	}
	for name := range began {
		c.trained[name] = c.stageDir(-1)
	}
	student, err := model.Load(c.stageDir(-1), c.b, model.LoadOptions{Own: true, LoRA: c.lora()})
	if err != nil {
		return err
	}
	defer student.Close()
	c.setUpdates(student)
	run := &stageRun{conversion: c, student: student, base: base, transfer: newTransfer(student, base, c.base), distill: newDistill(student, base, 0)}
	defer run.close()
	return run.measure(StageReport{Kind: "start"})
}

// beginning is what differs from the base before any training: new gates, or what an earlier conversion left.
func (c *conversion) beginning(base *model.Model, hybrid *model.Config) (map[string]tensor.Tensor, error) {
	if c.origin != nil {
		source, err := openWeights(c.path)
		if err != nil {
			return nil, err
		}
		defer source.Close()
		return c.origin.changed(hybrid, source)
	}
	added := map[string]tensor.Tensor{}
	for layer := range c.newGates(hybrid) {
		k, ok := base.Parameter(fmt.Sprintf("model.layers.%d.self_attn.k_proj.weight", layer))
		if !ok {
			return nil, fmt.Errorf("%s: layer %d has no key projection", c.Base, layer)
		}
		rows := gates(GateStart(c.Gates), base.Host(k, tensor.F32).F32(), c.base.means[layer], hybrid.NumKVHeads, hybrid.HeadDim, c.Slots, hybrid.HiddenSize, c.Seed, layer)
		added[gateName(layer)] = tensor.FromF32(rows, hybrid.NumKVHeads*c.Slots, hybrid.HiddenSize)
	}
	return added, nil
}

// writeStart writes the base with what differs.
func (c *conversion) writeStart(ctx context.Context, began map[string]tensor.Tensor) error {
	edit, err := (&Adapter{Modules: began}).Edit(c.config, c.report.BaseHash)
	if err != nil {
		return err
	}
	edit.Config = c.hybridize
	_, err = convert.Model(c.path, c.stageDir(-1), convert.Options{Context: ctx, DType: tensor.F32, Edit: edit})
	return err
}

// setUpdates gives a model that begins the low-rank updates of the conversion that it goes on from.
func (c *conversion) setUpdates(m *model.Model) {
	for name, x := range c.origin.updates(m.Config.LayerWindows) {
		p, ok := m.Parameter(name)
		if !ok {
			panic("hybridize: a model without the update " + name)
		}
		m.Set(p, x)
	}
}

// beganName is a file that says that what stands under Out is this conversion's, without its report yet.
func (c *conversion) beganName() string { return filepath.Join(c.stages, "began-out") }

func (c *conversion) began() bool {
	_, err := os.Stat(c.beganName())
	return err == nil
}

// finish writes the hybrid, the adapter and the report, and removes the stages.
func (c *conversion) finish(ctx context.Context) error {
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
	force := c.Force || c.began()
	if err := os.WriteFile(c.beganName(), nil, 0o644); err != nil {
		return err
	}
	if _, err := convert.Model(c.path, c.Out, convert.Options{Context: ctx, DType: dtype, Force: force, Edit: edit}); err != nil {
		return err
	}
	if c.small(a) {
		dir := filepath.Join(c.Out, adapterName)
		if err := os.MkdirAll(dir, 0o777); err != nil {
			return err
		}
		if err := a.Save(dir, tensor.BF16); err != nil {
			return err
		}
	}
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
	byDir := map[string][]string{}
	for name, dir := range c.trained {
		byDir[dir] = append(byDir[dir], name)
	}
	for dir, names := range byDir {
		if err := readInto(a.Modules, dir, names); err != nil {
			return nil, err
		}
	}
	projections := c.lora().Projections(&c.config)
	if len(projections) == 0 {
		return a, nil
	}
	pairs := c.origin.updates(hybrid.LayerWindows)
	if len(c.Stages) > 0 {
		pairs = map[string]tensor.Tensor{}
		var names []string
		for _, p := range projections {
			stem := strings.TrimSuffix(p.Name, weightSuffix)
			names = append(names, stem+loraASuffix, stem+loraBSuffix)
		}
		if err := readInto(pairs, c.stageDir(len(c.Stages)-1), names); err != nil {
			return nil, err
		}
	}
	for _, p := range projections {
		stem := strings.TrimSuffix(p.Name, weightSuffix)
		x, ok := pairs[stem+loraASuffix]
		if !ok { // of a layer that no stage trained: the base's
			continue
		}
		y := pairs[stem+loraBSuffix]
		for i := range y.F32() { // the model's B holds the factor alpha / r
			y.F32()[i] *= float32(float64(a.Rank) / a.Alpha)
		}
		a.A[p.Name], a.B[p.Name] = x, y
	}
	return a, nil
}

// small reports whether the adapter is worth a file beside the model: it holds updates of low rank, new tensors and vectors, no matrix of the base.
func (c *conversion) small(a *Adapter) bool {
	for _, s := range c.config.Specs() {
		if t, ok := a.Modules[s.Name]; ok && t.Shape.Rank() > 1 {
			return false
		}
	}
	return len(a.A)+len(a.Modules) > 0
}

// readInto copies tensors of a model directory, as float32.
func readInto(into map[string]tensor.Tensor, dir string, names []string) error {
	s, err := weights.OpenDir(dir)
	if err != nil {
		return err
	}
	defer s.Close()
	for _, name := range names {
		t, ok := s.Tensor(name)
		if !ok {
			return fmt.Errorf("%s: no tensor %s", dir, name)
		}
		into[name] = tensor.New(tensor.F32, t.Shape)
		tensor.Convert(into[name], t)
	}
	return nil
}
