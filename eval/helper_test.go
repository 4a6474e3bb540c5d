package eval

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nha/attention"
	"nha/autograd"
	"nha/backend"
	_ "nha/backend/cpu"
	"nha/model"
	"nha/tensor"
	"nha/tokenizer"
)

var bytesTokenizer = tokenizer.Bytes{EndOfText: true}

// tiny is a model of random weights, large enough to have opinions, that reads bytes.
func tiny(t testing.TB, windows ...int) *model.Model {
	t.Helper()
	b, err := backend.Open("cpu", 1)
	if err != nil {
		t.Fatal(err)
	}
	c := model.NewConfig(bytesTokenizer.VocabSize(), 32, len(windows))
	c.NumHeads, c.NumSlots, c.LayerWindows, c.IntermediateSize, c.MaxPositionEmbeddings = 2, 8, windows, 48, 512
	m, err := model.New(c, b, model.Init{Seed: 7, Std: 0.3})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close(); b.Close() })
	return m
}

func full() int { return attention.Full }

// slow scores a request by itself, every row through the head, in float64.
func slow(t testing.TB, m *model.Model, r *request) answer {
	t.Helper()
	tape := autograd.New(m.Backend())
	defer tape.Close()
	tape.Record(false)
	input := r.input()
	b := model.Batch{Tokens: input, Lengths: []int{len(input)}}
	logits := m.Logits(tape, m.Hidden(tape, &b), 0, len(input))
	host := tensor.New(tensor.F64, logits.Shape)
	m.Backend().Read(host, logits.Tensor)
	a := answer{Greedy: true}
	vocabulary := m.Config.VocabSize
	for k, target := range r.continuation {
		row := host.F64()[(len(r.context)-1+k)*vocabulary:][:vocabulary]
		best, sum := 0, 0.0
		for i, x := range row {
			if x > row[best] {
				best = i
			}
			sum += math.Exp(x)
		}
		a.LogProb += row[target] - math.Log(sum)
		a.Greedy = a.Greedy && best == int(target)
	}
	return a
}

// folder writes files for --data.
func folder(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// built is the documents of a task.
func built(t testing.TB, m *model.Model, o Options) ([]document, error) {
	t.Helper()
	tasks, err := Select(o.Tasks)
	if err != nil {
		return nil, err
	}
	s := newSetup(tasks[0], m, bytesTokenizer, &o)
	err = tasks[0].documents(context.Background(), s)
	return s.documents, err
}

func wantError(t testing.TB, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", parts)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q lacks %q", err, p)
		}
	}
}
