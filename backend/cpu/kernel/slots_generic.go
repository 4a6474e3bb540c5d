package kernel

// The slot kernels in Go, slot by slot.

// slotEnter is S += s (x - S).
func slotEnter(state, x []float32, s float32) {
	x = x[:len(state)]
	for j, v := range state {
		state[j] = v + s*(x[j]-v)
	}
}

func slotReadGeneric(d SlotShape, state, x, s, q, out Matrix) {
	for i := range d.Slots {
		row := state.Row(i)[:d.Columns]
		for t := range d.Tokens {
			slotEnter(row, x.Row(t), s.Row(t)[i])
			for r := t * d.Group; r < (t+1)*d.Group; r++ {
				out.Row(r)[i] = dotGeneric(row, q.Row(r)[:d.Columns])
			}
		}
	}
}

func slotWriteGeneric(d SlotShape, state, x, s, p, o Matrix) {
	for i := range d.Slots {
		row := state.Row(i)[:d.Columns]
		for t := range d.Tokens {
			slotEnter(row, x.Row(t), s.Row(t)[i])
			for r := t * d.Group; r < (t+1)*d.Group; r++ {
				axpyGeneric(o.Row(r)[:d.Columns], p.Row(r)[i], row)
			}
		}
	}
}

func slotBackwardGeneric(d SlotShape, state, u, x, s, weight, q, dq, dx, da Matrix, keep []float32) {
	for c := 0; c < d.Columns; c += ColumnUnit {
		for i := range d.Slots {
			copy(keep[:ColumnUnit], state.Row(i)[c:])
			for t := range d.Tokens {
				next := keep[(t+1)*ColumnUnit : (t+2)*ColumnUnit]
				copy(next, keep[t*ColumnUnit:])
				slotEnter(next, x.Row(t)[c:], s.Row(t)[i])
			}
			ui := u.Row(i)[c : c+ColumnUnit]
			for t := d.Tokens - 1; t >= 0; t-- {
				now, before := keep[(t+1)*ColumnUnit:(t+2)*ColumnUnit], keep[t*ColumnUnit:]
				for r := t * d.Group; r < (t+1)*d.Group; r++ {
					w := weight.Row(r)[i]
					axpyGeneric(ui, w, q.Row(r)[c:c+ColumnUnit])
					if dq.Data != nil {
						axpyGeneric(dq.Row(r)[c:c+ColumnUnit], w, now)
					}
				}
				xt, dxt, si, sum := x.Row(t)[c:], dx.Row(t)[c:], s.Row(t)[i], float32(0)
				for j, v := range ui {
					sum += v * (before[j] - xt[j])
					dxt[j] += si * v
					ui[j] = v - si*v
				}
				da.Row(t)[i] += sum
			}
		}
	}
}
