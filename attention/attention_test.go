package attention

import (
	"math"
	"strings"
	"testing"

	"nha/tensor"
)

func TestConfigCheck(t *testing.T) {
	for _, tt := range []struct {
		change func(c *Config)
		want   string
	}{
		{func(c *Config) {}, ""},
		{func(c *Config) { c.Window = Full }, ""},
		{func(c *Config) { c.Slots = 0 }, ""},
		{func(c *Config) { c.Window = 0 }, ""},
		{func(c *Config) { c.Slots, c.Window = 0, 0 }, "num_slots 0 with window 0 attends to nothing"},
		{func(c *Config) { c.QueryHeads = 3 }, "num_heads 3 is not a multiple of num_kv_heads 2"},
		{func(c *Config) { c.KVHeads = 0 }, "must be at least 1"},
		{func(c *Config) { c.KeyDim = 0 }, "head_dim 0"},
		{func(c *Config) { c.Slots = -1 }, "num_slots -1"},
		{func(c *Config) { c.Window = -1 }, "window -1"},
		{func(c *Config) { c.Scale = 0 }, "scale 0"},
		{func(c *Config) { c.Scale = math.NaN() }, "scale NaN"},
		{func(c *Config) { c.GateNormalizer = 0 }, "gate_logit_normalizer 0"},
		{func(c *Config) { c.Rope = NewRope(6, 10000) }, "rotary tables for 6 dimensions, keys have 4"},
	} {
		c := testConfig(5, 3)
		tt.change(c)
		wantError(t, c.Check(), tt.want)
	}
	if _, err := ParseEmptySlots("sink"); err == nil || !strings.Contains(err.Error(), `"sink": use count or mask`) {
		t.Errorf("error %v", err)
	}
	for _, rule := range []EmptySlots{Count, Mask} {
		if got, err := ParseEmptySlots(rule.String()); got != rule || err != nil {
			t.Errorf("%v read back as %v, %v", rule, got, err)
		}
	}
}

func wantError(t *testing.T, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("error %v, want %q", err, want)
	}
}

func TestCallCheck(t *testing.T) {
	f32 := func(rows, columns int) tensor.Tensor { return tensor.New(tensor.F32, tensor.Of(rows, columns)) }
	for _, tt := range []struct {
		change func(c *Call, g *Gradients)
		want   string
	}{
		{func(c *Call, g *Gradients) {}, ""},
		{func(c *Call, g *Gradients) {
			c.LSE, c.Share, c.Initial, c.Final, g.DInitial, g.DFinal = tensor.Tensor{}, tensor.Tensor{}, nil, nil, nil, nil
		}, ""},
		{func(c *Call, g *Gradients) { c.Lengths = []int{4, 4} }, "q is F32 [7 16], want F32 [8 16]"},
		{func(c *Call, g *Gradients) { c.Lengths = []int{8, -1} }, "sequence 1 of -1 tokens"},
		{func(c *Call, g *Gradients) { c.Z = tensor.Tensor{} }, "z is missing"},
		{func(c *Call, g *Gradients) { c.V = f32(7, 8) }, "v is F32 [7 8], want F32 [7 12]"},
		{func(c *Call, g *Gradients) { c.K = tensor.New(tensor.F64, c.K.Shape) }, "k is F64"},
		{func(c *Call, g *Gradients) { c.LSE = f32(7, 2) }, "lse is F32 [7 2]"},
		{func(c *Call, g *Gradients) { c.Initial = c.Initial[:1] }, "1 initial states for 2 sequences"},
		{func(c *Call, g *Gradients) { c.Final = c.Final[:1] }, "1 final states for 2 sequences"},
		{func(c *Call, g *Gradients) { c.Initial[1].Count = 3 }, "initial state 1: state at position 20 holds 3 tokens"},
		{func(c *Call, g *Gradients) { g.DQ = tensor.Tensor{} }, "dq is missing"},
		{func(c *Call, g *Gradients) { g.DO = f32(7, 12) }, "do is F32 [7 12], want F32 [7 24]"},
		{func(c *Call, g *Gradients) { g.DFinal[1] = filledState(c.Config, tensor.F32, 4) }, "gradient of final state 1 is at position 4, the sequence ends at 24"},
	} {
		c := &Call{
			Config: testConfig(5, 3), Lengths: []int{3, 4}, Q: f32(7, 16), K: f32(7, 8), V: f32(7, 12), Z: f32(7, 6), O: f32(7, 24), LSE: f32(7, 4), Share: f32(7, 4),
			Initial: []*State{nil, filledState(testConfig(5, 3), tensor.F32, 20)},
			Final:   []*State{NewState(testConfig(5, 3), tensor.F32), nil},
		}
		g := &Gradients{
			DO: f32(7, 24), DQ: f32(7, 16), DK: f32(7, 8), DV: f32(7, 12), DZ: f32(7, 6),
			DFinal:   []*State{nil, filledState(testConfig(5, 3), tensor.F32, 24)},
			DInitial: []*State{nil, NewState(testConfig(5, 3), tensor.F32)},
		}
		tt.change(c, g)
		err := c.Check()
		if err == nil {
			err = g.Check(c)
		}
		wantError(t, err, tt.want)
	}
}

func TestRopeTable(t *testing.T) {
	r := NewRope(8, 10000)
	if r.Dim() != 8 || r.Frequency(0) != 1 || math.Abs(r.Frequency(2)-0.01) > 1e-15 {
		t.Errorf("dim %d, frequencies %v, %v", r.Dim(), r.Frequency(0), r.Frequency(2))
	}
	before, _ := r.Table(3)
	first := before[9]
	cos, sin := r.Table(3000)
	if len(cos) < 3000*4 || cos[9] != first {
		t.Errorf("grown table has %d numbers, the tenth is %v, was %v", len(cos), cos[9], first)
	}
	for _, p := range []int{0, 1, 255, 256, 2999} {
		for i := range 4 {
			angle := float64(p) * r.Frequency(i)
			if cos[p*4+i] != float32(math.Cos(angle)) || sin[p*4+i] != float32(math.Sin(angle)) {
				t.Errorf("position %d, pair %d: %v, %v", p, i, cos[p*4+i], sin[p*4+i])
			}
		}
	}
}
