package cpu

import (
	"path/filepath"
	"testing"

	"nha/attention/attentiontest"
	"nha/attention/vectors"
	"nha/backend/cpu/kernel"
	"nha/tensor"
)

type nhaOperator struct{ *nha }

func (nhaOperator) DType() tensor.DType { return tensor.F32 }

// eachSet runs a test under every instruction set of the machine.
func eachSet(t *testing.T, f func(t *testing.T)) {
	active := kernel.Active()
	defer func() {
		if err := kernel.Use(active); err != nil {
			t.Fatal(err)
		}
	}()
	for _, name := range kernel.Available() {
		if err := kernel.Use(name); err != nil {
			t.Fatal(err)
		}
		t.Run(name, f)
	}
}

func TestNHA(t *testing.T) {
	pool := kernel.NewPool(2)
	defer pool.Close()
	eachSet(t, func(t *testing.T) {
		op := nhaOperator{newNHA(pool)}
		attentiontest.Run(t, op, attentiontest.TolerancesFor(tensor.F32))
	})
}

func TestNHAVectors(t *testing.T) {
	files, err := filepath.Glob("../../testdata/vectors/*.safetensors")
	if err != nil || len(files) == 0 {
		t.Fatalf("no vectors: %v", err)
	}
	pool := kernel.NewPool(2)
	defer pool.Close()
	eachSet(t, func(t *testing.T) {
		n := newNHA(pool)
		for _, file := range files {
			v, err := vectors.Load(file)
			if err != nil {
				t.Fatal(err)
			}
			c, g := v.Call(tensor.F32)
			n.Forward(c)
			n.Backward(c, g)
			for _, r := range v.Results(c, g) {
				if !r.OK() {
					t.Errorf("%s %s: error %.3g, limit %.3g", v.Name, r.Tensor, r.Error, r.Limit)
				}
			}
		}
	})
}
