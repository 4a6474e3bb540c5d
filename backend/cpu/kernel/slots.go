package kernel

// The slots of one kv head as a recurrence (SPEC 1, 1.3), for a chunk of consecutive tokens t. Token x_t enters slot i with write
// strength s_ti before the slots are read:
//
//	S_i <- S_i + s_ti (x_t - S_i)
//
// A block of slots by 16 columns stays in registers while the kernel walks over the chunk's tokens, so the update is the
// statement's own, term by term: no exponentials of sums of gates, nothing that could overflow, and 3 multiply-adds for each
// token, slot, column and reader where the matrix form of SPEC 1.2 has more than 5. A token that does not enter has s = 0.
//
// The floor is the two multiply-adds (update and read) of each vector; on AVX2, 2 a cycle, that is 8 cycles for 64 columns.

//go:generate go run -C _asm ./slots -out ../slots_amd64.s -stubs ../slots_amd64.go -pkg kernel

// A Matrix is rows of float32, Stride apart.
type Matrix struct {
	Data   []float32
	Stride int
}

// Row is row i, to the end of the memory.
func (m Matrix) Row(i int) []float32 { return m.Data[i*m.Stride:] }

// SlotShape is what the slot kernels loop over. Slots is a multiple of SlotUnit, Columns of ColumnUnit: the caller pads with zeros.
type SlotShape struct {
	Tokens  int // tokens in the chunk
	Group   int // readers of a token, query heads of the kv head; row t*Group+g of a reader's matrix
	Slots   int // M
	Columns int // K or V
}

// The units that slots and columns are padded to.
const (
	SlotUnit   = 4
	ColumnUnit = 32

	slotBlock = 4 * 32 // the largest block of slots by columns that lies in registers
)

// SlotKeep is how much scratch SlotBackward needs for a number of tokens.
func SlotKeep(tokens int) int { return (tokens + 1) * slotBlock }

type slotSet struct {
	read            func(d SlotShape, state, x, s, q, out Matrix)
	write           func(d SlotShape, state, x, s, p, o Matrix)
	backward        func(d SlotShape, state, u, x, s, weight, q, dq, dx, da Matrix, keep []float32)
	softmaxBackward func(d, p, g []float32, inner float32)
}

var (
	slotGeneric = slotSet{slotReadGeneric, slotWriteGeneric, slotBackwardGeneric, softmaxBackwardGeneric}
	slots       = slotGeneric
)

func init() {
	register("generic", func() { slots = slotGeneric })
}

// SlotRead lets the tokens x [Tokens, Columns] enter the state [Slots, Columns] with strengths s [Tokens, Slots] and, after
// each, reads it: out_tg,i = q_tg . S_i, out [Tokens*Group, Slots], q [Tokens*Group, Columns]. Group 0 only updates.
func SlotRead(d SlotShape, state, x, s, q, out Matrix) { slots.read(d, state, x, s, q, out) }

// SlotWrite updates the state as SlotRead does and adds what the readers take: o_tg += sum_i p_tg,i S_i, p [Tokens*Group, Slots],
// o [Tokens*Group, Columns].
func SlotWrite(d SlotShape, state, x, s, p, o Matrix) { slots.write(d, state, x, s, p, o) }

// SlotBackward is the gradient of a chunk that starts from state, with weight_tg,i the factor between reader q_tg and slot i.
// It walks the tokens downwards with the adjoint u of the state behind the chunk and leaves that of the state before it:
//
//	U_i += sum_g weight_tg,i q_tg     dq_tg += sum_i weight_tg,i S_i      (dq without data: not wanted)
//	da_ti += U_i . (Sp_i - x_t)       dx_t  += sum_i s_ti U_i             Sp: the state before token t
//	U_i -= s_ti U_i
//
// For keys the weight is the logit's gradient, for values the probability and q the output's gradient. keep is scratch of SlotKeep(Tokens).
func SlotBackward(d SlotShape, state, u, x, s, weight, q, dq, dx, da Matrix, keep []float32) {
	slots.backward(d, state, u, x, s, weight, q, dq, dx, da, keep)
}

// MatrixTiles computes C = A B, or adds it to C, on operands that lie in cache already: no packing, no edges. Element (i,p) of A
// is a[i*aRow+p*aCol]; columns is rounded up to TileColumns, so rows of B and C must have room for that.
func MatrixTiles(rows, columns, k int, a []float32, aRow, aCol int, b, c Matrix, add bool) {
	adding := 0
	if add {
		adding = 1
	}
	tiles := ceil(rows, gemmRows)
	for j := 0; j < columns; j += gemmCols {
		for t := range tiles {
			from, to := tileRows(t, tiles, rows)
			gemmTile(to-from, k, a[from*aRow:], aRow, aCol, b.Data[j:], b.Stride, c.Data[from*c.Stride+j:], c.Stride, 1, nil, adding)
		}
	}
}

// TileColumns is a multiple of every instruction set's width of MatrixTiles.
const TileColumns = gemmMaxCol

// Transpose writes rows [0, rows) and columns [0, columns) of src, both multiples of 8, to the columns and rows of dst.
func Transpose(rows, columns int, src, dst Matrix) {
	for i := 0; i < rows; i += 8 {
		gemmTransposeF32(columns/8, src.Row(i), src.Stride, dst.Data[i:], dst.Stride)
	}
}

// TileWidth is the width of MatrixTiles in use.
func TileWidth() int { return gemmCols }

// SoftmaxBackward is the gradient of a row's logits: d_i = p_i (g_i - inner), g the gradient of p and inner = sum p g over the
// whole softmax. d may be g.
func SoftmaxBackward(d, p, g []float32, inner float32) {
	slots.softmaxBackward(d, p[:len(d)], g[:len(d)], inner)
}

func softmaxBackwardGeneric(d, p, g []float32, inner float32) {
	for i := range d {
		d[i] = p[i] * (g[i] - inner)
	}
}
