package weights

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nha/tensor"
)

// raw is a safetensors file of a header and data as given.
func raw(header string, data int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	b = append(b, header...)
	for i := range data {
		b = append(b, byte(i))
	}
	return b
}

func write(t *testing.T, path string, contents []byte) string {
	t.Helper()
	if err := os.WriteFile(path, contents, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func mustOpen(t *testing.T, path string) *File {
	t.Helper()
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// The files of testdata come from an independent writer: their tensors must account for every byte.
func TestOpenTestdata(t *testing.T) {
	paths, err := filepath.Glob("../testdata/vectors/*.safetensors")
	if err != nil || len(paths) < 12 {
		t.Fatalf("%d vectors in testdata (%v)", len(paths), err)
	}
	for _, path := range append(paths, "../testdata/golden/nha-tiny/model.safetensors") {
		f := mustOpen(t, path)
		if !slices.IsSorted(f.Names()) || len(f.Names()) == 0 {
			t.Fatalf("%s: names %v", path, f.Names())
		}
		for _, name := range f.Names() {
			x, ok := f.Tensor(name)
			if !ok {
				t.Fatalf("%s: no tensor %q", path, name)
			}
			for i := range x.Len() {
				if v := x.Value(i); v != v || v > 1e6 || v < -1e6 {
					t.Fatalf("%s: %s[%d] = %v: bytes misread?", path, name, i, v)
				}
			}
		}
	}
}

func TestGoldenTensors(t *testing.T) {
	s, err := OpenDir("../testdata/golden/nha-tiny")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	norm, ok := s.Tensor("model.norm.weight")
	if !ok || norm.DType != tensor.F32 || norm.Shape.Rank() != 1 {
		t.Fatalf("model.norm.weight is %v %v", norm.DType, norm.Shape)
	}
	if _, ok := s.Tensor("model.norm.bias"); ok {
		t.Fatal("a tensor that is not there was found")
	}
}

// samples has every element type, a scalar, an empty tensor and names that JSON must escape.
func samples() []Named {
	var list []Named
	for i, d := range []tensor.DType{tensor.U8, tensor.F64, tensor.F32, tensor.F16, tensor.BF16, tensor.I64, tensor.I32} {
		x := tensor.New(d, tensor.Of(3, 5))
		for j := range x.Len() {
			x.SetValue(j, float64(i+j))
		}
		list = append(list, Named{Name: "layers." + d.String(), Tensor: x})
	}
	return append(list,
		Named{Name: "scalar", Tensor: tensor.FromF32([]float32{7})},
		Named{Name: "empty", Tensor: tensor.FromF32(nil, 0, 4)},
		Named{Name: "q\"uo<te\\ é\n", Tensor: tensor.FromI32([]int32{1, 2}, 2)})
}

func TestRoundTrip(t *testing.T) {
	dir := t.TempDir()
	list := samples()
	list[7].Tensor = list[7].Tensor.View() // rank 0
	metadata := map[string]string{"format": "pt", "é": "\"x\""}
	path := filepath.Join(dir, "a.safetensors")
	if err := Write(path, metadata, list); err != nil {
		t.Fatal(err)
	}
	f := mustOpen(t, path)
	if diff := cmp.Diff(metadata, f.Metadata()); diff != "" {
		t.Fatal(diff)
	}
	if len(f.Names()) != len(list) {
		t.Fatalf("names %q", f.Names())
	}
	for _, n := range list {
		x, ok := f.Tensor(n.Name)
		if !ok || x.DType != n.Tensor.DType || x.Shape != n.Tensor.Shape || !bytes.Equal(x.Bytes(), n.Tensor.Bytes()) {
			t.Fatalf("%q came back as %v %v", n.Name, x.DType, x.Shape)
		}
	}
	if len(f.copies) != 0 {
		t.Fatal("Write laid a tensor misaligned")
	}

	// The same tensors in another order give the same bytes.
	slices.Reverse(list)
	other := filepath.Join(dir, "b.safetensors")
	if err := Write(other, maps.Clone(metadata), list); err != nil {
		t.Fatal(err)
	}
	a, _ := os.ReadFile(path)
	b, _ := os.ReadFile(other)
	if !bytes.Equal(a, b) {
		t.Fatal("the bytes depend on the order of the list")
	}
	if n := binary.LittleEndian.Uint64(a); n%8 != 0 {
		t.Fatalf("header of %d bytes is not padded", n)
	}
	if names, _ := os.ReadDir(dir); len(names) != 2 {
		t.Fatalf("left behind: %v", names)
	}
}

func TestNoTensors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	if err := Write(path, nil, nil); err != nil {
		t.Fatal(err)
	}
	if f := mustOpen(t, path); len(f.Names()) != 0 || f.Metadata() != nil {
		t.Fatalf("%v %v", f.Names(), f.Metadata())
	}
}

func TestWriteConverts(t *testing.T) {
	const n = 3<<16 + 11 // several pieces
	x := tensor.New(tensor.F32, tensor.Of(n))
	for i, f := range x.F32() {
		x.F32()[i] = f + float32(i)*0.37
	}
	path := filepath.Join(t.TempDir(), "a")
	if err := Write(path, nil, []Named{{Name: "x", Tensor: x, As: tensor.BF16}}); err != nil {
		t.Fatal(err)
	}
	got, _ := mustOpen(t, path).Tensor("x")
	want := tensor.New(tensor.BF16, x.Shape)
	tensor.Convert(want, x)
	if got.DType != tensor.BF16 || got.Shape != x.Shape || !bytes.Equal(got.Bytes(), want.Bytes()) {
		t.Fatal("converted tensor differs")
	}
}

func TestWriteRefuses(t *testing.T) {
	one := tensor.FromF32([]float32{1}, 1)
	for _, c := range []struct {
		list []Named
		want string
	}{
		{[]Named{{Name: "a", Tensor: one}, {Name: "a", Tensor: one}}, `"a" is taken`},
		{[]Named{{Name: "__metadata__", Tensor: one}}, `"__metadata__" is taken`},
		{[]Named{{Name: "\xff", Tensor: one}}, "not valid UTF-8"},
		{[]Named{{Name: "d", Tensor: tensor.OnDevice(tensor.F32, tensor.Of(1), 4096)}}, `"d" is not in host memory`},
		{[]Named{{Name: "z"}}, `"z" is not in host memory`},
	} {
		path := filepath.Join(t.TempDir(), "a")
		err := Write(path, nil, c.list)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("error %v, want %s", err, c.want)
		}
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Error("a file was left")
		}
	}
}

// A header whose padding is odd, or a wide tensor behind a narrow one, puts data where its type must not be read.
func TestMisaligned(t *testing.T) {
	header := `{"b":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"x":{"dtype":"F64","shape":[2],"data_offsets":[3,19]}} `
	want := []float64{1.5, -2.25}
	for pad := range 9 {
		file := raw(header+strings.Repeat(" ", pad), 3)
		for _, v := range want {
			x := tensor.FromF64([]float64{v}, 1)
			file = append(file, x.Bytes()...)
		}
		f := mustOpen(t, write(t, filepath.Join(t.TempDir(), "a"), file))
		x, ok := f.Tensor("x")
		if !ok || !slices.Equal(x.F64(), want) {
			t.Fatalf("pad %d: read %v", pad, x.F64())
		}
		again, _ := f.Tensor("x")
		if &again.Bytes()[0] != &x.Bytes()[0] {
			t.Fatal("a second copy")
		}
	}
}

func TestBadFiles(t *testing.T) {
	entry := func(dtype, shape string, from, to int) string {
		return fmt.Sprintf(`{"dtype":%q,"shape":%s,"data_offsets":[%d,%d]}`, dtype, shape, from, to)
	}
	a := entry("F32", "[2]", 0, 8)
	for name, c := range map[string]struct {
		file []byte
		want string
	}{
		"empty":            {nil, "too short"},
		"seven bytes":      {make([]byte, 7), "too short"},
		"no header":        {make([]byte, 8), "does not begin with '{'"},
		"header too long":  {binary.LittleEndian.AppendUint64(nil, 1<<62), "over the format's limit"},
		"header truncated": {raw(`{"a":`+a+`}`, 0)[:30], "truncated"},
		"data truncated":   {raw(`{"a":`+a+`}`, 7), `tensor "a": data_offsets [0 8] lie outside the file's 7 bytes`},
		"trailing bytes":   {raw(`{"a":`+a+`}`, 9), "1 bytes at the end belong to no tensor"},
		"text file":        {[]byte("hello world, this is no weights file"), "not a safetensors file"},
		"cut JSON":         {raw(`{"a":`+a, 8), "unexpected EOF"},
		"second object":    {raw(`{"a":`+a+`}{}`, 8), "something follows"},
		"array":            {raw(`{"a":[]}`, 0), `tensor "a": want "{"`},
		"invalid UTF-8":    {raw("{\"\xff\":"+a+"}", 8), "UTF-8"},
		"duplicate":        {raw(`{"a":`+a+`,"a":`+a+`}`, 8), `key "a" comes twice`},
		"duplicate inside": {raw(`{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}`, 8), `tensor "a": key "dtype" comes twice`},
		"dtype":            {raw(`{"a":`+entry("F8_E4M3", "[8]", 0, 8)+`}`, 8), `tensor "a": dtype "F8_E4M3" is not supported`},
		"config dtype":     {raw(`{"a":`+entry("float32", "[2]", 0, 8)+`}`, 8), `tensor "a": dtype "float32" is not supported`},
		"rank 5":           {raw(`{"a":`+entry("F32", "[1,1,1,1,2]", 0, 8)+`}`, 8), `tensor "a": shape: more than 4 numbers`},
		"negative":         {raw(`{"a":`+entry("F32", "[-2]", 0, 8)+`}`, 8), `tensor "a": shape: want a non-negative integer, not -2`},
		"fraction":         {raw(`{"a":`+entry("F32", "[2.0]", 0, 8)+`}`, 8), "non-negative integer"},
		"string dimension": {raw(`{"a":`+entry("F32", `["2"]`, 0, 8)+`}`, 8), "non-negative integer"},
		"wrong size":       {raw(`{"a":`+entry("F32", "[3]", 0, 8)+`}`, 8), `tensor "a": data_offsets [0 8] span 8 bytes, which is not F32 [3]`},
		"overflow":         {raw(`{"a":`+entry("F32", "[4294967296,4294967296,4294967296]", 0, 0)+`}`, 0), `tensor "a"`},
		"overflow to size": {raw(`{"a":`+entry("F32", "[4611686018427387906]", 0, 8)+`}`, 8), `tensor "a"`},
		"backwards":        {raw(`{"a":`+entry("F32", "[2]", 8, 0)+`}`, 8), `tensor "a": data_offsets [8 0]`},
		"three offsets":    {raw(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,8]}}`, 8), `tensor "a": data_offsets`},
		"no shape":         {raw(`{"a":{"dtype":"F32","data_offsets":[0,8]}}`, 8), `tensor "a": want dtype, shape and data_offsets`},
		"unknown key":      {raw(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}}`, 8), `tensor "a": unknown key "x"`},
		"hole":             {raw(`{"a":`+a+`,"b":`+entry("F32", "[1]", 12, 16)+`}`, 16), `4 bytes before tensor "b" belong to no tensor`},
		"overlap":          {raw(`{"a":`+a+`,"b":`+entry("F32", "[1]", 4, 8)+`}`, 8), `tensor "b" overlaps`},
		"metadata number":  {raw(`{"__metadata__":{"a":1}}`, 0), `"a": want a string`},
	} {
		t.Run(name, func(t *testing.T) {
			path := write(t, filepath.Join(t.TempDir(), "model.safetensors"), c.file)
			f, err := Open(path)
			if err == nil {
				f.Close()
				t.Fatal("opened")
			}
			if !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
				t.Fatalf("error %q, want %q and the path", err, c.want)
			}
		})
	}
}

func TestOpenNoFile(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(filepath.Join(dir, "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Fatal(err)
	}
}

func TestClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	if err := Write(path, nil, samples()); err != nil {
		t.Fatal(err)
	}
	f := mustOpen(t, path)
	if err := errors.Join(f.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	if _, ok := f.Tensor("scalar"); ok {
		t.Fatal("a view of a closed file")
	}
}

// The mapping must survive that a checkpoint is replaced under it.
func TestReplaceWhileOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	for i := range 3 {
		x := tensor.FromF32([]float32{float32(i), 2}, 2)
		if err := Write(path, nil, []Named{{Name: "x", Tensor: x}}); err != nil {
			t.Fatal(err)
		}
		got, _ := mustOpen(t, path).Tensor("x")
		t.Cleanup(func() {
			if !slices.Equal(got.F32(), []float32{float32(i), 2}) {
				t.Errorf("view %d became %v", i, got.F32())
			}
		})
	}
}

func TestMatch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	var list []Named
	var want []Spec
	for i := range 8 {
		list = append(list, Named{Name: fmt.Sprintf("w%d", i), Tensor: tensor.New(tensor.F32, tensor.Of(2, 3))})
		want = append(want, Spec{fmt.Sprintf("w%d", i), tensor.Of(2, 3)})
	}
	if err := Write(path, nil, list); err != nil {
		t.Fatal(err)
	}
	f := mustOpen(t, path)
	if err := Match(f, want); err != nil {
		t.Fatal(err)
	}
	want[0].Shape = tensor.Of(3, 2)
	want[1].Name = "absent"
	err := Match(f, want)
	var e *MatchError
	if !errors.As(err, &e) {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&MatchError{Missing: []string{"absent"}, Misshaped: []string{"w0 is [2 3], want [3 2]"}, Extra: []string{"w1"}}, e); diff != "" {
		t.Fatal(diff)
	}
	if got := err.Error(); got != "1 tensor missing: absent; 1 tensor mis-shaped: w0 is [2 3], want [3 2]; 1 tensor not part of the model: w1" {
		t.Fatal(got)
	}
	if got := Match(f, nil).Error(); got != "8 tensors not part of the model: w0, w1, w2, w3, w4, and 3 more" {
		t.Fatal(got)
	}
}
