package cpu

import (
	"path/filepath"
	"testing"

	"nha/attention"
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

func TestNHALongRun(t *testing.T) {
	pool := kernel.NewPool(2)
	defer pool.Close()
	eachSet(t, func(t *testing.T) { attentiontest.LongRun(t, nhaOperator{newNHA(pool)}) })
}

// Long enough that backward sweeps the slots stretch by stretch and that positions start anew, in both directions.
func TestNHAManyStretches(t *testing.T) {
	pool := kernel.NewPool(2)
	defer pool.Close()
	defer func(before int) { nhaStretch = before }(nhaStretch)
	nhaStretch = 64
	tokens := 2*nhaStretch*nhaTokens + 100
	c, g := randomCall(1, tokens, 2, 1, 4, 40)
	want, wantG := *c, *g
	for _, x := range []*tensor.Tensor{&want.O, &want.LSE, &want.Share, &wantG.DQ, &wantG.DK, &wantG.DV, &wantG.DZ} {
		*x = tensor.New(tensor.F64, x.Shape)
	}
	attention.Forward(&want)
	attention.Backward(&want, &wantG)
	eachSet(t, func(t *testing.T) {
		n := newNHA(pool)
		n.Forward(c)
		n.Backward(c, g)
		for _, r := range []struct {
			name      string
			got, want tensor.Tensor
			limit     float64
		}{
			{"o", c.O, want.O, 2e-5}, {"lse", c.LSE, want.LSE, 2e-5}, {"share", c.Share, want.Share, 2e-5},
			{"dq", g.DQ, wantG.DQ, 1e-4}, {"dk", g.DK, wantG.DK, 1e-4}, {"dv", g.DV, wantG.DV, 1e-4}, {"dz", g.DZ, wantG.DZ, 1e-4},
		} {
			if e := tensor.MaxError(r.got, r.want); !(e <= r.limit) {
				t.Errorf("%s: error %.3g, limit %.3g", r.name, e, r.limit)
			}
		}
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
