package weights

import (
	"bytes"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"nha/tensor"
)

// TestBlocks: quantised tensors survive a file, encoded there or beforehand, beside other types, and the file is plain safetensors.
func TestBlocks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.safetensors")
	x := tensor.New(tensor.F32, tensor.Of(5, 64))
	for i := range x.F32() {
		x.F32()[i] = float32(math.Sin(float64(i)))
	}
	q8 := tensor.New(tensor.Q8_0, x.Shape)
	tensor.Quantize(q8, x.F32())
	k := tensor.New(tensor.Q6_K, tensor.Of(2, 256))
	k.Bytes()[3] = 7
	list := []Named{{Name: "a", Tensor: x, As: tensor.Q8_0}, {Name: "b", Tensor: q8}, {Name: "c", Tensor: k}, {Name: "d", Tensor: x, As: tensor.BF16},
		{Name: "e", Tensor: tensor.New(tensor.U8, tensor.Of(3))}, {Name: "f", Tensor: q8, As: tensor.F32}, {Name: "g", Tensor: q8, As: tensor.Q4_0}}
	if err := Write(path, map[string]string{"format": "pt"}, list); err != nil {
		t.Fatal(err)
	}
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	decoded, again := tensor.New(tensor.F32, x.Shape), tensor.New(tensor.Q4_0, x.Shape)
	tensor.Convert(decoded, q8)
	tensor.Convert(again, q8)
	for name, want := range map[string]tensor.Tensor{"a": q8, "b": q8, "c": k, "f": decoded, "g": again} {
		got, ok := f.Tensor(name)
		if !ok || got.DType != want.DType || got.Shape != want.Shape || !bytes.Equal(got.Bytes(), want.Bytes()) {
			t.Errorf("%s is %v %v, want %v %v with its bytes", name, got.DType, got.Shape, want.DType, want.Shape)
		}
	}
	if len(f.Metadata()) != 1 {
		t.Errorf("metadata %v", f.Metadata())
	}
	h, err := parseHeader(f.data)
	if err != nil || h.entries["a"].dtype != tensor.U8 || h.entries["a"].shape != tensor.Of(5, 68) {
		t.Errorf("stored as %v, %v", h.entries["a"], err)
	}
}

// TestBlocksLies: a note that does not fit, rows that are no blocks, values that have no place in one.
func TestBlocksLies(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.safetensors")
	u8 := []Named{{Name: "a", Tensor: tensor.New(tensor.U8, tensor.Of(2, 34))}, {Name: "b", Tensor: tensor.New(tensor.F32, tensor.Of(34))}}
	for note, want := range map[[2]string]string{{"blocks:z", "Q8_0"}: "no tensor", {"blocks:a", "Q9_9"}: "not supported", {"blocks:a", "F32"}: "not supported",
		{"blocks:b", "Q8_0"}: "are U8", {"blocks:a", "Q4_0"}: "multiples of 18"} {
		if err := Write(path, map[string]string{note[0]: note[1]}, u8); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", note, err, want)
		}
	}
	x := tensor.New(tensor.F32, tensor.Of(2, 48))
	if err := Write(path, nil, []Named{{Name: "a", Tensor: x, As: tensor.Q8_0}}); err == nil || !strings.Contains(err.Error(), "whole blocks") {
		t.Errorf("rows of 48: %v", err)
	}
	x = x.View(3, 32)
	x.F32()[70] = float32(math.Inf(1))
	if err := Write(path, nil, []Named{{Name: "a", Tensor: x, As: tensor.Q4_0}}); err == nil || !strings.Contains(err.Error(), `"a": element 70 is +Inf`) {
		t.Errorf("infinity: %v", err)
	}
}
