package generate

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"unicode/utf8"
)

// Sampling says how the next token is drawn and when to stop. The filters are Hugging Face's, in its order: repetition
// penalty, temperature, top-k, top-p, min-p. With logits l over the vocabulary and the set S of tokens seen so far
//
//	l_i <- l_i / penalty where l_i > 0, l_i * penalty where l_i < 0         i in S
//	l_i <- l_i / temperature
//	keep the k largest l_i                                                  and those equal to the k-th
//	keep the largest p_i that together pass top_p                           p = softmax(l) of what is kept
//	keep p_i >= min_p max_j p_j
//
// and the token is drawn from what is left. It is the same on every backend up to the rounding of the logits: the draw is a
// function of the seed, the sample and the position, over the tokens in the order of their ids.
type Sampling struct {
	Temperature       float64  // 0: the most likely token, always
	TopK              int      // 0: off
	TopP              float64  // 1: off
	MinP              float64  // 0: off
	RepetitionPenalty float64  // over prompt and continuation; 1: off
	Seed              uint64   //
	Sample            int      // which of several samples for one seed
	MaxNewTokens      int      // 0: the prompt is read, nothing is written
	Stop              []string // the text ends before any of these
	EndTokens         []int32  // the text ends with any of these
}

// DefaultSampling is what Hugging Face's generation does without being told otherwise, but for the length: greedy, and, once
// a temperature is set, the 50 likeliest tokens.
func DefaultSampling() Sampling {
	return Sampling{TopK: 50, TopP: 1, RepetitionPenalty: 1, MaxNewTokens: 256}
}

// Check says which option is impossible, by its name in generation_config.json. vocabulary is the model's.
func (o *Sampling) Check(vocabulary int) error {
	switch {
	case !(o.Temperature >= 0) || math.IsInf(o.Temperature, 0):
		return fmt.Errorf("temperature %v: use 0 (greedy) or more", o.Temperature)
	case o.TopK < 0:
		return fmt.Errorf("top_k %d: use 0 (off) or more", o.TopK)
	case !(o.TopP > 0 && o.TopP <= 1):
		return fmt.Errorf("top_p %v: use a number above 0, to 1 (off)", o.TopP)
	case !(o.MinP >= 0 && o.MinP <= 1):
		return fmt.Errorf("min_p %v: use a number from 0 (off) to 1", o.MinP)
	case !(o.RepetitionPenalty > 0) || math.IsInf(o.RepetitionPenalty, 0):
		return fmt.Errorf("repetition_penalty %v: use a number above 0; 1 is off", o.RepetitionPenalty)
	case o.MaxNewTokens < 0:
		return fmt.Errorf("max_new_tokens %d: use 0 or more", o.MaxNewTokens)
	}
	for _, s := range o.Stop {
		if s == "" || !utf8.ValidString(s) {
			return fmt.Errorf("stop string %q: use text of at least one character", s)
		}
	}
	for _, id := range o.EndTokens {
		if id < 0 || int(id) >= vocabulary {
			return fmt.Errorf("eos_token_id %d is outside the vocabulary of %d", id, vocabulary)
		}
	}
	return nil
}

func (o *Sampling) ends(id int32) bool { return slices.Contains(o.EndTokens, id) }

// uniform is a number in [0, 1) for one token: splitmix64 over seed, sample and position, so that no generator's state needs
// to be kept (Steele, Lea and Flood 2014).
func uniform(seed uint64, sample, position int) float64 {
	x := seed
	for _, y := range [...]uint64{uint64(sample), uint64(position)} {
		x += 0x9e3779b97f4a7c15 * (y + 1)
		x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
		x = (x ^ x>>27) * 0x94d049bb133111eb
		x ^= x >> 31
	}
	return float64(x>>11) / (1 << 53)
}

// sampler is the scratch memory of next.
type sampler struct {
	scores []float64
	kept   []candidate // in the order of ids
	open   []candidate
	heap   []float64
}

type candidate struct {
	id     int32
	score  float64 // logit after penalty and temperature, relative to the largest: at most 0
	weight float64 // exp(score)
}

// next draws a token with the uniform number u in [0, 1), and returns the model's own log-probability of it. Logits that are
// not numbers are an error.
func (p *sampler) next(o *Sampling, logits []float64, seen bitset, u float64) (id int32, logProb float64, err error) {
	lse, err := logSumExp(logits)
	if err != nil {
		return 0, 0, err
	}
	p.scores = append(p.scores[:0], logits...)
	if o.RepetitionPenalty != 1 {
		p.penalise(o.RepetitionPenalty, seen)
	}
	best := 0
	for i, x := range p.scores {
		if x > p.scores[best] {
			best = i
		}
	}
	if o.Temperature == 0 {
		return int32(best), logits[best] - lse, nil
	}
	top := p.scores[best]
	p.kept = p.kept[:0]
	for i, x := range p.scores {
		s := (x - top) / o.Temperature
		p.kept = append(p.kept, candidate{int32(i), s, math.Exp(s)})
	}
	p.topK(o.TopK)
	p.topP(o.TopP)
	p.minP(o.MinP)

	u *= p.total()
	id = int32(best) // where rounding leaves nothing
	for _, c := range p.kept {
		if c.weight > 0 {
			id = c.id
			if u -= c.weight; u < 0 {
				break
			}
		}
	}
	return id, logits[id] - lse, nil
}

// logSumExp is log sum exp(x), safely; an error where that is no number.
func logSumExp(x []float64) (float64, error) {
	largest, sum := math.Inf(-1), 0.0
	for _, v := range x {
		if math.IsNaN(v) {
			return 0, errors.New("a logit is NaN: the weights are damaged or training has diverged")
		}
		largest = max(largest, v)
	}
	if math.IsInf(largest, 0) {
		return 0, fmt.Errorf("the largest logit is %v: the weights are damaged or training has diverged", largest)
	}
	for _, v := range x {
		sum += math.Exp(v - largest)
	}
	return largest + math.Log(sum), nil
}

// penalise makes tokens that were seen less likely (Keskar et al. 2019); a token counts once however often it was seen.
func (p *sampler) penalise(penalty float64, seen bitset) {
	seen.all(func(i int) {
		if p.scores[i] < 0 {
			p.scores[i] *= penalty
		} else {
			p.scores[i] /= penalty
		}
	})
}

func (p *sampler) keep(f func(c candidate) bool) {
	p.kept = slices.DeleteFunc(p.kept, func(c candidate) bool { return !f(c) })
}

func (p *sampler) total() float64 {
	sum := 0.0
	for _, c := range p.kept {
		sum += c.weight
	}
	return sum
}

// topK keeps the k largest scores and those equal to the k-th, which a heap with the smallest of k at its root finds.
func (p *sampler) topK(k int) {
	if k == 0 || k >= len(p.kept) {
		return
	}
	h := p.heap[:0]
	for _, c := range p.kept {
		switch {
		case len(h) < k:
			h = append(h, c.score)
			for i := len(h) - 1; i > 0 && h[i] < h[(i-1)/2]; i = (i - 1) / 2 {
				h[i], h[(i-1)/2] = h[(i-1)/2], h[i]
			}
		case c.score > h[0]:
			h[0] = c.score
			for i := 0; ; {
				least := i
				for child := 2*i + 1; child <= 2*i+2 && child < k; child++ {
					if h[child] < h[least] {
						least = child
					}
				}
				if least == i {
					break
				}
				h[i], h[least] = h[least], h[i]
				i = least
			}
		}
	}
	p.heap = h
	p.keep(func(c candidate) bool { return c.score >= h[0] })
}

// topP drops the least likely tokens as long as what is dropped stays within 1 - topP of the mass, never the likeliest. Where
// that ends is found as quickselect finds a rank, but by mass: the part beside a pivot that does not hold the end is put aside
// whole, so that nothing is sorted.
func (p *sampler) topP(topP float64) {
	if topP == 1 {
		return
	}
	budget := (1 - topP) * p.total()
	p.open = append(p.open[:0], p.kept...)
	open := p.open
	for len(open) > 1 {
		middle := len(open) / 2
		pivot, n, mass := open[middle], 0, 0.0
		for i, c := range open {
			if compare(c, pivot) < 0 {
				open[i], open[n] = open[n], c
				n, mass = n+1, mass+c.weight
			}
		}
		if n == 0 { // the pivot is the least, and nothing was moved
			open[middle], open[0] = open[0], pivot
			n, mass = 1, pivot.weight
		}
		if mass <= budget {
			open, budget = open[n:], budget-mass
		} else {
			open = open[:n]
		}
	}
	p.keep(func(c candidate) bool { return compare(c, open[0]) >= 0 })
}

// compare orders by score; of equal ones the later id is the larger.
func compare(a, b candidate) int {
	return cmp.Or(cmp.Compare(a.score, b.score), cmp.Compare(a.id, b.id))
}

// minP keeps what is at least minP times as likely as the likeliest, whose weight is 1.
func (p *sampler) minP(minP float64) {
	if minP > 0 {
		p.keep(func(c candidate) bool { return c.weight >= minP })
	}
}
