package attention

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"

	"nha/tensor"
)

func testConfig(w, m int) *Config {
	return &Config{QueryHeads: 4, KVHeads: 2, KeyDim: 4, ValueDim: 6, Slots: m, Window: w, Scale: 0.5, GateNormalizer: 8}
}

// filledState is a state at a position with other numbers everywhere and its ring turned by a few rows.
func filledState(c *Config, d tensor.DType, position int) *State {
	rng := rand.New(rand.NewPCG(uint64(position), uint64(c.Window)))
	s := NewState(c, d)
	s.Reserve(c, position)
	s.Position, s.Count = position, min(c.Window, position)
	if s.Capacity() > 0 {
		s.Start = rng.IntN(s.Capacity())
	}
	for _, t := range []tensor.Tensor{s.SlotKeys, s.SlotValues, s.Keys, s.Values, s.LogGates} {
		if t.Present() {
			for i := range t.Len() {
				t.SetValue(i, rng.NormFloat64())
			}
		}
	}
	return s
}

func TestStateBytes(t *testing.T) {
	for _, tt := range []struct {
		w, m, tokens int
		d            tensor.DType
		want         int
	}{
		{32, 8, 2048, tensor.F32, 2 * (4*8*10 + 32*(10*4+4*8))},
		{32, 8, 0, tensor.BF16, 2 * (4*8*10 + 32*(10*2+4*8))},
		{0, 8, 5, tensor.BF16, 2 * 4 * 8 * 10},
		{32, 0, 5, tensor.F16, 2 * 32 * 10 * 2},
		{Full, 0, 128, tensor.F32, 2 * 128 * 10 * 4},
		{Full, 3, 64, tensor.F32, 2 * (4*3*10 + 64*(10*4+4*3))},
	} {
		c := testConfig(tt.w, tt.m)
		if got := c.StateBytes(tt.tokens, tt.d.Size()); got != tt.want {
			t.Errorf("W %d M %d: %d bytes by the formula, want %d", tt.w, tt.m, got, tt.want)
		}
		s := NewState(c, tt.d)
		s.Reserve(c, tt.tokens)
		if got := s.Bytes(); got != tt.want {
			t.Errorf("W %d M %d: the state takes %d bytes, want %d", tt.w, tt.m, got, tt.want)
		}
	}
}

func TestReserveKeepsTheTokens(t *testing.T) {
	c := testConfig(Full, 3)
	s := filledState(c, tensor.F32, 60)
	want := s.Clone()
	s.Reserve(c, 64)
	if s.Capacity() != 64 {
		t.Errorf("capacity %d for 64 tokens, want 64", s.Capacity())
	}
	s.Reserve(c, 65)
	if s.Capacity() != 128 {
		t.Errorf("capacity %d for 65 tokens, want 128: it doubles", s.Capacity())
	}
	s.Reserve(c, 1000)
	if s.Capacity() != 1000 {
		t.Errorf("capacity %d for 1000 tokens, want 1000", s.Capacity())
	}
	if e := s.MaxError(c, want); e != 0 {
		t.Errorf("growing changed the tokens: error %v", e)
	}
}

func TestStateCopiesShareNothing(t *testing.T) {
	c := testConfig(5, 3)
	s := filledState(c, tensor.F32, 20)
	for name, copied := range map[string]*State{"clone": s.Clone(), "converted": s.ConvertTo(tensor.F64), "aligned": s.Aligned(c)} {
		if e := copied.MaxError(c, s); e != 0 {
			t.Errorf("%s: error %v", name, e)
		}
		for _, x := range []tensor.Tensor{copied.SlotKeys, copied.SlotValues, copied.Keys, copied.Values, copied.LogGates} {
			x.SetValue(0, 99)
			x.SetValue(x.Len()-1, 99)
		}
		if s.SlotKeys.Value(0) == 99 || s.SlotValues.Value(0) == 99 || s.Keys.Value(0) == 99 || s.Values.Value(0) == 99 || s.LogGates.Value(0) == 99 {
			t.Errorf("%s: writing to it changed the state", name)
		}
		if e := copied.MaxError(c, s); e == 0 {
			t.Errorf("%s: MaxError does not see a change", name)
		}
	}
}

func TestStateCheck(t *testing.T) {
	c := testConfig(5, 3)
	for _, tt := range []struct {
		name   string
		change func(s *State)
		want   string
	}{
		{"nothing", func(s *State) {}, ""},
		{"count", func(s *State) { s.Count = 4 }, "holds 4 tokens, a window of 5 asks for 5"},
		{"position", func(s *State) { s.Position = -1 }, "position -1"},
		{"start", func(s *State) { s.Start = 5 }, "from row 5 on"},
		{"no gates", func(s *State) { s.LogGates = tensor.Tensor{} }, "log gates present: false"},
		{"shape", func(s *State) { s.SlotKeys = s.SlotKeys.View(2, 4, 3) }, "slot keys are F32 [2 4 3], want F32 [2 3 4]"},
		{"type", func(s *State) { s.Values = tensor.New(tensor.F64, s.Values.Shape) }, "values are F64"},
		{"other window", func(s *State) { *s = *filledState(testConfig(4, 3), tensor.F32, 20) }, "holds 4 tokens"},
		{"ring of another size", func(s *State) { *s = *filledState(testConfig(7, 3), tensor.F32, 5) }, "ring has 7 rows"},
		{"empty", func(s *State) { *s = State{} }, "use a floating-point type"},
	} {
		s := filledState(c, tensor.F32, 20)
		tt.change(s)
		err := s.Check(c)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: error %v, want %q", tt.name, err, tt.want)
		}
	}
}

// savedConfigs are four layers of a model: slots alone, hybrid, full with slots, plain full.
var savedConfigs = []*Config{testConfig(0, 3), testConfig(5, 3), testConfig(Full, 3), testConfig(Full, 0)}

var savedModel = [32]byte{1, 2, 3}

func saved(t testing.TB, d tensor.DType, position int) ([]byte, []*State) {
	t.Helper()
	var states []*State
	for _, c := range savedConfigs {
		states = append(states, filledState(c, d, position))
	}
	var b bytes.Buffer
	if err := WriteStates(&b, savedModel, savedConfigs, states); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), states
}

func TestStatesRoundTrip(t *testing.T) {
	for _, d := range []tensor.DType{tensor.F64, tensor.F32, tensor.BF16, tensor.F16} {
		for _, position := range []int{0, 3, 5, 70, 200} {
			data, states := saved(t, d, position)
			read, err := ReadStates(bytes.NewReader(data), savedModel, savedConfigs)
			if err != nil {
				t.Fatal(err)
			}
			for i, s := range read {
				if e := s.MaxError(savedConfigs[i], states[i]); e != 0 || s.Start != 0 || savedConfigs[i].Window > 0 && s.DType() != d {
					t.Errorf("%v at %d, layer %d: error %v, start %d, type %v", d, position, i, e, s.Start, s.DType())
				}
			}
			var again bytes.Buffer
			if err := WriteStates(&again, savedModel, savedConfigs, read); err != nil || !bytes.Equal(again.Bytes(), data) {
				t.Errorf("%v at %d: written again the bytes differ (%v)", d, position, err)
			}
		}
	}
}

func TestReadStatesOfAnotherModel(t *testing.T) {
	data, _ := saved(t, tensor.F32, 70)
	change := func(layer int, f func(c *Config)) []*Config {
		configs := append([]*Config(nil), savedConfigs...)
		c := *configs[layer]
		f(&c)
		configs[layer] = &c
		return configs
	}
	for _, tt := range []struct {
		model   [32]byte
		configs []*Config
		want    string
	}{
		{[32]byte{1, 2, 4}, savedConfigs, "another model (010203"},
		{savedModel, savedConfigs[:3], "4 layers, the model has 3"},
		{savedModel, change(1, func(c *Config) { c.Window = 6 }), "layer 1: it was made with window 5, the model has 6"},
		{savedModel, change(2, func(c *Config) { c.Window = 2048 }), "layer 2: it was made with window full, the model has 2048"},
		{savedModel, change(1, func(c *Config) { c.Slots = 4 }), "num_slots 3, the model has 4"},
		{savedModel, change(0, func(c *Config) { c.KVHeads = 4 }), "num_kv_heads 2, the model has 4"},
		{savedModel, change(0, func(c *Config) { c.KeyDim = 6 }), "key dimension 4, the model has 6"},
		{savedModel, change(0, func(c *Config) { c.ValueDim = 4 }), "value dimension 6, the model has 4"},
		{savedModel, change(3, func(c *Config) { c.EmptySlots = Mask }), `layer 3: it was made with empty_slots "count", the model has "mask"`},
	} {
		if _, err := ReadStates(bytes.NewReader(data), tt.model, tt.configs); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("error %v, want %q", err, tt.want)
		}
	}
}

func TestReadDamagedStates(t *testing.T) {
	data, _ := saved(t, tensor.BF16, 9)
	for n := range data {
		if _, err := ReadStates(bytes.NewReader(data[:n]), savedModel, savedConfigs); err == nil || !strings.Contains(err.Error(), "truncated") {
			t.Fatalf("first %d of %d bytes: error %v, want truncated", n, len(data), err)
		}
		flipped := bytes.Clone(data)
		flipped[n] ^= 0x10
		if _, err := ReadStates(bytes.NewReader(flipped), savedModel, savedConfigs); err == nil {
			t.Fatalf("byte %d changed: no error", n)
		}
	}
	if _, err := ReadStates(bytes.NewReader(append(bytes.Clone(data), 0)), savedModel, savedConfigs); err == nil || !strings.Contains(err.Error(), "after its end") {
		t.Errorf("a byte too many: error %v", err)
	}
}

// A header that claims a long full window costs no more memory than the bytes that follow it.
func TestReadStatesBelievesNoLength(t *testing.T) {
	data, _ := saved(t, tensor.F32, 70)
	binary.LittleEndian.PutUint64(data[48:], 1<<30)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := ReadStates(bytes.NewReader(data), savedModel, savedConfigs)
	runtime.ReadMemStats(&after)
	if err == nil {
		t.Error("no error")
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Errorf("%d bytes allocated for an input of %d", n, len(data))
	}
}

func TestWriteStatesThatDoNotFit(t *testing.T) {
	_, states := saved(t, tensor.F32, 70)
	states[1] = filledState(savedConfigs[1], tensor.F32, 71)
	if err := WriteStates(&bytes.Buffer{}, savedModel, savedConfigs, states); err == nil || !strings.Contains(err.Error(), "layer 1 is at position 71") {
		t.Errorf("error %v", err)
	}
	if err := WriteStates(&bytes.Buffer{}, savedModel, savedConfigs, states[:2]); err == nil || !strings.Contains(err.Error(), "2 states for 4 layers") {
		t.Errorf("error %v", err)
	}
	states[1] = states[2]
	if err := WriteStates(&bytes.Buffer{}, savedModel, savedConfigs, states); err == nil || !strings.Contains(err.Error(), "layer 1") {
		t.Errorf("error %v", err)
	}
}

// FuzzReadStates: whatever the bytes, an error or a state that is written back as the same bytes. The checksum is put right, so
// that the fuzzer reaches what lies behind it.
func FuzzReadStates(f *testing.F) {
	for _, d := range []tensor.DType{tensor.F32, tensor.BF16} {
		for _, position := range []int{0, 4, 9} {
			data, _ := saved(f, d, position)
			f.Add(data[:len(data)-4])
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		data = binary.LittleEndian.AppendUint32(bytes.Clone(data), crc32.Checksum(data, castagnoli))
		states, err := ReadStates(bytes.NewReader(data), savedModel, savedConfigs)
		if err != nil {
			return
		}
		var b bytes.Buffer
		if err := WriteStates(&b, savedModel, savedConfigs, states); err != nil || !bytes.Equal(b.Bytes(), data) {
			t.Fatalf("read, but written back differently (%v)", err)
		}
	})
}
