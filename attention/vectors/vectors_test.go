package vectors

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nha/attention"
	"nha/tensor"
	"nha/weights"
)

const folder = "../../testdata/vectors"

// Whatever the element type, the reference is within the limits of SPEC 1.5, and an operator that is a little wrong is not.
func TestResults(t *testing.T) {
	for _, name := range []string{"no-rope-odd", "packed", "carried-w5"} {
		for _, d := range []tensor.DType{tensor.F64, tensor.F32, tensor.BF16, tensor.F16} {
			v, err := Load(filepath.Join(folder, name+".safetensors"))
			if err != nil {
				t.Fatal(err)
			}
			c, g := v.Call(d)
			if err := c.Check(); err != nil {
				t.Fatal(err)
			}
			if err := g.Check(c); err != nil {
				t.Fatal(err)
			}
			attention.Forward(c)
			attention.Backward(c, g)
			for _, r := range v.Results(c, g) {
				if !r.OK() {
					t.Errorf("%s in %v: %s: error %.2g, limit %.2g", name, d, r.Tensor, r.Error, r.Limit)
				}
			}
			for _, x := range []tensor.Tensor{c.O, c.Share, c.Final[len(c.Final)-1].SlotKeys, g.DQ, g.DK, g.DV, g.DZ} {
				for i := range x.Len() {
					x.SetValue(i, 1.05*x.Value(i))
				}
			}
			wrong := 0
			for _, r := range v.Results(c, g) {
				if !r.OK() {
					wrong++
				}
			}
			if wrong != 7 {
				t.Errorf("%s in %v: %d tensors called wrong of 7 that are", name, d, wrong)
			}
		}
	}
}

func TestCarriedVectorsHoldEveryPart(t *testing.T) {
	for name, want := range map[string]int{"carried-w5": 17, "carried-full": 17, "carried-w0": 11, "carried-early-mask": 17} {
		v, err := Load(filepath.Join(folder, name+".safetensors"))
		if err != nil {
			t.Fatal(err)
		}
		c, g := v.Call(tensor.F64)
		attention.Forward(c)
		attention.Backward(c, g)
		if got := len(v.Results(c, g)); got != want {
			t.Errorf("%s: %d tensors compared, want %d", name, got, want)
		}
	}
}

func TestLoadBadFiles(t *testing.T) {
	load := func(name string) (map[string]string, map[string]tensor.Tensor) {
		f, err := weights.Open(filepath.Join(folder, name+".safetensors"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		meta, tensors := map[string]string{}, map[string]tensor.Tensor{}
		for k, v := range f.Metadata() {
			meta[k] = v
		}
		for _, n := range f.Names() {
			x, _ := f.Tensor(n)
			tensors[n] = x.Clone()
		}
		return meta, tensors
	}
	for _, tt := range []struct {
		from   string
		change func(meta map[string]string, tensors map[string]tensor.Tensor)
		want   string
	}{
		{"tiny-w3", func(m map[string]string, x map[string]tensor.Tensor) { delete(x, "k") }, "tensor k"},
		{"tiny-w3", func(m map[string]string, x map[string]tensor.Tensor) { delete(x, "z") }, "tensor z"},
		{"tiny-w3", func(m map[string]string, x map[string]tensor.Tensor) { x["o"] = tensor.New(tensor.F64, tensor.Of(3)) }, "tensor o [3] has 3 elements"},
		{"tiny-w3", func(m map[string]string, x map[string]tensor.Tensor) {
			x["v"] = tensor.New(tensor.F32, tensor.Of(1, 10, 1, 4))
		}, "tensor v [1 10 1 4]"},
		{"tiny-w3", func(m map[string]string, x map[string]tensor.Tensor) { x["q"] = tensor.New(tensor.I32, x["q"].Shape) }, "tensor q is I32"},
		{"tiny-w3", func(m map[string]string, x map[string]tensor.Tensor) { delete(m, "scale") }, `metadata scale ""`},
		{"tiny-w3", func(m map[string]string, x map[string]tensor.Tensor) { m["window"] = "ful" }, `metadata window "ful"`},
		{"tiny-w3", func(m map[string]string, x map[string]tensor.Tensor) { m["window"] = "-1" }, "window -1"},
		{"tiny-w3", func(m map[string]string, x map[string]tensor.Tensor) { m["window"] = "2.5" }, `metadata window "2.5": want a whole number`},
		{"tiny-w3", func(m map[string]string, x map[string]tensor.Tensor) { m["slots"] = "4" }, "tensor"},
		{"tiny-w3", func(m map[string]string, x map[string]tensor.Tensor) { m["empty_slots"] = "none" }, `"none"`},
		{"packed", func(m map[string]string, x map[string]tensor.Tensor) { m["seqlens"] = "[1, 33]" }, "seqlens [1 33] add up to 34"},
		{"packed", func(m map[string]string, x map[string]tensor.Tensor) { m["seqlens"] = "five" }, `seqlens "five"`},
		{"carried-w5", func(m map[string]string, x map[string]tensor.Tensor) { delete(x, "initial_keys") }, "tensor initial_keys is missing"},
		{"carried-w5", func(m map[string]string, x map[string]tensor.Tensor) { delete(x, "d_final_log_gates") }, "tensor d_final_log_gates is missing"},
		{"carried-w5", func(m map[string]string, x map[string]tensor.Tensor) { m["position"] = "3" }, "tensor"},
		{"carried-w5", func(m map[string]string, x map[string]tensor.Tensor) { m["position"] = "-3" }, "position -3"},
	} {
		meta, tensors := load(tt.from)
		tt.change(meta, tensors)
		var list []weights.Named
		for n, x := range tensors {
			list = append(list, weights.Named{Name: n, Tensor: x})
		}
		path := filepath.Join(t.TempDir(), "bad.safetensors")
		if err := weights.Write(path, meta, list); err != nil {
			t.Fatal(err)
		}
		_, err := Load(path)
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("error %v, want %q", err, tt.want)
		}
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none.safetensors")); !os.IsNotExist(err) && err == nil {
		t.Error("no error for a file that is not there")
	}
}
