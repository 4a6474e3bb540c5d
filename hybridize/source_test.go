package hybridize

import (
	"context"
	"encoding/json"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"nha/backend"
	"nha/model"
)

// counter deals out batches of one token, its name, and counts them.
type counter struct {
	name int32
	n    int
}

func (c *counter) Next(b *model.Batch) error {
	b.Tokens, b.Targets, b.Lengths = []int32{c.name, int32(c.n)}, []int32{0, -1}, []int{2}
	c.n++
	return nil
}

func (c *counter) State() (json.RawMessage, error) { return json.Marshal(c.n) }
func (c *counter) Restore(s json.RawMessage) error { return json.Unmarshal(s, &c.n) }

// TestMixture: no source is ever a whole batch behind its part, and where parts are whole numbers they are exact; the same after a restart.
func TestMixture(t *testing.T) {
	weights := []float64{3, 1, 0.5}
	mix := func() *mixture {
		m := &mixture{}
		for i, w := range weights {
			m.parts = append(m.parts, mixturePart{source: &counter{name: int32(i)}, weight: w})
		}
		return m
	}
	m, again := mix(), mix()
	var b, other model.Batch
	given := make([]int, len(weights))
	for n := 1; n <= 90; n++ {
		if err := m.Next(&b); err != nil {
			t.Fatal(err)
		}
		if b.Tokens[1] != int32(given[b.Tokens[0]]) {
			t.Fatalf("batch %d of source %d comes as number %d", b.Tokens[1], b.Tokens[0], given[b.Tokens[0]])
		}
		given[b.Tokens[0]]++
		for i, w := range weights {
			if want := float64(n) * w / 4.5; float64(given[i]) <= want-1 || n%9 == 0 && float64(given[i]) != want {
				t.Errorf("after %d batches source %d has given %d, want %.1f", n, i, given[i], want)
			}
		}
		if n == 37 {
			state, err := m.State()
			if err != nil {
				t.Fatal(err)
			}
			if err := again.Restore(state); err != nil {
				t.Fatal(err)
			}
		}
		if n > 37 {
			if err := again.Next(&other); err != nil || !slices.Equal(b.Tokens, other.Tokens) {
				t.Fatalf("after a restart batch %d is %v, else %v (%v)", n, other.Tokens, b.Tokens, err)
			}
		}
	}
	if err := again.Restore([]byte(`{"dealt": [1], "states": [1]}`)); err == nil || !strings.Contains(err.Error(), "1 sources, the recipe has 3") {
		t.Errorf("the state of another recipe: %v", err)
	}
}

// TestDraw: words come as often as their probability says, those of none never.
func TestDraw(t *testing.T) {
	want := []float64{0.5, 0, 0.1, 0.4}
	logits := make([]float32, len(want))
	for i, p := range want {
		logits[i] = float32(math.Log(p)) + 3
	}
	r, counts := rand.New(rand.NewPCG(5, 0)), make([]float64, len(want))
	const draws = 20000
	for range draws {
		counts[draw(logits, r)]++
	}
	for i, p := range want {
		if deviation := math.Sqrt(p * (1 - p) / draws); math.Abs(counts[i]/draws-p) > 4*deviation {
			t.Errorf("word %d: %v of the draws, want %v", i, counts[i]/draws, p)
		}
	}
}

// TestWrite: the base's own text is the same for a seed, another for another, and every token is predicted by the one before.
func TestWrite(t *testing.T) {
	b, err := backend.Open("cpu", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	base, err := model.Load(tinyBase(t), b, model.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer base.Close()
	texts := make([]model.Batch, 3)
	for i, seed := range []uint64{1, 1, 2} {
		if texts[i], err = write(context.Background(), base, 256, seed); err != nil {
			t.Fatal(err)
		}
	}
	a := texts[0]
	if !slices.Equal(a.Tokens, texts[1].Tokens) || slices.Equal(a.Tokens, texts[2].Tokens) {
		t.Error("the text does not follow from the seed")
	}
	if n := writtenTokens; a.Tokens[0] != 256 || len(a.Tokens) != n || !slices.Equal(a.Targets[:n-1], a.Tokens[1:]) || a.Targets[n-1] != -1 || !slices.Equal(a.Lengths, []int{n}) {
		t.Errorf("%d tokens from %d on, %d targets, lengths %v", len(a.Tokens), a.Tokens[0], len(a.Targets), a.Lengths)
	}
	if err := base.Check(&a); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := write(ctx, base, 256, 1); err == nil {
		t.Error("a cancelled text goes on")
	}
}
