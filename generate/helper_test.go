package generate

import (
	"context"
	"math"
	"os"
	"slices"
	"testing"

	"nha/attention"
	"nha/backend"
	_ "nha/backend/all"
	"nha/model"
	"nha/tensor"
	"nha/tokenizer"
)

// onBackends runs a test on the backend that NHA_BACKEND names, or on every one that opens here.
func onBackends(t *testing.T, f func(t *testing.T, b backend.Backend)) {
	names, chosen := backend.Names(), os.Getenv("NHA_BACKEND")
	if chosen != "" {
		names = []string{chosen}
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			b, err := backend.Open(name, 2)
			if err != nil {
				if chosen == "" {
					t.Skipf("backend %s does not open here: %v", name, err)
				}
				t.Fatal(err)
			}
			t.Cleanup(func() { b.Close() })
			if b.DType() == tensor.BF16 {
				t.Skipf("backend %s computes in 16 bits: what it writes depends on how a text is cut; decode_test.go is for it", name)
			}
			f(t, b)
		})
	}
}

// ref is the reference backend, for what does not depend on one.
func ref(t testing.TB) backend.Backend {
	b, err := backend.Open("ref", 0)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var hybrid = model.Windows{4, attention.Full, 0}

// tiny is a model of bytes with random weights, large enough ones that its distributions are far from flat.
func tiny(t testing.TB, b backend.Backend, windows model.Windows, seed uint64) *Generator {
	t.Helper()
	return tinyRule(t, b, windows, seed, 5, "count")
}

func tinyRule(t testing.TB, b backend.Backend, windows model.Windows, seed uint64, slots int, rule string) *Generator {
	t.Helper()
	c := model.NewConfig(257, 16, len(windows))
	c.NumHeads, c.NumKVHeads, c.HeadDim, c.IntermediateSize = 2, 1, 8, 24
	c.NumSlots, c.LayerWindows, c.EmptySlots = slots, windows, rule
	m, err := model.New(c, b, model.Init{Seed: seed, Std: 0.35})
	if err != nil {
		t.Fatal(err)
	}
	g := New(m, tokenizer.Bytes{EndOfText: true})
	t.Cleanup(func() { g.Close(); m.Close() })
	return g
}

// sampled is a sampling that uses every filter.
func sampled(n int) Sampling {
	return Sampling{Temperature: 0.9, TopK: 60, TopP: 0.95, MinP: 0.001, RepetitionPenalty: 1.2, Seed: 7, MaxNewTokens: n}
}

// run generates and collects.
func run(t testing.TB, g *Generator, s *Session, prompt []int32, o Sampling) (ids []int32, logProbs []float64, text string, reason FinishReason) {
	t.Helper()
	reason, err := g.Generate(context.Background(), s, prompt, o, func(k Token) error {
		ids, logProbs, text = append(ids, k.ID), append(logProbs, k.LogProb), text+k.Text
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return ids, logProbs, text, reason
}

func mustPrefill(t testing.TB, s *Session, ids []int32) {
	t.Helper()
	if err := s.Prefill(context.Background(), ids); err != nil {
		t.Fatal(err)
	}
}

// near holds x against want to the rounding of the backend's type.
func near(t testing.TB, b backend.Backend, what string, x, want []float64) {
	t.Helper()
	limit := 1e-9
	if b.DType() != tensor.F64 {
		limit = 1e-4
	}
	if len(x) != len(want) {
		t.Fatalf("%s: %d numbers, want %d", what, len(x), len(want))
	}
	for i := range x {
		if !(math.Abs(x[i]-want[i]) <= limit*max(1, math.Abs(want[i]))) {
			t.Fatalf("%s: number %d is %v, want %v", what, i, x[i], want[i])
		}
	}
}

func same[T comparable](t testing.TB, what string, x, want []T) {
	t.Helper()
	if !slices.Equal(x, want) {
		t.Fatalf("%s: %v, want %v", what, x, want)
	}
}

const proverb = "A stitch in time saves nine, and the early bird catches the worm."
