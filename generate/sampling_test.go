package generate

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"testing"
)

// left is the ids that the filters keep, with their probabilities among themselves.
func left(t *testing.T, o Sampling, logits []float64, seen ...int32) map[int32]float64 {
	t.Helper()
	if err := o.Check(len(logits)); err != nil {
		t.Fatal(err)
	}
	set := newBitset(len(logits))
	for _, id := range seen {
		set.set(id)
	}
	var p sampler
	if _, _, err := p.next(&o, logits, set, 0.5); err != nil {
		t.Fatal(err)
	}
	kept := map[int32]float64{}
	for _, c := range p.kept {
		kept[c.id] = c.weight / p.total()
	}
	return kept
}

func off() Sampling { return Sampling{Temperature: 1, TopP: 1, RepetitionPenalty: 1} }

func logs(p ...float64) []float64 {
	l := make([]float64, len(p))
	for i := range p {
		l[i] = math.Log(p[i])
	}
	return l
}

func ids(m map[int32]float64) []int32 {
	var list []int32
	for id := range m {
		list = append(list, id)
	}
	slices.Sort(list)
	return list
}

func TestFilters(t *testing.T) {
	p := logs(0.1, 0.4, 0.05, 0.3, 0.15)
	for _, tt := range []struct {
		name   string
		change func(o *Sampling)
		logits []float64
		want   []int32
	}{
		{"none", func(o *Sampling) {}, p, []int32{0, 1, 2, 3, 4}},
		{"top-k", func(o *Sampling) { o.TopK = 2 }, p, []int32{1, 3}},
		{"top-k 1", func(o *Sampling) { o.TopK = 1 }, p, []int32{1}},
		{"top-k of all", func(o *Sampling) { o.TopK = 9 }, p, []int32{0, 1, 2, 3, 4}},
		{"top-k keeps what is equal to the k-th", func(o *Sampling) { o.TopK = 2 }, logs(0.2, 0.4, 0.2, 0.2), []int32{0, 1, 2, 3}},
		{"top-p", func(o *Sampling) { o.TopP = 0.6 }, p, []int32{1, 3}},
		{"top-p crossing", func(o *Sampling) { o.TopP = 0.71 }, p, []int32{1, 3, 4}},
		{"top-p keeps one", func(o *Sampling) { o.TopP = 1e-9 }, p, []int32{1}},
		{"top-p of equals keeps later ids", func(o *Sampling) { o.TopP = 0.4 }, logs(0.25, 0.25, 0.25, 0.25), []int32{2, 3}},
		{"min-p", func(o *Sampling) { o.MinP = 0.3 }, p, []int32{1, 3, 4}},
		{"min-p 1", func(o *Sampling) { o.MinP = 1 }, p, []int32{1}},
		{"top-p sees what top-k left", func(o *Sampling) { o.TopK, o.TopP = 2, 0.55 }, p, []int32{1}},
		{"temperature comes before top-p", func(o *Sampling) { o.Temperature, o.TopP = 4, 0.6 }, p, []int32{1, 3, 4}},
		{"impossible tokens", func(o *Sampling) { o.TopP = 0.99 }, []float64{math.Inf(-1), 0, 0, math.Inf(-1)}, []int32{1, 2}},
	} {
		o := off()
		tt.change(&o)
		same(t, tt.name, ids(left(t, o, tt.logits)), tt.want)
	}
}

// TestTopPBySorting holds the filter, which does not sort, against the definition.
func TestTopPBySorting(t *testing.T) {
	for seed := range uint64(200) {
		logits := make([]float64, 300)
		for i := range logits {
			if logits[i] = 8 * uniform(seed, 0, i); seed%2 == 0 {
				logits[i] = math.Floor(logits[i]) // many equal ones
			}
		}
		o := off()
		o.TopP = 0.05 + 0.9*uniform(seed, 1, 0)
		lse, _ := logSumExp(logits)
		order := make([]int32, len(logits))
		for i := range order {
			order[i] = int32(i)
		}
		slices.SortStableFunc(order, func(a, b int32) int { return cmp.Compare(logits[a], logits[b]) })
		sum, first := 0.0, 0
		for ; first < len(order)-1; first++ {
			if sum += math.Exp(logits[order[first]] - lse); sum > 1-o.TopP {
				break
			}
		}
		want := slices.Clone(order[first:])
		slices.Sort(want)
		same(t, "kept", ids(left(t, o, logits)), want)
	}
}

func TestTopKBySorting(t *testing.T) {
	for seed := range uint64(100) {
		logits := make([]float64, 100)
		for i := range logits {
			logits[i] = uniform(seed, 0, i)
		}
		o := off()
		o.TopK = 1 + int(seed)
		sorted := slices.Sorted(slices.Values(logits))
		kept := left(t, o, logits)
		if want := min(o.TopK, 100); len(kept) != want {
			t.Fatalf("top-k %d keeps %d", o.TopK, len(kept))
		}
		for id := range kept {
			if logits[id] < sorted[100-min(o.TopK, 100)] {
				t.Fatalf("top-k %d keeps %d", o.TopK, id)
			}
		}
	}
}

// Numbers of transformers' RepetitionPenaltyLogitsProcessor: seen positive logits are divided, negative ones multiplied, once.
func TestRepetitionPenalty(t *testing.T) {
	logits := []float64{2, -1, 0.5, -3, 1}
	o := off()
	o.RepetitionPenalty = 2
	got := left(t, o, logits, 0, 1, 1, 3, 3)
	want := []float64{1, -2, 0.5, -6, 1}
	lse, _ := logSumExp(want)
	for i, x := range want {
		if math.Abs(got[int32(i)]-math.Exp(x-lse)) > 1e-12 {
			t.Errorf("token %d: probability %v, want %v", i, got[int32(i)], math.Exp(x-lse))
		}
	}
	if logits[0] != 2 {
		t.Error("the session's logits were changed")
	}
}

func TestGreedy(t *testing.T) {
	var p sampler
	o := DefaultSampling()
	logits := []float64{1, 3, 3, -2}
	id, logProb, err := p.next(&o, logits, newBitset(4), 0.99)
	lse, _ := logSumExp(logits)
	if err != nil || id != 1 || logProb != 3-lse {
		t.Errorf("token %d, log-probability %v, %v", id, logProb, err)
	}
	o.RepetitionPenalty = 1.5
	seen := newBitset(4)
	seen.set(1)
	id, logProb, err = p.next(&o, logits, seen, 0.99)
	if err != nil || id != 2 || logProb != 3-lse {
		t.Errorf("with a penalty: token %d, log-probability %v, %v", id, logProb, err)
	}
}

// TestDistribution draws often and holds the counts against the probabilities.
func TestDistribution(t *testing.T) {
	const n = 100_000
	p := []float64{0.1, 0.4, 0.05, 0.3, 0.15}
	logits, o := logs(p...), off()
	o.Seed = 3
	var count [5]float64
	var s sampler
	for i := range n {
		id, logProb, err := s.next(&o, logits, nil, uniform(o.Seed, 0, i))
		if err != nil || math.Abs(logProb-logits[id]) > 1e-12 {
			t.Fatal(logProb, err)
		}
		count[id]++
	}
	for i := range p {
		if sd := math.Sqrt(n * p[i] * (1 - p[i])); math.Abs(count[i]-n*p[i]) > 5*sd {
			t.Errorf("token %d: %v of %d draws, want %v", i, count[i], n, n*p[i])
		}
	}
}

func TestUniformStreamsDiffer(t *testing.T) {
	seen := map[float64]bool{}
	for seed := range uint64(10) {
		for sample := range 10 {
			for position := range 10 {
				seen[uniform(seed, sample, position)] = true
			}
		}
	}
	if len(seen) != 1000 {
		t.Errorf("%d different numbers for 1000 places", len(seen))
	}
}

func TestExtremes(t *testing.T) {
	var p sampler
	o := off()
	o.Temperature = 1e-300
	if id, _, err := p.next(&o, []float64{700, 701, -1e300}, nil, 0.9999); err != nil || id != 1 {
		t.Errorf("tiny temperature: %d, %v", id, err)
	}
	o.Temperature = 1e300
	if _, _, err := p.next(&o, []float64{1e308, -1e308}, nil, 0.9999); err != nil {
		t.Error(err)
	}
	for _, bad := range [][]float64{{0, math.NaN()}, {math.Inf(1), 0}, {math.Inf(-1), math.Inf(-1)}} {
		if _, _, err := p.next(&o, bad, nil, 0.5); err == nil {
			t.Errorf("logits %v are taken", bad)
		}
	}
}

func TestCheck(t *testing.T) {
	for want, change := range map[string]func(*Sampling){
		"temperature -1":     func(o *Sampling) { o.Temperature = -1 },
		"temperature NaN":    func(o *Sampling) { o.Temperature = math.NaN() },
		"top_k -2":           func(o *Sampling) { o.TopK = -2 },
		"top_p 0":            func(o *Sampling) { o.TopP = 0 },
		"top_p 1.1":          func(o *Sampling) { o.TopP = 1.1 },
		"min_p 2":            func(o *Sampling) { o.MinP = 2 },
		"repetition_penalty": func(o *Sampling) { o.RepetitionPenalty = 0 },
		"max_new_tokens -1":  func(o *Sampling) { o.MaxNewTokens = -1 },
		`stop string ""`:     func(o *Sampling) { o.Stop = []string{"a", ""} },
		"eos_token_id 9":     func(o *Sampling) { o.EndTokens = []int32{9} },
	} {
		o := off()
		change(&o)
		if err := o.Check(9); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
}
