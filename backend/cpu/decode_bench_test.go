package cpu

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"nha/attention"
	"nha/backend"
	"nha/tensor"
)

// lm is the products, norms and attention of a language model of SmolLM2-135M's shape with random weights of one type, and nothing
// above the backend: what a step costs at least.
type lm struct {
	b                             *Backend
	head, norm                    tensor.Tensor
	layers                        [30]lmLayer
	rstd                          tensor.Tensor
	x, y, q, k, v, o, gate, up, h tensor.Tensor
	logits                        tensor.Tensor
}

type lmLayer struct {
	q, k, v, o, gate, up, down tensor.Tensor
	attention                  attention.Config
	state                      *attention.State
}

const lmHidden, lmInner, lmHeads, lmKVHeads, lmDim, lmVocabulary = 576, 1536, 9, 3, 64, 49152

func newLM(b *Backend, weights tensor.DType, head tensor.DType, window int) *lm {
	r := rand.New(rand.NewPCG(1, 1))
	random := func(d tensor.DType, rows, columns int) tensor.Tensor {
		t := b.Alloc(d, tensor.Of(rows, columns))
		row := make([]float32, columns)
		for i := range row {
			row[i] = float32(r.NormFloat64()) * 0.04
		}
		if d.Quantized() {
			quantise(t.Narrow(0, 1), row)
		} else {
			tensor.Convert(t.Narrow(0, 1), tensor.FromF32(row, 1, columns))
		}
		for i := 1; i < rows; i++ { // the numbers do not matter, the memory does
			copy(t.Narrow(i, i+1).Bytes(), t.Narrow(0, 1).Bytes())
		}
		return t
	}
	m := &lm{b: b, head: random(head, lmVocabulary, lmHidden), norm: b.Alloc(tensor.F32, tensor.Of(lmHidden))}
	for i := range m.norm.F32() {
		m.norm.F32()[i] = 1
	}
	rope := attention.NewRope(lmDim, 10000)
	for i := range m.layers {
		l := &m.layers[i]
		l.q, l.k, l.v = random(weights, lmHeads*lmDim, lmHidden), random(weights, lmKVHeads*lmDim, lmHidden), random(weights, lmKVHeads*lmDim, lmHidden)
		l.o, l.gate, l.up, l.down = random(weights, lmHidden, lmHeads*lmDim), random(weights, lmInner, lmHidden), random(weights, lmInner, lmHidden), random(weights, lmHidden, lmInner)
		l.attention = attention.Config{QueryHeads: lmHeads, KVHeads: lmKVHeads, KeyDim: lmDim, ValueDim: lmDim, Window: window, Scale: 0.125, Rope: rope}
	}
	return m
}

// quantise fills a row of a quantised type: encoded where there is an encoder, else random integers with plain scales.
func quantise(t tensor.Tensor, row []float32) {
	if t.DType == tensor.Q4_0 || t.DType == tensor.Q8_0 {
		tensor.Quantize(t, row)
		return
	}
	b := t.Bytes()
	_, size := t.DType.Block()
	for i := range b {
		b[i] = byte(i*2654435761>>7) & 0x3f
	}
	for at := 0; at < len(b); at += size {
		d := at
		if t.DType == tensor.Q6_K {
			d = at + 208
		}
		b[d], b[d+1] = 0, 0x14 // 2^-10
	}
}

// tokens makes room for so many at a time.
func (m *lm) tokens(n int) {
	at := func(columns int) tensor.Tensor { return m.b.Alloc(tensor.F32, tensor.Of(n, columns)) }
	m.x, m.y, m.h, m.q, m.o = at(lmHidden), at(lmHidden), at(lmHidden), at(lmHeads*lmDim), at(lmHeads*lmDim)
	m.k, m.v, m.gate, m.up = at(lmKVHeads*lmDim), at(lmKVHeads*lmDim), at(lmInner), at(lmInner)
	m.rstd, m.logits = m.b.Alloc(tensor.F32, tensor.Of(n)), m.b.Alloc(tensor.F32, tensor.Of(1, lmVocabulary))
	for i := range m.x.F32() {
		m.x.F32()[i] = float32(i%17) / 8
	}
}

// reset puts every layer at a depth, its ring of type d full of small numbers.
func (m *lm) reset(depth int, d tensor.DType) {
	for i := range m.layers {
		l := &m.layers[i]
		l.state = attention.NewState(&l.attention, d)
		l.state.Reserve(&l.attention, depth+1)
		for _, t := range []tensor.Tensor{l.state.Keys, l.state.Values} {
			for j := range t.Len() {
				if j%64 == 0 { // every page must exist
					t.SetValue(j, float64(j%101)/100)
				}
			}
		}
		m.back(l, depth)
	}
}

func (m *lm) back(l *lmLayer, depth int) {
	l.state.Position, l.state.Count, l.state.Start = depth, min(depth, l.attention.Window), 0
	if l.attention.Window != attention.Full && depth > l.attention.Window {
		l.state.Start = depth % l.attention.Window
	}
}

// forward reads tokens after depth others and leaves the state there.
func (m *lm) forward(depth int) {
	var none tensor.Tensor
	matmul := func(y, x, w tensor.Tensor) { backend.MatMul(m.b, backend.NT, backend.Gradient{Tensor: y}, x, w, none) }
	n := m.x.Rows()
	lengths := []int{n}
	lse := m.b.Alloc(tensor.F32, tensor.Of(n, lmHeads))
	for i := range m.layers {
		l := &m.layers[i]
		backend.RMSNorm(m.b, m.y, m.rstd, m.x, m.norm, 1e-5)
		matmul(m.q, m.y, l.q)
		matmul(m.k, m.y, l.k)
		matmul(m.v, m.y, l.v)
		states := []*attention.State{l.state}
		backend.NHA(m.b, &attention.Call{Config: &l.attention, Lengths: lengths, Q: m.q, K: m.k, V: m.v, O: m.o, LSE: lse, Initial: states, Final: states})
		matmul(m.h, m.o, l.o)
		backend.Add(m.b, m.x, m.x, m.h)
		backend.RMSNorm(m.b, m.y, m.rstd, m.x, m.norm, 1e-5)
		matmul(m.gate, m.y, l.gate)
		matmul(m.up, m.y, l.up)
		backend.SwiGLU(m.b, m.gate, m.gate, m.up)
		matmul(m.h, m.gate, l.down)
		backend.Add(m.b, m.x, m.x, m.h)
		m.back(l, depth)
	}
	matmul(m.logits, m.x.Narrow(n-1, n), m.head)
	for i := range m.x.F32() {
		m.x.F32()[i] = float32(i%17) / 8
	}
}

var lmTypes = []tensor.DType{tensor.Q4_0, tensor.Q4_1, tensor.Q8_0, tensor.F16, tensor.Q4_K, tensor.Q6_K}

// types are those that fit rows of 576: the others have blocks of 256.
func lmFits(d tensor.DType) bool { n, _ := d.Block(); return lmHidden%n == 0 }

// BenchmarkDecode is one token at a depth, in full windows and in windows of 64, with rings in float32 and half precision.
func BenchmarkDecode(b *testing.B) {
	be, err := Open(0)
	if err != nil {
		b.Fatal(err)
	}
	defer be.Close()
	for _, d := range lmTypes {
		if !lmFits(d) {
			continue
		}
		for _, window := range []int{attention.Full, 64} {
			m := newLM(be, d, d, window)
			m.tokens(1)
			depths, name := []int{0, 128, 2048, 8192}, "full"
			if window == 64 {
				depths, name = []int{128, 131072}, "64"
			}
			for _, depth := range depths {
				for _, ring := range []tensor.DType{tensor.F32, tensor.F16} {
					m.reset(depth, ring)
					b.Run(fmt.Sprintf("%v/W=%s/depth=%d/ring=%v", d, name, depth, ring), func(b *testing.B) {
						m.forward(depth)
						best := time.Hour // what else the machine does only adds
						for b.Loop() {
							start := time.Now()
							m.forward(depth)
							best = min(best, time.Since(start))
						}
						b.ReportMetric(1/best.Seconds(), "best-tokens/s")
					})
				}
			}
		}
	}
}

// BenchmarkPrefill reads a prompt from an empty state in chunks of 512.
func BenchmarkPrefill(b *testing.B) {
	be, err := Open(0)
	if err != nil {
		b.Fatal(err)
	}
	defer be.Close()
	for _, d := range lmTypes {
		if !lmFits(d) {
			continue
		}
		m := newLM(be, d, d, attention.Full)
		for _, tokens := range []int{128, 512, 2048} {
			chunk := min(tokens, 512)
			m.tokens(chunk)
			m.reset(tokens, tensor.F32)
			b.Run(fmt.Sprintf("%v/tokens=%d", d, tokens), func(b *testing.B) {
				best := time.Hour
				for b.Loop() {
					start := time.Now()
					for depth := 0; depth < tokens; depth += chunk {
						for i := range m.layers {
							m.back(&m.layers[i], depth)
						}
						m.forward(depth)
					}
					best = min(best, time.Since(start))
				}
				b.ReportMetric(float64(tokens)/best.Seconds(), "best-tokens/s")
			})
		}
	}
}
