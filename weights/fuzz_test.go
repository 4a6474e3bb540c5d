package weights

import (
	"bytes"
	"os"
	"runtime"
	"testing"

	"nha/mapfile"
	"nha/tensor"
)

// FuzzOpen: whatever a file says, opening it never panics, costs memory in proportion to its length, and what opens accounts
// for every byte of the data.
func FuzzOpen(f *testing.F) {
	file, err := os.ReadFile("../testdata/vectors/tiny-w3.safetensors")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(file)
	f.Add(file[:len(file)/2])
	f.Add(raw(`{}`, 0))
	f.Add(raw(`{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}`, 8))
	f.Add(raw(`{"a":{"dtype":"F64","shape":[1],"data_offsets":[1,9]},"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, 9))
	f.Add(raw(`{"__metadata__":{"a":"b"},"a":{"dtype":"BF16","shape":[0,9223372036854775807],"data_offsets":[0,0]}}`, 0))
	f.Add(raw(`{"__metadata__":{"blocks:a":"Q8_0"},"a":{"dtype":"U8","shape":[2,34],"data_offsets":[0,68]}}`, 68))
	f.Add(raw(`{"__metadata__":{"blocks:a":"Q6_K","blocks:b":"Q4_0"},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}`, 0))
	f.Fuzz(func(t *testing.T, file []byte) {
		data, err := mapfile.Read(bytes.NewReader(file), len(file))
		if err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		s, err := newFile("fuzz", data)
		runtime.ReadMemStats(&after)
		if spent := after.TotalAlloc - before.TotalAlloc; spent > 1<<20+64*uint64(len(file)) {
			t.Fatalf("%d bytes allocated for a file of %d", spent, len(file))
		}
		if err != nil {
			return
		}
		total := 0
		for _, name := range s.Names() {
			x, ok := s.Tensor(name)
			if !ok || x.DType == tensor.Invalid {
				t.Fatalf("listed tensor %q is not there", name)
			}
			for i := range x.Len() {
				x.Value(i)
			}
			total += len(x.Bytes())
		}
		if head := 8 + int(data[0]) + int(data[1])<<8 + int(data[2])<<16; head+total != len(file) {
			t.Fatalf("%d bytes of header and %d of tensors in a file of %d", head, total, len(file))
		}
	})
}
