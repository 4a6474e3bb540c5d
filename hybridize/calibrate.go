package hybridize

import (
	"context"
	"fmt"

	"nha/autograd"
	"nha/model"
	"nha/tensor"
)

// calibration is what a conversion knows of the base's layers from a little text.
type calibration struct {
	means   [][]float32 // of the normed input [hidden], layer by layer
	squares []float64   // mean over tokens of |y|^2, y what the attention adds to the residual stream
}

// calibrate runs the base over some batches.
func calibrate(ctx context.Context, base *model.Model, batches []model.Batch) (*calibration, error) {
	b := base.Backend()
	c := &calibration{}
	sums := make([][]float64, base.Config.NumHiddenLayers)
	c.squares = make([]float64, len(sums))
	tokens := 0
	tape := autograd.New(b)
	tape.Record(false)
	defer tape.Close()
	for i := range batches {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		tape.Reset()
		tokens += len(batches[i].Tokens)
		walk(tape, base, &batches[i], func(layer int, x, y *autograd.Value) {
			c.squares[layer] += b.SumSquares(y.Tensor)
		}, func(layer int, h *autograd.Value) {
			host := tensor.New(tensor.F32, h.Shape)
			b.Read(host, h.Tensor)
			if sums[layer] == nil {
				sums[layer] = make([]float64, h.Columns())
			}
			for j, v := range host.F32() {
				sums[layer][j%h.Columns()] += float64(v)
			}
		})
	}
	for layer, sum := range sums {
		mean := make([]float32, len(sum))
		for j, s := range sum {
			mean[j] = float32(s / float64(tokens))
		}
		c.means = append(c.means, mean)
		c.squares[layer] /= float64(tokens)
		if !(c.squares[layer] > 0) {
			return nil, fmt.Errorf("layer %d of the base adds nothing but zeros (mean square %v): is the model whole?", layer, c.squares[layer])
		}
	}
	return c, nil
}

// walk runs a model layer by layer over a batch and shows every layer's residual stream x and what its attention adds to it, y. input, unless
// it is nil, sees the attention's normed input. x and y stay until the tape's Reset.
func walk(t *autograd.Tape, m *model.Model, b *model.Batch, layer func(layer int, x, y *autograd.Value), input func(layer int, h *autograd.Value)) {
	x := m.Embed(t, b)
	for i := range m.Config.NumHiddenLayers {
		mark := t.Mark()
		var see func(*autograd.Value)
		if input != nil {
			see = func(h *autograd.Value) { input(i, h) }
		}
		y := m.Attention(t, i, b, x, see)
		t.Keep(mark, y)
		layer(i, x, y)
		if i+1 == m.Config.NumHiddenLayers {
			return
		}
		mark = t.Mark()
		next := m.AfterAttention(t, i, x, y)
		t.Keep(mark, next)
		x = next
	}
}
