package train

import (
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"nha/autograd"
	"nha/backend"
	_ "nha/backend/all"
	"nha/model"
	"nha/tensor"
)

// copyTask repeats the first half of every row in its second half, where the loss is. It is a function of its place n.
type copyTask struct {
	rows, half, vocabulary int
	n                      uint64
}

func (c *copyTask) Next(b *model.Batch) error {
	r := rand.New(rand.NewPCG(7, c.n))
	c.n++
	n := 2 * c.half * c.rows
	b.Tokens, b.Targets, b.Lengths = slices.Grow(b.Tokens[:0], n)[:n], slices.Grow(b.Targets[:0], n)[:n], b.Lengths[:0]
	for i := range c.rows {
		at := 2 * c.half * i
		for j := range c.half {
			id := int32(r.IntN(c.vocabulary))
			b.Tokens[at+j], b.Tokens[at+c.half+j] = id, id
			b.Targets[at+j], b.Targets[at+c.half+j] = -1, -1
		}
		copy(b.Targets[at+c.half-1:at+2*c.half-1], b.Tokens[at+c.half:])
		b.Lengths = append(b.Lengths, 2*c.half)
	}
	return nil
}

func (c *copyTask) State() (json.RawMessage, error)       { return json.Marshal(c.n) }
func (c *copyTask) Restore(s json.RawMessage) (err error) { return json.Unmarshal(s, &c.n) }

func open(t testing.TB, name string) backend.Backend {
	t.Helper()
	b, err := backend.Open(name, 2)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func tinyConfig() model.Config {
	c := model.NewConfig(8, 16, 2)
	c.NumHeads, c.NumSlots, c.IntermediateSize = 2, 4, 32
	c.LayerWindows = model.Windows{8, 8}
	c.GateBias = true
	return c
}

func tiny(t testing.TB, b backend.Backend) *model.Model {
	t.Helper()
	m, err := model.New(tinyConfig(), b, model.Init{Seed: 3, Std: 0.1, GateBiasLow: -4, GateBiasHigh: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func trainer(t testing.TB, m *model.Model, s Settings, source Source) *Trainer {
	t.Helper()
	tr, err := NewTrainer(m, s, source)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tr.Close)
	return tr
}

func step(t testing.TB, tr *Trainer) Stats {
	t.Helper()
	s, err := tr.Step()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// flat is a copy of all parameters.
func flat(m *model.Model) []float64 {
	data, _ := m.Flat()
	return read(m, data)
}

func read(m *model.Model, x tensor.Tensor) []float64 {
	host := tensor.New(tensor.F64, x.Shape)
	m.Backend().Read(host, x)
	return host.F64()
}

func short(steps int) Settings {
	s := DefaultSettings()
	s.Steps, s.Warmup, s.LearningRate = steps, 0, 1e-2
	return s
}

// From chance, ln 8 = 2.08, to well below.
func TestLearnsToCopy(t *testing.T) {
	tr := trainer(t, tiny(t, open(t, "cpu")), short(300), &copyTask{rows: 16, half: 4, vocabulary: 8})
	first := step(t, tr)
	if math.Abs(float64(first.Loss)-math.Log(8)) > 0.5 {
		t.Errorf("first loss %v, chance is %v", first.Loss, math.Log(8))
	}
	if first.Tokens != 16*8 || first.Predicted != 16*4 {
		t.Errorf("%d tokens, %d predicted", first.Tokens, first.Predicted)
	}
	var last Stats
	for range 299 {
		last = step(t, tr)
	}
	if last.Loss > 0.5 {
		t.Errorf("loss %v after 300 steps", last.Loss)
	}
	t.Logf("loss %v -> %v", first.Loss, last.Loss)
}

// halves gives the batches of a source cut into two uneven parts, so that a mean of means would not do.
type halves struct {
	Source
	whole model.Batch
	rest  bool
}

func (h *halves) Next(b *model.Batch) error {
	if h.rest = !h.rest; h.rest {
		if err := h.Source.Next(&h.whole); err != nil {
			return err
		}
		h.whole.Targets[3] = -1 // of the first part
		n := h.whole.Lengths[0]
		b.Tokens, b.Targets, b.Lengths = append(b.Tokens[:0], h.whole.Tokens[:n]...), append(b.Targets[:0], h.whole.Targets[:n]...), append(b.Lengths[:0], n)
		return nil
	}
	n := h.whole.Lengths[0]
	b.Tokens, b.Targets, b.Lengths = append(b.Tokens[:0], h.whole.Tokens[n:]...), append(b.Targets[:0], h.whole.Targets[n:]...), append(b.Lengths[:0], h.whole.Lengths[1:]...)
	return nil
}

// dropped is the same batches whole.
type dropped struct{ Source }

func (d dropped) Next(b *model.Batch) error {
	err := d.Source.Next(b)
	b.Targets[3] = -1
	return err
}

// Two accumulated batches are one big one, whatever number of targets each holds.
func TestAccumulationIsABigBatch(t *testing.T) {
	b := open(t, "ref")
	one, two := tiny(t, b), tiny(t, b)
	s := short(3)
	big := trainer(t, one, s, dropped{&copyTask{rows: 5, half: 4, vocabulary: 8}})
	s.Accumulation = 2
	parts := trainer(t, two, s, &halves{Source: &copyTask{rows: 5, half: 4, vocabulary: 8}})
	for range 3 {
		x, y := step(t, big), step(t, parts)
		if x.Tokens != y.Tokens || x.Predicted != 19 || y.Predicted != 19 {
			t.Fatalf("%+v and %+v", x, y)
		}
		for _, d := range []float64{float64(x.Loss - y.Loss), float64(x.GradientNorm - y.GradientNorm)} {
			if math.Abs(d) > 1e-9 {
				t.Fatalf("%+v and %+v", x, y)
			}
		}
	}
	for i, v := range flat(one) {
		if math.Abs(v-flat(two)[i]) > 1e-7 {
			t.Fatalf("parameter %d: %v and %v", i, v, flat(two)[i])
		}
	}
}

// One step against AdamW written out: the clipped gradient, factors, decay on matrices alone, and zeros left in the padding.
func TestStepIsAdamW(t *testing.T) {
	m := tiny(t, open(t, "ref"))
	s := short(10)
	s.Clip, s.WeightDecay, s.Schedule = 0.01, 0.5, Constant
	s.LearningRateFactors = map[string]float64{"f_proj": 10, "layers.1.": 0.5, "lm_head": 0}
	tr := trainer(t, m, s, &copyTask{rows: 2, half: 4, vocabulary: 8})
	before := flat(m)
	stats := step(t, tr)
	if stats.GradientNorm <= 0.01 {
		t.Fatalf("gradient norm %v does not reach the limit", stats.GradientNorm)
	}
	_, gradients := m.Flat()
	g, after := read(m, gradients), flat(m)
	sum := 0.0
	for _, v := range g {
		sum += v * v
	}
	if math.Abs(math.Sqrt(sum)-float64(stats.GradientNorm)) > 1e-12 {
		t.Errorf("gradient norm %v, want %v", stats.GradientNorm, math.Sqrt(sum))
	}
	parameters := m.Parameters()
	for i, p := range parameters {
		factor := 1.0
		if strings.Contains(p.Name, "f_proj") {
			factor *= 10
		}
		if strings.Contains(p.Name, "layers.1.") {
			factor *= 0.5
		}
		if p.Name == "lm_head.weight" {
			factor = 0
		}
		decay := 0.5
		if p.Value.Shape.Rank() == 1 {
			decay = 0
		}
		end := len(before)
		if i+1 < len(parameters) {
			end = parameters[i+1].Offset
		}
		for k := p.Offset; k < end; k++ {
			want := 0.0
			if k < p.Offset+p.Value.Len() {
				x := g[k] * 0.01 / float64(stats.GradientNorm)
				want = before[k] - 1e-2*factor*(decay*before[k]+x/(math.Abs(x)+1e-8))
			}
			if math.Abs(after[k]-want) > 1e-12 {
				t.Fatalf("%s[%d]: %v, want %v", p.Name, k-p.Offset, after[k], want)
			}
		}
	}
}

// Below the limit nothing is clipped: with an epsilon that dwarfs the gradient, the update is in proportion to it.
func TestClip(t *testing.T) {
	moved := func(clip float64) float64 {
		m := tiny(t, open(t, "ref"))
		s := short(10)
		s.Clip, s.Epsilon, s.WeightDecay = clip, 1e6, 0
		before := flat(m)
		step(t, trainer(t, m, s, &copyTask{rows: 2, half: 4, vocabulary: 8}))
		sum := 0.0
		for i, v := range flat(m) {
			sum += (v - before[i]) * (v - before[i])
		}
		return math.Sqrt(sum)
	}
	free := moved(0)
	if loose := moved(1e9); loose != free {
		t.Errorf("moved by %v under a limit out of reach, %v without one", loose, free)
	}
	a, b := moved(1e-3), moved(2e-3)
	if !(a < free) || math.Abs(b/a-2) > 1e-3 {
		t.Errorf("moved by %v, %v and %v", a, b, free)
	}
}

func TestFactorWithoutTensor(t *testing.T) {
	s := short(1)
	s.LearningRateFactors = map[string]float64{"f_proj": 10, "f_prj": 2}
	_, err := NewTrainer(tiny(t, open(t, "ref")), s, &copyTask{})
	if err == nil || !strings.Contains(err.Error(), `"f_prj"`) {
		t.Errorf("error %v", err)
	}
}

// A parameter that backward does not reach in a step has gradient zero, whatever the step before has left there.
func TestUnwrittenGradientIsZero(t *testing.T) {
	m := tiny(t, open(t, "ref"))
	o := trainer(t, m, short(5), &copyTask{rows: 2, half: 4, vocabulary: 8}).optimizer
	leave := func() {
		for _, p := range o.parameters {
			junk := make([]float64, p.Value.Len())
			for i := range junk {
				junk[i] = 3
			}
			m.Backend().Write(p.Value.Gradient, tensor.FromF64(junk, p.Value.Shape.Dims()...))
		}
	}
	leave()
	o.begin()
	if norm := o.squaredNorm(); norm != 0 {
		t.Errorf("squared norm %v of gradients that nobody wrote", norm)
	}
	tape := autograd.New(m.Backend())
	defer tape.Close()
	var b model.Batch
	(&copyTask{rows: 1, half: 2, vocabulary: 8}).Next(&b)
	m.Loss(tape, &b, 1)
	tape.Backward()
	leave()
	if norm := o.squaredNorm(); norm == 0 {
		t.Error("gradients that backward wrote were zeroed")
	}
}

// poison makes the loss of chosen steps NaN by way of the model's last norm, and mends it afterwards.
type poison struct {
	Source
	m      *model.Model
	bad    func(step int) bool
	step   int
	weight []float64
}

func (p *poison) Next(b *model.Batch) error {
	p.step++
	v, _ := p.m.Parameter("model.norm.weight")
	if p.weight != nil {
		p.m.Backend().Write(v.Value.Tensor, tensor.FromF64(p.weight, len(p.weight)))
		p.weight = nil
	}
	if p.bad(p.step) {
		p.weight = read(p.m, v.Value.Tensor)
		x := slices.Clone(p.weight)
		x[0] = math.NaN()
		p.m.Backend().Write(v.Value.Tensor, tensor.FromF64(x, len(x)))
	}
	return p.Source.Next(b)
}

// A step without a finite loss changes nothing, neither parameters nor moments nor AdamW's count, and is counted.
func TestNonFiniteStepIsSkipped(t *testing.T) {
	for _, name := range []string{"ref", "cpu"} {
		b := open(t, name)
		m, plain := tiny(t, b), tiny(t, b)
		s := short(6)
		s.Schedule = Constant // so that the rate does not tell the two runs apart
		bad := func(step int) bool { return step == 2 || step == 3 }
		tr := trainer(t, m, s, &poison{Source: &copyTask{rows: 2, half: 4, vocabulary: 8}, m: m, bad: bad})
		task := &copyTask{rows: 2, half: 4, vocabulary: 8}
		other := trainer(t, plain, s, task)
		for i := 1; i <= 5; i++ {
			stats := step(t, tr)
			if stats.Skipped != bad(i) || bad(i) == finite(float64(stats.Loss)) {
				t.Fatalf("%s: step %d: %+v", name, i, stats)
			}
			if bad(i) {
				task.n++
			} else {
				step(t, other)
			}
		}
		if tr.progress.Skipped != 2 || tr.progress.Step != 5 || tr.progress.InARow != 0 {
			t.Errorf("%s: %+v", name, tr.progress)
		}
		if !slices.Equal(flat(m), flat(plain)) {
			t.Errorf("%s: skipped steps have changed something", name)
		}
	}
}

func TestManyNonFiniteStepsStop(t *testing.T) {
	m := tiny(t, open(t, "ref"))
	s := short(20)
	s.MaxSkipped = 3
	tr := trainer(t, m, s, &poison{Source: &copyTask{rows: 1, half: 2, vocabulary: 8}, m: m, bad: func(int) bool { return true }})
	for i := 1; i <= 3; i++ {
		_, err := tr.Step()
		switch {
		case i < 3 && err != nil:
			t.Fatal(err)
		case i == 3 && (err == nil || !strings.Contains(err.Error(), "lower learning_rate (0.01)") || !strings.Contains(err.Error(), "3 steps in a row")):
			t.Errorf("error %v", err)
		}
	}
}

// wrong gives one batch that does not fit.
type wrong struct {
	batch model.Batch
	err   error
}

func (w wrong) Next(b *model.Batch) error     { *b = w.batch; return w.err }
func (wrong) State() (json.RawMessage, error) { return nil, nil }
func (wrong) Restore(json.RawMessage) error   { return nil }

func TestBatchErrors(t *testing.T) {
	m := tiny(t, open(t, "ref"))
	for name, c := range map[string]struct {
		source wrong
		want   string
	}{
		"vocabulary": {wrong{batch: model.Batch{Tokens: []int32{1, 99}, Targets: []int32{1, -1}, Lengths: []int{2}}}, "token 99"},
		"no targets": {wrong{batch: model.Batch{Tokens: []int32{1, 2}, Lengths: []int{2}}}, "without targets"},
		"nothing":    {wrong{batch: model.Batch{Tokens: []int32{1, 2}, Targets: []int32{-1, -1}, Lengths: []int{2}}}, "no token of the batch"},
		"source":     {wrong{err: errors.New("the tape is torn")}, "step 1: the tape is torn"},
	} {
		before := flat(m)
		if _, err := trainer(t, m, short(1), c.source).Step(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, c.want)
		}
		if !slices.Equal(before, flat(m)) {
			t.Errorf("%s: the model has changed", name)
		}
	}
}

// A model that cannot be trained is refused.
func TestModelWithoutGradients(t *testing.T) {
	b := open(t, "ref")
	dir := t.TempDir()
	if err := tiny(t, b).Save(dir); err != nil {
		t.Fatal(err)
	}
	m, err := model.Load(dir, b, model.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if _, err := NewTrainer(m, short(1), &copyTask{}); err == nil || !strings.Contains(err.Error(), "without gradients") {
		t.Errorf("error %v", err)
	}
}

// After the first steps, a step allocates (nearly) nothing.
func TestStepAllocatesNothing(t *testing.T) {
	m := tiny(t, open(t, "cpu"))
	s := short(100)
	s.Accumulation = 2
	tr := trainer(t, m, s, &steady{})
	for range 3 {
		step(t, tr)
	}
	bytes := tr.Bytes()
	if n := testing.AllocsPerRun(20, func() { step(t, tr) }); n > 6 {
		t.Errorf("%v allocations a step", n)
	} else {
		t.Logf("%v allocations a step", n)
	}
	if tr.Bytes() != bytes {
		t.Errorf("memory went from %d to %d bytes", bytes, tr.Bytes())
	}
}

// steady is a source that allocates nothing.
type steady struct{ n int32 }

func (s *steady) Next(b *model.Batch) error {
	const n = 24
	b.Tokens, b.Targets = slices.Grow(b.Tokens[:0], n)[:n], slices.Grow(b.Targets[:0], n)[:n]
	b.Lengths = append(b.Lengths[:0], 16, 8)
	for i := range b.Tokens {
		s.n = (s.n*5 + 3) % 8
		b.Tokens[i], b.Targets[i] = s.n, (s.n*5+3)%8
	}
	return nil
}

func (s *steady) State() (json.RawMessage, error) { return json.Marshal(s.n) }
func (s *steady) Restore(b json.RawMessage) error { return json.Unmarshal(b, &s.n) }

// TestMomentsMustFit: bfloat16 moments want masters beside them, and a second moment that they can follow.
func TestMomentsMustFit(t *testing.T) {
	s := short(10)
	s.Moments = BFloat16
	if _, err := NewTrainer(tiny(t, open(t, "cpu")), s, &copyTask{}); err == nil || !strings.Contains(err.Error(), "moments bfloat16") {
		t.Errorf("on the processor: %v", err)
	}
	s.Beta2 = 0.999
	if err := s.Resolve(); err == nil || !strings.Contains(err.Error(), "beta2 0.999") {
		t.Errorf("with a slow second moment: %v", err)
	}
	s.Moments = "float8"
	if err := s.Resolve(); err == nil || !strings.Contains(err.Error(), `"float8"`) {
		t.Errorf("of an unknown type: %v", err)
	}
	s.Moments, s.Recompute = Float32, "everything"
	if err := s.Resolve(); err == nil || !strings.Contains(err.Error(), `"everything"`) {
		t.Errorf("everything computed again: %v", err)
	}
}

// failsAt is a Source whose batch of that number is an error.
type failsAt struct {
	copyTask
	at uint64
}

func (f *failsAt) Next(b *model.Batch) error {
	if f.n == f.at {
		return errors.New("torn")
	}
	return f.copyTask.Next(b)
}

// TestAhead: the same batches, states that do not count the one that waits, errors where they belong.
func TestAhead(t *testing.T) {
	task := copyTask{rows: 2, half: 3, vocabulary: 8}
	a, plain := NewAhead(&failsAt{task, 5}), task
	defer a.Close()
	var got, want model.Batch
	for i := range 5 {
		if i == 3 { // from here on again
			state, err := a.State()
			if err != nil || string(state) != "3" {
				t.Fatalf("state %s (%v), want 3", state, err)
			}
			if err := a.Restore(state); err != nil {
				t.Fatal(err)
			}
		}
		if err := a.Next(&got); err != nil {
			t.Fatal(err)
		}
		if err := plain.Next(&want); err != nil || !slices.Equal(got.Tokens, want.Tokens) || !slices.Equal(got.Targets, want.Targets) || !slices.Equal(got.Lengths, want.Lengths) {
			t.Fatalf("batch %d is another one (%v)", i, err)
		}
	}
	if err := a.Next(&got); err == nil || err.Error() != "torn" {
		t.Errorf("error %v, want torn", err)
	}
}
