package doctor

import (
	"encoding/json"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nha/backend"
	_ "nha/backend/all"
	"nha/tensor"
)

func open(t *testing.T, names ...string) (list []backend.Backend) {
	for _, name := range names {
		b, err := backend.Open(name, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.Close() })
		list = append(list, b)
	}
	return list
}

// folder is a folder with copies of the named files of testdata.
func folder(t *testing.T, names ...string) string {
	dir := t.TempDir()
	for _, name := range names {
		from, err := os.Open(filepath.Join("../testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		to, err := os.Create(filepath.Join(dir, filepath.Base(name)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(to, from); err != nil {
			t.Fatal(err)
		}
		from.Close()
		if err := to.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestVectors(t *testing.T) {
	dir := folder(t, "vectors/tiny-w3.safetensors", "vectors/carried-w5.safetensors")
	seen := map[string]bool{}
	wrong, err := Vectors(dir, open(t, "cpu", "ref"), func(l Line) {
		if seen[l.Case+" "+l.Backend+" "+l.Tensor] = true; !l.OK || l.Error > l.Limit {
			t.Error(l)
		}
	})
	if wrong != 0 || err != nil {
		t.Errorf("%d wrong, %v", wrong, err)
	}
	for _, want := range []string{"tiny-w3 cpu o", "tiny-w3 ref dz", "carried-w5 cpu d_initial_log_gates", "carried-w5 ref slot_keys"} {
		if !seen[want] {
			t.Errorf("no line for %s", want)
		}
	}
}

// liar is the reference with one number of every SiLU off by a factor.
type liar struct {
	backend.Backend
	factor float64
}

func (l liar) SiLU(y, x tensor.Tensor) {
	l.Backend.SiLU(y, x)
	y.F64()[0] *= l.factor
}

// A backend that computes a little wrong, or no number at all, is found out, and --json can say so.
func TestGolden(t *testing.T) {
	for _, c := range []struct {
		name   string
		factor float64
		wrong  bool
	}{{"exact", 1, false}, {"a little off", 1 + 1e-3, true}, {"no number", math.NaN(), true}} {
		t.Run(c.name, func(t *testing.T) {
			var lines []Line
			wrong, err := Golden("../testdata/golden", []backend.Backend{liar{open(t, "ref")[0], c.factor}}, func(l Line) {
				if l.Case == "nha-tiny" {
					lines = append(lines, l)
				} else if !l.OK { // the pretrained families have no SiLU by itself
					t.Error(l)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			var tensors []string
			for _, l := range lines {
				tensors = append(tensors, l.Tensor)
				if l.OK == c.wrong || strings.HasSuffix(l.String(), "WRONG") != c.wrong {
					t.Error(l)
				}
				if _, err := json.Marshal(l); err != nil {
					t.Error(err)
				}
			}
			if got := strings.Join(tensors, " "); got != "logits loss gradients" {
				t.Errorf("lines for %s", got)
			}
			if (wrong == len(lines)) != c.wrong {
				t.Errorf("%d of %d wrong", wrong, len(lines))
			}
		})
	}
}

// A model directory itself will do, and so will one without gradients.
func TestGoldenDirectory(t *testing.T) {
	var names []string
	for _, f := range []string{"config.json", "model.safetensors", "expected.safetensors", "expected.json"} {
		names = append(names, filepath.Join("golden/nha-tiny", f))
	}
	dir := folder(t, names...)
	text, err := os.ReadFile(filepath.Join(dir, "expected.json"))
	if err != nil {
		t.Fatal(err)
	}
	var expected map[string]json.RawMessage
	if err := json.Unmarshal(text, &expected); err != nil {
		t.Fatal(err)
	}
	delete(expected, "gradients")
	if text, err = json.Marshal(expected); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "expected.json"), text, 0o644); err != nil {
		t.Fatal(err)
	}
	lines := 0
	wrong, err := Golden(dir, open(t, "ref"), func(l Line) { lines++ })
	if lines != 2 || wrong != 0 || err != nil {
		t.Errorf("%d lines, %d wrong, %v; want logits and loss, right", lines, wrong, err)
	}
}

func TestNothingThere(t *testing.T) {
	dir := t.TempDir()
	for name, check := range map[string]func(string, []backend.Backend, func(Line)) (int, error){"vectors": Vectors, "golden": Golden} {
		if _, err := check(dir, nil, nil); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v does not name the folder", name, err)
		}
	}
}

func TestMachine(t *testing.T) {
	facts := map[string]string{}
	for _, f := range Machine() {
		facts[f.Name] = f.Value
	}
	for _, want := range []string{"system", "processor", "processors", "instruction sets", "backend cpu", "backend ref"} {
		if facts[want] == "" {
			t.Errorf("nothing about %s in %v", want, facts)
		}
	}
}
