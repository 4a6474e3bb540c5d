package weights

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nha/tensor"
)

// shards writes two shards, a and b in the first, c in the second, and the index given.
func shards(t *testing.T, index string) string {
	t.Helper()
	dir := t.TempDir()
	for file, names := range map[string][]string{"m-1.safetensors": {"a", "b"}, "m-2.safetensors": {"c"}} {
		var list []Named
		for _, name := range names {
			list = append(list, Named{Name: name, Tensor: tensor.FromF32([]float32{float32(name[0])}, 1)})
		}
		if err := Write(filepath.Join(dir, file), nil, list); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, IndexName), []byte(index))
	return dir
}

const goodIndex = `{"metadata":{"total_size":12,"format":"pt"},"other":[1],"weight_map":{"a":"m-1.safetensors","b":"m-1.safetensors","c":"m-2.safetensors"}}`

func TestSharded(t *testing.T) {
	s, err := OpenDir(shards(t, goodIndex))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(s.Names(), []string{"a", "b", "c"}) || s.Metadata()["format"] != "pt" {
		t.Fatalf("%v %v", s.Names(), s.Metadata())
	}
	for _, name := range s.Names() {
		if x, ok := s.Tensor(name); !ok || x.F32()[0] != float32(name[0]) {
			t.Fatalf("tensor %s", name)
		}
	}
	if _, ok := s.Tensor("d"); ok {
		t.Fatal("a tensor that is not there was found")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestShardedErrors(t *testing.T) {
	for name, c := range map[string]struct{ index, want string }{
		"shard lacks tensor": {strings.Replace(goodIndex, `"c":`, `"d":"m-2.safetensors","c":`, 1), `shard m-2.safetensors lacks tensor "d"`},
		"wrong shard":        {strings.Replace(goodIndex, `"b":"m-1`, `"b":"m-2`, 1), `tensor "b" lies in shard m-1.safetensors, the index says m-2.safetensors`},
		"not in index":       {strings.Replace(goodIndex, `"b":"m-1.safetensors",`, "", 1), `tensor "b" of shard m-1.safetensors is not in the index`},
		"missing shard":      {strings.Replace(goodIndex, `"c":"m-2`, `"c":"m-3`, 1), `shard m-3.safetensors, which holds tensor "c", is missing`},
		"duplicate":          {strings.Replace(goodIndex, `"c":`, `"a":"m-2.safetensors","c":`, 1), `weight_map: key "a" comes twice`},
		"another folder":     {strings.Replace(goodIndex, `"c":"m-2`, `"c":"../m-2`, 1), `tensor "c" into "../m-2.safetensors"`},
		"empty":              {`{"weight_map":{}}`, "weight_map is missing or empty"},
		"cut":                {goodIndex[:80], "unexpected EOF"},
		"more":               {goodIndex + "{}", "something follows"},
		"number":             {`{"weight_map":{"a":1}}`, `weight_map: "a": want a string`},
	} {
		t.Run(name, func(t *testing.T) {
			dir := shards(t, c.index)
			s, err := OpenDir(dir)
			if err == nil {
				s.Close()
				t.Fatal("opened")
			}
			if !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), filepath.Join(dir, IndexName)) {
				t.Fatalf("error %q, want %q and the index", err, c.want)
			}
		})
	}
}

// The same tensor in two shards: the index can only name one of them.
func TestTensorInTwoShards(t *testing.T) {
	dir := shards(t, goodIndex)
	list := []Named{{Name: "a", Tensor: tensor.FromF32([]float32{1}, 1)}, {Name: "c", Tensor: tensor.FromF32([]float32{1}, 1)}}
	if err := Write(filepath.Join(dir, "m-2.safetensors"), nil, list); err != nil {
		t.Fatal(err)
	}
	_, err := OpenDir(dir)
	if err == nil || !strings.Contains(err.Error(), `tensor "a" lies in shard m-2.safetensors, the index says m-1.safetensors`) {
		t.Fatal(err)
	}
}

func TestDamagedShard(t *testing.T) {
	dir := shards(t, goodIndex)
	path := filepath.Join(dir, "m-2.safetensors")
	if err := os.Truncate(path, 40); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDir(dir); err == nil || !strings.Contains(err.Error(), path) {
		t.Fatal(err)
	}
}

func TestNoWeights(t *testing.T) {
	dir := t.TempDir()
	if _, err := OpenDir(dir); err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), FileName) {
		t.Fatal(err)
	}
}
