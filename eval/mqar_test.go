package eval

import (
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// TestMQARExamples: every query asks a key that stands before it, for the value that stands right behind that key.
func TestMQARExamples(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := rapid.IntRange(1, 8).Draw(t, "pairs")
		m := MQAR{Vocabulary: 64, Length: 2 * rapid.IntRange(2*d, 40).Draw(t, "half length"), Pairs: d, RandomFill: rapid.Bool().Draw(t, "fill")}
		if err := m.Check(); err != nil {
			t.Fatal(err)
		}
		x, y, queries := m.Sample(rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0)), nil, nil, nil)
		if len(x) != m.Length || len(y) != m.Length || len(queries) != d {
			t.Fatalf("%d tokens, %d targets, %d queries", len(x), len(y), len(queries))
		}
		asked := map[int]bool{}
		for _, q := range queries {
			pair := q.At - q.Distance
			if asked[q.At] || q.At < 2*d || x[pair-1] != x[q.At] || x[pair] != q.Value || y[q.At] != q.Value || q.Value < 32 {
				t.Fatalf("query %+v in %v, targets %v", q, x, y)
			}
			asked[q.At] = true
		}
		for i, target := range y {
			if (target >= 0) != asked[i] {
				t.Fatalf("target %d at %d, asked %v", target, i, asked[i])
			}
		}
	})
}

// TestMQARGaps: the first place is by far the likeliest, as its weight 1/i says (about 1 / H(space)).
func TestMQARGaps(t *testing.T) {
	m, r, first := MQAR{Vocabulary: 64, Length: 66, Pairs: 1}, rand.New(rand.NewPCG(1, 2)), 0
	const n = 20000
	for range n {
		if m.gaps(r)[0] == 0 {
			first++
		}
	}
	if p := float64(first) / n; p < 0.235 || p > 0.26 { // 1 / sum_{i<=32} i^-0.99 = 0.2429
		t.Errorf("first place drawn with probability %.4f", p)
	}
}

func TestMQARRefuses(t *testing.T) {
	for _, m := range []MQAR{{Vocabulary: 64, Length: 30, Pairs: 8}, {Vocabulary: 64, Length: 33, Pairs: 2}, {Vocabulary: 16, Length: 64, Pairs: 8}} {
		if m.Check() == nil {
			t.Errorf("%+v accepted", m)
		}
	}
}
