package cuda

import (
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync/atomic"
	"testing"
)

// specialisations are the constants under which the kernels of a file are used by tests, here and in the op table. A kernel file
// that is missing here fails TestCompile.
var specialisations = map[string][][]define{
	"matmul.cu":    append(over(realTypes[:1], []define{word("OUT", "bf16"), word("OUT", "float")}), over(realTypes[1:], []define{word("OUT", "float")})...),
	"reduce.cu":    over(realTypes, []define{word("TOTAL", "bf16"), word("TOTAL", "float")}, widths),
	"pointwise.cu": over(realTypes, storedTypes("FROM"), widths),
	"embed.cu":     over(realTypes, storedTypes("TABLE"), widths),
	"training.cu":  append(over(realTypes[:1], []define{word("LOSS", "bf16"), word("LOSS", "float")}, widths), over(realTypes[1:], []define{word("LOSS", "float")}, widths)...),
	"adamw.cu": append(over(realTypes[:1], []define{word("PARAMETER", "bf16"), word("PARAMETER", "float")}, []define{word("GRADIENT", "bf16"), word("GRADIENT", "float")},
		[]define{word("MOMENT", "bf16"), word("MOMENT", "float")}, widths),
		over(realTypes[1:], []define{word("PARAMETER", "float")}, []define{word("GRADIENT", "float")}, []define{word("MOMENT", "float")}, widths)...),
	"experts.cu": over(realTypes),
	"distill.cu": append(over(realTypes[:1], []define{word("LOSS", "bf16"), word("LOSS", "float")}, []define{word("LOGQ", "float")}, widths, []define{number("LISTED", 1)}),
		over(realTypes, []define{word("LOSS", "float")}, []define{word("LOGQ", "float")}, widths, []define{number("LISTED", 1)})...),
	"norm.cu": append(append(over(realTypes, []define{word("STATISTIC", "float")}, columns(1, 7, 33, 1000), widths[:1]),
		over(realTypes, []define{word("STATISTIC", "float")}, columns(48, 64, 768, 1000, 4096), widths[1:])...),
		over(realTypes[:1], []define{word("STATISTIC", "bf16")}, columns(7, 64, 768), widths[:1])...),
}

// architectures are the oldest and Hopper's; onlyFor are those that use a specialisation, by file and constants, where it is not both.
var (
	architectures = []string{"sm_80", "sm_90a"}
	onlyFor       = map[string][]string{}
)

var (
	realTypes = []define{word("REAL", "bf16"), word("REAL", "float")}
	widths    = []define{number("VEC", 1), number("VEC", 8)}
)

func storedTypes(name string) []define {
	return []define{word(name, "bf16"), word(name, "f16"), word(name, "float")}
}

func columns(list ...int) (d []define) {
	for _, n := range list {
		d = append(d, number("COLUMNS", n))
	}
	return d
}

// over is every choice of one constant from each list.
func over(lists ...[]define) [][]define {
	choices := [][]define{nil}
	for _, list := range lists {
		var longer [][]define
		for _, c := range choices {
			for _, d := range list {
				longer = append(longer, append(c[:len(c):len(c)], d))
			}
		}
		choices = longer
	}
	return choices
}

// TestCompile compiles every kernel in every specialisation for the oldest architecture and for Hopper's, or finds that it has
// been compiled as it is. It needs NVRTC, no card: scripts/cuda-compile brings it.
func TestCompile(t *testing.T) {
	version := 0
	if d, err := loadDriver(); err == nil {
		version = d.version
	}
	c, err := loadCompiler(version)
	if err != nil {
		t.Skipf("kernels are not compiled here: %v (scripts/cuda-compile brings NVRTC)", err)
	}
	files, err := fs.Glob(kernelFiles, "kernels/*.cu")
	if err != nil || len(files) == 0 {
		t.Fatalf("no kernel files: %v", err)
	}
	var compiled atomic.Int32
	t.Run("all", func(t *testing.T) {
		for _, path := range files {
			file := strings.TrimPrefix(path, "kernels/")
			if len(specialisations[file]) == 0 {
				t.Errorf("%s: no specialisations to compile", path)
			}
			for _, defines := range specialisations[file] {
				archs := onlyFor[fmt.Sprint(file, defines)]
				if len(archs) == 0 {
					archs = architectures
				}
				for _, arch := range archs {
					t.Run(fmt.Sprint(file, " ", arch, " ", defines), func(t *testing.T) {
						t.Parallel()
						compiled.Add(1)
						if _, err := c.image(key(file, defines).source(), arch); err != nil {
							t.Error(err)
						}
					})
				}
			}
		}
	})
	t.Logf("%d images with NVRTC %d.%d", compiled.Load(), c.major, c.minor)
}

// TestCompileCache: the second time an image comes from the disk, a damaged file is noticed, and a broken kernel names its file,
// its constants and the compiler's words.
func TestCompileCache(t *testing.T) {
	c, err := loadCompiler(0)
	if err != nil {
		t.Skipf("kernels are not compiled here: %v (scripts/cuda-compile brings NVRTC)", err)
	}
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	m := key("reduce.cu", []define{word("REAL", "float"), word("TOTAL", "float"), number("VEC", 8)}).source()
	first, err := c.image(m, "sm_80")
	if err != nil {
		t.Fatal(err)
	}
	path := c.cachePath(m, "sm_80")
	stored, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	stored[len(stored)/2] ^= 1
	if err := os.WriteFile(path, stored, 0o644); err != nil {
		t.Fatal(err)
	}
	again, err := c.image(m, "sm_80")
	if err != nil || string(again) != string(first) {
		t.Fatalf("a damaged file of the cache was used (%v)", err)
	}
	if p := c.cachePath(m, "sm_90a"); p == path {
		t.Error("two architectures share an image")
	}
	_, err = c.compile(key("norm.cu", []define{word("REAL", "bf16"), word("COLUMNS", "wrong"), word("STATISTIC", "float"), number("VEC", 8)}).source(), "sm_80")
	for _, want := range []string{"norm.cu", "COLUMNS=wrong", "wrong\" is undefined"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %q", err, want)
		}
	}
}

// TestTarget: a card that NVRTC does not know gets portable code of the newest architecture that it does.
func TestTarget(t *testing.T) {
	c := &compiler{archs: []int{75, 80, 90}}
	for _, x := range []struct {
		arch, target string
		portable     bool
	}{{"sm_80", "sm_80", false}, {"sm_90a", "sm_90a", false}, {"sm_86", "compute_80", true}, {"sm_120", "compute_90", true}} {
		if target, portable := c.target(x.arch); target != x.target || portable != x.portable {
			t.Errorf("%s: %s %v", x.arch, target, portable)
		}
	}
}

func TestErrorSaysAll(t *testing.T) {
	for want, e := range map[string]*Error{
		"cuda: alloc: cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY: 1 GiB asked for: lower the batch": {Code: 2, Name: "CUDA_ERROR_OUT_OF_MEMORY", Text: "1 GiB asked for", Call: "cuMemAlloc", Op: "alloc", Advice: "lower the batch"},
		"cuda: nha: too many slots: take fewer":                                               {Op: "nha", Text: "too many slots", Advice: "take fewer"},
	} {
		if got := fmt.Sprint(e); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
