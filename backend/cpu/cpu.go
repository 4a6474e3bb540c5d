// Package cpu is the op table in float32 on the processor: the loops of package kernel, spread over a pool of threads.
//
// It is two backends that differ in one thing: what multiplies with quantised weights where a product has a few rows, as in
// decoding. Backend "cpu" rounds those rows to 8 bits and sums integers, "cpu-f32" widens the weights.
//
// Results are the same bits for the same number of threads: work is cut by index, never by which thread happened to come
// first, and partial sums are added in the order of their index.
package cpu

import (
	"fmt"
	"math"
	"runtime"

	"nha/attention"
	"nha/backend"
	"nha/backend/cpu/kernel"
	"nha/tensor"
)

func init() {
	backend.Register("cpu", func(threads int) (backend.Backend, error) { return Open(threads) })
	backend.Register("cpu-f32", func(threads int) (backend.Backend, error) { return OpenF32(threads) })
}

// Backend is the processor. It implements backend.Backend.
type Backend struct {
	exact      bool // activations stay float32 whatever the weights
	pool       *kernel.Pool
	nha        *nha
	parts      [][]float32 // one partial row per thread
	task       rowTask
	distilling distillTask
	experts    expertTask
	adamw      adamwTask
	embed      embedTask
	sums       sumTask
}

// Open starts the pool; threads 0 means GOMAXPROCS. The environment variable NHA_CPU forces an instruction set.
func Open(threads int) (*Backend, error) {
	if err := kernel.Setup(); err != nil {
		return nil, err
	}
	p := kernel.NewPool(threads)
	return &Backend{pool: p, nha: newNHA(p), parts: make([][]float32, p.Threads())}, nil
}

// OpenF32 is Open for the backend that keeps activations in float32 with quantised weights too.
func OpenF32(threads int) (*Backend, error) {
	b, err := Open(threads)
	if err == nil {
		b.exact = true
	}
	return b, err
}

func (b *Backend) Name() string {
	if b.exact {
		return "cpu-f32"
	}
	return "cpu"
}

func (b *Backend) DType() tensor.DType { return tensor.F32 }

func (b *Backend) Describe() string {
	activations := "8-bit activations for quantised weights"
	if b.exact {
		activations = "whatever the weights"
	}
	return fmt.Sprintf("float32, %s, %s, %d threads of %d processors", activations, kernel.Active(), b.pool.Threads(), runtime.NumCPU())
}

// Close stops the pool's threads.
func (b *Backend) Close() error { b.pool.Close(); return nil }

// Alloc is memory of the Go heap, in huge pages where it is large.
func (b *Backend) Alloc(d tensor.DType, s tensor.Shape) tensor.Tensor {
	t := tensor.New(d, s)
	preferHugePages(t.Bytes())
	return t
}

func (b *Backend) Free(tensor.Tensor)           {}
func (b *Backend) Write(dst, src tensor.Tensor) { tensor.Convert(dst, src) }
func (b *Backend) Read(dst, src tensor.Tensor)  { tensor.Convert(dst, src) }
func (b *Backend) Zero(t tensor.Tensor)         { clear(t.Bytes()) }
func (b *Backend) Copy(dst, src tensor.Tensor)  { copy(dst.Bytes(), src.Bytes()) }

func (b *Backend) NHA(c *attention.Call)                                 { b.nha.Forward(c) }
func (b *Backend) NHABackward(c *attention.Call, g *attention.Gradients) { b.nha.Backward(c, g) }

// quantTypes are the quantised types as package kernel names them.
var quantTypes = map[tensor.DType]kernel.Quant{
	tensor.Q4_0: kernel.Q4_0, tensor.Q4_1: kernel.Q4_1, tensor.Q5_0: kernel.Q5_0, tensor.Q5_1: kernel.Q5_1, tensor.Q8_0: kernel.Q8_0,
	tensor.Q4_K: kernel.Q4_K, tensor.Q5_K: kernel.Q5_K, tensor.Q6_K: kernel.Q6_K}

// MatMul takes weights of type BF16, F16 and the quantised ones too, where op is NT: a model that is not trained keeps them as
// they are stored.
func (b *Backend) MatMul(op backend.Op, c backend.Gradient, a, w, bias tensor.Tensor) {
	m, n, k := c.Rows(), c.Columns(), a.Columns()
	kop := [...]kernel.Op{backend.NN: kernel.NN, backend.NT: kernel.NT, backend.TN: kernel.TN}[op]
	if op == backend.TN {
		k = a.Rows()
	}
	var row []float32
	if bias.Present() {
		row = bias.F32()
	}
	switch {
	case w.DType == tensor.F32:
		kernel.Gemm(b.pool, kop, m, n, k, a.F32(), a.Columns(), w.F32(), w.Columns(), c.F32(), n, c.Add, row)
	case op != backend.NT:
		panic(fmt.Sprintf("cpu: matmul %v with weights of type %v: only nt reads them", op, w.DType))
	case w.DType == tensor.BF16:
		kernel.GemmBF16(b.pool, m, n, k, a.F32(), a.Columns(), w.U16(), w.Columns(), c.F32(), n, c.Add, row)
	case w.DType.Quantized():
		kernel.GemmQuant(b.pool, quantTypes[w.DType], b.exact, m, n, k, a.F32(), a.Columns(), w.Bytes(), c.F32(), n, c.Add, row)
	default:
		kernel.GemmF16(b.pool, m, n, k, a.F32(), a.Columns(), w.U16(), w.Columns(), c.F32(), n, c.Add, row)
	}
}

// rowTask runs one elementwise or row-wise kernel over a range of rows or elements, cut into one part a thread.
type rowTask struct {
	kind           rowKind
	parts, rows, n int
	add            bool
	epsilon, scale float32
	a, b, c, d, e  []float32
	ids            []int32
	partial        [][]float32
	dust           []float32 // a row a part, for what is not wanted
}

type rowKind uint8

const (
	rowAdd rowKind = iota
	rowSiLU
	rowSiLUBackward
	rowSwiGLU
	rowSwiGLUBackward
	rowRMSNorm
	rowRMSNormBackward
	rowCrossEntropy
	rowEmbed
	rowSum
)

// Do is part i: rows [from, to) of n elements each.
func (t *rowTask) Do(_, i int) {
	from, to := t.rows*i/t.parts, t.rows*(i+1)/t.parts
	if from == to {
		return
	}
	x, y := from*t.n, to*t.n
	switch t.kind {
	case rowAdd:
		kernel.Add(t.a[x:y], t.b[x:y], t.c[x:y])
	case rowSiLU:
		kernel.SiLU(t.a[x:y], t.b[x:y])
	case rowSiLUBackward:
		kernel.SiLUBackward(t.a[x:y], t.b[x:y], t.c[x:y], t.add)
	case rowSwiGLU:
		kernel.SwiGLU(t.a[x:y], t.b[x:y], t.c[x:y])
	case rowSwiGLUBackward:
		kernel.SwiGLUBackward(t.a[x:y], t.b[x:y], t.c[x:y], t.d[x:y], t.e[x:y])
	case rowRMSNorm:
		kernel.RMSNorm(t.a[x:y], t.b[x:y], t.c, to-from, t.n, t.epsilon, t.d[from:to])
	case rowRMSNormBackward:
		if t.a != nil {
			kernel.RMSNormBackward(t.a[x:y], t.partial[i], t.b[x:y], t.c[x:y], t.d, t.e[from:to], to-from, t.n, t.add)
			break
		}
		for r := from; r < to; r++ { // dx is not wanted
			x, y := r*t.n, (r+1)*t.n
			kernel.RMSNormBackward(t.dust[i*t.n:(i+1)*t.n], t.partial[i], t.b[x:y], t.c[x:y], t.d, t.e[r:r+1], 1, t.n, false)
		}
	case rowCrossEntropy:
		for r := from; r < to; r++ {
			t.a[r] = kernel.CrossEntropyRow(t.b[r*t.n:(r+1)*t.n], t.ids[r], t.scale)
		}
	case rowEmbed:
		for r := from; r < to; r++ {
			copy(t.a[r*t.n:(r+1)*t.n], t.b[int(t.ids[r])*t.n:])
		}
	case rowSum:
		dst := t.partial[i][:t.n]
		clear(dst)
		for r := from; r < to; r++ {
			kernel.AddTo(dst, t.a[r*t.n:(r+1)*t.n])
		}
	}
}

// smallWork is the number of elements under which waking other threads costs more than it saves.
const smallWork = 1 << 13

// partsFor is how many parts so many elements are cut into.
func (b *Backend) partsFor(elements int) int {
	if elements < smallWork {
		return 1
	}
	return b.pool.Threads()
}

func (b *Backend) run(t rowTask) {
	t.parts = b.partsFor(t.rows * t.n)
	b.task = t
	b.pool.Run(t.parts, &b.task)
	b.task = rowTask{}
}

// partials gives every part a cleared row of n and returns how to add the parts, in order, into dst.
func (b *Backend) partials(n int) [][]float32 {
	for i := range b.parts {
		if cap(b.parts[i]) < n {
			b.parts[i] = make([]float32, n)
		}
		b.parts[i] = b.parts[i][:n]
		clear(b.parts[i])
	}
	return b.parts
}

func (b *Backend) addPartials(dst backend.Gradient) {
	if !dst.Present() {
		return
	}
	if !dst.Add {
		b.Zero(dst.Tensor)
	}
	for _, p := range b.parts {
		kernel.AddTo(dst.F32(), p)
	}
}

func (b *Backend) Add(y, p, q tensor.Tensor) {
	b.run(rowTask{kind: rowAdd, rows: y.Len(), n: 1, a: y.F32(), b: p.F32(), c: q.F32()})
}

func (b *Backend) SiLU(y, x tensor.Tensor) {
	b.run(rowTask{kind: rowSiLU, rows: y.Len(), n: 1, a: y.F32(), b: x.F32()})
}

func (b *Backend) SiLUBackward(dx backend.Gradient, dy, x tensor.Tensor) {
	b.run(rowTask{kind: rowSiLUBackward, rows: dy.Len(), n: 1, a: dx.F32(), b: dy.F32(), c: x.F32(), add: dx.Add})
}

func (b *Backend) SwiGLU(y, gate, up tensor.Tensor) {
	b.run(rowTask{kind: rowSwiGLU, rows: y.Len(), n: 1, a: y.F32(), b: gate.F32(), c: up.F32()})
}

// SwiGLUBackward writes; where a gradient is to be added it is written to one side first.
func (b *Backend) SwiGLUBackward(dgate, dup backend.Gradient, dy, gate, up tensor.Tensor) {
	g, u := dgate.Tensor, dup.Tensor
	if dgate.Add {
		g = tensor.New(tensor.F32, g.Shape)
	}
	if dup.Add {
		u = tensor.New(tensor.F32, u.Shape)
	}
	b.run(rowTask{kind: rowSwiGLUBackward, rows: dy.Len(), n: 1, a: g.F32(), b: u.F32(), c: dy.F32(), d: gate.F32(), e: up.F32()})
	if dgate.Add {
		b.Add(dgate.Tensor, dgate.Tensor, g)
	}
	if dup.Add {
		b.Add(dup.Tensor, dup.Tensor, u)
	}
}

func (b *Backend) RMSNorm(y, rstd, x, weight tensor.Tensor, epsilon float64) {
	b.run(rowTask{kind: rowRMSNorm, rows: rstd.Len(), n: weight.Len(), a: y.F32(), b: x.F32(), c: weight.F32(), d: rstd.F32(), epsilon: float32(epsilon)})
}

func (b *Backend) RMSNormBackward(dx, dweight backend.Gradient, dy, x, weight, rstd tensor.Tensor) {
	t := rowTask{kind: rowRMSNormBackward, rows: rstd.Len(), n: weight.Len(), b: dy.F32(), c: x.F32(), d: weight.F32(), e: rstd.F32(), add: dx.Add}
	if dx.Present() {
		t.a = dx.F32()
	} else {
		t.dust = make([]float32, b.pool.Threads()*t.n)
	}
	t.partial = b.partials(t.n)
	b.run(t)
	b.addPartials(dweight)
}

func (b *Backend) SumRows(dst backend.Gradient, x tensor.Tensor) {
	b.run(rowTask{kind: rowSum, rows: x.Rows(), n: x.Columns(), a: x.F32(), partial: b.partials(x.Columns())})
	b.addPartials(dst)
}

// Embed takes tables of the same types as MatMul.
func (b *Backend) Embed(y, table, ids tensor.Tensor) {
	if t, quantised := quantTypes[table.DType]; quantised {
		n := table.Columns()
		for r, id := range ids.I32() {
			kernel.Widen(t, y.F32()[r*n:(r+1)*n], table.Narrow(int(id), int(id)+1).Bytes())
		}
		return
	}
	if table.DType != tensor.F32 {
		for r, id := range ids.I32() {
			tensor.Convert(y.Narrow(r, r+1), table.Narrow(int(id), int(id)+1))
		}
		return
	}
	b.run(rowTask{kind: rowEmbed, rows: ids.Len(), n: table.Columns(), a: y.F32(), b: table.F32(), ids: ids.I32()})
}

// embedTask adds rows into the table; every part owns a range of columns, so rows that repeat never meet.
type embedTask struct {
	parts, n  int
	table, dy []float32
	ids       []int32
}

func (t *embedTask) Do(_, i int) {
	from, to := t.n*i/t.parts, t.n*(i+1)/t.parts
	for r, id := range t.ids {
		kernel.AddTo(t.table[int(id)*t.n+from:int(id)*t.n+to], t.dy[r*t.n+from:r*t.n+to])
	}
}

func (b *Backend) EmbedBackward(dtable backend.Gradient, dy, ids tensor.Tensor) {
	if !dtable.Add {
		b.Zero(dtable.Tensor)
	}
	b.embed = embedTask{parts: b.pool.Threads(), n: dtable.Columns(), table: dtable.F32(), dy: dy.F32(), ids: ids.I32()}
	b.pool.Run(b.embed.parts, &b.embed)
	b.embed = embedTask{}
}

func (b *Backend) CrossEntropy(loss, logits, targets tensor.Tensor, scale float64) {
	b.run(rowTask{kind: rowCrossEntropy, rows: loss.Len(), n: logits.Columns(), a: loss.F32(), b: logits.F32(), ids: targets.I32(), scale: float32(scale)})
}

// sumTask is a sum or a sum of squares in blocks of fixed size, so that the result does not depend on the number of threads.
type sumTask struct {
	x       []float32
	squares bool
	blocks  []float64
}

const sumBlock = 1 << 14

func (t *sumTask) Do(_, i int) {
	x := t.x[i*sumBlock : min((i+1)*sumBlock, len(t.x))]
	if t.squares {
		t.blocks[i] = kernel.SumSquares(x)
		return
	}
	sum := 0.0
	for _, v := range x {
		sum += float64(v)
	}
	t.blocks[i] = sum
}

func (b *Backend) sum(x tensor.Tensor, squares bool) float64 {
	t := &b.sums
	t.x, t.squares = x.F32(), squares
	n := (len(t.x) + sumBlock - 1) / sumBlock
	if cap(t.blocks) < n {
		t.blocks = make([]float64, n)
	}
	t.blocks = t.blocks[:n]
	b.pool.Run(n, t)
	t.x = nil
	total := 0.0
	for _, v := range t.blocks {
		total += v
	}
	return total
}

func (b *Backend) Sum(x tensor.Tensor) float64        { return b.sum(x, false) }
func (b *Backend) SumSquares(x tensor.Tensor) float64 { return b.sum(x, true) }

type adamwTask struct {
	parts      int
	p, g, m, v []float32
	step       kernel.AdamWStep
}

func (t *adamwTask) Do(_, i int) {
	from, to := len(t.p)*i/t.parts, len(t.p)*(i+1)/t.parts
	kernel.AdamW(t.p[from:to], t.g[from:to], t.m[from:to], t.v[from:to], t.step)
}

func (b *Backend) AdamW(p, g, m, v tensor.Tensor, s backend.AdamW) {
	t := &b.adamw
	*t = adamwTask{parts: b.partsFor(p.Len()), p: p.F32(), g: g.F32(), m: m.F32(), v: v.F32(), step: kernel.AdamWStep{
		LearningRate: float32(s.LearningRate), Beta1: float32(s.Beta1), Beta2: float32(s.Beta2), Epsilon: float32(s.Epsilon),
		WeightDecay: float32(s.WeightDecay), GradientScale: float32(s.GradientScale),
		BiasCorrection1: biasCorrection(s.Beta1, s.Step), BiasCorrection2: biasCorrection(s.Beta2, s.Step)}}
	b.pool.Run(t.parts, t)
	*t = adamwTask{}
}

// biasCorrection is 1 - beta^step for beta as the kernel has it: rounded to float32, where 1 - 0.999 is off by 1e-5.
func biasCorrection(beta float64, step int) float32 {
	return float32(1 - math.Pow(float64(float32(beta)), float64(step)))
}
