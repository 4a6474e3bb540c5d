package attention_test

import (
	"testing"

	"nha/attention"
	"nha/attention/attentiontest"
	"nha/tensor"
)

// reference is package attention itself as an operator: arithmetic in float64, results rounded to a type.
type reference struct{ dtype tensor.DType }

func (reference) Forward(c *attention.Call)                          { attention.Forward(c) }
func (reference) Backward(c *attention.Call, g *attention.Gradients) { attention.Backward(c, g) }
func (r reference) DType() tensor.DType                              { return r.dtype }

func TestOperator(t *testing.T) {
	for _, d := range []tensor.DType{tensor.F64, tensor.F32, tensor.BF16} {
		t.Run(d.String(), func(t *testing.T) {
			attentiontest.Run(t, reference{d}, attentiontest.TolerancesFor(d))
		})
	}
}

func TestLongRun(t *testing.T) {
	for _, d := range []tensor.DType{tensor.F64, tensor.F32} {
		t.Run(d.String(), func(t *testing.T) { attentiontest.LongRun(t, reference{d}) })
	}
}
