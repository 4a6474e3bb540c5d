package attention_test

import (
	"path/filepath"
	"testing"

	"nha/attention"
	"nha/attention/vectors"
	"nha/tensor"
)

func TestVectors(t *testing.T) {
	paths, err := filepath.Glob("../testdata/vectors/*.safetensors")
	if err != nil || len(paths) < 12 {
		t.Fatalf("%d vectors in testdata/vectors, want at least 12 (%v)", len(paths), err)
	}
	for _, path := range paths {
		v, err := vectors.Load(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(v.Name, func(t *testing.T) {
			c, g := v.Call(tensor.F64)
			attention.Forward(c)
			attention.Backward(c, g)
			results := v.Results(c, g)
			if len(results) < 8 {
				t.Errorf("only %d tensors compared", len(results))
			}
			for _, r := range results {
				if !r.OK() {
					t.Errorf("%s: error %.2g, limit %.2g", r.Tensor, r.Error, r.Limit)
				}
			}
		})
	}
}
