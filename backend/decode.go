package backend

import (
	"nha/attention"
	"nha/tensor"
)

// DecodeCompiler is a backend that can make one program of a whole decoding step: embedding, blocks, head and the draw of the next
// token, for many sequences at a time whose states stay on the device between steps. Other backends decode by plain calls of the
// ops; both compute the same function.
type DecodeCompiler interface {
	// CompileDecode prepares steps of a model whose weights stay where they are. The error says what it has no program for.
	CompileDecode(m *DecodeModel) (Decoder, error)
}

// DecodeModel is a model as a list of blocks, x += O(operator(Q, K, V, Z of norm(x))); x += Down(silu(Gate) Up of norm(x)).
type DecodeModel struct {
	Embedding, Norm, Head tensor.Tensor // [vocabulary, hidden], [hidden], [vocabulary, hidden]
	Epsilon               float64       // of every norm
	Blocks                []DecodeBlock
}

// DecodeBlock is one layer. What a model does not have is absent.
type DecodeBlock struct {
	Attention                         *attention.Config
	AttentionNorm, QueryNorm, KeyNorm tensor.Tensor
	Q, K, V, Z, O                     Affine
	ActivateValues                    bool          // v <- silu(v)
	OutputNorm                        tensor.Tensor // o <- norm(silu(o)), over all heads
	MLPNorm                           tensor.Tensor
	Gate, Up, Down                    Affine
}

// Affine is y = x Weight^T + Bias.
type Affine struct{ Weight, Bias tensor.Tensor }

// Draw says how a sequence's next token is drawn: package generate's Sampling.
type Draw struct {
	Temperature, TopP, MinP, RepetitionPenalty float64
	TopK                                       int
	Seed                                       uint64
	Sample                                     int
}

// Drawn is what a step gave for one sequence: the next token, -1 where the logits are no numbers, and the model's own
// log-probability of it.
type Drawn struct {
	Token   int32
	LogProb float32
}

// Decoder runs decoding steps. A seat is a sequence on the device.
type Decoder interface {
	// Rows is the most sequences of a step.
	Rows() int
	// Join brings a sequence to the device: its layers' states, the tokens it has seen, as bits, and the token to read next.
	Join(layers []*attention.State, seen []uint64, next int32, d Draw) (seat int)
	// Step queues a step of these seats: each reads its token and draws the one it reads in its next step. It does not wait.
	Step(seats []int)
	// Drawn waits for the oldest step that was not asked for yet.
	Drawn(dst []Drawn) []Drawn
	// Leave writes a sequence's states into layers and the logits that follow its last token into logits [vocabulary], float32, and
	// frees the seat. The seat was in the last step, at this row of it.
	Leave(seat, row int, layers []*attention.State, logits tensor.Tensor)
	// Drop frees a seat and what it holds.
	Drop(seat int)
	Close()
}
