package train

import (
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRate(t *testing.T) {
	at := func(s Settings, want map[int]float64) {
		t.Helper()
		if err := s.Resolve(); err != nil {
			t.Fatal(err)
		}
		for step, w := range want {
			if got := s.Rate(step); math.Abs(got-w) > 1e-12 {
				t.Errorf("%s, step %d: %v, want %v", s.Schedule, step, got, w)
			}
		}
	}
	s := DefaultSettings()
	s.Steps, s.LearningRate, s.Warmup, s.MinimumRatio = 110, 2, 10, 0.1
	at(s, map[int]float64{1: 0.2, 5: 1, 10: 2, 60: 1.1, 110: 0.2, 35: 2 * (0.1 + 0.9*(1+math.Sqrt2/2)/2)})
	s.Schedule, s.DecayFraction = WSD, 0.2
	at(s, map[int]float64{1: 0.2, 10: 2, 11: 2, 88: 2, 99: 1.1, 110: 0.2})
	s.Schedule = Constant
	at(s, map[int]float64{5: 1, 10: 2, 110: 2})
	s.Warmup = 0
	at(s, map[int]float64{1: 2})
	s.Steps, s.Warmup, s.Schedule = 1, -1, Cosine
	at(s, map[int]float64{1: 0.2})
}

func TestAutomaticWarmup(t *testing.T) {
	for steps, want := range map[int]int{5: 0, 50: 5, 1000: 100, 10000: 100} {
		s := DefaultSettings()
		s.Steps = steps
		if err := s.Resolve(); err != nil || s.Warmup != want {
			t.Errorf("%d steps: warmup %d (%v), want %d", steps, s.Warmup, err, want)
		}
	}
}

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "run.toml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestReadOptions(t *testing.T) {
	_, err := ReadOptions(file(t, `
out = "runs/a"
data = ["books.jsonl.zst", "more"]
windows = "32 32 32 full"
learning_rate = 1e-3
betas = "kept out"
[learning_rate_factors]
f_proj = 10
`))
	if err == nil || !strings.Contains(err.Error(), `unknown key "betas"`) {
		t.Errorf("error %v", err)
	}
	got, err := ReadOptions(file(t, "out = \"runs/a\"\ndata = [\"b\", \"c\"]\nlearning_rate = 1e-3\n[learning_rate_factors]\n\"attn.f_proj\" = 10\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultOptions()
	want.Out, want.Data, want.LearningRate, want.LearningRateFactors = "runs/a", []string{"b", "c"}, 1e-3, map[string]float64{"attn.f_proj": 10}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// A run file that was written reads back as the same options.
func TestOptionsRoundTrip(t *testing.T) {
	o := DefaultOptions()
	o.Out, o.Data, o.Tokens, o.Schedule = `runs/"a"`, []string{"x"}, 100_000, WSD
	o.LearningRateFactors = map[string]float64{"f_proj": 10, "lm head": 0.5}
	o.Epsilon, o.Seed = 1e-15, 1<<62
	if err := o.Resolve(); err != nil {
		t.Fatal(err)
	}
	if o.Steps != 49 || o.Tokens != 0 || o.Warmup != 4 { // 100000 / 2048
		t.Errorf("%d steps, %d tokens, warmup %d", o.Steps, o.Tokens, o.Warmup)
	}
	path := filepath.Join(t.TempDir(), "run.toml")
	if err := o.write(path); err != nil {
		t.Fatal(err)
	}
	back, err := ReadOptions(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := back.Resolve(); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(o, back); d != "" {
		t.Error(d)
	}
}

// Every option has a name, a help text, and a default that Set reads; what Set sets, show shows.
func TestKeysAndSet(t *testing.T) {
	o := DefaultOptions()
	seen := map[string]bool{}
	for _, k := range Keys() {
		if k.Name == "" || k.Help == "" || seen[k.Name] {
			t.Errorf("key %+v", k)
		}
		seen[k.Name] = true
		if err := o.Set(k.Name, k.Default); err != nil {
			t.Errorf("default of %s: %v", k.Name, err)
		}
	}
	for _, c := range [][2]string{{"learning_rate", "0.003"}, {"data", "a.txt,b c.txt"}, {"preset", `gs"a`}, {"seed", "7"}, {"gate_bias", "true"},
		{"learning_rate_factors", "f_proj=10,lm_head=0.5"}, {"gate_bias_low", "-8"}, {"learning_rate_factors", ""}, {"learning_rate_factors", "a=1"}} {
		if err := o.Set(c[0], c[1]); err != nil {
			t.Errorf("%s: %v", c[0], err)
		}
		o.each(func(f reflect.StructField, v reflect.Value) {
			if f.Tag.Get("toml") == c[0] && show(v) != c[1] {
				t.Errorf("%s set to %q shows %q", c[0], c[1], show(v))
			}
		})
	}
	for _, c := range [][3]string{
		{"lerning_rate", "1", `unknown key "lerning_rate"`},
		{"learning-rate", "1", `did you mean "learning_rate"?`},
		{"learning_rate", "fast", `learning_rate "fast": want a number`},
		{"steps", "1.5", `steps "1.5": want a whole number`},
		{"steps", "5\nseed = 3", "want a whole number"},
		{"gate_bias", "perhaps", "want a true or false"},
		{"learning_rate_factors", "f_proj", "PATTERN=FACTOR"},
		{"learning_rate_factors", "f_proj=ten", "factors"},
	} {
		if err := o.Set(c[0], c[1]); err == nil || !strings.Contains(err.Error(), c[2]) {
			t.Errorf("%s %q: error %v, want one with %q", c[0], c[1], err, c[2])
		}
	}
	if o.Seed != 7 {
		t.Errorf("a flag set another key: seed %d", o.Seed)
	}
}

func TestOptionErrors(t *testing.T) {
	for _, c := range []struct {
		change func(*Options)
		want   string
	}{
		{func(o *Options) { o.Out = "" }, "out:"},
		{func(o *Options) { o.Data = nil }, "data:"},
		{func(o *Options) { o.Context = 0 }, "context 0"},
		{func(o *Options) { o.Batch = -1 }, "batch -1"},
		{func(o *Options) { o.Accumulation = 0 }, "accumulation 0"},
		{func(o *Options) { o.HeldOut = 1 }, "held_out 1"},
		{func(o *Options) { o.Steps, o.Tokens = 5, 5 }, "steps 5 and tokens 5"},
		{func(o *Options) { o.Steps = -2 }, "steps -2"},
		{func(o *Options) { o.Warmup = 2000 }, "warmup 2000"},
		{func(o *Options) { o.Schedule = "linear" }, `schedule "linear"`},
		{func(o *Options) { o.Schedule, o.Warmup, o.DecayFraction = WSD, 500, 0.6 }, "decay_fraction 0.6"},
		{func(o *Options) { o.LearningRate = 0 }, "learning_rate 0"},
		{func(o *Options) { o.LearningRate = math.NaN() }, "learning_rate NaN"},
		{func(o *Options) { o.Beta2 = 1 }, "beta2 1"},
		{func(o *Options) { o.Clip = -1 }, "clip -1"},
		{func(o *Options) { o.Clip = math.Inf(1) }, "clip +Inf"},
		{func(o *Options) { o.LearningRateFactors = map[string]float64{"f_proj": -1} }, `"f_proj"`},
		{func(o *Options) { o.Keep = 0 }, "keep 0"},
		{func(o *Options) { o.Size = "huge" }, `size "huge"`},
		{func(o *Options) { o.Preset = "mamba" }, `preset "mamba"`},
		{func(o *Options) { o.Windows = "ful" }, `"ful"`},
		{func(o *Options) { o.Windows = "-1" }, `"-1"`},
		{func(o *Options) { o.Heads = 7 }, "num_heads 7"},
		{func(o *Options) { o.KVHeads = 3 }, "3"},
		{func(o *Options) { o.Slots = -1 }, "slots -1"},
		{func(o *Options) { o.Preset, o.GateBias, o.Slots = "nha", true, 0 }, "gate_bias"},
		{func(o *Options) { o.Model, o.Layers = "base", 3 }, "layers 3"},
		{func(o *Options) { o.Threads = -1 }, "threads -1"},
	} {
		o := DefaultOptions()
		o.Out, o.Data = "out", []string{"text"}
		c.change(&o)
		if err := o.Resolve(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want one with %q", err, c.want)
		}
	}
	o := DefaultOptions()
	o.Out, o.Data = "out", []string{"text"}
	if err := o.Resolve(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
}
