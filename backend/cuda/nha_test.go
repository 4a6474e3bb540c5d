package cuda

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nha/attention"
	"nha/attention/attentiontest"
	"nha/attention/vectors"
	"nha/backend"
	"nha/tensor"
)

// nhaTestShapes are K, V and M of the tests, one for each padded shape.
var nhaTestShapes = [][3]int{
	{4, 4, 7}, {4, 4, 0}, {16, 16, 64}, {16, 24, 16}, {24, 40, 7}, {24, 40, 0}, {40, 24, 7}, {32, 32, 16}, {32, 32, 64}, {32, 32, 0}, {64, 64, 64}, {64, 64, 0},
	{128, 128, 16}, {128, 128, 0}, {128, 128, 80}, {128, 64, 80},
}

// nhaSharedPerBlock is what a block may have on the architectures of TestCompile.
var nhaSharedPerBlock = map[string]int{"sm_80": 163 << 10, "sm_90a": 227 << 10}

func init() {
	for _, x := range nhaTestShapes {
		c := attention.Config{KeyDim: x[0], ValueDim: x[1], Slots: x[2]}
		s := (&nhaRun{c: &attention.Call{Config: &c}, slots: c.Slots}).shape()
		for _, pass := range s.passes() {
			file := nhaKernels[pass].file
			for _, arch := range architectures {
				d := s.defines(pass, s == nhaShape{x[0], x[1], x[2]}, nhaSharedPerBlock[arch])
				name := fmt.Sprint(file, d)
				if len(onlyFor[name]) == 0 {
					specialisations[file] = append(specialisations[file], d)
				}
				if !slices.Contains(onlyFor[name], arch) {
					onlyFor[name] = append(onlyFor[name], arch)
				}
			}
		}
	}
	specialisations["nha_f32.cu"] = [][]define{{word("REAL", "float")}}
	specialisations["nha_final.cu"] = over(realTypes)
}

// hosted runs the operator of a card on calls whose tensors are on the host.
type hosted struct{ b *Backend }

func (h hosted) DType() tensor.DType { return h.b.DType() }

func (h hosted) Forward(c *attention.Call) {
	d, free := h.up(c)
	defer free()
	backend.NHA(h.b, d)
	h.down(c.O, d.O)
	h.down(c.LSE, d.LSE)
	h.down(c.Share, d.Share)
}

func (h hosted) Backward(c *attention.Call, g *attention.Gradients) {
	d, free := h.up(c)
	defer free()
	dg := *g
	var more []tensor.Tensor
	for _, t := range []*tensor.Tensor{&dg.DO, &dg.DQ, &dg.DK, &dg.DV, &dg.DZ} {
		more = append(more, h.place(t))
	}
	backend.NHABackward(h.b, d, &dg)
	h.down(g.DQ, dg.DQ)
	h.down(g.DK, dg.DK)
	h.down(g.DV, dg.DV)
	h.down(g.DZ, dg.DZ)
	h.free(more)
}

func (h hosted) up(c *attention.Call) (*attention.Call, func()) {
	d := *c
	var list []tensor.Tensor
	for _, t := range []*tensor.Tensor{&d.Q, &d.K, &d.V, &d.Z, &d.O, &d.LSE, &d.Share} {
		list = append(list, h.place(t))
	}
	return &d, func() { h.free(list) }
}

// place replaces a host tensor by a copy on the card.
func (h hosted) place(t *tensor.Tensor) tensor.Tensor {
	if t.Present() {
		d := h.b.Alloc(t.DType, t.Shape)
		h.b.Write(d, *t)
		*t = d
	}
	return *t
}

func (h hosted) down(host, t tensor.Tensor) {
	if host.Present() {
		h.b.Read(host, t)
	}
}

func (h hosted) free(list []tensor.Tensor) {
	for _, t := range list {
		if t.Present() {
			h.b.Free(t)
		}
	}
}

// nhaCard opens a card with the operator's kernels compiled, all at once.
func nhaCard(t testing.TB, d tensor.DType) *Backend {
	t.Helper()
	b := card(t, d)
	if d == tensor.BF16 {
		var list []moduleKey
		for _, file := range []string{"nha_forward.cu", "nha_backward.cu", "nha_full.cu"} {
			for _, s := range specialisations[file] {
				if archs := onlyFor[fmt.Sprint(file, s)]; slices.Contains(archs, b.d.arch) {
					list = append(list, key(file, s))
				}
			}
		}
		if err := b.d.load(list...); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func TestNHA(t *testing.T) {
	for _, d := range bothTypes {
		t.Run(d.String(), func(t *testing.T) {
			attentiontest.Run(t, hosted{nhaCard(t, d)}, attentiontest.TolerancesFor(d))
		})
	}
}

func TestNHAVectors(t *testing.T) {
	files, err := filepath.Glob("../../testdata/vectors/*.safetensors")
	if err != nil || len(files) == 0 {
		t.Fatalf("no vectors: %v", err)
	}
	for _, d := range bothTypes {
		t.Run(d.String(), func(t *testing.T) {
			op := hosted{nhaCard(t, d)}
			for _, file := range files {
				v, err := vectors.Load(file)
				if err != nil {
					t.Fatal(err)
				}
				c, g := v.Call(d)
				op.Forward(c)
				op.Backward(c, g)
				for _, r := range v.Results(c, g) {
					if !r.OK() {
						t.Errorf("%s %s: error %.3g, limit %.3g", v.Name, r.Tensor, r.Error, r.Limit)
					}
				}
			}
		})
	}
}

// nhaProblem is a call on the card of sequences of random tokens.
func nhaProblem(b *Backend, sequences, tokens, queryHeads, heads, dim, slots, window int) (*attention.Call, *attention.Gradients) {
	n := sequences * tokens
	c := &attention.Config{QueryHeads: queryHeads, KVHeads: heads, KeyDim: dim, ValueDim: dim, Slots: slots, Window: window, Scale: 1 / float64(dim), GateNormalizer: 8,
		Rope: attention.NewRope(dim, 10000)}
	call := &attention.Call{Config: c, Q: up(b, random(1, n, queryHeads*dim)), K: up(b, random(2, n, heads*dim)), V: up(b, random(3, n, heads*dim)),
		O: b.Alloc(b.dtype, tensor.Of(n, queryHeads*dim)), LSE: b.Alloc(b.dtype, tensor.Of(n, queryHeads))}
	g := &attention.Gradients{DO: up(b, random(4, n, queryHeads*dim)), DQ: b.Alloc(b.dtype, call.Q.Shape), DK: b.Alloc(b.dtype, call.K.Shape), DV: b.Alloc(b.dtype, call.V.Shape)}
	if slots > 0 {
		call.Z = up(b, random(5, n, heads*slots))
		g.DZ = b.Alloc(b.dtype, call.Z.Shape)
	}
	for range sequences {
		call.Lengths = append(call.Lengths, tokens)
	}
	return call, g
}

// TestNHASameBits: the same call twice gives the same bits, forward and backward.
func TestNHASameBits(t *testing.T) {
	b := nhaCard(t, tensor.BF16)
	c, g := nhaProblem(b, 3, 700, 8, 4, 64, 64, 64)
	var first []string
	for i := range 3 {
		b.NHA(c)
		b.NHABackward(c, g)
		for n, x := range []tensor.Tensor{c.O, c.LSE, g.DQ, g.DK, g.DV, g.DZ} {
			bits := string(down(b, x).Bytes())
			if i == 0 {
				first = append(first, bits)
			} else if bits != first[n] {
				t.Errorf("result %d differs on run %d", n, i)
			}
		}
	}
}

// TestNHALittleSharedMemory: with the shared memory of sm_80 forward has smaller tiles of the window and gives the same bits; with too
// little for any the error says how much was asked for.
func TestNHALittleSharedMemory(t *testing.T) {
	b := nhaCard(t, tensor.BF16)
	c, _ := nhaProblem(b, 1, 300, 2, 1, 128, 64, 64)
	b.NHA(c)
	want := string(down(b, c.O).Bytes())
	b.d.shared = nhaSharedPerBlock["sm_80"]
	b.NHA(c)
	if string(down(b, c.O).Bytes()) != want {
		t.Error("other bits")
	}
	b.d.shared = 48 << 10
	defer func() {
		if e, ok := recover().(*Error); !ok || !strings.Contains(e.Error(), "KiB of shared memory") {
			t.Errorf("panicked with %v", e)
		}
	}()
	b.NHA(c)
}

// BenchmarkNHA times the operator by the card's clock, medians, at the shapes of the speed table. GB/s counts what has to be read
// and written once: q, k, v, z, o forward; these and their gradients backward.
func BenchmarkNHA(bench *testing.B) {
	b := nhaCard(bench, tensor.BF16)
	for _, x := range []struct{ sequences, tokens, heads, dim, slots, window int }{
		{8, 2048, 16, 64, 64, 64}, {8, 2048, 16, 64, 64, 32}, {1, 16384, 16, 64, 64, 64}, {1, 65536, 16, 64, 64, 64}, {4, 2048, 32, 128, 64, 64},
		{8, 2048, 16, 64, 0, attention.Full}, {4, 2048, 16, 128, 0, attention.Full}, {1, 1 << 20, 4, 64, 64, 64},
	} {
		w := fmt.Sprint(x.window)
		if x.window == attention.Full {
			w = "full"
		}
		name := fmt.Sprintf("B%d-T%d-H%d-D%d-M%d-W%s", x.sequences, x.tokens, x.heads, x.dim, x.slots, w)
		bench.Run(name, func(bench *testing.B) {
			c, g := nhaProblem(b, x.sequences, x.tokens, x.heads, x.heads, x.dim, x.slots, x.window)
			bytes := float64(2 * (4*c.Q.Len() + x.sequences*x.tokens*x.heads*x.slots))
			run := func(name string, bytes float64, op func()) {
				bench.Run(name, func(bench *testing.B) {
					const repeats = 10 // hides what the host does between calls
					op()
					var times []float64
					for bench.Loop() {
						times = append(times, b.Milliseconds(func() {
							for range repeats {
								op()
							}
						}))
					}
					slices.Sort(times)
					ms := times[len(times)/2] / repeats
					bench.ReportMetric(ms, "ms")
					bench.ReportMetric(bytes/ms/1e6, "GB/s")
					bench.ReportMetric(0, "ns/op")
				})
			}
			run("forward", bytes, func() { b.NHA(c) })
			run("backward", 2*bytes, func() { b.NHABackward(c, g) })
			for _, t := range []tensor.Tensor{c.Q, c.K, c.V, c.O, c.LSE, g.DO, g.DQ, g.DK, g.DV, c.Z, g.DZ} {
				if t.Present() {
					b.Free(t)
				}
			}
		})
	}
}
