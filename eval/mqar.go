package eval

import (
	"fmt"
	"math"
	"math/rand/v2"

	"nha/autograd"
	"nha/model"
	"nha/tensor"
)

// MQAR is multi-query associative recall (Arora et al. 2023, Zoology): Pairs key-value pairs, then queries of the keys among
// noise; at each query the model must say the value that stood behind the key.
type MQAR struct {
	Vocabulary int     // keys come from the lower half without 0, values from the upper half
	Length     int     // L tokens, even, at least 4 Pairs
	Pairs      int     // D
	RandomFill bool    // noise from the whole vocabulary where no query stands, instead of token 0
	Power      float64 // a: gap i is drawn with weight a i^(a-1); 0 means 0.01
}

// Query is one place in an example where a value must be recalled.
type Query struct {
	At       int   // position of the query's key, where the answer is predicted
	Distance int   // tokens from the pair's value to the query; within a window W when less than W
	Value    int32 // the answer
}

// Check refuses sizes that the task cannot have.
func (m MQAR) Check() error {
	switch {
	case m.Pairs < 1 || m.Length < 4*m.Pairs || m.Length%2 != 0:
		return fmt.Errorf("mqar: length %d with %d pairs: the length must be even and at least four times the pairs", m.Length, m.Pairs)
	case m.Vocabulary/2-1 < m.Pairs:
		return fmt.Errorf("mqar: vocabulary %d with %d pairs: half of it must exceed the pairs", m.Vocabulary, m.Pairs)
	}
	return nil
}

// Sample draws one example: tokens and targets (-1 where nothing is asked) of m.Length, appended, and its queries.
func (m MQAR) Sample(r *rand.Rand, tokens, targets []int32, queries []Query) ([]int32, []int32, []Query) {
	half, d := m.Vocabulary/2, m.Pairs
	start := len(tokens)
	tokens, targets = append(tokens, make([]int32, m.Length)...), append(targets, make([]int32, m.Length)...)
	x, y := tokens[start:], targets[start:]
	for i := range x {
		y[i] = -1
		if m.RandomFill {
			x[i] = r.Int32N(int32(m.Vocabulary))
		}
	}
	keys, values := distinct(r, d, 1, half), distinct(r, d, half, m.Vocabulary)
	for j := range d {
		x[2*j], x[2*j+1] = keys[j], values[j]
	}
	for j, gap := range m.gaps(r) {
		at := 2*d + 2*gap
		x[at], y[at] = keys[j], values[j]
		queries = append(queries, Query{At: at, Distance: at - (2*j + 1), Value: values[j]})
	}
	return tokens, targets, queries
}

// gaps draws D of the (L - 2D)/2 places without replacement, place i (from 1) with weight a i^(a-1), in the order of the
// draws: the D largest of log weight + Gumbel noise.
func (m MQAR) gaps(r *rand.Rand) []int {
	a := m.Power
	if a == 0 {
		a = 0.01
	}
	space := (m.Length - 2*m.Pairs) / 2
	score := make([]float64, space)
	for i := range score {
		score[i] = (a-1)*math.Log(float64(i+1)) - math.Log(r.ExpFloat64())
	}
	gaps := make([]int, m.Pairs)
	for j := range gaps {
		for i, s := range score {
			if s > score[gaps[j]] {
				gaps[j] = i
			}
		}
		score[gaps[j]] = math.Inf(-1)
	}
	return gaps
}

// distinct draws n different numbers from [low, high).
func distinct(r *rand.Rand, n, low, high int) []int32 {
	seen := make(map[int32]bool, n)
	list := make([]int32, 0, n)
	for len(list) < n {
		if v := int32(low + r.IntN(high-low)); !seen[v] {
			seen[v] = true
			list = append(list, v)
		}
	}
	return list
}

// Recall is accuracy on queries: all, those whose pair still lies within a window, and those beyond it.
type Recall struct {
	All, Within, Beyond    float64
	Queries, WithinQueries int
}

// Measure asks m the queries of n fresh examples, 64 at a time, and counts answers whose logit is the largest. The tape is reset.
func (q MQAR) Measure(t *autograd.Tape, m *model.Model, n, window int, seed uint64) (Recall, error) {
	r := rand.New(rand.NewPCG(seed, 0x6d716172))
	var right, total [2]int // within, beyond
	recording := t.Recording()
	t.Record(false)
	defer t.Record(recording)
	logits := tensor.Tensor{}
	for done := 0; done < n; {
		var b model.Batch
		var queries []Query
		var row []int
		for i := 0; i < 64 && done < n; i++ {
			before := len(queries)
			b.Tokens, b.Targets, queries = q.Sample(r, b.Tokens, b.Targets, queries)
			for range queries[before:] {
				row = append(row, i*q.Length)
			}
			b.Lengths = append(b.Lengths, q.Length)
			done++
		}
		if err := m.Check(&b); err != nil {
			return Recall{}, fmt.Errorf("mqar: %w", err)
		}
		t.Reset()
		out := m.Logits(t, m.Hidden(t, &b), 0, len(b.Tokens))
		if logits.Len() != out.Len() {
			logits = tensor.New(tensor.F32, out.Shape)
		}
		m.Backend().Read(logits, out.Tensor)
		for i, x := range queries {
			side := 0
			if x.Distance >= window {
				side = 1
			}
			total[side]++
			at := (row[i] + x.At) * q.Vocabulary
			if argmax(logits.F32()[at:at+q.Vocabulary]) == int(x.Value) {
				right[side]++
			}
		}
	}
	t.Reset()
	ratio := func(a, b int) float64 { return float64(a) / math.Max(1, float64(b)) }
	return Recall{All: ratio(right[0]+right[1], total[0]+total[1]), Within: ratio(right[0], total[0]), Beyond: ratio(right[1], total[1]),
		Queries: total[0] + total[1], WithinQueries: total[0]}, nil
}

func argmax(x []float32) int {
	best := 0
	for i, v := range x {
		if v > x[best] {
			best = i
		}
	}
	return best
}
