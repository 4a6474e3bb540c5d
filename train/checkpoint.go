package train

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"nha/atomicfile"
	"nha/model"
	"nha/tensor"
	"nha/weights"
)

// A run directory holds
//
//	run.toml                          the resolved options
//	metrics.jsonl, loss.svg, loss.png the course of the run
//	checkpoints/step-00001000/        a model directory, with optimizer.safetensors and trainer.json beside the model
//	config.json, model.safetensors... the final model, once the run is over
//
// A checkpoint is written into a temporary directory beside it, forced to the disk file by file, and renamed: it is there whole
// or not at all. An old one is renamed before it is removed. What a crash leaves behind begins with a dot, holds ".tmp-" in its
// name, and is removed when the run goes on.
const (
	runFile         = "run.toml"
	metricsFile     = "metrics.jsonl"
	curveFile       = "loss" // .svg, .png
	checkpointsDir  = "checkpoints"
	optimizerFile   = "optimizer.safetensors"
	trainerFile     = "trainer.json"
	temporary       = ".tmp-"
	stepPattern     = "step-%08d"
	trainerVersion  = 1
	meanSuffix      = ".exp_avg" // PyTorch's names of AdamW's m and v
	squareSuffix    = ".exp_avg_sq"
	parameterSuffix = ".parameter" // where the model's file rounds what the backend computes in
)

// trainerState is trainer.json: all that the next step depends on and is no tensor, and the course of the run so far.
type trainerState struct {
	Version int `json:"version"`
	progress
	Seconds  float64           `json:"seconds"`
	Interval interval          `json:"interval"`        // since the last line of metrics
	Pending  *Stats            `json:"pending"`         // the last step, when its validation and line of metrics are still to come
	Source   json.RawMessage   `json:"source"`          // where the data stands
	Identity map[string]string `json:"identity"`        // what a resumed run must share
	Machine  string            `json:"machine"`         // on which the same bits come out
	Model    json.RawMessage   `json:"model,omitempty"` // the model's configuration, for the reader
	Last     *Validation       `json:"last_validation"` // for the progress line
	Best     best              `json:"best"`
}

// best is the checkpoint of the lowest smoothed loss, which runs that may diverge keep beside the last ones; step 0: none yet.
type best struct {
	Step int     `json:"step"`
	Loss float64 `json:"loss"`
}

// write is the file at path, indented, whole or not at all.
func (s *trainerState) write(path string) error {
	return atomicfile.WriteFile(path, 0o644, func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(s)
	})
}

func readTrainerState(path string) (*trainerState, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	s := &trainerState{}
	if err := json.Unmarshal(text, s); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if s.Version != trainerVersion {
		return nil, fmt.Errorf("%s: version %d, this program reads %d", path, s.Version, trainerVersion)
	}
	return s, nil
}

// differs names the keys in which two identities differ; "" when none does.
func differs(was, is map[string]string) string {
	keys := slices.Collect(maps.Keys(was))
	for k := range is {
		if _, ok := was[k]; !ok {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	var list []string
	for _, k := range keys {
		if a, b := was[k], is[k]; a != b {
			list = append(list, fmt.Sprintf("%s is %q, the run was started with %q", k, b, a))
		}
	}
	return strings.Join(list, "; ")
}

// saveTensors writes the moments, and the parameters themselves where the model's own file rounds them.
func (t *Trainer) saveTensors(path string) error {
	o := t.optimizer
	trained := o.data.DType
	stored, err := tensor.ParseDType(t.model.Config.DType)
	if err != nil {
		return err
	}
	var list []weights.Named
	add := func(name string, flat tensor.Tensor, p model.Parameter) {
		host := tensor.New(flat.DType, p.Value.Shape)
		o.b.Read(host, flat.At(p.Offset, p.Value.Shape))
		list = append(list, weights.Named{Name: name, Tensor: host})
	}
	for _, p := range o.parameters {
		add(p.Name+meanSuffix, o.means, p)
		add(p.Name+squareSuffix, o.squares, p)
		if stored != trained {
			add(p.Name+parameterSuffix, o.data, p)
		}
	}
	return weights.Write(path, nil, list)
}

// loadTensors reads what saveTensors wrote.
func (t *Trainer) loadTensors(path string) error {
	o := t.optimizer
	f, err := weights.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	flats := map[string][]tensor.Tensor{meanSuffix: {o.means}, squareSuffix: {o.squares}}
	if _, ok := f.Tensor(o.parameters[0].Name + parameterSuffix); ok {
		flats[parameterSuffix] = []tensor.Tensor{o.data}
		if o.rounded.Present() {
			flats[parameterSuffix] = append(flats[parameterSuffix], o.rounded)
		}
	}
	var specs []weights.Spec
	for _, p := range o.parameters {
		for suffix := range flats {
			specs = append(specs, weights.Spec{Name: p.Name + suffix, Shape: p.Value.Shape})
		}
	}
	if err := weights.Match(f, specs); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for _, p := range o.parameters {
		for suffix, list := range flats {
			x, _ := f.Tensor(p.Name + suffix)
			if !x.DType.Float() {
				return fmt.Errorf("%s: tensor %s is %v: must be floating-point", path, p.Name+suffix, x.DType)
			}
			for _, flat := range list {
				o.b.Write(flat.At(p.Offset, p.Value.Shape), x)
			}
		}
	}
	return nil
}

// writeDir makes dir, which must not exist, out of what write puts into a temporary directory beside it.
func writeDir(dir string, write func(dir string) error) (err error) {
	parent, name := filepath.Split(dir)
	work, err := os.MkdirTemp(parent, "."+name+temporary)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(work)
			err = errors.New(strings.ReplaceAll(err.Error(), work, dir)) // the user knows dir
		}
	}()
	if err := os.Chmod(work, 0o755); err != nil {
		return err
	}
	if err := write(work); err != nil {
		return err
	}
	if err := atomicfile.SyncDir(work); err != nil {
		return err
	}
	if err := os.Rename(work, dir); err != nil {
		return err
	}
	return atomicfile.SyncDir(parent)
}

// removeDir removes a directory such that a part of it is never seen under its name.
func removeDir(dir string) error {
	parent, name := filepath.Split(dir)
	gone, err := os.MkdirTemp(parent, "."+name+temporary)
	if err != nil {
		return err
	}
	if err := os.Rename(dir, filepath.Join(gone, name)); err != nil {
		return err
	}
	return os.RemoveAll(gone)
}

// Checkpoints lists the checkpoints of a run directory, the oldest first: model directories all of them.
func Checkpoints(dir string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(dir, checkpointsDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []string
	for _, e := range entries { // sorted by name, which is by step
		if _, ok := stepOf(e.Name()); ok && e.IsDir() {
			list = append(list, filepath.Join(dir, checkpointsDir, e.Name()))
		}
	}
	slices.SortFunc(list, func(a, b string) int {
		i, _ := stepOf(filepath.Base(a))
		j, _ := stepOf(filepath.Base(b))
		return i - j
	})
	return list, nil
}

func stepOf(name string) (int, bool) {
	var step int
	n, err := fmt.Sscanf(name, stepPattern, &step)
	return step, n == 1 && err == nil && name == fmt.Sprintf(stepPattern, step)
}

// cleanUp removes what a crash in the middle of writing left in a run directory.
func cleanUp(dir string) error {
	for _, d := range []string{dir, filepath.Join(dir, checkpointsDir)} {
		entries, err := os.ReadDir(d)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), ".") && strings.Contains(e.Name(), temporary) {
				if err := os.RemoveAll(filepath.Join(d, e.Name())); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
