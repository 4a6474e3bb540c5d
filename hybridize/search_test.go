package hybridize

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"nha/attention"
	"nha/model"
)

// landscape is a made-up model: every layer at window 64 does its own harm, and some pairs do more together, so that single
// sensitivities mislead.
type landscape struct {
	harm     []float64
	together map[[2]int]float64
	measured int
}

func (l *landscape) measure(w model.Windows) (Quality, error) {
	l.measured++
	loss := 3.0
	for i, x := range w {
		if x != attention.Full {
			loss += l.harm[i]
		}
	}
	for p, more := range l.together {
		if w[p[0]] != attention.Full && w[p[1]] != attention.Full {
			loss += more
		}
	}
	return Quality{Loss: loss, Recall: 1}, nil
}

func countFull(_, window int) float64 {
	if window == attention.Full {
		return 1
	}
	return 0
}

func search(l *landscape, full float64) *Search {
	return &Search{Layers: len(l.harm), Choices: []int{64, attention.Full}, Cost: countFull, Budget: full, RecallWeight: 1, Exchanges: 200, Measure: l.measure}
}

func TestSearchTakesTheWorstLayersWhenTheyAreIndependent(t *testing.T) {
	l := &landscape{harm: []float64{.1, .5, .2, .05, .4, .3}}
	c, err := search(l, 3).Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if want := Place(6, []int{1, 4, 5}, 64, attention.Full); !slices.Equal(c.Windows, want) {
		t.Errorf("windows %v, want %v", c.Windows, want)
	}
	if c.Cost != 3 || math.Abs(c.Quality.Loss-3.35) > 1e-12 || math.Abs(c.Full.Loss-3) > 1e-12 {
		t.Errorf("cost %v, quality %v, full %v", c.Cost, c.Quality, c.Full)
	}
}

// Layers 0 and 1 stand in for each other: alone neither does harm, together much. Single sensitivities never choose either.
func TestSearchSeesJointHarm(t *testing.T) {
	l := &landscape{harm: []float64{.01, .02, .1, .12, .14, .13}, together: map[[2]int]float64{{0, 1}: 2}}
	c, err := search(l, 2).Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if want := Place(6, []int{1, 4}, 64, attention.Full); !slices.Equal(c.Windows, want) {
		t.Errorf("windows %v, want %v", c.Windows, want)
	}
	again, err := search(l, 2).Run(context.Background())
	if err != nil || !slices.Equal(again.Windows, c.Windows) {
		t.Errorf("a second search found %v, %v", again, err)
	}
}

func TestSearchSpendsTheBudgetOnSteps(t *testing.T) {
	l := &landscape{harm: []float64{.1, .5, .2, .3}}
	s := search(l, 0)
	s.Choices = []int{64, 128, attention.Full}
	s.Cost = func(_, w int) float64 { return map[int]float64{64: 1, 128: 2, attention.Full: 32}[w] }
	s.Budget = 32 + 2 + 2 + 1
	c, err := s.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if want := (model.Windows{64, attention.Full, 128, 128}); !slices.Equal(c.Windows, want) || c.Cost > s.Budget {
		t.Errorf("windows %v at %v, want %v within %v", c.Windows, c.Cost, want, s.Budget)
	}
}

func TestSearchRefusals(t *testing.T) {
	l := &landscape{harm: []float64{.1, .5}}
	s := search(l, 0)
	s.Cost = func(_, w int) float64 { return float64(min(w, 1000)) }
	s.Budget = 100
	if _, err := s.Run(context.Background()); err == nil || !strings.Contains(err.Error(), "every layer at window 64 costs 128") {
		t.Errorf("a budget that cannot be met: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := search(l, 1).Run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	s = search(l, 1)
	s.Measure = func(model.Windows) (Quality, error) { return Quality{Loss: math.NaN()}, nil }
	if _, err := s.Run(context.Background()); err == nil || !strings.Contains(err.Error(), "NaN") {
		t.Errorf("a loss of NaN: %v", err)
	}
}

func TestPlacements(t *testing.T) {
	if got := Even(30, 6); !slices.Equal(got, []int{2, 7, 12, 17, 22, 27}) {
		t.Errorf("even: %v", got)
	}
	if got := Even(30, 0); len(got) != 0 {
		t.Errorf("none: %v", got)
	}
	a, b := Random(30, 6, 1), Random(30, 6, 2)
	if slices.Equal(a, b) || !slices.Equal(a, Random(30, 6, 1)) || !slices.IsSorted(a) || len(slices.Compact(a)) != 6 {
		t.Errorf("random: %v and %v", a, b)
	}
}
