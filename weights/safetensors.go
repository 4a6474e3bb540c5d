package weights

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	"nha/mapfile"
	"nha/tensor"
)

// Source is a set of named tensors: one file, or the shards of a model. Its methods may be called from several goroutines.
type Source interface {
	// Names lists the tensors, sorted. The slice is the caller's.
	Names() []string
	// Tensor is a read-only view of a tensor (writing to it faults), valid until Close; false when there is none of that name.
	Tensor(name string) (tensor.Tensor, bool)
	// Metadata is the file's own notes, nil when it has none; of a sharded model, the index file's string-valued ones.
	Metadata() map[string]string
	// Close gives the memory back. Views must not be used afterwards.
	Close() error
}

// File is an open safetensors file.
type File struct {
	path   string
	data   []byte // the whole file; its address is a multiple of 8
	unmap  func() error
	header header

	mutex  sync.Mutex
	copies map[string]tensor.Tensor // the tensors that lie misaligned in the file, once asked for
}

// Open maps the safetensors file at path and checks its header; the error names the file and, where one is at fault, the
// tensor.
func Open(path string) (*File, error) {
	data, unmap, err := mapfile.Open(path)
	if err != nil {
		return nil, err
	}
	f, err := newFile(path, data)
	if err != nil {
		unmap()
		return nil, err
	}
	f.unmap = unmap
	return f, nil
}

func newFile(path string, data []byte) (*File, error) {
	h, err := parseHeader(data)
	if err == nil {
		err = h.readBlockNotes()
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &File{path: path, data: data, unmap: func() error { return nil }, header: h, copies: map[string]tensor.Tensor{}}, nil
}

// Names lists the tensors, sorted.
func (f *File) Names() []string { return slices.Sorted(maps.Keys(f.header.entries)) }

// Metadata is the "__metadata__" of the header, nil when there is none.
func (f *File) Metadata() map[string]string { return f.header.metadata }

// Tensor is a read-only view of a tensor, valid until Close. A tensor that lies misaligned in the file is copied once.
func (f *File) Tensor(name string) (tensor.Tensor, bool) {
	e, ok := f.header.entries[name]
	if !ok {
		return tensor.Tensor{}, false
	}
	if e.from == e.to {
		return tensor.New(e.dtype, e.shape), true
	}
	if e.from%alignment(e.dtype) == 0 {
		return tensor.FromBytes(e.dtype, e.shape, f.data[e.from:e.to:e.to]), true
	}
	f.mutex.Lock()
	defer f.mutex.Unlock()
	t, ok := f.copies[name]
	if !ok {
		t = tensor.New(e.dtype, e.shape)
		copy(t.Bytes(), f.data[e.from:e.to])
		f.copies[name] = t
	}
	return t, true
}

// Close unmaps the file: its views must not be used afterwards. A second Close does nothing.
func (f *File) Close() error {
	unmap := f.unmap
	f.unmap, f.data, f.copies = func() error { return nil }, nil, nil
	f.header.entries = nil
	if err := unmap(); err != nil {
		return fmt.Errorf("%s: unmap: %w", f.path, err)
	}
	return nil
}
