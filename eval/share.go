package eval

import (
	"context"
	"fmt"
	"math"

	"nha/autograd"
	"nha/model"
	"nha/tensor"
)

// The slot share w_t = sum_i p_i (SPEC 1) is how much of a token's attention reads long-term memory. Its mean per layer and
// head says which of them do, its mean against position how the memory fills.

// Shares is the slot share of a text.
type Shares struct {
	Tokens    int          `json:"tokens"`
	Windows   []int        `json:"windows"`   // per layer; at most the text's longest window
	Layers    []float64    `json:"layers"`    // mean over heads and tokens
	Heads     [][]float64  `json:"heads"`     // [layers, query heads], mean over tokens
	Positions []SharePoint `json:"positions"` // by position in the window of text
}

// SharePoint is the mean share of the tokens at positions [From, To).
type SharePoint struct {
	From   int       `json:"from"`
	To     int       `json:"to"`
	Tokens int       `json:"tokens"`
	Mean   float64   `json:"mean"`
	Layers []float64 `json:"layers"`
}

// measureShares reads texts in windows of --context tokens, each from an empty memory.
func measureShares(ctx context.Context, s *setup) error {
	if s.m.Config.NumSlots == 0 {
		return fmt.Errorf("%s: the model has no slots: there is no share to measure", s.task.Name)
	}
	if s.o.Data == "" {
		return s.task.needsData(0)
	}
	texts, err := readTexts(s.o.Data)
	if err != nil {
		return err
	}
	x := newShareSums(s.m)
	tape := autograd.New(s.m.Backend())
	defer tape.Close()
	tape.Record(false)
	chunk := max(1, s.o.BatchTokens)
	for i, t := range texts {
		if s.full(i) {
			break
		}
		tokens := s.encoder.encode(t.text)
		for len(tokens) > 0 {
			window := tokens[:min(len(tokens), s.encoder.maxLength)]
			tokens = tokens[len(window):]
			state := s.m.NewState()
			for at := 0; at < len(window); at += chunk {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				part := window[at:min(len(window), at+chunk)]
				b := model.Batch{Tokens: part, Lengths: []int{len(part)}, States: []*model.State{state}}
				b.Shares = func(layer int, share *autograd.Value) { x.add(layer, at, share) }
				if err := s.m.Check(&b); err != nil {
					return fmt.Errorf("%s: %w", t.place, err)
				}
				tape.Reset()
				s.m.Hidden(tape, &b)
				x.tokens += len(part)
			}
		}
		s.results.Documents++
	}
	if x.tokens == 0 {
		return fmt.Errorf("%s: the text has no tokens", s.o.Data)
	}
	shares := x.shares()
	for i, w := range s.m.Config.LayerWindows {
		shares.Windows[i] = min(w, s.encoder.maxLength)
	}
	sum := 0.0
	for _, l := range shares.Layers {
		sum += l
	}
	s.results.Shares, s.results.Tokens = shares, x.tokens
	s.results.Values = []Value{{Metric: "slot_share", Value: sum / float64(len(shares.Layers)), Stderr: math.NaN(), N: x.tokens}}
	return nil
}

// shareSums adds up shares by layer and head, and by layer and position bucket.
type shareSums struct {
	m       *model.Model
	tokens  int
	heads   [][]float64
	buckets [][]float64 // [layer][bucket]
	counts  []int
	host    tensor.Tensor
}

func newShareSums(m *model.Model) *shareSums {
	x := &shareSums{m: m, heads: make([][]float64, m.Config.NumHiddenLayers), buckets: make([][]float64, m.Config.NumHiddenLayers)}
	for i := range x.heads {
		x.heads[i] = make([]float64, m.Config.NumHeads)
	}
	return x
}

// add takes in one layer's shares [N, Hq] of tokens from a position on.
func (x *shareSums) add(layer, position int, share *autograd.Value) {
	if x.host.Len() != share.Len() {
		x.host = tensor.New(tensor.F64, share.Shape)
	}
	x.m.Backend().Read(x.host, share.Tensor)
	data, heads := x.host.F64(), share.Columns()
	for r := range share.Rows() {
		bucket := bucketOf(position + r)
		for len(x.buckets[layer]) <= bucket {
			x.buckets[layer] = append(x.buckets[layer], 0)
		}
		for len(x.counts) <= bucket {
			x.counts = append(x.counts, 0)
		}
		if layer == 0 {
			x.counts[bucket]++
		}
		for h := range heads {
			w := data[r*heads+h]
			x.heads[layer][h] += w
			x.buckets[layer][bucket] += w / float64(heads)
		}
	}
}

func (x *shareSums) shares() *Shares {
	s := &Shares{Tokens: x.tokens, Windows: make([]int, len(x.heads))}
	for _, heads := range x.heads {
		mean := 0.0
		list := make([]float64, len(heads))
		for h, sum := range heads {
			list[h] = sum / float64(x.tokens)
			mean += list[h] / float64(len(heads))
		}
		s.Heads, s.Layers = append(s.Heads, list), append(s.Layers, mean)
	}
	for k, n := range x.counts {
		from, to := bucketRange(k)
		p := SharePoint{From: from, To: to, Tokens: n}
		for layer := range x.buckets {
			w := x.buckets[layer][k] / float64(n)
			p.Layers = append(p.Layers, w)
			p.Mean += w / float64(len(x.buckets))
		}
		s.Positions = append(s.Positions, p)
	}
	return s
}
