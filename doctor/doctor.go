// Package doctor says what a machine offers and holds every backend against independent truth: operator vectors and golden
// models (SPEC 1.5).
package doctor

import (
	"bufio"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strconv"
	"strings"

	"nha/attention/vectors"
	"nha/backend"
	"nha/backend/cpu/kernel"
	"nha/model"
)

// Line is one comparison, the object that --json prints (SPEC 5).
type Line struct {
	Case    string  `json:"case"`
	Backend string  `json:"backend"`
	Tensor  string  `json:"tensor"`
	Error   float64 `json:"error"`
	Limit   float64 `json:"limit"`
	OK      bool    `json:"ok"`
}

// String is the line for people.
func (l Line) String() string {
	verdict := "ok"
	if !l.OK {
		verdict = "WRONG"
	}
	return fmt.Sprintf("%-20s %-8s %-20s error %9.2e  limit %5.0e  %s", l.Case, l.Backend, l.Tensor, l.Error, l.Limit, verdict)
}

// unbounded stands for an error that is not a number, which JSON has no word for.
const unbounded = math.MaxFloat64

func line(name string, b backend.Backend, tensor string, err, limit float64) Line {
	ok := err <= limit
	if math.IsNaN(err) || math.IsInf(err, 0) {
		err = unbounded
	}
	return Line{Case: name, Backend: b.Name(), Tensor: tensor, Error: err, Limit: limit, OK: ok}
}

// Vectors recomputes every *.safetensors in dir, laid out as testdata/vectors, on every backend and reports each tensor. It
// returns how many are wrong.
func Vectors(dir string, backends []backend.Backend, report func(Line)) (wrong int, err error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.safetensors"))
	if err != nil || len(paths) == 0 {
		return 0, fmt.Errorf("%s: no *.safetensors in it: give a folder of operator vectors", dir)
	}
	sort.Strings(paths)
	for _, path := range paths {
		v, err := vectors.Load(path)
		if err != nil {
			return wrong, err
		}
		for _, b := range backends {
			c, g := v.Call(b.DType())
			backend.NHA(b, c)
			backend.NHABackward(b, c, g)
			for _, r := range v.Results(c, g) {
				l := line(v.Name, b, r.Tensor, r.Error, r.Limit)
				if report(l); !l.OK {
					wrong++
				}
			}
		}
	}
	return wrong, nil
}

// Golden recomputes the logits, loss and gradients of a model directory with expected.safetensors and expected.json, or of
// every such directory in dir.
func Golden(dir string, backends []backend.Backend, report func(Line)) (wrong int, err error) {
	dirs := []string{dir}
	if !model.Exists(dir) {
		found, err := filepath.Glob(filepath.Join(dir, "*", "expected.safetensors"))
		if err != nil || len(found) == 0 {
			return 0, fmt.Errorf("%s: neither a model directory nor a folder of some with expected.safetensors", dir)
		}
		dirs = nil
		for _, f := range found {
			dirs = append(dirs, filepath.Dir(f))
		}
	}
	for _, d := range dirs {
		g, err := model.ReadGolden(d)
		if err != nil {
			return wrong, err
		}
		for _, b := range backends {
			e, err := g.Run(b)
			if err != nil {
				return wrong, err
			}
			limits, name := g.Limits(b), filepath.Base(d)
			lines := []Line{line(name, b, "logits", e.Logits, limits.Logits), line(name, b, "loss", e.Loss, limits.Loss)}
			if g.HasGradients() {
				lines = append(lines, line(name, b, "gradients", e.Gradients, limits.Gradients))
			}
			for _, l := range lines {
				if report(l); !l.OK {
					wrong++
				}
			}
		}
	}
	return wrong, nil
}

// Fact is one thing that this machine offers.
type Fact struct {
	Name  string `json:"fact"`
	Value string `json:"value"`
}

func (f Fact) String() string { return f.Name + ": " + f.Value }

// Host describes the computer, without its backends.
func Host() []Fact {
	facts := []Fact{
		{"system", fmt.Sprintf("%s/%s, %s", runtime.GOOS, runtime.GOARCH, runtime.Version())},
		{"processor", processor()},
		{"processors", fmt.Sprintf("%d, GOMAXPROCS %d", runtime.NumCPU(), runtime.GOMAXPROCS(0))},
		{"instruction sets", strings.Join(kernel.Available(), ", ") + " (best last; NHA_CPU forces one)"},
	}
	if m := memory(); m != "" {
		facts = append(facts, Fact{"memory", m})
	}
	return facts
}

// Machine describes what is here.
func Machine() []Fact {
	facts := Host()
	for _, line := range backend.Report() {
		what, is, _ := strings.Cut(line, ": ")
		facts = append(facts, Fact{what, is})
	}
	for _, name := range backend.Names() {
		f := Fact{Name: "backend " + name}
		if b, err := backend.Open(name, 0); err != nil {
			f.Value = fmt.Sprintf("not usable: %v", err)
		} else {
			f.Value = b.Describe()
			b.Close()
		}
		facts = append(facts, f)
	}
	return facts
}

func processor() string {
	if name := procValue("/proc/cpuinfo", "model name"); name != "" {
		return name
	}
	return runtime.GOARCH + " (model unknown)"
}

func memory() string {
	total, free := kilobytes(procValue("/proc/meminfo", "MemTotal")), kilobytes(procValue("/proc/meminfo", "MemAvailable"))
	if total == 0 {
		return ""
	}
	return fmt.Sprintf("%.1f GiB, %.1f GiB available", total/(1<<20), free/(1<<20))
}

// kilobytes is the number of a value such as "24683656 kB"; 0 if it is none.
func kilobytes(value string) float64 {
	number, _ := strings.CutSuffix(value, " kB")
	n, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return 0
	}
	return n
}

// procValue is the value of the first "key : value" line of a Linux proc file; empty where there is none.
func procValue(path, key string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if k, v, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
