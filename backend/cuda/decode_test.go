package cuda

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"nha/attention"
	"nha/autograd"
	"nha/backend"
	"nha/backend/ref"
	"nha/model"
	"nha/tensor"
)

// decodeShape is a model's sizes.
type decodeShape struct {
	hidden, queryHeads, heads, dim, slots, inner, vocabulary int
	windows                                                  []int
	rope                                                     bool
}

var (
	shape135M = decodeShape{576, 9, 3, 64, 64, 1536, 49152, []int{64}, true}
	shape1B   = decodeShape{2048, 32, 8, 64, 64, 8192, 128256, []int{64}, true}
	shapeTiny = decodeShape{64, 4, 2, 16, 8, 96, 261, []int{4, attention.Full, 0, 300}, true}
)

// model is a model of this shape without contents.
func (s decodeShape) model() *backend.DecodeModel {
	t := func(dims ...int) tensor.Tensor { return tensor.OnDevice(tensor.BF16, tensor.Of(dims...), 256) }
	a := func(out, in int) backend.Affine { return backend.Affine{Weight: t(out, in)} }
	m := &backend.DecodeModel{Embedding: t(s.vocabulary, s.hidden), Norm: t(s.hidden), Head: t(s.vocabulary, s.hidden), Epsilon: 1e-6}
	rope := attention.NewRope(s.dim, 10000)
	for _, w := range s.windows {
		c := &attention.Config{QueryHeads: s.queryHeads, KVHeads: s.heads, KeyDim: s.dim, ValueDim: s.dim, Slots: s.slots, Window: w, Scale: 1, GateNormalizer: 8, Rope: rope}
		l := backend.DecodeBlock{Attention: c, AttentionNorm: t(s.hidden), MLPNorm: t(s.hidden), OutputNorm: t(s.queryHeads * s.dim), Q: a(s.queryHeads*s.dim, s.hidden),
			K: a(s.heads*s.dim, s.hidden), V: a(s.heads*s.dim, s.hidden), O: a(s.hidden, s.queryHeads*s.dim), Gate: a(s.inner, s.hidden), Up: a(s.inner, s.hidden),
			Down: a(s.hidden, s.inner), ActivateValues: true}
		if s.slots > 0 {
			l.Z = a(s.heads*s.slots, s.hidden)
		}
		m.Blocks = append(m.Blocks, l)
	}
	return m
}

// planned is the kernels of a step on a card of 132 multiprocessors.
func planned(m *backend.DecodeModel, rows int) []plannedNode {
	d := &decoder{m: m}
	d.lay()
	p := &plan{d: d, rows: rows, sms: 132, alloc: func(int) arg { return 256 }}
	p.build()
	return p.nodes
}

// The kernels of these steps are compiled by TestCompile.
func init() {
	specialisations["state.cu"] = over(realTypes)
	asked := map[moduleKey]bool{}
	for _, s := range []decodeShape{shape135M, shape1B, shapeTiny} {
		for _, rows := range []int{1, 16, 64} {
			for _, n := range planned(s.model(), rows) {
				if k := key(n.file, n.defines); !asked[k] {
					asked[k] = true
					specialisations[n.file] = append(specialisations[n.file], n.defines)
				}
			}
		}
	}
}

// TestDecodePlan: five kernels a layer, four around them.
func TestDecodePlan(t *testing.T) {
	for _, rows := range decodeRows {
		nodes := planned(shapeTiny.model(), rows)
		if want := 4 + 5*len(shapeTiny.windows); len(nodes) != want {
			t.Errorf("%d rows: %d kernels, want %d", rows, len(nodes), want)
		}
		for _, n := range nodes {
			if n.block > 1024 || n.block < 32 || n.grid.x < 1 || n.grid.y < 1 || n.grid.z < 1 {
				t.Errorf("%d rows: %s over %v of %d threads", rows, n.entry, n.grid, n.block)
			}
		}
	}
}

// decodeConfig is a language model of a test.
func decodeConfig(windows model.Windows, slots int, rule string) model.Config {
	c := model.NewConfig(261, 64, len(windows))
	c.NumHeads, c.NumKVHeads, c.HeadDim, c.IntermediateSize = 4, 2, 16, 96
	c.NumSlots, c.LayerWindows, c.EmptySlots, c.TieWordEmbeddings = slots, windows, rule, false
	return c
}

// decodeModels is the same model on the card and, with the weights rounded as they are there, in float64.
func decodeModels(t testing.TB, b *Backend, c model.Config) (onCard, truth *model.Model) {
	t.Helper()
	onCard, err := model.New(c, b, model.Init{Seed: 3, Std: 0.3})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { onCard.Close() })
	r := ref.Backend{}
	if truth, err = model.New(c, r, model.Init{Seed: 3, Std: 0.3}); err != nil {
		t.Fatal(err)
	}
	for i, p := range onCard.Parameters() {
		r.Write(truth.Parameters()[i].Value.Tensor, down(b, p.Value.Tensor))
	}
	return onCard, truth
}

// plainSteps reads tokens into states by plain calls of the ops and returns the last logits of every sequence.
func plainSteps(m *model.Model, states []*model.State, tokens [][]int32) [][]float64 {
	tape := autograd.New(m.Backend())
	defer tape.Close()
	tape.Record(false)
	batch := model.Batch{States: states}
	for _, list := range tokens {
		batch.Tokens, batch.Lengths = append(batch.Tokens, list...), append(batch.Lengths, len(list))
	}
	hidden := m.Hidden(tape, &batch)
	var logits [][]float64
	end := 0
	for _, list := range tokens {
		end += len(list)
		l := m.Logits(tape, hidden, end-1, end).Tensor
		host := tensor.New(tensor.F64, tensor.Of(l.Len()))
		m.Backend().Read(host, l.View(l.Len()))
		logits = append(logits, host.F64())
	}
	return logits
}

// distance is the relative L2 error of x.
func distance(x, want []float64) float64 {
	above, below := 0.0, 0.0
	for i := range want {
		above += (x[i] - want[i]) * (x[i] - want[i])
		below += want[i] * want[i]
	}
	return math.Sqrt(above / below)
}

// bits is a set of tokens as Join takes it.
func seenBits(vocabulary int, lists ...[]int32) []uint64 {
	b := make([]uint64, (vocabulary+63)/64)
	for _, list := range lists {
		for _, id := range list {
			b[id>>6] |= 1 << (id & 63)
		}
	}
	return b
}

// TestDecode: sequences of their own lengths come, are read on by graph and leave, in turns; what they wrote, read by float64 in one
// piece, gives the same logits and states. Plain calls in bf16 say how near that can be.
func TestDecode(t *testing.T) {
	b := card(t, tensor.BF16)
	full := attention.Full
	for _, x := range []struct {
		windows model.Windows
		slots   int
		rule    string
		batch   int
	}{
		{model.Windows{4}, 8, "count", 1}, {model.Windows{4}, 8, "mask", 3}, {model.Windows{0}, 8, "count", 2}, {model.Windows{0}, 8, "mask", 2},
		{model.Windows{full}, 0, "count", 2}, {model.Windows{full}, 8, "mask", 2}, {model.Windows{full}, 8, "count", 9},
		{model.Windows{300}, 8, "count", 2}, {model.Windows{7, full, 0, 300}, 8, "count", 20}, {model.Windows{33}, 0, "count", 70},
	} {
		t.Run(fmt.Sprint(x.windows, x.slots, x.rule, x.batch), func(t *testing.T) {
			m, truth := decodeModels(t, b, decodeConfig(x.windows, x.slots, x.rule))
			d, err := m.Decoder()
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			type sequence struct {
				state  *model.State
				read   []int32
				logits []float64
			}
			var list []*sequence
			for i := range x.batch {
				s := &sequence{state: m.NewState(), read: ids(uint64(i), 1+i*37%330, 261).I32()}
				s.logits = plainSteps(m, []*model.State{s.state}, [][]int32{s.read})[0]
				list = append(list, s)
			}
			for turn, steps := range []int{1, 5, 12} {
				var seats []int
				next := make([]int32, len(list))
				for i, s := range list {
					next[i] = int32((i*11 + turn) % 261)
					draw := backend.Draw{TopP: 1, RepetitionPenalty: 1, Temperature: float64(i % 2), Seed: 5, Sample: i}
					seats = append(seats, d.Join(s.state.Layers, seenBits(261, s.read), next[i], draw))
				}
				for k := range steps {
					d.Step(seats)
					for i, s := range list {
						s.read = append(s.read, next[i])
					}
					drawn := d.Drawn(nil)
					for i := range list {
						if next[i] = drawn[i].Token; next[i] < 0 {
							t.Fatalf("turn %d, step %d, row %d: logits are no numbers", turn, k, i)
						}
					}
				}
				for i, s := range list {
					logits := tensor.New(tensor.F32, tensor.Of(261))
					d.Leave(seats[i], i, s.state.Layers, logits)
					s.state.Position = s.state.Layers[0].Position
					for n, v := range logits.F32() {
						s.logits[n] = float64(v)
					}
				}
			}
			worst := 0.0
			for i, s := range list {
				want := truth.NewState()
				exact := plainSteps(truth, []*model.State{want}, [][]int32{s.read})[0]
				plain := plainSteps(m, []*model.State{m.NewState()}, [][]int32{s.read})[0]
				e, near := distance(s.logits, exact), distance(plain, exact)
				worst = max(worst, e)
				if !(e <= 2*near+5e-3) {
					t.Errorf("row %d after %d tokens: logits are off by %.2g, by plain calls %.2g", i, len(s.read), e, near)
				}
				for n, l := range s.state.Layers {
					c, _ := m.Config.Attention(n, nil)
					if e := l.ConvertTo(tensor.F64).MaxError(c, want.Layers[n]); !(e <= 0.05) {
						t.Errorf("row %d after %d tokens: layer %d's state is off by %.2g", i, len(s.read), n, e)
					}
				}
			}
			t.Logf("logits off by %.2g at most", worst)
		})
	}
}

// TestDecodeSameBits: what the other rows of a step are changes nothing, as long as they are equally many.
func TestDecodeSameBits(t *testing.T) {
	b := card(t, tensor.BF16)
	m, _ := decodeModels(t, b, decodeConfig(model.Windows{7, attention.Full, 0}, 8, "count"))
	d, err := m.Decoder()
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var first []float32
	for turn := range 3 {
		var seats []int
		for i := range 4 {
			state, read := m.NewState(), ids(uint64(i*turn), 20+i*turn, 261).I32()
			plainSteps(m, []*model.State{state}, [][]int32{read})
			seats = append(seats, d.Join(state.Layers, seenBits(261, read), 5, backend.Draw{TopP: 1, RepetitionPenalty: 1}))
		}
		for range 6 {
			d.Step(seats)
			d.Drawn(nil)
		}
		logits := tensor.New(tensor.F32, tensor.Of(261))
		d.Leave(seats[0], 0, m.NewState().Layers, logits)
		for _, s := range seats[1:] {
			d.Drop(s)
		}
		if turn == 0 {
			first = logits.Clone().F32()
		} else if !slices.Equal(first, logits.F32()) {
			t.Errorf("turn %d: other logits", turn)
		}
	}
}

// BenchmarkDecode is milliseconds a step of the shapes of the decoding table, states and weights made up, by the card's clock and by the
// host's with a step in flight.
func BenchmarkDecode(bench *testing.B) {
	b := card(bench, tensor.BF16)
	for _, x := range []struct {
		name   string
		shape  decodeShape
		layers int
	}{{"135M", shape135M, 30}, {"1.2B", shape1B, 16}} {
		x.shape.windows = slices.Repeat(x.shape.windows, x.layers)
		m := x.shape.model()
		var held []tensor.Tensor
		place := func(t *tensor.Tensor) {
			if t.Present() {
				*t = b.Alloc(tensor.BF16, t.Shape)
				part := random(uint64(len(held)), min(t.Len(), 1<<20))
				for i := range part.F32() {
					part.F32()[i] *= 0.02
				}
				for at := 0; at < t.Len(); at += part.Len() {
					n := min(part.Len(), t.Len()-at)
					b.Write(t.At(at, tensor.Of(n)), part.At(0, tensor.Of(n)))
				}
				held = append(held, *t)
			}
		}
		place(&m.Embedding)
		place(&m.Norm)
		m.Head = m.Embedding
		for i := range m.Blocks {
			l := &m.Blocks[i]
			for _, t := range []*tensor.Tensor{&l.AttentionNorm, &l.MLPNorm, &l.OutputNorm, &l.Q.Weight, &l.K.Weight, &l.V.Weight, &l.Z.Weight, &l.O.Weight, &l.Gate.Weight, &l.Up.Weight, &l.Down.Weight} {
				place(t)
			}
		}
		for _, draw := range []backend.Draw{{TopP: 1, RepetitionPenalty: 1}, {Temperature: 0.8, TopK: 50, TopP: 0.95, RepetitionPenalty: 1.1}} {
			for _, batch := range []int{1, 16, 64, 256} {
				dec, err := b.CompileDecode(m)
				if err != nil {
					bench.Fatal(err)
				}
				d := dec.(*decoder)
				var seats []int
				for i := range batch {
					var layers []*attention.State
					for n := range m.Blocks {
						s := attention.NewState(m.Blocks[n].Attention, tensor.BF16)
						s.Position, s.Count = 1000+i, m.Blocks[n].Attention.Window
						layers = append(layers, s)
					}
					seats = append(seats, d.Join(layers, nil, 1, draw))
				}
				d.Step(seats)
				d.Drawn(nil)
				name := "greedy"
				if draw.Temperature > 0 {
					name = "sampled"
				}
				bench.Run(fmt.Sprintf("%s/%s/B%d", x.name, name, batch), func(bench *testing.B) {
					d.Step(seats)
					start := time.Now()
					n := 0
					for bench.Loop() {
						d.Step(seats)
						d.Drawn(nil)
						n++
					}
					d.Drawn(nil)
					bench.ReportMetric(float64(time.Since(start).Microseconds())/1e3/float64(n+1), "ms")
					bench.ReportMetric(0, "ns/op")
				})
				if draw.Temperature == 0 && (batch == 1 || batch == 64) {
					profileDecode(bench, d, batch)
				}
				d.Close()
			}
		}
		for _, t := range held {
			b.Free(t)
		}
	}
}

// profileDecode logs the milliseconds of a step's kernels, each by itself, many times over.
func profileDecode(bench *testing.B, d *decoder, rows int) {
	s := &program{rows: rows}
	p := &plan{d: d, rows: rows, sms: d.b.d.sms, alloc: func(bytes int) arg {
		to := d.b.d.alloc(max(bytes, 1), forScratch)
		d.b.d.fill(to, 0, bytes)
		s.buffers = append(s.buffers, to)
		return arg(to)
	}}
	p.build()
	nodes, err := p.compile()
	if err != nil {
		bench.Fatal(err)
	}
	seen := map[string]bool{}
	line := ""
	for i, n := range nodes {
		name := fmt.Sprint(n.kernel.entry, n.grid, n.block)
		for _, x := range n.kernel.module.list() {
			if strings.HasPrefix(x, "INNER") || strings.HasPrefix(x, "KIND") {
				name += " " + x
			}
		}
		if seen[name] {
			continue
		}
		seen[name] = true
		var same []node // the same kernel of all layers, so that weights come from memory
		for _, other := range nodes[i:] {
			if other.kernel == n.kernel && other.grid == n.grid {
				same = append(same, other)
			}
		}
		for len(same) < 16 {
			same = append(same, same...)
		}
		exec := d.recorder.record(same)
		launch := func() {
			c := d.b.d.take(func(dv *device, c *command) error {
				if code := dv.invoke(uintptr(c.args[1]), uintptr(c.args[0]), dv.stream); code != 0 {
					return dv.driver.failure("cuGraphLaunch", code)
				}
				return nil
			})
			c.args[0], c.args[1] = uint64(exec), uint64(d.recorder.f[cuGraphLaunch])
			d.b.d.queue <- c
		}
		launch()
		best := 1e9
		for range 5 {
			best = min(best, d.b.Milliseconds(launch)/float64(len(same)))
		}
		d.recorder.forget(exec)
		line += fmt.Sprintf("\n    %.2f us %s", best*1e3, name)
	}
	for _, p := range s.buffers {
		d.b.d.release(p)
	}
	fmt.Printf("%d rows:%s\n", rows, line)
}
