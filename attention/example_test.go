package attention_test

import (
	"fmt"

	"nha/attention"
	"nha/tensor"
)

// A prompt is read once; its state is a value from which any number of continuations start.
func Example() {
	c := &attention.Config{
		QueryHeads: 2, KVHeads: 1, KeyDim: 4, ValueDim: 4, Slots: 3, Window: 2,
		Scale: 0.5, GateNormalizer: 8, Rope: attention.NewRope(4, 10000),
	}
	read := func(from *attention.State, tokens ...float64) (*attention.State, tensor.Tensor) {
		n := len(tokens)
		rows := func(width int) tensor.Tensor {
			t := tensor.New(tensor.F64, tensor.Of(n, width))
			for i := range t.Len() {
				t.SetValue(i, tokens[i/width])
			}
			return t
		}
		to := attention.NewState(c, tensor.F64)
		call := &attention.Call{
			Config: c, Lengths: []int{n}, Q: rows(8), K: rows(4), V: rows(4), Z: rows(3),
			O: tensor.New(tensor.F64, tensor.Of(n, 8)), Share: tensor.New(tensor.F64, tensor.Of(n, 2)),
			Initial: []*attention.State{from}, Final: []*attention.State{to},
		}
		if err := call.Check(); err != nil {
			panic(err)
		}
		attention.Forward(call)
		return to, call.O.Narrow(n-1, n)
	}
	prompt, _ := read(nil, 0.1, 0.9, -0.3, 0.5)
	_, a := read(prompt, 1)
	_, b := read(prompt, -1)
	_, whole := read(nil, 0.1, 0.9, -0.3, 0.5, 1)
	fmt.Printf("one way %.4f, another %.4f, all at once %.4f\n", a.Value(0), b.Value(0), whole.Value(0))
	fmt.Println(prompt.Position, "tokens in", prompt.Bytes(), "bytes")
	// Output:
	// one way 0.6741, another -0.6605, all at once 0.6741
	// 4 tokens in 368 bytes
}
