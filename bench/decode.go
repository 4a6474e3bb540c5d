package bench

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"

	"nha/autograd"
	"nha/backend"
	"nha/model"
	"nha/tensor"
)

// Decode measures the step that reads one token of each session of a batch and computes the logits of the next.
//
// The model is a directory, or a preset in some size with random weights, which goes through a directory too: so that the
// weights lie in memory as those of a model that was loaded. The sessions are at a depth without having read that many
// tokens: their states are filled with random numbers, rings and slots alike, and after each step they go back to that
// depth (in a program of steps they go on from it). A step's time does not depend on the numbers.
type Decode struct {
	Model   string // a preset or a model directory
	Size    ModelSize
	DTypes  []string // of the weights: float32, bfloat16, float16; none: as a directory stores them, float32 for a preset
	Batches []int
	Depths  []int // tokens before the step
	Timing
	stream int // bytes of the buffer that shows the bandwidth; tests take fewer
}

// DecodeResult is one combination. StateBytes is the decode state of one session, ResidentBytes the whole process with the
// weights. ReadBytes is what a step must read at least: every weight that multiplies, and the states. On the processor that
// is held against the bandwidth measured just before.
type DecodeResult struct {
	Backend         string  `json:"backend"`
	Model           string  `json:"model"`
	DType           string  `json:"dtype"`
	Batch           int     `json:"batch"`
	Depth           int     `json:"depth"`
	StepMS          float64 `json:"step_ms"`
	TokensPerSecond float64 `json:"tokens_per_s"`
	StateBytes      int     `json:"state_bytes"`
	ResidentBytes   int     `json:"resident_bytes"`
	ReadBytes       int     `json:"read_bytes"`
	Bandwidth       float64 `json:"bandwidth_bytes_per_s,omitempty"`
	BandwidthShare  float64 `json:"bandwidth_share,omitempty"`
}

// Check refuses models, types and depths that are none.
func (o *Decode) Check() error {
	if IsPreset(o.Model) {
		if _, err := o.Size.config(o.Model); err != nil {
			return err
		}
	} else if !model.Exists(o.Model) {
		return fmt.Errorf("model %q is neither a preset nor a model directory", o.Model)
	}
	for _, name := range o.DTypes {
		if d, err := tensor.ParseDType(name); err != nil || !d.Float() || d == tensor.F64 {
			return fmt.Errorf("dtype %q: use float32, bfloat16 or float16", name)
		}
	}
	for _, err := range []error{positive("batch", o.Batches, 1), positive("depth", o.Depths, 0), o.Timing.Check()} {
		if err != nil {
			return err
		}
	}
	return nil
}

// Run measures every combination.
func (o *Decode) Run(ctx context.Context, b backend.Backend, emit Emit) error {
	return o.eachType(b, func(m *model.Model) error {
		return combinations([][]int{o.Batches, o.Depths}, func(n []int) error {
			row, err := o.measure(ctx, b, m, n[0], n[1])
			if err != nil {
				return err
			}
			return emit(row)
		})
	})
}

// eachType loads the model with weights of every type that is asked for, one after the other.
func (o *Decode) eachType(b backend.Backend, use func(m *model.Model) error) error {
	types := o.DTypes
	if len(types) == 0 {
		types = []string{""}
	}
	one := func(dtype string) error {
		m, clean, err := o.load(b, dtype)
		if err != nil {
			return err
		}
		defer clean()
		return use(m)
	}
	for _, dtype := range types {
		if err := one(dtype); err != nil {
			return err
		}
	}
	return nil
}

// load is the model with weights of the named type; clean closes it and removes what was made for it.
func (o *Decode) load(b backend.Backend, dtype string) (m *model.Model, clean func(), err error) {
	preset := IsPreset(o.Model)
	if !preset {
		if m, err = model.Load(o.Model, b, model.LoadOptions{Windows: o.Size.Windows}); err != nil {
			return nil, nil, err
		}
		if want, _ := tensor.ParseDType(dtype); dtype == "" || m.Tensors()[0].Value.DType == want {
			return m, func() { m.Close() }, nil
		}
	} else {
		c, err := o.Size.config(o.Model)
		if err != nil {
			return nil, nil, err
		}
		if m, err = model.New(c, b, model.Init{Seed: 1}); err != nil {
			return nil, nil, err
		}
		if strings.HasPrefix(b.Name(), "cuda") && (dtype == "" || dtype == dtypeName(b.DType())) { // loading would leave them the same
			return m, func() { m.Close() }, nil
		}
	}
	defer m.Close()
	if dtype != "" {
		m.Config.DType = dtype
	}
	dir, err := os.MkdirTemp("", "nha-bench-")
	if err != nil {
		return nil, nil, err
	}
	var loaded *model.Model
	if err = m.Save(dir); err == nil {
		loaded, err = model.Load(dir, b, model.LoadOptions{})
	}
	if err != nil {
		os.RemoveAll(dir)
		return nil, nil, err
	}
	return loaded, func() { loaded.Close(); os.RemoveAll(dir) }, nil
}

func (o *Decode) measure(ctx context.Context, b backend.Backend, m *model.Model, batch, depth int) (DecodeResult, error) {
	perSession := float64(m.Config.Account(depth + 1).StateBytes)
	if err := fits(fmt.Sprintf("the state of %d sessions at depth %d", batch, depth), float64(batch)*perSession/4); err != nil {
		return DecodeResult{}, err
	}
	row := DecodeResult{Backend: b.Name(), Model: o.Model, DType: dtypeName(m.Tensors()[0].Value.DType), Batch: batch, Depth: depth}
	if strings.HasPrefix(b.Name(), "cpu") {
		settle()
		row.Bandwidth = readBandwidth(cmp.Or(o.stream, streamBytes), 10)
	}
	d := newDecoder(m, batch, depth)
	defer d.close()
	settle()
	seconds, err := o.median(ctx, d.step)
	if err != nil {
		return DecodeResult{}, err
	}
	row.StepMS, row.TokensPerSecond, row.StateBytes = seconds*1e3, float64(batch)/seconds, d.states[0].Bytes()
	row.ReadBytes = weightBytes(m) + batch*int(perSession)
	row.ResidentBytes, _, _ = resident()
	if row.Bandwidth > 0 {
		row.BandwidthShare = float64(row.ReadBytes) / seconds / row.Bandwidth
	}
	return row, nil
}

// weightBytes is the weights that a step reads: all but an embedding that is no head, of which a step reads a row.
func weightBytes(m *model.Model) int {
	n := 0
	for i, p := range m.Tensors() {
		if i > 0 || m.Config.TieWordEmbeddings { // the embedding comes first
			n += p.Value.DType.Bytes(p.Value.Len())
		}
	}
	return n
}

// decoder is sessions that write the likeliest token each: by the backend's program of decoding steps where it has one, else by
// plain calls.
type decoder struct {
	m      *model.Model
	tape   *autograd.Tape
	batch  model.Batch
	states []*model.State
	depth  int
	logits tensor.Tensor // on the host

	program backend.Decoder // nil: plain calls
	seats   []int
	drawn   []backend.Drawn
}

func newDecoder(m *model.Model, batch, depth int) *decoder {
	d := &decoder{m: m, tape: autograd.New(m.Backend()), depth: depth, logits: tensor.New(m.Backend().DType(), tensor.Of(batch, m.Config.VocabSize))}
	d.tape.Record(false)
	if program, err := m.Decoder(); err == nil {
		if batch <= program.Rows() {
			d.program = program
		} else {
			program.Close()
		}
	}
	for i := range batch {
		token := int32(i % m.Config.VocabSize)
		if d.program != nil { // all of the same contents: only their memory has to differ
			if i == 0 {
				d.states = append(d.states, stateAt(m, depth))
			}
			d.seats = append(d.seats, d.program.Join(d.states[0].Layers, nil, token, backend.Draw{TopP: 1, RepetitionPenalty: 1}))
			continue
		}
		d.states = append(d.states, stateAt(m, depth))
		d.batch.Tokens = append(d.batch.Tokens, token)
		d.batch.Lengths = append(d.batch.Lengths, 1)
	}
	d.batch.States = d.states
	if d.program != nil {
		d.program.Step(d.seats) // one is under way while the next is queued
	}
	return d
}

func (d *decoder) close() {
	if d.program != nil {
		d.program.Close()
	}
	d.tape.Close()
}

// step reads every session's token, brings the logits to the host, goes on to another token and turns the sessions back to
// their depth. Sampling is not counted. A program's step draws the token, brings that, and goes on; it counts from one step's tokens to the next's.
func (d *decoder) step() {
	if d.program != nil {
		d.program.Step(d.seats)
		d.drawn = d.program.Drawn(d.drawn)
		return
	}
	d.tape.Reset()
	hidden := d.m.Hidden(d.tape, &d.batch)
	d.m.Backend().Read(d.logits, d.m.Logits(d.tape, hidden, 0, len(d.states)).Tensor)
	for i, id := range d.batch.Tokens {
		d.batch.Tokens[i] = (id + 1) % int32(d.m.Config.VocabSize)
	}
	for _, s := range d.states {
		s.Position = d.depth
		for _, l := range s.Layers {
			l.Position, l.Count = d.depth, min(l.Count, d.depth)
		}
	}
}

// stateAt is a state at a depth, with random contents and room for one more token.
func stateAt(m *model.Model, depth int) *model.State {
	s := m.NewState()
	s.Position = depth
	for i, l := range s.Layers {
		c, err := m.Config.Attention(i, nil)
		if err != nil {
			panic("bench: a loaded model's configuration: " + err.Error())
		}
		l.Reserve(c, depth+1)
		l.Position, l.Count = depth, min(c.Window, depth)
		if l.Count == c.Window && c.Window > 0 {
			l.Start = depth % c.Window
		}
		for _, t := range []tensor.Tensor{l.SlotKeys, l.SlotValues, l.Keys, l.Values} {
			if t.Present() {
				fillHost(t, (*rand.Rand).NormFloat64)
			}
		}
		if l.LogGates.Present() { // logarithms of decays just below 1
			fillHost(l.LogGates, func(r *rand.Rand) float64 { return -r.ExpFloat64() / 16 })
		}
	}
	return s
}
