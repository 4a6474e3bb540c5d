package hybridize

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nha/tensor"
	"nha/weights"
)

// probe is a conversion of the base by attention transfer alone, with every window at 8.
func probe(t *testing.T, base string, change func(o *Options)) Options {
	t.Helper()
	o := options(t, base)
	o.Windows, o.Out, o.Stages = "8", filepath.Join(t.TempDir(), "probe"), o.Stages[:1]
	change(&o)
	if _, err := Run(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	return o
}

// TestFrom: layers keep what the earlier conversion made of them, those of another window have the base's attention and the earlier gate; the
// untouched rest is the base's.
func TestFrom(t *testing.T) {
	base := tinyBase(t)
	p := probe(t, base, func(*Options) {})
	o := options(t, base)
	o.From, o.Windows, o.Stages, o.Data = p.Out, "8 full 16", nil, nil
	if _, err := Run(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	old, was, now := tensors(t, base), tensors(t, p.Out), tensors(t, o.Out)
	for name, x := range now {
		want := was[name]
		if layer := layerOf(name); (layer == 1 || layer == 2) && !strings.HasSuffix(name, "g_proj.weight") {
			want = old[name]
		}
		if tensor.MaxError(x, want) > 0 {
			t.Errorf("%s is not as it was", name)
		}
	}
	if len(now) != len(was) {
		t.Errorf("%d tensors, want %d", len(now), len(was))
	}
	// Training goes on from there, and what the earlier conversion trained is not shared with the base.
	o.Out, o.Data, o.Stages = filepath.Join(t.TempDir(), "trained"), p.Data, options(t, base).Stages[1:]
	r, err := Run(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	if start, end := r.Stages[0].KL, r.Stages[1].KL; !(end < start) {
		t.Errorf("KL %v at the start, %v after training", start, end)
	}
	if e := r.Stages[0].Errors; !(e[0] > 0 && e[1] == 0) {
		t.Errorf("errors at the start %v", e)
	}
}

// TestFromLoRA: updates of low rank go on, and start anew in layers that are the base's again.
func TestFromLoRA(t *testing.T) {
	base := tinyBase(t)
	lora := func(o *Options) {
		o.LoRA.Targets, o.LoRA.Rank = []string{"q_proj", "o_proj"}, 2
		for i := range o.Stages {
			o.Stages[i].Train = []string{"g_proj"}
		}
	}
	p := probe(t, base, lora)
	o := options(t, base)
	lora(&o)
	o.From, o.Windows, o.Stages, o.Data = p.Out, "8 full 8", nil, nil
	placed, err := Run(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	old, was, now := tensors(t, base), tensors(t, p.Out), tensors(t, o.Out)
	for name, x := range now {
		want := was[name]
		if layerOf(name) == 1 && !strings.HasSuffix(name, "g_proj.weight") {
			want = old[name]
		}
		if d := tensor.MaxError(x, want); d > 0.01 { // the adapter is in bfloat16
			t.Errorf("%s: off by %v", name, d)
		}
	}
	a, err := ReadAdapter(filepath.Join(o.Out, adapterName))
	if err != nil {
		t.Fatal(err)
	}
	if _, there := a.A["model.layers.1.self_attn.q_proj.weight"]; there || len(a.A) != 4 {
		t.Errorf("%d updates, layer 1's among them: %v", len(a.A), there)
	}
	all := options(t, base)
	lora(&all)
	all.From, all.Windows, all.Stages = p.Out, "8 full 8", all.Stages[1:]
	r, err := Run(context.Background(), all)
	if err != nil {
		t.Fatal(err)
	}
	if start := r.Stages[0].KL; start-placed.Stages[0].KL > 0.02*start+1e-3 || !(r.Stages[1].KL < start) {
		t.Errorf("KL %v placed, %v at the start, %v after training", placed.Stages[0].KL, start, r.Stages[1].KL)
	}
	if a, err = ReadAdapter(filepath.Join(all.Out, adapterName)); err != nil || len(a.A) != 6 || len(a.Modules) != 3 {
		t.Errorf("%d updates, %d modules: %v", len(a.A), len(a.Modules), err)
	}
}

// TestFromRefusals: a conversion that does not fit is refused by name.
func TestFromRefusals(t *testing.T) {
	base, other := tinyBase(t), tinyBase(t)
	s := tensors(t, other)
	s["model.norm.weight"].F32()[0]++
	var list []weights.Named
	for name, x := range s {
		list = append(list, weights.Named{Name: name, Tensor: x})
	}
	if err := weights.Write(filepath.Join(other, weights.FileName), nil, list); err != nil {
		t.Fatal(err)
	}
	p := probe(t, base, func(o *Options) { o.Stages = nil; o.Data = nil })
	for want, change := range map[string]func(o *Options){
		"from: no model":                       func(o *Options) { o.From = "nowhere" },
		"has 0 slots, this conversion 8":       func(o *Options) { o.From = base },
		"has 8 slots, this conversion 4":       func(o *Options) { o.Slots = 4 },
		"has no update of model.layers.0":      func(o *Options) { o.LoRA.Targets, o.Stages[0].Train, o.Stages[1].Train = []string{"q_proj"}, nil, nil },
		"was made of another base than":        func(o *Options) { o.Base = other },
		`windows: open nowhere.toml`:           func(o *Options) { o.Windows = "@nowhere.toml" },
		"stages train on text; name files, or": func(o *Options) { o.Data = nil },
	} {
		o := options(t, base)
		o.From, o.Windows = p.Out, "8 full 8"
		change(&o)
		if _, err := Run(context.Background(), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
		if _, err := os.Stat(o.Out); err == nil {
			t.Errorf("%s: a model was written", want)
		}
	}
}
