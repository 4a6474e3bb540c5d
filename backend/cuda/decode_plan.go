package cuda

import (
	"errors"
	"fmt"
	"unsafe"

	"nha/attention"
	"nha/backend"
	"nha/tensor"
)

// A step's kernels, five a layer (kernels/decode.cuh says how norms are folded into their neighbours):
//
//	embed                                    x
//	q, k, v, z of norm(x)                    one product over the four matrices
//	operator                                 states advance; silu(o) gamma
//	x += O o
//	silu(gate) up of norm(x)                 one product over both matrices
//	x += Down h
//	head, scan, choose                       the next token

// decodeRows are the numbers of rows that steps are recorded for; a step of fewer has idle rows.
var decodeRows = []int{1, 2, 4, 8, 16, 32, 64, 128, 256}

// decodable says why there is no program for a model.
func decodable(m *backend.DecodeModel) error {
	for _, t := range []tensor.Tensor{m.Embedding, m.Norm, m.Head} {
		if t.DType != tensor.BF16 {
			return fmt.Errorf("weights of type %v: steps are for bf16", t.DType)
		}
	}
	first := m.Blocks[0].Attention
	for i := range m.Blocks {
		l := &m.Blocks[i]
		c := l.Attention
		switch {
		case c.KeyDim%8 != 0 || c.ValueDim%8 != 0 || max(c.KeyDim, c.ValueDim) > 256:
			return fmt.Errorf("heads of %d and %d dimensions: steps take multiples of 8, to 256", c.KeyDim, c.ValueDim)
		case c.Group() > 8:
			return fmt.Errorf("%d query heads to a kv head: steps take 8", c.Group())
		case c.Rope != first.Rope || c.KVHeads != first.KVHeads || c.QueryHeads != first.QueryHeads || c.KeyDim != first.KeyDim || c.ValueDim != first.ValueDim || c.Slots != first.Slots:
			return errors.New("layers of different shapes")
		case m.Embedding.Columns()%8 != 0 || l.Gate.Weight.Rows()%8 != 0:
			return fmt.Errorf("hidden size %d or intermediate size %d is no multiple of 8", m.Embedding.Columns(), l.Gate.Weight.Rows())
		}
		for _, a := range []backend.Affine{l.Q, l.K, l.V, l.Z, l.O, l.Gate, l.Up, l.Down} {
			if w := a.Weight; w.Present() && (w.DType != tensor.BF16 || w.Address()%16 != 0) {
				return fmt.Errorf("a matrix of type %v at %d: steps take bf16 at multiples of 16 bytes", w.DType, w.Address())
			}
		}
	}
	return nil
}

// product kinds, as KIND of decode_matmul.cu.
const (
	decodeProjections = iota
	decodeGateUp
	decodeResidual
	decodeHead
)

// matmulArgs is struct Matmul.
type matmulArgs struct {
	weight, bias                [4]arg
	rows                        [4]int32
	x, squares, y               arg
	gamma, scaled, sums         arg
	parts, batch, stride, silu_ int32
	inverse, epsilon            float32
}

// matmulShape is how a product is cut: kernel constants.
type matmulShape struct{ kind, inner, rowTiles, columnTiles, warpsK, warpsRows, depth int }

// shapeOf cuts a product of so many 16-row tiles: as many loads on their way as registers hold, as many blocks as keep the card busy.
func shapeOf(kind, tiles, inner, rows, sms int) matmulShape {
	s := matmulShape{kind: kind, inner: inner, rowTiles: 1, columnTiles: min(max(rows/8, 1), 8), warpsK: 8, warpsRows: 1}
	if kind == decodeGateUp || tiles >= 8*sms || rows >= 32 && tiles >= 3*sms/2 {
		s.rowTiles = 2
	}
	groups := tiles / s.rowTiles
	if kind == decodeGateUp {
		groups = tiles
	}
	switch {
	case rows >= 32 && groups >= 7*sms/2 && kind != decodeResidual:
		s.warpsK, s.warpsRows = 2, 4
	case rows < 32 && groups < 2*sms && inner >= 512:
		s.warpsK = 16
	case rows < 32 && groups >= 2*sms:
		s.warpsK = 4 // small blocks: all of them, or many, are there at once
	}
	s.depth = max(1, 8/s.rowTiles)
	if s.columnTiles == 8 {
		s.depth = max(1, 4/s.rowTiles)
	}
	return s
}

// shared is the bytes of a block's sums: those of every warp along k, [columns][rows + 4].
func (s matmulShape) shared() int {
	return 4 * s.warpsK * 8 * s.columnTiles * (16*s.rowTiles*s.warpsRows + 4)
}

func (s matmulShape) defines() []define {
	return []define{number("KIND", s.kind), number("INNER", s.inner), number("ROW_TILES", s.rowTiles), number("COLUMN_TILES", s.columnTiles),
		number("WARPS_K", s.warpsK), number("WARPS_ROWS", s.warpsRows), number("DEPTH", s.depth)}
}

// stepArgs is struct Step.
type stepArgs struct {
	order, qkvz, cos, sin                           arg
	queryNorm, keyNorm, gamma                       arg
	out, sums, partial, arrived                     arg
	slotKeys, slotValues, keys, values, gates, full int64
	stride, heads                                   int32
	scale, normalizer, epsilon                      float32
}

// stepShape is the constants of decode_nha.cu.
type stepShape struct {
	key, value, slots, group, window, splits, warps, blocks int
	mask, rope                                              bool
}

func stepShapeOf(c *attention.Config, rows, sms int) stepShape {
	s := stepShape{key: c.KeyDim, value: c.ValueDim, slots: c.Slots, group: c.Group(), window: c.Window, splits: 1, warps: 8, blocks: 2,
		mask: c.EmptySlots == attention.Mask, rope: c.Rope != nil}
	pairs := rows * c.KVHeads
	if c.Window > 256 {
		s.splits = min(max(2*sms/pairs, 1), 32)
	}
	if c.Window == attention.Full {
		s.window = -1
	}
	switch {
	case s.group > 4:
		s.blocks = 1
	case pairs*s.splits <= sms:
		s.warps, s.blocks = 16, 1
	}
	return s
}

func (s stepShape) lanes() int {
	n := 1
	for n*8 < max(s.key, s.value) {
		n *= 2
	}
	return n
}

func (s stepShape) defines() []define {
	return []define{number("KEY", s.key), number("VALUE", s.value), number("SLOTS", s.slots), number("GROUP", s.group), number("WINDOW", s.window),
		number("SPLITS", s.splits), number("WARPS", s.warps), number("BLOCKS", s.blocks), number("LANES", s.lanes()), flag("MASK", s.mask), flag("ROPE", s.rope)}
}

// embedArgs is struct Embedding, sampleArgs struct Sample.
type embedArgs struct {
	order, table, gamma, x, scaled, sums arg
	width                                int32
}

type sampleArgs struct {
	order, logits, scans, peaks, results arg
	vocabulary                           int32
}

// scanParts is the parts that sample_scan cuts a row into, scanThreads the threads of one.
const (
	scanParts   = 64
	scanThreads = 256
)

// plan is a step under construction, for a card of so many multiprocessors.
type plan struct {
	d     *decoder
	rows  int
	sms   int
	alloc func(bytes int) arg // cleared memory that lives as long as the step
	nodes []plannedNode
}

// plannedNode is a node whose kernel may still have to be compiled.
type plannedNode struct {
	file, entry string
	defines     []define
	node
}

func (p *plan) add(file, entry string, defines []define, g grid, block, shared int, args unsafe.Pointer) {
	p.nodes = append(p.nodes, plannedNode{file, entry, defines, node{grid: g, block: block, shared: shared, args: args}})
}

// matmul adds a product of the rows of x with up to four matrices.
func (p *plan) matmul(kind int, list []backend.Affine, args *matmulArgs) (blocksX int) {
	inner, tiles := list[0].Weight.Columns(), 0
	for i, l := range list {
		args.weight[i], args.bias[i], args.rows[i] = pointer(l.Weight), pointer(l.Bias), int32(l.Weight.Rows())
		if kind != decodeGateUp || i == 0 {
			tiles += blocks(l.Weight.Rows(), 16)
		}
	}
	args.batch = int32(p.rows)
	s := shapeOf(kind, tiles, inner, p.rows, p.sms)
	of := s.warpsRows * s.rowTiles
	if kind == decodeGateUp {
		of = s.warpsRows
	}
	blocksX = blocks(tiles, of)
	p.add("decode_matmul.cu", "decode_matmul", s.defines(), grid{blocksX, blocks(p.rows, 8*s.columnTiles), 1}, 32*s.warpsK*s.warpsRows, s.shared(), unsafe.Pointer(args))
	return blocksX
}

// build lists the kernels of a step, and says where it leaves the logits [rows, vocabulary] and the tokens drawn.
func (p *plan) build() (logits, results arg) {
	d, m, rows := p.d, p.d.m, p.rows
	padded := max(rows, 8)
	hidden, vocabulary, layers := m.Embedding.Columns(), m.Head.Rows(), len(m.Blocks)
	c0 := m.Blocks[0].Attention
	stride := c0.QueryHeads*c0.KeyDim + c0.KVHeads*(c0.KeyDim+c0.ValueDim+c0.Slots)
	width, inner := c0.QueryHeads*c0.ValueDim, m.Blocks[0].Gate.Weight.Rows()
	f32s := func(n int) arg { return p.alloc(4 * n) }
	squares := func(n int) arg { return p.alloc(2 * padded * blocks(n, 32) * 32) } // rows that products read, as place_of of decode.cuh has them
	x, scaled := f32s(rows*hidden), squares(hidden)
	sumsAttention, sumsMLP, sumsOutput := f32s(rows*blocks(hidden, 16)), f32s(rows*blocks(hidden, 16)), f32s(rows*c0.QueryHeads)
	qkvz, o, h := f32s(rows*stride), squares(width), squares(inner)
	logits, results = f32s(rows*vocabulary), f32s(2*rows)
	scans, peaks := p.alloc(16*rows*scanParts), f32s(rows*scanParts*scanThreads/32)
	perPair := 32 * c0.Group() * (c0.ValueDim + 2)
	partial, arrived := f32s(rows*c0.KVHeads*perPair), f32s(rows*c0.KVHeads)
	inverse, epsilon := float32(1/float64(hidden)), float32(m.Epsilon)

	p.add("decode_embed.cu", "decode_embed", nil, grid{rows, 1, 1}, 256, 0, unsafe.Pointer(&embedArgs{order: d.order, table: pointer(m.Embedding),
		gamma: pointer(m.Blocks[0].AttentionNorm), x: x, scaled: scaled, sums: sumsAttention, width: int32(hidden)}))
	parts := 1
	for i := range layers {
		l, place := &m.Blocks[i], d.places[i]
		c := l.Attention
		projections := []backend.Affine{l.Q, l.K, l.V}
		if l.Z.Weight.Present() {
			projections = append(projections, l.Z)
		}
		silu := int32(-1)
		if l.ActivateValues {
			silu = 2
		}
		p.matmul(decodeProjections, projections, &matmulArgs{x: scaled, squares: sumsAttention, parts: int32(parts), inverse: inverse, epsilon: epsilon,
			y: qkvz, stride: int32(stride), silu_: silu})
		shape := stepShapeOf(c, rows, p.sms)
		step := &stepArgs{order: d.order, qkvz: qkvz, cos: d.cos, sin: d.sin, queryNorm: pointer(l.QueryNorm), keyNorm: pointer(l.KeyNorm), gamma: pointer(l.OutputNorm),
			out: o, sums: sumsOutput, partial: partial, arrived: arrived, slotKeys: int64(place.slotKeys), slotValues: int64(place.slotValues), keys: int64(place.keys),
			values: int64(place.values), gates: int64(place.gates), full: int64(place.full), stride: int32(stride), heads: int32(c.KVHeads), scale: float32(c.Scale), epsilon: epsilon}
		if c.Slots > 0 {
			step.normalizer = float32(1 / c.GateNormalizer)
		}
		p.add("decode_nha.cu", "decode_nha", shape.defines(), grid{shape.splits, c.KVHeads, rows}, 32*shape.warps, 0, unsafe.Pointer(step))
		output := &matmulArgs{x: o, y: x, stride: int32(hidden), gamma: pointer(l.MLPNorm), scaled: scaled, sums: sumsMLP}
		if l.OutputNorm.Present() {
			output.squares, output.parts, output.inverse, output.epsilon = sumsOutput, int32(c.QueryHeads), float32(1/float64(width)), epsilon
		}
		parts = p.matmul(decodeResidual, []backend.Affine{l.O}, output)
		p.matmul(decodeGateUp, []backend.Affine{l.Gate, l.Up}, &matmulArgs{x: scaled, squares: sumsMLP, parts: int32(parts), inverse: inverse, epsilon: epsilon,
			y: h, stride: int32(inner)})
		next := m.Norm
		if i+1 < layers {
			next = m.Blocks[i+1].AttentionNorm
		}
		parts = p.matmul(decodeResidual, []backend.Affine{l.Down}, &matmulArgs{x: h, y: x, stride: int32(hidden), gamma: pointer(next), scaled: scaled, sums: sumsAttention})
	}
	p.matmul(decodeHead, []backend.Affine{{Weight: m.Head}}, &matmulArgs{x: scaled, squares: sumsAttention, parts: int32(parts), inverse: inverse, epsilon: epsilon,
		y: logits, stride: int32(vocabulary)})
	sample := &sampleArgs{order: d.order, logits: logits, scans: scans, peaks: peaks, results: results, vocabulary: int32(vocabulary)}
	p.add("decode_sample.cu", "sample_scan", nil, grid{scanParts, rows, 1}, scanThreads, 0, unsafe.Pointer(sample))
	p.add("decode_sample.cu", "sample_choose", nil, grid{rows, 1, 1}, 1024, 0, unsafe.Pointer(sample))
	return logits, results
}

// compile has what is missing compiled together and returns the nodes with their kernels.
func (p *plan) compile() ([]node, error) {
	loaded := &p.d.b.d.modules.loaded
	var missing []moduleKey
	asked := map[moduleKey]bool{}
	for _, n := range p.nodes {
		k := key(n.file, n.defines)
		if _, ok := (*loaded)[k]; !ok && !asked[k] {
			asked[k] = true
			missing = append(missing, k)
		}
	}
	if err := p.d.b.d.load(missing...); err != nil {
		return nil, err
	}
	list := make([]node, len(p.nodes))
	for i, n := range p.nodes {
		list[i] = n.node
		list[i].kernel = p.d.b.d.kernel(n.file, n.entry, n.defines...)
	}
	return list, nil
}
