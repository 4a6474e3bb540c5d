package eval

import (
	"context"
	"fmt"
	"math"
)

// text scores any text in windows of --context tokens. With --stride S every window but the first predicts only its last S
// tokens, so that each has at least context - S tokens before it; without, windows are disjoint. A token's position is its
// distance from its window's beginning, so that loss against position shows what more context is worth to the model.
func text(ctx context.Context, s *setup) error {
	if s.o.Data == "" {
		return s.task.needsData(0)
	}
	texts, err := readTexts(s.o.Data)
	if err != nil {
		return err
	}
	length := s.o.Context
	if length == 0 {
		length = s.m.Config.MaxPositionEmbeddings
	}
	stride := s.o.Stride
	if stride == 0 {
		stride = length
	}
	if stride < 1 || stride > length {
		return fmt.Errorf("a stride of %d with windows of %d tokens: it must lie between 1 and the window", stride, length)
	}
	for i, t := range texts {
		if s.full(i) {
			break
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		tokens := s.tk.Encode(t.text)
		requests, err := s.encoder.rolling(tokens, length, stride)
		if err != nil {
			return fmt.Errorf("%s: %w", t.place, err)
		}
		for i := range requests {
			requests[i].byPosition = true
		}
		words, bytes := float64(countWords(strip(t.text))), float64(len(t.text))
		s.add(document{place: t.place, score: func(a []answer) []measure {
			sum := 0.0
			for i := range a {
				sum += a[i].LogProb
			}
			m := []measure{{"token_perplexity", sum, float64(len(tokens))}, {"word_perplexity", sum, words}, {"bits_per_byte", sum, bytes}}
			return append(m, byPosition(requests, a)...)
		}}, requests...)
	}
	return nil
}

// byPosition is the sums of the log-probabilities per bucket, with the number of tokens as weight.
func byPosition(requests []request, a []answer) []measure {
	var sums, counts []float64
	for i, r := range requests {
		for k, x := range a[i].Buckets {
			if k == len(sums) {
				sums, counts = append(sums, 0), append(counts, 0)
			}
			sums[k] += x
			from, to := bucketRange(k)
			first, last := len(r.context)-1, len(r.context)+len(r.continuation)-1
			counts[k] += float64(max(0, min(to, last)-max(from, first)))
		}
	}
	var list []measure
	for k := range sums {
		if counts[k] > 0 {
			from, to := bucketRange(k)
			list = append(list, measure{positionMetric(from, to), sums[k], counts[k]})
		}
	}
	return list
}

// positionMetric names the loss of the tokens that are predicted from positions [from, to).
func positionMetric(from, to int) string { return fmt.Sprintf("loss@%d-%d", from, to) }

// Position is the loss in nats per token over a range of positions.
type Position struct {
	From   int     `json:"from"`
	To     int     `json:"to"`
	Loss   float64 `json:"loss"`
	Tokens int     `json:"tokens"`
}

// Positions is loss against position, from a text's metrics.
func (t *TaskResult) Positions() (list []Position) {
	for _, v := range t.Values {
		var p Position
		if n, _ := fmt.Sscanf(v.Metric, "loss@%d-%d", &p.From, &p.To); n == 2 {
			p.Loss, p.Tokens = v.Value, v.N
			if !math.IsNaN(p.Loss) {
				list = append(list, p)
			}
		}
	}
	return list
}
