// Package backend is the op table: every operation that nha computes, once, with its shapes, types and gradients
// (table.go), the interface that a machine implements to run them all, and the checked functions through which the rooms
// above call them (ops.go).
//
// Shapes are checked there, above the backends: a kernel cannot fail. ref is plain loops in float64 and the truth; cpu and
// cuda are held against it by the cases of package optest.
package backend

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"nha/attention"
	"nha/tensor"
)

// Backend is a machine that runs every op of the table. All floating-point tensors it is given are of type DType unless an
// op says otherwise. A Backend serves one goroutine at a time.
type Backend interface {
	Name() string        // ref, cpu, ...
	DType() tensor.DType // what it computes and stores activations in
	Describe() string    // what it runs on, in words
	Close() error

	Memory
	Dense
	Pointwise
	Attention
	Experts
	Training
	Distillation
}

// OnHost says that a backend computes on the processor, in the program's own memory.
func OnHost(b Backend) bool { return slices.Contains([]string{"ref", "cpu", "cpu-f32"}, b.Name()) }

// Fault is a failure of a device under an op. Ops return no error, so it comes as a panic; programs recover it to say it in one line.
type Fault interface {
	error
	Fault() // nothing but the mark
}

// Memory is a backend's storage.
type Memory interface {
	Alloc(d tensor.DType, s tensor.Shape) tensor.Tensor // zeroed
	Free(t tensor.Tensor)                               // t came from Alloc and is not used again
	Write(dst, src tensor.Tensor)                       // from host src, converting to dst's type
	Read(dst, src tensor.Tensor)                        // into host dst, converting to dst's type
	Zero(t tensor.Tensor)
	Copy(dst, src tensor.Tensor) // same type and length
}

// Op is the transposition of a matrix product, the left letter for A, the right one for B.
type Op uint8

const (
	NN Op = iota // C[m,n] = A[m,k] B[k,n]
	NT           // C[m,n] = A[m,k] B[n,k]
	TN           // C[m,n] = A[k,m] B[k,n]
)

// String is nn, nt or tn.
func (o Op) String() string { return [...]string{"nn", "nt", "tn"}[o] }

// Gradient is where a gradient goes: written, or added when Add is set. An absent tensor: not wanted.
type Gradient struct {
	tensor.Tensor
	Add bool
}

// Dense is matrix products and table look-ups.
type Dense interface {
	MatMul(op Op, c Gradient, a, b, bias tensor.Tensor)        // bias [n] may be absent
	Embed(y, table, ids tensor.Tensor)                         // y[r] = table[ids[r]]
	EmbedBackward(dtable Gradient, dy, ids tensor.Tensor)      // dtable[ids[r]] += dy[r]
	SumRows(dst Gradient, x tensor.Tensor)                     // dst[j] = sum_r x[r,j]
	RMSNorm(y, rstd, x, weight tensor.Tensor, epsilon float64) // over rows of len(weight)
	RMSNormBackward(dx, dweight Gradient, dy, x, weight, rstd tensor.Tensor)
}

// Pointwise is elementwise work.
type Pointwise interface {
	Add(y, a, b tensor.Tensor) // y may be a or b
	SiLU(y, x tensor.Tensor)
	SiLUBackward(dx Gradient, dy, x tensor.Tensor)
	SwiGLU(y, gate, up tensor.Tensor) // y = silu(gate) * up
	SwiGLUBackward(dgate, dup Gradient, dy, gate, up tensor.Tensor)
}

// Attention is the operator (SPEC 1).
type Attention interface {
	NHA(c *attention.Call)
	NHABackward(c *attention.Call, g *attention.Gradients)
}

// Experts is the routing of a mixture of experts. What the experts compute is matmul and swiglu, on rows that embed gathers.
type Experts interface {
	// Route chooses the k experts of the largest logits, the first of equals, for every row of logits [N, E]: ids [N, k] I32, the largest
	// first, and their weights [N, k], softmax over all E, or over the k where normalize is set.
	Route(weights, ids, logits tensor.Tensor, normalize bool)
	RouteBackward(dlogits Gradient, dweights, weights, ids, logits tensor.Tensor, normalize bool)
	// Combine is y[t] (+)= sum_j weights[t,j] x[places[t,j]]; places [N, k] I32 names every row of x [N k, D] once.
	Combine(y Gradient, x, weights, places tensor.Tensor)
	CombineBackward(dx, dweights Gradient, dy, x, weights, places tensor.Tensor)
}

// Training is loss and optimiser.
type Training interface {
	// CrossEntropy turns every row of logits into scale * (softmax - onehot(target)) in place and writes -log p(target); a
	// negative target counts nothing: loss 0, zeros. Targets are I32.
	CrossEntropy(loss, logits, targets tensor.Tensor, scale float64)
	Sum(x tensor.Tensor) float64
	SumSquares(x tensor.Tensor) float64
	AdamW(p, g, m, v tensor.Tensor, s AdamW)
}

// Distillation is losses against a teacher. The teacher gets no gradient.
type Distillation interface {
	// Distill mixes cross-entropy and the divergence from a teacher. With p = softmax(logits) and q = softmax(teacher), row by row:
	//
	//	nll = -log p(target),   kl = sum_i q_i log(q_i / p_i),   logits <- nllScale (p - onehot(target)) + klScale (p - q)
	//
	// A negative target counts nothing, in both: losses 0, zeros.
	Distill(nll, kl, logits, teacher, targets tensor.Tensor, nllScale, klScale float64)
	// DistillTop is Distill where of the teacher only the log-probabilities of k words are known, in every row different
	// ones, ids [N k] (I32). What it gives to all others together is divided among them as the student does:
	//
	//	q_rest = 1 - sum_listed q_i,   kl = sum_listed q_i log(q_i / p_i) + q_rest log(q_rest / p_rest)
	DistillTop(nll, kl, logits, logq, ids, targets tensor.Tensor, nllScale, klScale float64)
	// SquaredError is loss[r] = weight sum_j (y[r,j] - target[r,j])^2 and the gradient of scale times that.
	SquaredError(loss tensor.Tensor, dy Gradient, y, target tensor.Tensor, weight, scale float64)
}

// AdamW is one step of decoupled Adam for one group of parameters (Loshchilov and Hutter 2019), counted from Step 1.
type AdamW struct {
	LearningRate, Beta1, Beta2, Epsilon, WeightDecay float64
	GradientScale                                    float64       // multiplies the gradient first: clipping, accumulation
	Rounded                                          tensor.Tensor // a copy of p in the backend's type, written with it; absent: none
	Step                                             int
}

var openers = map[string]func(threads int) (Backend, error){}

// Register makes a backend known by name; the backends' packages call it from init.
func Register(name string, open func(threads int) (Backend, error)) { openers[name] = open }

// Names lists the registered backends.
func Names() []string {
	var names []string
	for n := range openers {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}

// Open starts a backend by name; threads 0 means GOMAXPROCS.
func Open(name string, threads int) (Backend, error) {
	if threads < 0 {
		return nil, fmt.Errorf("threads %d: must be 0 (all) or more", threads)
	}
	open, ok := openers[name]
	if !ok {
		return nil, fmt.Errorf("unknown backend %q: choose one of %s", name, strings.Join(Names(), ", "))
	}
	return open(threads)
}
