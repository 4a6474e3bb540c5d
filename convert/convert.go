// Package convert writes a model anew: from a GGUF file or a Hugging Face directory into a directory, with other element types.
//
// Quantised matrices (tensor/quant.go) lie in the directory's model.safetensors as package weights describes; every other file is as
// Hugging Face has it. The directory appears under its name only when it is complete and has been held against its configuration.
package convert

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"nha/atomicfile"
	"nha/model"
	"nha/tensor"
	"nha/weights"
)

// Options say what changes.
type Options struct {
	DType    tensor.DType    // F32, F16 or BF16: of all tensors that Quantize leaves; Invalid: as they are
	Quantize tensor.DType    // Q8_0 or Q4_0: of the matrices that Quantizable names; Invalid: none
	Force    bool            // replace a model that is there already
	Context  context.Context // when it ends, so does the conversion, and nothing is written; nil: never
	Edit     *Edit           // what else changes; nil: nothing
}

// Edit makes another model of the source on the way.
type Edit struct {
	Config func(c *model.Config) error                               // nil: as it is
	Tensor func(name string, t tensor.Tensor) (tensor.Tensor, error) // what to write in place of t, or t; nil: all as they are
	Added  map[string]tensor.Tensor                                  // tensors that the source does not have
}

// Result is what was written.
type Result struct {
	Tensors, Quantized int
	Bytes              int64  // of model.safetensors
	Kept               string // why a GGUF's vocabulary was written as weights.VocabularyName and not as tokenizer.json; "" where it was not
}

// Quantizable reports whether a tensor is stored in blocks of type d when a model is quantised: a matrix whose rows are whole
// blocks, the embedding and head included, but for
//
//	g_proj, f_proj   the gates: their logits set how long a slot remembers, an error in a decay is raised to the power of the
//	                 tokens it lasts; they are small
//	mlp.gate         the experts' router: a small change of a logit is another expert; it is small
//
// Norms and biases are vectors, read once a token: nothing is won.
func Quantizable(name string, s tensor.Shape, d tensor.DType) bool {
	for _, kept := range []string{".g_proj.weight", ".f_proj.weight", ".mlp.gate.weight"} {
		if strings.HasSuffix(name, kept) {
			return false
		}
	}
	elements, _ := d.Block()
	return s.Rank() == 2 && s.Dim(1)%elements == 0
}

// source is an open model that is to be converted.
type source interface {
	weights.Source
	// config is the text of its config.json.
	config() ([]byte, error)
	// writeRest writes all files of a model directory but the configuration and the weights, and says as Result.Kept does.
	writeRest(dir string) (kept string, err error)
}

func openSource(path string) (source, error) {
	if weights.IsGGUF(path) {
		g, err := weights.OpenGGUF(path)
		if err != nil {
			return nil, err
		}
		return ggufSource{g}, nil
	}
	s, err := weights.OpenDir(path)
	if err != nil {
		return nil, err
	}
	return dirSource{s, path}, nil
}

// Model converts the model at path, a directory or a GGUF file, into the directory dir.
func Model(path, dir string, o Options) (r Result, err error) {
	if err := checkDestination(path, dir, o.Force); err != nil {
		return r, err
	}
	s, err := openSource(path)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	temporary, err := os.MkdirTemp(filepath.Dir(filepath.Clean(dir)), "."+filepath.Base(dir)+".tmp-")
	if err != nil {
		return r, err
	}
	defer os.RemoveAll(temporary) // nothing, once it has its name
	if o.Context == nil {
		o.Context = context.Background()
	}
	r, err = write(s, temporary, o)
	switch {
	case o.Context.Err() != nil:
		return r, o.Context.Err()
	case err != nil: // the user asked for another name
		return r, fmt.Errorf("convert %s: %s", path, strings.ReplaceAll(err.Error(), temporary, dir))
	}
	return r, install(temporary, dir)
}

// write fills the directory and holds it against its own configuration.
func write(s source, dir string, o Options) (r Result, err error) {
	if err := os.Chmod(dir, 0o755); err != nil {
		return r, err
	}
	text, err := s.config()
	if err != nil {
		return r, err
	}
	if text, err = withDType(text, o.DType); err != nil {
		return r, err
	}
	if text, err = o.Edit.config(text); err != nil {
		return r, err
	}
	if err := atomicfile.Write(filepath.Join(dir, "config.json"), 0o644, text); err != nil {
		return r, err
	}
	list, err := o.Edit.tensors(s, text)
	if err != nil {
		return r, err
	}
	for i := range list {
		n := &list[i]
		name, t := n.Name, n.Tensor
		switch {
		case !t.DType.Float() && !t.DType.Quantized():
		case o.Quantize != tensor.Invalid && Quantizable(name, t.Shape, o.Quantize):
			n.As = o.Quantize
		case o.DType != tensor.Invalid:
			n.As = o.DType
		}
		if n.As.Quantized() {
			r.Quantized++
		}
	}
	r.Tensors = len(list)
	file := filepath.Join(dir, weights.FileName)
	if err := weights.WriteContext(o.Context, file, map[string]string{"format": "pt"}, list); err != nil {
		return r, err
	}
	if r.Kept, err = s.writeRest(dir); err != nil {
		return r, err
	}
	info, err := os.Stat(file)
	if err != nil {
		return r, err
	}
	r.Bytes = info.Size()
	c, err := model.ParseConfig(text)
	if err != nil {
		return r, fmt.Errorf("config: %w", err)
	}
	if err := model.CheckWeights(dir, &c); err != nil {
		return r, err
	}
	return r, nil
}

// checkDestination refuses what is there, unless it is a model and may be replaced, and the source itself.
func checkDestination(path, dir string, force bool) error {
	there, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for above := absolute(path); ; above = filepath.Dir(above) { // a GGUF file lies in a directory
		if from, err := os.Stat(above); err == nil && os.SameFile(from, there) {
			return fmt.Errorf("%s is or holds the model itself: choose another directory", dir)
		}
		if above == filepath.Dir(above) {
			break
		}
	}
	switch {
	case !force:
		return fmt.Errorf("%s exists: choose another name, or --force to replace it", dir)
	case !there.IsDir() || !model.Exists(dir):
		return fmt.Errorf("%s is no model directory (it has no config.json): --force does not replace it", dir)
	}
	return nil
}

func absolute(path string) string {
	if a, err := filepath.Abs(path); err == nil {
		return a
	}
	return filepath.Clean(path)
}

// install gives the complete directory its name. A model that has it already leaves its place in the moment before.
func install(temporary, dir string) error {
	old := ""
	if _, err := os.Stat(dir); err == nil {
		old = temporary + "-old"
		if err := os.Rename(dir, old); err != nil {
			return err
		}
	}
	if err := os.Rename(temporary, dir); err != nil {
		if old != "" {
			return errors.Join(err, os.Rename(old, dir))
		}
		return err
	}
	if old != "" {
		if err := os.RemoveAll(old); err != nil {
			return err
		}
	}
	return atomicfile.SyncDir(filepath.Dir(filepath.Clean(dir)))
}
