//go:build amd64 && !purego

package kernel

// The assembly takes 16 or 32 columns at a time, strides in bytes, and counts blocks of 4 slots.

func init() {
	register("avx2", func() {
		slots = slotSet{
			read: slotReadBy(slotReadAVX2, 16), write: slotWriteBy(slotWriteAVX2, 16),
			backward: slotBackwardBy(slotBackwardKeysAVX2, slotBackwardValuesAVX2, 16), softmaxBackward: softmaxBackwardVector,
		}
	})
	register("avx512", func() {
		slots = slotSet{
			read: slotReadBy(slotReadAVX512, 32), write: slotWriteBy(slotWriteAVX512, 32),
			backward: slotBackwardBy(slotBackwardKeysAVX512, slotBackwardValuesAVX512, 32), softmaxBackward: softmaxBackwardVector,
		}
	})
}

// rowBytes is a matrix' stride as the assembly wants it.
func (m Matrix) rowBytes() int { return 4 * m.Stride }

// empty reports whether there is nothing to walk: the assembly's loops run at least once.
func (d SlotShape) empty() bool { return d.Tokens == 0 || d.Slots == 0 || d.Columns == 0 }

func slotReadBy(f func(state *float32, stateRow int, x *float32, xRow int, s *float32, sRow int, q *float32, qRow int, out *float32, outRow int, tokens, group, blocks, add int), columns int) func(d SlotShape, state, x, s, q, out Matrix) {
	return func(d SlotShape, state, x, s, q, out Matrix) {
		if d.empty() {
			return
		}
		for c := 0; c < d.Columns; c += columns {
			f(&state.Data[c], state.rowBytes(), &x.Data[c], x.rowBytes(), &s.Data[0], s.rowBytes(),
				&q.Data[c], q.rowBytes(), &out.Data[0], out.rowBytes(), d.Tokens, d.Group, d.Slots/4, c)
		}
	}
}

func slotWriteBy(f func(state *float32, stateRow int, x *float32, xRow int, s *float32, sRow int, p *float32, pRow int, o *float32, oRow int, tokens, group, blocks int), columns int) func(d SlotShape, state, x, s, p, o Matrix) {
	return func(d SlotShape, state, x, s, p, o Matrix) {
		if d.empty() || d.Group == 0 {
			return
		}
		for c := 0; c < d.Columns; c += columns {
			f(&state.Data[c], state.rowBytes(), &x.Data[c], x.rowBytes(), &s.Data[0], s.rowBytes(),
				&p.Data[0], p.rowBytes(), &o.Data[c], o.rowBytes(), d.Tokens, d.Group, d.Slots/4)
		}
	}
}

type slotBackwardColumns func(state *float32, stateRow int, u *float32, uRow int, x *float32, xRow int, s *float32, sRow int, weight *float32, weightRow int, q *float32, qRow int, dq *float32, dqRow int, dx *float32, dxRow int, da *float32, daRow int, keep *float32, tokens, group, blocks int)

func slotBackwardBy(keys, values slotBackwardColumns, columns int) func(d SlotShape, state, u, x, s, weight, q, dq, dx, da Matrix, keep []float32) {
	return func(d SlotShape, state, u, x, s, weight, q, dq, dx, da Matrix, keep []float32) {
		if d.empty() || d.Group == 0 {
			return
		}
		for c := 0; c < d.Columns; c += columns {
			f, to := values, (*float32)(nil)
			if dq.Data != nil {
				f, to = keys, &dq.Data[c]
			}
			f(&state.Data[c], state.rowBytes(), &u.Data[c], u.rowBytes(), &x.Data[c], x.rowBytes(), &s.Data[0], s.rowBytes(),
				&weight.Data[0], weight.rowBytes(), &q.Data[c], q.rowBytes(), to, dq.rowBytes(), &dx.Data[c], dx.rowBytes(),
				&da.Data[0], da.rowBytes(), &keep[0], d.Tokens, d.Group, d.Slots/4)
		}
	}
}

func softmaxBackwardVector(d, p, g []float32, inner float32) {
	if len(d) > 0 {
		softmaxBackwardAVX2(&d[0], &p[0], &g[0], len(d), inner)
	}
}
