// Package report collects what lies below a folder (training runs, evaluations, curves, conversions) into one page.
//
// Nothing is measured here: every number is one that another verb has written, read from its file.
package report

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"nha/atomicfile"
	"nha/bench"
	"nha/eval"
	"nha/hybridize"
	"nha/model"
	"nha/train"
)

// Format marks a report.json of this package, which hybridize's is not.
const Format = "nha-report-1"

// The files that Write leaves.
const (
	PageFile = "report.html"
	JSONFile = "report.json"
)

// Report is what a folder holds.
type Report struct {
	Format      string       `json:"format"`
	Dir         string       `json:"dir"`
	Created     time.Time    `json:"created"`
	Version     string       `json:"version"`
	Training    []Run        `json:"training"`
	Evaluations []Evaluation `json:"evaluations"`
	Shares      []ShareFile  `json:"slot_shares"`
	Curves      []CurveFile  `json:"curves"`
	Conversions []Conversion `json:"conversions"`
}

// Run is a training run.
type Run struct {
	Name       string       `json:"name"` // its folder, from the report's
	Last       train.Line   `json:"last"`
	Best       train.Number `json:"best_validation_loss"`
	TokensPerS float64      `json:"tokens_per_s"` // over the whole run
	Memory     *Memory      `json:"memory,omitempty"`
	lines      []train.Line
}

// Memory is what a model remembers of a sequence, from its configuration, in bytes of float32.
type Memory struct {
	Parameters int           `json:"parameters"`
	Windows    string        `json:"windows"`
	Slots      int           `json:"slots"`
	States     []StateMemory `json:"states"`
}

// StateMemory is the state after so many tokens, and the keys and values of full attention in its place.
type StateMemory struct {
	Tokens int `json:"tokens"`
	State  int `json:"state_bytes"`
	KV     int `json:"kv_bytes"`
}

// depths are those at which memory is told.
var depths = []int{2 << 10, 32 << 10, 128 << 10}

// ShareFile is a slot_share.json.
type ShareFile struct {
	Name   string       `json:"name"`
	Shares *eval.Shares `json:"shares"`
}

// CurveFile is a curves.json.
type CurveFile struct {
	Name string          `json:"name"`
	Set  *bench.CurveSet `json:"set"`
}

// Conversion is a report of nha hybridize.
type Conversion struct {
	Name   string            `json:"name"`
	Report *hybridize.Report `json:"report"`
}

// Collect reads everything below dir. Checkpoints and hidden folders are passed over.
func Collect(dir string) (*Report, error) {
	r := &Report{Format: Format, Dir: dir, Created: time.Now().UTC().Truncate(time.Second), Version: bench.Version()}
	if info, err := os.Stat(dir); err != nil {
		return nil, err
	} else if !info.IsDir() {
		return nil, fmt.Errorf("%s is a file: give the folder that holds runs", dir)
	}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			if path != dir && (e.Name() == "checkpoints" || strings.HasPrefix(e.Name(), ".")) {
				return fs.SkipDir
			}
			return nil
		}
		name, err := filepath.Rel(dir, filepath.Dir(path))
		if err != nil {
			return err
		}
		if name == "." {
			name = filepath.Base(filepath.Dir(absolute(path)))
		}
		return r.read(path, filepath.ToSlash(name), e.Name())
	})
	if err != nil {
		return nil, err
	}
	if len(r.Training)+len(r.Evaluations)+len(r.Shares)+len(r.Curves)+len(r.Conversions) == 0 {
		return nil, fmt.Errorf("%s holds no runs: looked below it for metrics.jsonl (nha train), results_*.json and %s (nha eval --output), %s (nha bench curves --out) and "+
			"report.json (nha hybridize)", dir, eval.SharesFile, bench.CurvesJSON)
	}
	return r, nil
}

func absolute(path string) string {
	if full, err := filepath.Abs(path); err == nil {
		return full
	}
	return path
}

// read takes in a file if it is one of those that are looked for.
func (r *Report) read(path, name, file string) error {
	switch {
	case file == "metrics.jsonl":
		run, err := readRun(path, name)
		if err == nil && run != nil {
			r.Training = append(r.Training, *run)
		}
		return err
	case strings.HasPrefix(file, "results_") && strings.HasSuffix(file, ".json"):
		e, err := readEvaluation(path, name)
		if err == nil && e != nil {
			r.Evaluations = append(r.Evaluations, *e)
		}
		return err
	case file == eval.SharesFile:
		return r.readShares(path, name)
	case file == bench.CurvesJSON:
		set, err := bench.ReadCurves(path)
		if err == nil {
			r.Curves = append(r.Curves, CurveFile{name, set})
		}
		return err
	case file == JSONFile:
		return r.readConversion(path, name)
	}
	return nil
}

// readRun reads metrics.jsonl; a last line that was torn is passed over, a run without lines is none.
func readRun(path, name string) (*Run, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	run := &Run{Name: name}
	scanner := bufio.NewScanner(bytes.NewReader(text))
	for number := 1; scanner.Scan(); number++ {
		var l train.Line
		if err := json.Unmarshal(scanner.Bytes(), &l); err != nil {
			if number > bytes.Count(text, []byte("\n")) {
				break // being written, or cut off
			}
			return nil, fmt.Errorf("%s, line %d: %w", path, number, err)
		}
		run.lines = append(run.lines, l)
	}
	if err := scanner.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(run.lines) == 0 {
		return nil, nil
	}
	run.Last, run.Best = run.lines[len(run.lines)-1], train.Number(nan)
	for _, l := range run.lines {
		if known(l.ValidationLoss) && !(run.Best <= l.ValidationLoss) {
			run.Best = l.ValidationLoss
		}
	}
	if run.Last.Elapsed > 0 {
		run.TokensPerS = float64(run.Last.Tokens) / run.Last.Elapsed
	}
	if c, err := model.ReadConfig(filepath.Dir(path)); err == nil { // there once the run has saved a model
		run.Memory = memoryOf(&c)
	}
	return run, nil
}

func memoryOf(c *model.Config) *Memory {
	m := &Memory{Parameters: c.Account(1).Parameters, Windows: c.LayerWindows.String(), Slots: c.NumSlots}
	for _, n := range depths {
		a := c.Account(n)
		m.States = append(m.States, StateMemory{n, a.StateBytes, a.KVBytes})
	}
	return m
}

// readShares reads what the task share of nha eval leaves.
func (r *Report) readShares(path, name string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	s := &eval.Shares{}
	if err := json.Unmarshal(text, s); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if len(s.Layers) == 0 || len(s.Layers) != len(s.Heads) || slices.ContainsFunc(s.Positions, func(p eval.SharePoint) bool { return len(p.Layers) != len(s.Layers) }) {
		return fmt.Errorf("%s: %d layers, %d layers of heads: not a file of nha eval --tasks share", path, len(s.Layers), len(s.Heads))
	}
	r.Shares = append(r.Shares, ShareFile{name, s})
	return nil
}

// readConversion reads hybridize's report.json, and passes over what is not one.
func (r *Report) readConversion(path, name string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var kind struct {
		Format string `json:"format"`
		Base   string `json:"base"`
		Hash   string `json:"base_hash"`
	}
	if err := json.Unmarshal(text, &kind); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if kind.Format != "" || kind.Base == "" || kind.Hash == "" {
		return nil
	}
	c := Conversion{Name: name, Report: &hybridize.Report{}}
	if err := json.Unmarshal(text, c.Report); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	r.Conversions = append(r.Conversions, c)
	return nil
}

// Write writes report.html and report.json. A report.json of hybridize is not replaced.
func (r *Report) Write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	path := filepath.Join(dir, JSONFile)
	switch text, err := os.ReadFile(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		var old struct {
			Format string `json:"format"`
		}
		if json.Unmarshal(text, &old) != nil || old.Format != Format {
			return fmt.Errorf("%s is not of nha report: choose another folder with --out", path)
		}
	}
	err := atomicfile.WriteFile(path, 0o644, func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(r)
	})
	if err != nil {
		return err
	}
	return atomicfile.WriteFile(filepath.Join(dir, PageFile), 0o644, r.Page().Write)
}

// String says in a line what was found.
func (r *Report) String() string {
	var words []string
	for _, k := range []struct {
		n         int
		one, many string
	}{{len(r.Training), "training run", "training runs"}, {len(r.Evaluations), "evaluation", "evaluations"}, {len(r.Shares), "slot share", "slot shares"}, {len(r.Curves), "set of curves", "sets of curves"},
		{len(r.Conversions), "conversion", "conversions"}} {
		switch {
		case k.n == 1:
			words = append(words, "1 "+k.one)
		case k.n > 1:
			words = append(words, fmt.Sprintf("%d %s", k.n, k.many))
		}
	}
	return strings.Join(words, ", ")
}
