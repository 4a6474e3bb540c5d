// Package weights reads and writes model weights in the safetensors format, and reads GGUF files (gguf.go) as the same.
//
// A file is
//
//	8 bytes   N, the length of the header, little-endian
//	N bytes   JSON: {"NAME": {"dtype": "F32", "shape": [2, 3], "data_offsets": [from, to]}, ..., "__metadata__": {"k": "v"}}
//	the rest  the tensors' bytes, row-major, little-endian; offsets count from here
//
// Files are mapped into memory, not read: opening costs the header alone, and a tensor is a view on the mapping. A header
// is believed only where it accounts for every byte of the file once; what it says wrongly is an error that names the file
// and the tensor, and costs no more memory than the header itself. A weight is never silently left out (SPEC 4, 12): Match
// holds a file against the list of tensors that a model wants, and a sharded model's index against its shards.
//
// Quantised tensors, which safetensors does not know, are stored as bytes with a note beside them: blocks.go.
package weights
