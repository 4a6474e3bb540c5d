package cuda

import (
	"fmt"
	"math/bits"
	"unsafe"

	"nha/backend"
	"nha/tensor"
)

// Matrix products are cuBLASLt's. It thinks in columns: a row-major C [m,n] is its C^T [n,m], so C = A B is asked for as
// C^T = B^T A^T, its first operand being our B. Plans (descriptors and the algorithm that its heuristic names first) are made
// once per shape. A shape that it has no algorithm for (rows of odd length, mostly) goes to a kernel of ours.

const (
	ltCreate = iota
	ltDestroy
	ltMatmul
	ltMatmulDescCreate
	ltMatmulDescDestroy
	ltMatmulDescSetAttribute
	ltMatrixLayoutCreate
	ltMatrixLayoutDestroy
	ltPreferenceCreate
	ltPreferenceDestroy
	ltPreferenceSetAttribute
	ltAlgoGetHeuristic
	ltFunctions
)

var ltNames = [ltFunctions]string{"cublasLtCreate", "cublasLtDestroy", "cublasLtMatmul", "cublasLtMatmulDescCreate", "cublasLtMatmulDescDestroy",
	"cublasLtMatmulDescSetAttribute", "cublasLtMatrixLayoutCreate", "cublasLtMatrixLayoutDestroy", "cublasLtMatmulPreferenceCreate",
	"cublasLtMatmulPreferenceDestroy", "cublasLtMatmulPreferenceSetAttribute", "cublasLtMatmulAlgoGetHeuristic"}

// Numbers of cublasLt.h and library_types.h.
const (
	cudaR32F  = 0
	cudaR16BF = 14

	cublasCompute32F = 68 // no TF32: that is asked for by another number

	descTransA      = 3
	descTransB      = 4
	descEpilogue    = 7
	descBiasPointer = 8
	epilogueBias    = 4

	preferenceWorkspace = 1
	preferenceReduction = 3 // mask of how split sums may be added up
	preferenceAlignA    = 5 // then B, C, D
	reductionCompute    = 2 // in float32, in an order that is fixed

	ltNotSupported = 15
)

var ltCodes = map[int]string{1: "CUBLAS_STATUS_NOT_INITIALIZED", 3: "CUBLAS_STATUS_ALLOC_FAILED", 7: "CUBLAS_STATUS_INVALID_VALUE", 8: "CUBLAS_STATUS_ARCH_MISMATCH",
	11: "CUBLAS_STATUS_MAPPING_ERROR", 13: "CUBLAS_STATUS_EXECUTION_FAILED", 14: "CUBLAS_STATUS_INTERNAL_ERROR", ltNotSupported: "CUBLAS_STATUS_NOT_SUPPORTED"}

// workspaceBytes is the scratch memory of a product; NVIDIA advises 32 MiB for Hopper.
const workspaceBytes = 32 << 20

// multiplier is cuBLASLt on a device.
type multiplier struct {
	lib       *library
	f         [ltFunctions]uintptr
	d         *device
	handle    uintptr
	workspace uintptr
	plans     map[productKey]*product
	scales    [2]float32 // 0 and 1, where the library can read them
}

// productKey is what a plan depends on.
type productKey struct {
	op      backend.Op
	m, n, k int
	dtype   tensor.DType // of A and B
	out     tensor.DType // of C: F32 for gradients of parameters
	bias    bool
	align   [3]uint8 // log2 of the alignment of our B, A and C
}

// product is a plan; desc 0: no algorithm, the kernel of ours.
type product struct {
	desc, first, second, result uintptr
	algorithm                   [8]uint64
	bias                        bool
}

func loadMultiplier(driverVersion int) (*multiplier, error) {
	l, err := open(ordered("libcublasLt", driverVersion)...)
	if err != nil {
		return nil, err
	}
	m := &multiplier{lib: l, plans: map[productKey]*product{}, scales: [2]float32{0, 1}}
	return m, l.functions(ltNames[:], m.f[:])
}

//go:uintptrescapes
func (m *multiplier) do(f int, args ...uintptr) error {
	return m.result(f, int(int32(call(m.f[f], args...))))
}

// result is the error for a status that a function returned.
func (m *multiplier) result(f, code int) error {
	if code != 0 {
		name, ok := ltCodes[code]
		if !ok {
			name = fmt.Sprintf("cuBLAS status %d", code)
		}
		return &Error{Call: ltNames[f], Code: code, Name: name}
	}
	return nil
}

func (m *multiplier) start(d *device) error {
	m.d = d
	m.workspace = d.alloc(workspaceBytes, forScratch)
	return d.try(func() error { return m.do(ltCreate, uintptr(unsafe.Pointer(&m.handle))) })
}

// close frees the plans; on the device's thread.
func (m *multiplier) close() {
	for _, p := range m.plans {
		if p.desc != 0 {
			_ = m.do(ltMatmulDescDestroy, p.desc)
			for _, l := range []uintptr{p.first, p.second, p.result} {
				_ = m.do(ltMatrixLayoutDestroy, l)
			}
		}
	}
	clear(m.plans)
	if m.handle != 0 {
		_ = m.do(ltDestroy, m.handle)
	}
}

// alignment is the log2 of what an address is a multiple of, up to 256 bytes.
func alignment(t tensor.Tensor) uint8 {
	return uint8(min(8, bits.TrailingZeros64(uint64(t.Address()))))
}

// plan makes or finds the plan for a product.
func (m *multiplier) plan(k productKey) *product {
	if p, ok := m.plans[k]; ok {
		return p
	}
	return m.addPlan(k)
}

func (m *multiplier) addPlan(k productKey) (p *product) {
	m.d.must(func() (err error) { p, err = m.newPlan(k); return err })
	m.plans[k] = p
	return p
}

// newPlan is made on the device's thread.
func (m *multiplier) newPlan(k productKey) (*product, error) {
	p := &product{bias: k.bias}
	if err := m.do(ltMatmulDescCreate, uintptr(unsafe.Pointer(&p.desc)), cublasCompute32F, cudaR32F); err != nil {
		return nil, err
	}
	set := func(attribute uintptr, value int32) error {
		return m.do(ltMatmulDescSetAttribute, p.desc, attribute, uintptr(unsafe.Pointer(&value)), 4)
	}
	layout := func(into *uintptr, d tensor.DType, rows, columns int) error {
		dtype := uintptr(cudaR16BF)
		if d == tensor.F32 {
			dtype = cudaR32F
		}
		return m.do(ltMatrixLayoutCreate, uintptr(unsafe.Pointer(into)), dtype, uintptr(rows), uintptr(columns), uintptr(rows))
	}
	var transposed [2]int32
	first, second := [2]int{k.n, k.k}, [2]int{k.k, k.m} // our B [k,n] and A [m,k], rows and columns swapped
	switch k.op {
	case backend.NT:
		transposed[0], first = 1, [2]int{k.k, k.n}
	case backend.TN:
		transposed[1], second = 1, [2]int{k.m, k.k}
	}
	steps := []error{set(descTransA, transposed[0]), set(descTransB, transposed[1]), layout(&p.first, k.dtype, first[0], first[1]),
		layout(&p.second, k.dtype, second[0], second[1]), layout(&p.result, k.out, k.n, k.m)}
	if k.bias {
		steps = append(steps, set(descEpilogue, epilogueBias))
	}
	for _, err := range steps {
		if err != nil {
			return nil, err
		}
	}
	found, err := m.choose(p, k)
	if err != nil {
		return nil, err
	}
	if !found {
		_ = m.do(ltMatmulDescDestroy, p.desc)
		p.desc = 0
	}
	return p, nil
}

// choose asks the heuristic for an algorithm.
func (m *multiplier) choose(p *product, k productKey) (found bool, err error) {
	var preference uintptr
	if err := m.do(ltPreferenceCreate, uintptr(unsafe.Pointer(&preference))); err != nil {
		return false, err
	}
	defer func() { _ = m.do(ltPreferenceDestroy, preference) }()
	bytes := uint64(workspaceBytes)
	if err := m.do(ltPreferenceSetAttribute, preference, preferenceWorkspace, uintptr(unsafe.Pointer(&bytes)), 8); err != nil {
		return false, err
	}
	scheme := uint32(reductionCompute)
	if err := m.do(ltPreferenceSetAttribute, preference, preferenceReduction, uintptr(unsafe.Pointer(&scheme)), 4); err != nil {
		return false, err
	}
	for i, a := range [4]uint8{k.align[0], k.align[1], k.align[2], k.align[2]} {
		align := uint32(1) << a
		if err := m.do(ltPreferenceSetAttribute, preference, preferenceAlignA+uintptr(i), uintptr(unsafe.Pointer(&align)), 4); err != nil {
			return false, err
		}
	}
	var result struct { // cublasLtMatmulHeuristicResult_t
		algorithm [8]uint64
		workspace uintptr
		state     int32
		waves     float32
		reserved  [4]int32
	}
	var n int32
	err = m.do(ltAlgoGetHeuristic, m.handle, p.desc, p.first, p.second, p.result, p.result, preference, 1,
		uintptr(unsafe.Pointer(&result)), uintptr(unsafe.Pointer(&n)))
	if e, ok := err.(*Error); ok && e.Code == ltNotSupported || err == nil && (n == 0 || result.state != 0) {
		return false, nil
	}
	p.algorithm = result.algorithm
	return true, err
}

var productNames = [...]string{backend.NN: "matmul nn", backend.NT: "matmul nt", backend.TN: "matmul tn"}

// MatMul is c (+)= A B + bias. Operands of another type than the backend's (weights kept as they are stored) are converted
// first.
func (b *Backend) MatMul(op backend.Op, c backend.Gradient, x, w, bias tensor.Tensor) {
	b.op(productNames[op], c.Tensor, x, w, bias)
	var addend tensor.Tensor
	if c.Add {
		addend = c.Tensor
	}
	b.multiply(op, c.Tensor, x, w, bias, addend)
}

// MatMulResidual is c = A B + bias + residual, for c in other memory than the residual.
func (b *Backend) MatMulResidual(op backend.Op, c, x, w, bias, residual tensor.Tensor) {
	b.op(productNames[op], c, x, w, bias, residual)
	b.multiply(op, c, x, w, bias, residual)
}

// multiply is c = A B + bias + addend; the addend, of c's type, may be c or absent.
func (b *Backend) multiply(op backend.Op, c, x, w, bias, addend tensor.Tensor) {
	x, w, bias = b.converted(x), b.converted(w), b.converted(bias)
	k := productKey{op: op, m: c.Rows(), n: c.Columns(), k: x.Columns(), dtype: b.dtype, out: c.DType, bias: bias.Present(),
		align: [3]uint8{alignment(w), alignment(x), alignment(c)}}
	if addend.Present() {
		k.align[2] = min(k.align[2], alignment(addend))
	}
	if op == backend.TN {
		k.k = x.Rows()
	}
	var p *product
	if k.k > 0 {
		p = b.lt.plan(k)
	}
	if p == nil || p.desc == 0 {
		b.plainMatMul(k, c, x, w, bias, addend)
		return
	}
	if b.d.collecting {
		return
	}
	t := b.d.take(runProduct)
	t.plan = p
	t.args[0], t.args[1], t.args[2], t.args[3], t.args[4] = uint64(x.Address()), uint64(w.Address()), uint64(c.Address()), uint64(bias.Address()), 0
	t.args[5] = t.args[2]
	if addend.Present() {
		t.args[4], t.args[5] = 1, uint64(addend.Address())
	}
	t.owner = b.lt
	b.d.queue <- t
}

func runProduct(d *device, c *command) error {
	m, p := c.owner, c.plan
	if p.bias {
		if err := m.result(ltMatmulDescSetAttribute, d.invoke(m.f[ltMatmulDescSetAttribute], p.desc, descBiasPointer, uintptr(unsafe.Pointer(&c.args[3])), 8)); err != nil {
			return err
		}
	}
	one, beta := uintptr(unsafe.Pointer(&m.scales[1])), uintptr(unsafe.Pointer(&m.scales[c.args[4]]))
	return m.result(ltMatmul, d.invoke(m.f[ltMatmul], m.handle, p.desc, one, uintptr(c.args[1]), p.first, uintptr(c.args[0]), p.second, beta, uintptr(c.args[5]), p.result,
		uintptr(c.args[2]), p.result, uintptr(unsafe.Pointer(&p.algorithm)), m.workspace, workspaceBytes, d.stream))
}

// converted is t in the backend's type: itself, or a copy in scratch memory.
func (b *Backend) converted(t tensor.Tensor) tensor.Tensor {
	if !t.Present() || t.DType == b.dtype {
		return t
	}
	y := b.scratchTensor(b.dtype, t.Shape)
	v := wide(8, y, t)
	k := b.d.kernel("pointwise.cu", "convert", b.real, typeOf("FROM", t.DType), number("VEC", v))
	b.elementwise(k, v, t.Len(), pointer(y), pointer(t), integer(t.Len()))
	return y
}

// plainMatMul is the product without tensor cores, for any shape.
func (b *Backend) plainMatMul(k productKey, c, x, w, bias, addend tensor.Tensor) {
	f := b.d.kernel("matmul.cu", "matmul", b.real, typeOf("OUT", k.out))
	// Element (row, inner) of A lies at row*x[0] + inner*x[1], element (inner, column) of B at inner*w[0] + column*w[1].
	strideX, strideW := [2]int{k.k, 1}, [2]int{k.n, 1}
	switch k.op {
	case backend.NT:
		strideW = [2]int{1, k.k}
	case backend.TN:
		strideX = [2]int{1, k.m}
	}
	const tile = 32
	b.d.launch(f, grid{(k.n + tile - 1) / tile, (k.m + tile - 1) / tile, 1}, 256, 0, pointer(c), pointer(x), pointer(w), pointer(bias), pointer(addend),
		integer(k.m), integer(k.n), integer(k.k), integer(strideX[0]), integer(strideX[1]), integer(strideW[0]), integer(strideW[1]))
}

// truth is a bool as an int.
func truth(on bool) arg {
	if on {
		return 1
	}
	return 0
}
