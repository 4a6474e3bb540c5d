package cuda

import (
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"

	"nha/attention/vectors"
	"nha/backend"
	"nha/backend/ref"
	"nha/tensor"
)

// card opens the backend, or skips the test where there is no card.
func card(t testing.TB, d tensor.DType) *Backend {
	t.Helper()
	if _, err := loadDriver(); err != nil {
		t.Skipf("no CUDA here: %v", err)
	}
	b, err := Open(d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

var bothTypes = []tensor.DType{tensor.BF16, tensor.F32}

// random is a host tensor of normal numbers.
func random(seed uint64, dims ...int) tensor.Tensor {
	r, t := rand.New(rand.NewPCG(seed, 5)), tensor.New(tensor.F32, tensor.Of(dims...))
	for i := range t.F32() {
		t.F32()[i] = float32(r.NormFloat64())
	}
	return t
}

func ids(seed uint64, n, limit int) tensor.Tensor {
	r, t := rand.New(rand.NewPCG(seed, 6)), tensor.New(tensor.I32, tensor.Of(n))
	for i := range t.I32() {
		t.I32()[i] = int32(float64(limit) * math.Pow(r.Float64(), 4)) // a few are frequent
	}
	return t
}

// up brings a host tensor to the card in the backend's type, integers as they are.
func up(b *Backend, h tensor.Tensor) tensor.Tensor {
	d := b.DType()
	if !h.DType.Float() {
		d = h.DType
	}
	t := b.Alloc(d, h.Shape)
	b.Write(t, h)
	return t
}

func down(b *Backend, t tensor.Tensor) tensor.Tensor {
	h := tensor.New(t.DType, t.Shape)
	b.Read(h, t)
	return h
}

// TestMemory: what is written is read back, in any type and longer than a staging buffer; memory is zeroed and used again.
func TestMemory(t *testing.T) {
	b := card(t, tensor.BF16)
	for _, n := range []int{0, 1, 1000, stagingBytes/2 + 3, 3*stagingBytes + 1} {
		h := random(uint64(n), n)
		for _, d := range []tensor.DType{tensor.F32, tensor.BF16, tensor.F16} {
			x := b.Alloc(d, tensor.Of(n))
			for _, v := range down(b, x).Bytes() {
				if v != 0 {
					t.Fatalf("%d of type %v: memory is not zeroed", n, d)
				}
			}
			b.Write(x, h)
			want := tensor.New(d, h.Shape)
			tensor.Convert(want, h)
			if got := down(b, x); string(got.Bytes()) != string(want.Bytes()) {
				t.Fatalf("%d of type %v: not what was written", n, d)
			}
			y := b.Alloc(d, tensor.Of(n))
			b.Copy(y, x)
			if got := down(b, y); string(got.Bytes()) != string(want.Bytes()) {
				t.Fatalf("%d of type %v: not what was copied", n, d)
			}
			address := y.Address()
			b.Free(y)
			if z := b.Alloc(d, tensor.Of(n)); z.Address() != address {
				t.Errorf("%d of type %v: memory is not used again", n, d)
			} else {
				b.Free(z)
			}
			b.Free(x)
		}
	}
	if m := &b.d.memory; m.held[forTensors] != 0 || m.counts[forTensors] != 0 {
		t.Errorf("%d bytes in %d blocks are still held", m.held[forTensors], m.counts[forTensors])
	}
}

// TestOutOfMemory: the panic says how much was asked for and what to do, and the backend goes on.
func TestOutOfMemory(t *testing.T) {
	b := card(t, tensor.BF16)
	func() {
		defer func() {
			e, ok := recover().(*Error)
			if !ok {
				t.Fatalf("no *Error for a petabyte")
			}
			for _, want := range []string{"CUDA_ERROR_OUT_OF_MEMORY", "alloc [1125899906842624]", "GiB asked for", "in use", "lower the batch"} {
				if !strings.Contains(e.Error(), want) {
					t.Errorf("error %q does not say %q", e, want)
				}
			}
		}()
		b.Alloc(tensor.U8, tensor.Of(1<<50))
	}()
	x := up(b, random(1, 100))
	b.Add(x, x, x)
	b.Wait()
}

// opsOf are the ops that add up many numbers, each returning what it wrote.
func opsOf(b *Backend) map[string]func() []tensor.Tensor {
	const rows, n, vocabulary = 3000, 264, 500
	x, dy, w, rstd := up(b, random(1, rows, n)), up(b, random(2, rows, n)), up(b, random(3, n)), up(b, random(4, rows))
	weight, token := up(b, random(5, vocabulary, n)), up(b, ids(6, rows, vocabulary))
	logits, loss, target := b.Alloc(b.DType(), tensor.Of(rows, vocabulary)), b.Alloc(b.DType(), tensor.Of(rows)), up(b, ids(7, rows, vocabulary))
	dx, dw, dtable, none := b.Alloc(b.DType(), x.Shape), b.Alloc(b.DType(), w.Shape), b.Alloc(b.DType(), weight.Shape), tensor.Tensor{}
	return map[string]func() []tensor.Tensor{
		"matmul": func() []tensor.Tensor {
			b.MatMul(backend.NT, backend.Gradient{Tensor: logits}, x, weight, none)
			b.MatMul(backend.TN, backend.Gradient{Tensor: dtable}, logits, x, none)
			return []tensor.Tensor{logits, dtable}
		},
		"embed backward": func() []tensor.Tensor {
			b.EmbedBackward(backend.Gradient{Tensor: dtable}, dy, token)
			return []tensor.Tensor{dtable}
		},
		"sum_rows": func() []tensor.Tensor {
			b.SumRows(backend.Gradient{Tensor: dw}, x)
			return []tensor.Tensor{dw}
		},
		"rms_norm backward": func() []tensor.Tensor {
			b.RMSNormBackward(backend.Gradient{Tensor: dx}, backend.Gradient{Tensor: dw}, dy, x, w, rstd)
			return []tensor.Tensor{dx, dw}
		},
		"cross_entropy": func() []tensor.Tensor {
			b.MatMul(backend.NT, backend.Gradient{Tensor: logits}, x, weight, none)
			b.CrossEntropy(loss, logits, target, 1)
			return []tensor.Tensor{logits, loss}
		},
		"sums": func() []tensor.Tensor {
			s := tensor.FromF64([]float64{b.Sum(x), b.SumSquares(x)}, 2)
			y := b.Alloc(tensor.F64, tensor.Of(2))
			b.Write(y, s)
			return []tensor.Tensor{y}
		},
	}
}

// TestSameBits: the same op on the same inputs gives the same bits, every time.
func TestSameBits(t *testing.T) {
	for _, d := range bothTypes {
		b := card(t, d)
		for name, op := range opsOf(b) {
			var first []string
			for run := range 5 {
				for i, y := range op() {
					bits := string(down(b, y).Bytes())
					if run == 0 {
						first = append(first, bits)
					} else if bits != first[i] {
						t.Errorf("%s %s: result %d differs in run %d", b.Name(), name, i, run)
					}
				}
			}
		}
	}
}

// TestLarge holds sizes of real models, which the op table has none of, against float64 sums of some of their elements.
func TestLarge(t *testing.T) {
	for _, d := range bothTypes {
		b, limit := card(t, d), map[tensor.DType]float64{tensor.BF16: 5e-3, tensor.F32: 2e-5}[d]
		near := func(what string, got, want []float64) {
			t.Helper()
			if e := tensor.MaxError(tensor.FromF64(got, len(got)), tensor.FromF64(want, len(want))); !(e <= limit) {
				t.Errorf("%s %s: error %.2g, limit %.0e", b.Name(), what, e, limit)
			}
		}
		const rows, n, vocabulary = 16384, 768, 32000
		x, w := up(b, random(1, rows, n)), up(b, random(2, vocabulary, n))
		hx, hw := down(b, x), down(b, w)
		y := b.Alloc(d, tensor.Of(rows, vocabulary))
		b.MatMul(backend.NT, backend.Gradient{Tensor: y}, x, w, tensor.Tensor{})
		hy := down(b, y)
		var got, want []float64
		for i := range 300 {
			r, c := i*131%rows, i*7919%vocabulary
			sum := 0.0
			for j := range n {
				sum += hx.Value(r*n+j) * hw.Value(c*n+j)
			}
			got, want = append(got, hy.Value(r*vocabulary+c)), append(want, sum)
		}
		near("matmul", got, want)

		token := ids(3, rows, vocabulary)
		dtable := b.Alloc(d, w.Shape)
		b.EmbedBackward(backend.Gradient{Tensor: dtable}, x, up(b, token))
		hd := down(b, dtable)
		sums := make([]float64, vocabulary)
		for r, id := range token.I32() {
			sums[id] += hx.Value(r*n + 5)
		}
		got, want = nil, nil
		for id, s := range sums {
			got, want = append(got, hd.Value(id*n+5)), append(want, s)
		}
		near("embed backward", got, want)
		most := 0
		counts := make([]int, vocabulary)
		for _, id := range token.I32() {
			counts[id]++
			most = max(most, counts[id])
		}
		if most < 1100 {
			t.Errorf("the most frequent id has %d rows: too few for the path of long lists", most)
		}

		target, loss := ids(4, rows, vocabulary), b.Alloc(tensor.F32, tensor.Of(rows))
		b.CrossEntropy(loss, y, up(b, target), 1)
		hl := down(b, loss)
		got, want = nil, nil
		for r := 0; r < rows; r += 400 {
			row := tensor.New(tensor.F64, tensor.Of(1, vocabulary))
			tensor.Convert(row, hy.Narrow(r, r+1))
			l := tensor.New(tensor.F64, tensor.Of(1))
			ref.Backend{}.CrossEntropy(l, row, target.Narrow(r, r+1), 1)
			got, want = append(got, hl.Value(r)), append(want, l.F64()[0])
		}
		near("cross_entropy with losses in float32", got, want)
	}
}

// TestMasters: on the bf16 backend gradients of parameters are summed in float32, and the optimiser writes float32 parameters and
// their rounded copies. What is added up must keep what bf16 would lose.
func TestMasters(t *testing.T) {
	b := card(t, tensor.BF16)
	const rows, n, vocabulary, times = 512, 64, 40, 300
	x, dy, weight, rstd := up(b, random(1, rows, n)), up(b, random(2, rows, n)), up(b, random(3, n)), b.Alloc(tensor.F32, tensor.Of(rows))
	token := up(b, ids(4, rows, vocabulary))
	b.RMSNorm(b.Alloc(b.dtype, x.Shape), rstd, x, weight, 1e-5)
	dw, dtable := b.Alloc(tensor.F32, tensor.Of(n, n)), b.Alloc(tensor.F32, tensor.Of(vocabulary, n))
	dbias, dnorm := b.Alloc(tensor.F32, tensor.Of(n)), b.Alloc(tensor.F32, tensor.Of(n))
	gradients := []tensor.Tensor{dw, dtable, dbias, dnorm}
	step := func(add bool) {
		b.MatMul(backend.TN, backend.Gradient{Tensor: dw, Add: add}, dy, x, tensor.Tensor{})
		b.EmbedBackward(backend.Gradient{Tensor: dtable, Add: add}, dy, token)
		b.SumRows(backend.Gradient{Tensor: dbias, Add: add}, dy)
		b.RMSNormBackward(backend.Gradient{}, backend.Gradient{Tensor: dnorm, Add: add}, dy, x, weight, rstd)
	}
	step(false)
	var once []tensor.Tensor
	for _, g := range gradients {
		once = append(once, down(b, g))
	}
	for range times - 1 {
		step(true)
	}
	for i, g := range gradients {
		want := tensor.New(tensor.F64, g.Shape)
		for j := range want.F64() {
			want.F64()[j] = times * once[i].Value(j)
		}
		if e := tensor.MaxError(down(b, g), want); !(e <= 2e-5) {
			t.Errorf("gradient %d added %d times: error %.2g", i, times, e)
		}
	}

	p, m, v, rounded := up(b, random(5, n)), b.Alloc(tensor.F32, tensor.Of(n)), b.Alloc(tensor.F32, tensor.Of(n)), b.Alloc(b.dtype, tensor.Of(n))
	master := b.Alloc(tensor.F32, tensor.Of(n))
	start := down(b, p)
	b.Write(master, start)
	want, hm, hv := tensor.New(tensor.F64, tensor.Of(n)), tensor.New(tensor.F64, tensor.Of(n)), tensor.New(tensor.F64, tensor.Of(n))
	tensor.Convert(want, start)
	hg := tensor.New(tensor.F64, tensor.Of(n))
	tensor.Convert(hg, down(b, dnorm))
	for i := range 10 { // each step is far below a bf16 parameter's last bit
		s := backend.AdamW{LearningRate: 1e-5, Beta1: 0.9, Beta2: 0.95, Epsilon: 1e-8, GradientScale: 1, Step: i + 1}
		ref.Backend{}.AdamW(want, hg, hm, hv, s)
		s.Rounded = rounded
		backend.ApplyAdamW(b, master, dnorm, m, v, s)
	}
	got := down(b, master)
	if e := tensor.MaxError(got, want); !(e <= 1e-6) {
		t.Errorf("masters: error %.2g", e)
	}
	bits := tensor.New(b.dtype, got.Shape)
	tensor.Convert(bits, got)
	if string(down(b, rounded).Bytes()) != string(bits.Bytes()) {
		t.Error("the copies are not the masters rounded")
	}
}

// TestStoredTypes: weights of another type than the backend's are read as they are, by matmul and embed.
func TestStoredTypes(t *testing.T) {
	for _, d := range bothTypes {
		b := card(t, d)
		for _, stored := range []tensor.DType{tensor.F32, tensor.BF16, tensor.F16} {
			w := b.Alloc(stored, tensor.Of(40, 24))
			b.Write(w, random(1, 40, 24))
			x, y, e := up(b, random(2, 7, 24)), b.Alloc(d, tensor.Of(7, 40)), b.Alloc(d, tensor.Of(3, 24))
			b.MatMul(backend.NT, backend.Gradient{Tensor: y}, x, w, tensor.Tensor{})
			b.Embed(e, w, up(b, tensor.FromI32([]int32{39, 0, 7}, 3)))
			hx, hw, hy, he := down(b, x), down(b, w), down(b, y), down(b, e)
			rounded := tensor.New(d, hw.Shape) // what the op makes of them
			tensor.Convert(rounded, hw)
			want := tensor.New(tensor.F64, hy.Shape)
			for i := range want.F64() {
				for j := range 24 {
					want.F64()[i] += hx.Value(i/40*24+j) * rounded.Value(i%40*24+j)
				}
			}
			if e, limit := vectors.Error(d, hy, want), vectors.Limit(d, false); !(e <= limit) {
				t.Errorf("%s with weights of type %v: error %.2g, limit %.0e", b.Name(), stored, e, limit)
			}
			if math.Abs(he.Value(0)-hw.Value(39*24)) > 0.01*math.Abs(hw.Value(39*24)) {
				t.Errorf("%s embed of type %v: %v, want %v", b.Name(), stored, he.Value(0), hw.Value(39*24))
			}
		}
	}
}

// TestQueueMakesNoGarbage needs no card: a thread that takes commands and gives them back stands in for it.
func TestQueueMakesNoGarbage(t *testing.T) {
	d := &device{queue: make(chan *command, queued), spare: make(chan *command, queued)}
	for range queued {
		d.spare <- &command{}
	}
	go func() {
		for c := range d.queue {
			d.spare <- c
		}
	}()
	defer close(d.queue)
	b := &Backend{d: d, dtype: tensor.BF16, real: realType(tensor.BF16), lt: &multiplier{plans: map[productKey]*product{}}}
	d.modules.kernels = map[uint64][]*kernel{}
	know := func(file, entry string, defines ...define) {
		h := hash(file, entry, defines)
		d.modules.kernels[h] = append(d.modules.kernels[h], &kernel{module: key(file, defines), entry: entry})
	}
	know("pointwise.cu", "add", b.real, typeOf("FROM", b.dtype), number("VEC", 8))
	know("norm.cu", "rms_norm", b.real, typeOf("STATISTIC", b.dtype), number("COLUMNS", 64), number("VEC", 8))
	b.lt.plans[productKey{op: backend.NT, m: 64, n: 64, k: 64, dtype: tensor.BF16, out: tensor.BF16, align: [3]uint8{8, 8, 8}}] = &product{desc: 1}
	x, w := tensor.OnDevice(tensor.BF16, tensor.Of(64, 64), 256), tensor.OnDevice(tensor.BF16, tensor.Of(64), 256)
	if n := testing.AllocsPerRun(100, func() {
		b.Add(x, x, x)
		b.Zero(x)
		b.RMSNorm(x, w, x, w, 1)
		b.MatMul(backend.NT, backend.Gradient{Tensor: x}, x, x, tensor.Tensor{})
	}); n != 0 {
		t.Errorf("%.0f allocations", n)
	}
}

// TestNoAllocation: once its kernels are there an op makes no garbage.
func TestNoAllocation(t *testing.T) {
	b := card(t, tensor.BF16)
	x, y, w, rstd := up(b, random(1, 64, 256)), up(b, random(2, 64, 256)), up(b, random(3, 256, 256)), up(b, random(4, 64))
	c, host := b.Alloc(tensor.BF16, tensor.Of(64, 256)), tensor.New(tensor.BF16, tensor.Of(64, 256))
	step := func() {
		b.Write(x, host)
		b.Add(y, x, y)
		b.MatMul(backend.NT, backend.Gradient{Tensor: c}, x, w, tensor.Tensor{})
		b.RMSNorm(y, rstd, x, w.Narrow(0, 1), 1e-5)
		b.Zero(c)
		b.Read(host, c)
	}
	step()
	b.Wait()
	if n := testing.AllocsPerRun(100, step); n != 0 {
		t.Errorf("%.0f allocations a step", n)
	}
}

// TestFaultIsNamed: a kernel that writes where nothing is ends as an *Error that names the op. The process cannot use the card
// after that, so it is one of its own.
func TestFaultIsNamed(t *testing.T) {
	if os.Getenv("NHA_TEST_FAULT") == "" {
		card(t, tensor.F32)
		c := exec.Command(os.Args[0], "-test.run=^TestFaultIsNamed$", "-test.v")
		c.Env = append(os.Environ(), "NHA_TEST_FAULT=1", "NHA_CUDA_SYNC=1")
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	b, err := Open(tensor.F32)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		e, ok := recover().(*Error)
		if !ok || !strings.HasPrefix(e.Error(), "cuda: add [16]") || !strings.HasPrefix(e.Name, "CUDA_ERROR_") {
			t.Errorf("%v", e)
		}
	}()
	nowhere := tensor.OnDevice(tensor.F32, tensor.Of(16), 256)
	b.Add(nowhere, nowhere, nowhere)
	b.Wait()
}
