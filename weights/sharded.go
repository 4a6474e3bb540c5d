package weights

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"unicode/utf8"

	"nha/tensor"
)

// The names that Hugging Face gives the weights of a model directory.
const (
	FileName  = "model.safetensors"
	IndexName = "model.safetensors.index.json"
)

// Sharded is a model in several files: the index names the file of every tensor.
type Sharded struct {
	shards   map[string]*File  // by file name
	where    map[string]string // tensor -> file name
	metadata map[string]string
}

// OpenDir opens the weights of a model directory: model.safetensors, or the shards that model.safetensors.index.json lists.
// Index and shards must agree on every tensor.
func OpenDir(dir string) (Source, error) {
	single := filepath.Join(dir, FileName)
	if _, err := os.Stat(single); err == nil {
		return Open(single)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	index := filepath.Join(dir, IndexName)
	text, err := os.ReadFile(index)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: neither %s nor %s: not a model directory with safetensors weights", dir, FileName, IndexName)
	}
	if err != nil {
		return nil, err
	}
	s := &Sharded{shards: map[string]*File{}}
	if s.where, s.metadata, err = parseIndex(text); err != nil {
		return nil, fmt.Errorf("%s: %w", index, err)
	}
	if err := s.openShards(dir, index); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// openShards opens every file of the index and checks that each tensor lies where the index says and nowhere else.
func (s *Sharded) openShards(dir, index string) error {
	for _, tensorName := range slices.Sorted(maps.Keys(s.where)) {
		name := s.where[tensorName]
		if s.shards[name] != nil {
			continue
		}
		f, err := Open(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: shard %s, which holds tensor %q, is missing", index, name, tensorName)
		}
		if err != nil {
			return err
		}
		s.shards[name] = f
	}
	for _, name := range slices.Sorted(maps.Keys(s.shards)) {
		for _, tensorName := range s.shards[name].Names() {
			switch home, ok := s.where[tensorName]; {
			case !ok:
				return fmt.Errorf("%s: tensor %q of shard %s is not in the index", index, tensorName, name)
			case home != name:
				return fmt.Errorf("%s: tensor %q lies in shard %s, the index says %s", index, tensorName, name, home)
			}
		}
	}
	for _, tensorName := range s.Names() {
		if _, ok := s.Tensor(tensorName); !ok {
			return fmt.Errorf("%s: shard %s lacks tensor %q", index, s.where[tensorName], tensorName)
		}
	}
	return nil
}

// parseIndex reads {"metadata": {...}, "weight_map": {"tensor": "file"}}.
func parseIndex(text []byte) (where, metadata map[string]string, err error) {
	if !utf8.Valid(text) {
		return nil, nil, errors.New("not valid UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(text))
	err = object(d, func(key string) (err error) {
		switch key {
		case "weight_map":
			where, err = stringMap(d)
		case "metadata":
			var all map[string]any
			if err = d.Decode(&all); err == nil {
				metadata = map[string]string{}
				for k, v := range all { // total_size is a number that the shards themselves say better
					if text, ok := v.(string); ok {
						metadata[k] = text
					}
				}
			}
		default: // other notes do not move a tensor
			err = d.Decode(new(json.RawMessage))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, nil, errors.New("something follows the JSON object")
	}
	if len(where) == 0 {
		return nil, nil, errors.New("weight_map is missing or empty")
	}
	for tensorName, name := range where {
		if filepath.Base(name) != name || !filepath.IsLocal(name) || name == "." {
			return nil, nil, fmt.Errorf("weight_map puts tensor %q into %q, which is not the name of a file beside the index", tensorName, name)
		}
	}
	return where, metadata, nil
}

// Names lists the tensors of all shards, sorted.
func (s *Sharded) Names() []string { return slices.Sorted(maps.Keys(s.where)) }

// Tensor is a read-only view of a tensor, valid until Close.
func (s *Sharded) Tensor(name string) (tensor.Tensor, bool) {
	f := s.shards[s.where[name]]
	if f == nil {
		return tensor.Tensor{}, false
	}
	return f.Tensor(name)
}

// Metadata is the string-valued part of the index' metadata.
func (s *Sharded) Metadata() map[string]string { return s.metadata }

// Close closes all shards.
func (s *Sharded) Close() error {
	var all []error
	for _, f := range s.shards {
		all = append(all, f.Close())
	}
	return errors.Join(all...)
}
