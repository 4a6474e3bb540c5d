package hybridize

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"nha/model"
)

// Quality is how good a model is with certain windows, measured on held-out text and on recall.
type Quality struct {
	Loss   float64 `json:"loss"`   // nats a token
	Recall float64 `json:"recall"` // probability of a pass key's next token, 0 to 1 (keys.go)
}

// Search looks for the windows that cost the least quality under a budget.
//
// Where the full layers stand matters more than how many they are (SPEC 3), and layers depend on one another, so single
// layers are only the beginning:
//
//	sensitivity  every layer alone at its smallest window, all others at their largest: the harm it does
//	start        layers take larger windows in the order of harm per cost while the budget lasts
//	exchange     one layer gives a step up to another; the joint choice is measured; what is better stays, until nothing is
//
// The same measurements give the same windows: ties go to the lower layer, and nothing is drawn at random.
type Search struct {
	Layers       int
	Choices      []int                                // windows a layer may have, ascending; at least two
	Cost         func(layer, window int) float64      // in the budget's unit; grows with the window
	Budget       float64                              // largest sum of costs
	RecallWeight float64                              // nats that losing all recall is worth
	Exchanges    int                                  // joint choices to measure at most, after the start
	Measure      func(model.Windows) (Quality, error) // remembers what it has measured (Journal)
	Progress     func(stage string, done, of int)     // nil: nobody listens
}

// Choice is what a Search found.
type Choice struct {
	Windows     model.Windows
	Quality     Quality
	Cost        float64
	Sensitivity []Quality // layer by layer: that layer alone at its smallest window
	Full        Quality   // every layer at its largest window
	Measured    int       // joint choices measured after the sensitivity
}

// Score is what the search makes small.
func (s *Search) Score(q Quality) float64 { return q.Loss + s.RecallWeight*(1-q.Recall) }

// Run searches. A budget below the cost of the smallest windows is an error that names the smallest one that can be met.
func (s *Search) Run(ctx context.Context) (*Choice, error) {
	if least := s.cost(s.uniform(0)); least > s.Budget {
		return nil, fmt.Errorf("a budget of %.6g cannot be met: every layer at window %d costs %.6g", s.Budget, s.Choices[0], least)
	}
	c := &Choice{Sensitivity: make([]Quality, s.Layers)}
	var err error
	if c.Full, err = s.measure(ctx, s.uniform(len(s.Choices)-1)); err != nil {
		return nil, err
	}
	for l := range s.Layers {
		levels := s.uniform(len(s.Choices) - 1)
		levels[l] = 0
		if c.Sensitivity[l], err = s.measure(ctx, levels); err != nil {
			return nil, err
		}
		s.report("sensitivity", l+1, s.Layers)
	}
	levels := s.start(c)
	if err := s.exchange(ctx, c, levels); err != nil {
		return nil, err
	}
	c.Windows, c.Cost = s.windows(levels), s.cost(levels)
	return c, nil
}

// Order lists the layers by the harm they do alone, the worst first.
func (s *Search) Order(c *Choice) []int {
	order := make([]int, s.Layers)
	for l := range order {
		order[l] = l
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(s.Score(c.Sensitivity[b]), s.Score(c.Sensitivity[a])) })
	return order
}

// start raises layers to the largest window by harm per cost, then lets fill buy smaller steps with what is left.
func (s *Search) start(c *Choice) []int {
	levels := s.uniform(0)
	top := len(s.Choices) - 1
	for {
		best, bestValue := -1, 0.0
		left := s.Budget - s.cost(levels)
		for l := range s.Layers {
			if levels[l] == top {
				continue
			}
			price := s.Cost(l, s.Choices[top]) - s.Cost(l, s.Choices[levels[l]])
			if price > left+slack(s.Budget) {
				continue
			}
			harm := max(0, s.Score(c.Sensitivity[l])-s.Score(c.Full)) + 1e-9
			if value := harm / max(price, 1e-12); value > bestValue {
				best, bestValue = l, value
			}
		}
		if best < 0 {
			return s.fill(c, levels)
		}
		levels[best] = top
	}
}

// fill spends what is left of the budget on smaller steps, the layers of most harm first.
func (s *Search) fill(c *Choice, levels []int) []int {
	for moved := true; moved; {
		moved = false
		for _, l := range s.Order(c) {
			if levels[l]+1 < len(s.Choices) {
				levels[l]++
				if s.cost(levels) <= s.Budget+slack(s.Budget) {
					moved = true
					continue
				}
				levels[l]--
			}
		}
	}
	return levels
}

// exchange is the hill climb over pairs: one layer down, another up.
func (s *Search) exchange(ctx context.Context, c *Choice, levels []int) error {
	var err error
	if c.Quality, err = s.measure(ctx, levels); err != nil {
		return err
	}
	order := s.Order(c)
	for improved := true; improved && c.Measured < s.Exchanges; {
		improved = false
		for _, pair := range s.pairs(order, levels) {
			if c.Measured >= s.Exchanges {
				break
			}
			next := slices.Clone(levels)
			next[pair.down], next[pair.up] = next[pair.up], next[pair.down]
			if s.cost(next) > s.Budget+slack(s.Budget) {
				continue
			}
			q, err := s.measure(ctx, next)
			if err != nil {
				return err
			}
			c.Measured++
			s.report("exchange", c.Measured, s.Exchanges)
			if s.Score(q) < s.Score(c.Quality) {
				copy(levels, next)
				c.Quality, improved = q, true
				break
			}
		}
	}
	return nil
}

type pair struct{ down, up int }

// pairs lists the exchanges, the likeliest to help first: the layer of least harm among those with a larger window gives it
// to the layer of most harm among those with a smaller one.
func (s *Search) pairs(order, levels []int) []pair {
	rank := make([]int, s.Layers) // 0: most harm
	for i, l := range order {
		rank[l] = i
	}
	var list []pair
	for down := range s.Layers {
		for up := range s.Layers {
			if levels[down] > levels[up] {
				list = append(list, pair{down, up})
			}
		}
	}
	slices.SortStableFunc(list, func(a, b pair) int { return cmp.Compare(rank[a.up]-rank[a.down], rank[b.up]-rank[b.down]) })
	return list
}

func (s *Search) uniform(level int) []int { return slices.Repeat([]int{level}, s.Layers) }

func (s *Search) windows(levels []int) model.Windows {
	w := make(model.Windows, len(levels))
	for i, l := range levels {
		w[i] = s.Choices[l]
	}
	return w
}

func (s *Search) cost(levels []int) (sum float64) {
	for l, level := range levels {
		sum += s.Cost(l, s.Choices[level])
	}
	return sum
}

// slack forgives the rounding of sums of costs.
func slack(budget float64) float64 { return 1e-9 * math.Abs(budget) }

func (s *Search) measure(ctx context.Context, levels []int) (Quality, error) {
	if err := ctx.Err(); err != nil {
		return Quality{}, err
	}
	q, err := s.Measure(s.windows(levels))
	if err == nil && (math.IsNaN(q.Loss) || math.IsInf(q.Loss, 0)) {
		err = fmt.Errorf("windows %v: the loss is %v", s.windows(levels), q.Loss)
	}
	return q, err
}

func (s *Search) report(stage string, done, of int) {
	if s.Progress != nil {
		s.Progress(stage, done, of)
	}
}

// Even is count layers of so many at equal distances, each in the middle of its part.
func Even(layers, count int) []int {
	chosen := make([]int, count)
	for i := range chosen {
		chosen[i] = (2*i + 1) * layers / (2 * count)
	}
	return chosen
}

// Random is count different layers of so many, ascending, the same for the same seed.
func Random(layers, count int, seed uint64) []int {
	chosen := rand.New(rand.NewPCG(seed, 0)).Perm(layers)[:count]
	slices.Sort(chosen)
	return chosen
}

// Place is windows of so many layers: large at the chosen ones, small elsewhere.
func Place(layers int, chosen []int, small, large int) model.Windows {
	w := slices.Repeat(model.Windows{small}, layers)
	for _, l := range chosen {
		w[l] = large
	}
	return w
}
