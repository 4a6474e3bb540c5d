package backend

// Spec is one line of the op table: what an op takes and gives, in SPEC's letters (N tokens of a packed batch, D columns),
// and for which of its inputs it has a gradient. F is the backend's floating-point type. Where that has 16 bits, what is one number
// a row (rstd, loss) and everything of the optimiser may be F32, and so may gradients of parameters.
type Spec struct {
	Name      string
	Inputs    string
	Outputs   string
	Gradients string
}

// Table lists every op once. Package optest has cases for each; a backend that lacks one does not compile.
var Table = []Spec{
	{"matmul", "a [m k]|[k m] F, b [k n]|[n k] F, bias [n] F (optional)", "c [m n] F, written or added", "a, b by matmul; bias by sum_rows"},
	{"embed", "table [vocabulary D] F, ids [N] I32", "y [N D] F", "table"},
	{"sum_rows", "x [N D] F", "y [D] F", "none"},
	{"rms_norm", "x [N D] F, weight [D] F, epsilon", "y [N D] F, rstd [N] F", "x, weight"},
	{"add", "a, b F", "y F", "a, b by copy"},
	{"silu", "x F", "y F", "x"},
	{"swiglu", "gate, up F", "y F", "gate, up"},
	{"nha", "q [N Hq*K], k [N H*K], v [N H*V], z [N H*M] F, initial states", "o [N Hq*V], lse [N Hq], share [N Hq] F, final states", "q, k, v, z, initial states; from o and final states"},
	{"route", "logits [N E] F, k, normalize", "weights [N k] F, ids [N k] I32", "logits"},
	{"combine", "x [N*k D] F, weights [N k] F, places [N k] I32", "y [N D] F, written or added", "x, weights"},
	{"cross_entropy", "logits [N vocabulary] F, targets [N] I32, scale", "loss [N] F, gradient in place of logits", "logits"},
	{"distill", "logits, teacher [N vocabulary] F, targets [N] I32, scales", "nll, kl [N] F, gradient in place of logits", "logits"},
	{"distill_top", "logits [N vocabulary] F, logq [N k] F, ids [N k] I32, targets [N] I32, scales", "nll, kl [N] F, gradient in place of logits", "logits"},
	{"squared_error", "y, target [N D] F, weight, scale", "loss [N] F, dy [N D] F, written or added", "y"},
	{"sum", "x F", "float64", "none"},
	{"sum_squares", "x F", "float64", "none"},
	{"adamw", "p, g, m, v F, step", "p, m, v in place", "none"},
}
