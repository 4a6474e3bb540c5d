package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"nha/attention"
	"nha/backend"
	_ "nha/backend/all"
	"nha/model"
)

var quick = Timing{Seconds: 1e-3}

// tiny is a model that trains and decodes in no time.
var tiny = ModelSize{HiddenSize: 32, Layers: 2, Heads: 2, KVHeads: 1, IntermediateSize: 48, Vocabulary: 61, Slots: 4, Windows: "8 full", Batch: 2, Context: 24}

func openBackend(t *testing.T, name string) backend.Backend {
	t.Helper()
	b, err := backend.Open(name, 2)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// measurement is what all of them are.
type measurement interface {
	Check() error
	Run(ctx context.Context, b backend.Backend, emit Emit) error
}

// rows runs a measurement and returns its rows as maps.
func rows(t *testing.T, b backend.Backend, m measurement) (list []map[string]any) {
	t.Helper()
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
	if err := m.Run(context.Background(), b, func(row any) error {
		text, err := json.Marshal(row)
		if err != nil {
			return err
		}
		one := map[string]any{}
		list = append(list, one)
		return json.Unmarshal(text, &one)
	}); err != nil {
		t.Fatal(err)
	}
	return list
}

// fields wants SPEC 5's names, all there and every number positive.
func fields(t *testing.T, row map[string]any, names string) {
	t.Helper()
	for _, name := range strings.Split(names, ", ") {
		switch v, ok := row[name]; {
		case !ok:
			t.Errorf("field %s is missing in %v", name, row)
		case v == "":
			t.Errorf("field %s is empty", name)
		default:
			if x, number := v.(float64); number && !(x > 0) {
				t.Errorf("field %s is %v", name, x)
			}
		}
	}
}

func TestGEMM(t *testing.T) {
	for _, name := range []string{"cpu", "ref"} {
		list := rows(t, openBackend(t, name), &GEMM{Ops: []backend.Op{backend.NN, backend.NT, backend.TN}, Shapes: []Shape{{5, 7, 3}, {16, 16, 16}}, Timing: quick})
		if len(list) != 6 {
			t.Fatalf("%d rows", len(list))
		}
		for _, r := range list {
			fields(t, r, "op, m, n, k, backend, gflops")
		}
		if r := list[1]; r["op"] != "nt" || r["m"] != 5.0 || r["n"] != 7.0 || r["k"] != 3.0 || r["backend"] != name {
			t.Errorf("second row %v", r)
		}
	}
}

func TestOperator(t *testing.T) {
	o := &Operator{B: []int{1, 2}, T: []int{20, 40}, Hq: []int{4}, H: []int{2}, K: []int{8}, M: []int{3}, W: []int{6, attention.Full}, Timing: quick}
	list := rows(t, openBackend(t, "cpu"), o)
	if len(list) != 8 {
		t.Fatalf("%d rows", len(list))
	}
	for _, r := range list {
		fields(t, r, "backend, dtype, B, T, Hq, H, K, V, M, W, forward_ms, backward_ms, bytes_per_s")
	}
	if r := list[3]; r["B"] != 1.0 || r["T"] != 40.0 || r["W"] != "full" || r["V"] != 8.0 || r["dtype"] != "float32" {
		t.Errorf("fourth row %v", r)
	}
	if r := list[0]; r["W"] != 6.0 {
		t.Errorf("first row %v", r)
	}
}

func TestTrain(t *testing.T) {
	list := rows(t, openBackend(t, "cpu"), &Train{Models: []string{"transformer", "nha"}, Size: tiny, Timing: quick, peak: Shape{64, 64, 64}})
	if len(list) != 2 {
		t.Fatalf("%d rows", len(list))
	}
	for i, r := range list {
		fields(t, r, "backend, model, parameters, batch, context, tokens_per_s, step_ms, mfu, peak_bytes, first_step_s, peak_gflops")
		if got := r["tokens_per_s"].(float64) * r["step_ms"].(float64) / 1e3; math.Abs(got-48) > 1e-6 {
			t.Errorf("row %d: %v tokens a step, want 48", i, got)
		}
	}
	if list[0]["model"] != "transformer" || list[1]["model"] != "nha" {
		t.Errorf("models %v, %v", list[0]["model"], list[1]["model"])
	}
}

// TestTrainMemory: the growth is that of gradients, moments and activations, neither less nor the parameters again.
func TestTrainMemory(t *testing.T) {
	if _, _, ok := resident(); !ok {
		t.Skip("no /proc/self/status here")
	}
	size := tiny
	size.HiddenSize, size.IntermediateSize, size.Vocabulary = 128, 512, 20000
	list := rows(t, openBackend(t, "cpu"), &Train{Models: []string{"nha"}, Size: size, Timing: quick, peak: Shape{64, 64, 64}})
	parameters := 4 * list[0]["parameters"].(float64)
	if grown := list[0]["peak_bytes"].(float64); !(grown > 2.7*parameters && grown < 6*parameters) {
		t.Errorf("memory grew by %.1f times the parameters", grown/parameters)
	}
}

func TestDecode(t *testing.T) {
	b := openBackend(t, "cpu")
	list := rows(t, b, &Decode{Model: "nha", Size: tiny, DTypes: []string{"float32", "bfloat16", "float16"}, Batches: []int{1, 3}, Depths: []int{0, 100}, Timing: quick, stream: 1 << 20})
	if len(list) != 12 {
		t.Fatalf("%d rows", len(list))
	}
	for _, r := range list {
		depth := r["depth"]
		r["depth"] = 1.0 // may be 0
		fields(t, r, "backend, model, dtype, batch, depth, step_ms, tokens_per_s, state_bytes, resident_bytes, read_bytes, bandwidth_bytes_per_s, bandwidth_share")
		r["depth"] = depth
	}
	if r := list[7]; r["dtype"] != "bfloat16" || r["batch"] != 3.0 || r["depth"] != 100.0 {
		t.Errorf("eighth row %v", r)
	}
	whole, half := list[0]["read_bytes"].(float64), list[4]["read_bytes"].(float64)
	state := list[0]["state_bytes"].(float64)
	if whole <= half || half < whole/2 || state <= 0 {
		t.Errorf("a step reads %v bytes in float32, %v in bfloat16", whole, half)
	}
}

// TestDecodeDirectory: a model directory is measured as it is stored, or in another type.
func TestDecodeDirectory(t *testing.T) {
	b, dir := openBackend(t, "cpu"), t.TempDir()
	c, err := tiny.config("nha")
	if err != nil {
		t.Fatal(err)
	}
	c.DType = "BF16"
	m, err := model.New(c, b, model.Init{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Save(dir); err != nil {
		t.Fatal(err)
	}
	scratch := t.TempDir()
	t.Setenv("TMPDIR", scratch)
	t.Setenv("TMP", scratch)
	for want, dtypes := range map[string][]string{"bfloat16": nil, "float16": {"float16"}} {
		list := rows(t, b, &Decode{Model: dir, DTypes: dtypes, Batches: []int{1}, Depths: []int{9}, Timing: quick, stream: 1 << 20})
		if len(list) != 1 || list[0]["dtype"] != want {
			t.Errorf("rows %v, want one in %s", list, want)
		}
	}
	if left, err := os.ReadDir(scratch); err != nil || len(left) != 0 {
		t.Errorf("left in the temporary folder: %v, %v", left, err)
	}
}

// TestDepth: a state made for a depth is one that the operator accepts, and a step leaves it there.
func TestDepth(t *testing.T) {
	b := openBackend(t, "cpu")
	for preset, windows := range map[string]string{"nha": "8 0", "transformer": "full"} {
		c, err := tiny.Or(ModelSize{Windows: windows}).config(preset)
		if err != nil {
			t.Fatal(err)
		}
		m, err := model.New(c, b, model.Init{Seed: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		for _, depth := range []int{0, 1, 7, 8, 9, 200} {
			d := newDecoder(m, 2, depth)
			for range 20 {
				d.step()
			}
			for _, s := range d.states {
				if s.Position != depth {
					t.Errorf("%s at depth %d: position %d", preset, depth, s.Position)
				}
				for i, l := range s.Layers {
					config, err := m.Config.Attention(i, nil)
					if err != nil {
						t.Fatal(err)
					}
					if err := l.Check(config); err != nil || l.Position != depth {
						t.Errorf("%s at depth %d, layer %d at %d: %v", preset, depth, i, l.Position, err)
					}
				}
			}
			if x := d.logits.F32(); slices.ContainsFunc(x, func(v float32) bool { return v != v }) {
				t.Errorf("%s at depth %d: logits are not finite", preset, depth)
			}
			d.tape.Close()
		}
	}
}

func TestBadInput(t *testing.T) {
	operator := func(change func(*Operator)) *Operator {
		o := &Operator{B: []int{1}, T: []int{16}, Hq: []int{4}, K: []int{8}, M: []int{3}, W: []int{6}}
		change(o)
		return o
	}
	decode := func(change func(*Decode)) *Decode {
		o := &Decode{Model: "nha", Size: tiny, Batches: []int{1}, Depths: []int{0}}
		change(o)
		return o
	}
	ops := []backend.Op{backend.NN}
	for want, m := range map[string]measurement{
		"m 0: must be":                     &GEMM{Ops: ops, Shapes: []Shape{{0, 1, 1}}},
		"GiB":                              &GEMM{Ops: ops, Shapes: []Shape{{1 << 20, 1 << 20, 1}}},
		"seconds -1":                       &GEMM{Ops: ops, Shapes: []Shape{{1, 1, 1}}, Timing: Timing{Seconds: -1}},
		"num_heads 4 is not a multiple":    operator(func(o *Operator) { o.H = []int{3} }),
		"T -5: must be":                    operator(func(o *Operator) { o.T = []int{-5} }),
		"attends to nothing":               operator(func(o *Operator) { o.M, o.W = []int{0}, []int{0} }),
		"unknown preset \"mamba\"":         &Train{Models: []string{"mamba"}, Size: tiny},
		"batch -1":                         &Train{Models: []string{"nha"}, Size: tiny.Or(ModelSize{Batch: -1})},
		"not a multiple of num_heads":      &Train{Models: []string{"nha"}, Size: tiny.Or(ModelSize{Heads: 5})},
		"neither a preset nor a model dir": decode(func(o *Decode) { o.Model = "nowhere" }),
		"dtype \"int8\": use float32":      decode(func(o *Decode) { o.DTypes = []string{"int8"} }),
		"depth -1":                         decode(func(o *Decode) { o.Depths = []int{-1} }),
	} {
		if err := m.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q in it", err, want)
		}
	}
	if _, err := FindSize("huge"); err == nil || !strings.Contains(err.Error(), "choose one of small, large, 135m") {
		t.Errorf("error %v", err)
	}
	for _, s := range []string{"", "5", "5x5", "5x5x5x5", "axbxc"} {
		if _, err := ParseShape(s); err == nil {
			t.Errorf("shape %q passes", s)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := (&GEMM{Ops: ops, Shapes: []Shape{{4, 4, 4}}}).Run(ctx, openBackend(t, "cpu"), func(any) error { return nil }); err != context.Canceled {
		t.Errorf("cancelled: %v", err)
	}
}

func TestTable(t *testing.T) {
	var out bytes.Buffer
	table := &Table{W: &out}
	for _, r := range []GEMMResult{{Op: "nn", M: 1, N: 22, K: 333, Backend: "cpu", GFLOPS: 12.3456}, {Op: "tn", M: 4444, N: 5, K: 6, Backend: "ref", GFLOPS: 0.5}} {
		if err := table.Row(r); err != nil {
			t.Fatal(err)
		}
	}
	want := "" +
		"     op       m       n       k backend  gflops\n" +
		"     nn       1      22     333     cpu   12.35\n" +
		"     tn    4444       5       6     ref     0.5\n"
	if out.String() != want {
		t.Errorf("table\n%swant\n%s", out.String(), want)
	}
}

// TestReadBandwidth: a figure between a slow disk's and any processor's.
func TestReadBandwidth(t *testing.T) {
	if x := readBandwidth(8<<20, 4); !(x > 1e8 && x < 1e13) {
		t.Errorf("%v bytes a second", x)
	}
}
