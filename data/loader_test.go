package data

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// numbered is a dataset whose tokens are their own positions, so that a test sees where each came from. Every document is
// given by the tokens of its pieces; a piece of n tokens has 3 n bytes of text. It goes through the cache's own format.
func numbered(t interface{ Fatal(...any) }, documents ...[]int) *Dataset {
	const vocabulary = 1 << 20
	var b bytes.Buffer
	c, err := newCacheWriter(&b, key{1}, vocabulary)
	if err != nil {
		t.Fatal(err)
	}
	next := int32(0)
	for _, doc := range documents {
		for i, n := range doc {
			ids := make([]int32, n)
			for j := range ids {
				ids[j] = next
				next++
			}
			if err := c.add([]piece{{n, 3 * n, i == 0}}, ids); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := c.finish(); err != nil {
		t.Fatal(err)
	}
	d := &Dataset{key: key{1}, unmap: func() error { return nil }}
	if err := d.parse(b.Bytes()); err != nil {
		t.Fatal(err)
	}
	return d
}

func drawDataset(t *rapid.T) *Dataset {
	documents := rapid.SliceOfN(rapid.SliceOfN(rapid.IntRange(0, 30), 1, 4), 1, 12).Draw(t, "documents")
	documents = append(documents, []int{1})
	return numbered(t, documents...)
}

// stretches are the [from, to) of a view in the dataset.
func (v *View) stretches() (list [][2]int64) {
	for i, from := range v.from {
		list = append(list, [2]int64{from, from + v.starts[i+1] - v.starts[i]})
	}
	return list
}

// The packing invariants: rows are full, no sequence holds two documents, a target is the next token of the same document
// or -1 at its end, and in one epoch every token comes as input with its target once; whatever else a row holds is filler.
func TestPacking(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := drawDataset(t)
		v := d.All()
		o := LoaderOptions{
			Context: rapid.IntRange(1, 40).Draw(t, "T"), Batch: rapid.IntRange(1, 4).Draw(t, "B"), Seed: rapid.Uint64().Draw(t, "seed"),
			Shuffle: rapid.Bool().Draw(t, "shuffle"), Once: true,
		}
		l, err := NewLoader(v, o)
		if err != nil {
			t.Fatal(err)
		}
		l.begin(rapid.IntRange(0, 3).Draw(t, "epoch"))
		next := map[int32]int32{} // token -> the next of its document
		for _, s := range v.stretches() {
			for p := s[0]; p < s[1]; p++ {
				next[int32(p)] = int32(p + 1)
			}
			next[int32(s[1]-1)] = -1
		}
		seen := map[int32]bool{}
		predicted, rows := int64(0), 0
		var b Batch
		for l.Next(&b) {
			rows += o.Batch
			at, inBatch := 0, 0
			if len(b.Tokens) != o.Batch*o.Context || len(b.Targets) != len(b.Tokens) {
				t.Fatalf("%d tokens, %d targets", len(b.Tokens), len(b.Targets))
			}
			for _, n := range b.Lengths {
				if n < 1 || at/o.Context != (at+n-1)/o.Context {
					t.Fatalf("a sequence of %d tokens at %d with rows of %d", n, at, o.Context)
				}
				for i := at; i < at+n; i++ {
					token, target := b.Tokens[i], b.Targets[i]
					if i > at && next[b.Tokens[i-1]] != token {
						t.Fatalf("token %d follows %d in a sequence", token, b.Tokens[i-1])
					}
					if target == -1 && (next[token] != -1 || seen[token]) {
						continue // filler, counted below by what is missing
					}
					if target != next[token] || seen[token] {
						t.Fatalf("token %d: target %d, want %d; seen %v", token, target, next[token], seen[token])
					}
					seen[token] = true
					if target != -1 {
						inBatch++
					}
				}
				at += n
			}
			if at != len(b.Tokens) || inBatch != b.Predicted {
				t.Fatalf("lengths sum to %d of %d; %d targets, Predicted says %d", at, len(b.Tokens), inBatch, b.Predicted)
			}
			predicted += int64(b.Predicted)
		}
		if int64(len(seen)) != v.Tokens() || predicted != v.Predicted() {
			t.Fatalf("%d of %d tokens seen, %d of %d predicted", len(seen), v.Tokens(), predicted, v.Predicted())
		}
		if want := (l.Rows() + o.Batch - 1) / o.Batch * o.Batch; rows != want {
			t.Fatalf("%d rows, want %d", rows, want)
		}
	})
}

// Without Once the batches never end, and R rows make an epoch whatever B is: each token comes once in each.
func TestEpochs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := drawDataset(t).All()
		o := LoaderOptions{Context: rapid.IntRange(1, 40).Draw(t, "T"), Batch: rapid.IntRange(1, 7).Draw(t, "B"), Shuffle: true, Seed: 3}
		l, err := NewLoader(v, o)
		if err != nil {
			t.Fatal(err)
		}
		const epochs = 3
		count := map[[2]int32]int{} // (token, target) -> times
		var b Batch
		for row := 0; row < epochs*l.Rows(); {
			if !l.Next(&b) {
				t.Fatal("the batches ended")
			}
			for i := range o.Batch {
				if row++; row <= epochs*l.Rows() {
					for k := i * o.Context; k < (i+1)*o.Context; k++ {
						count[[2]int32{b.Tokens[k], b.Targets[k]}]++
					}
				}
			}
		}
		for _, s := range v.stretches() {
			for p := s[0]; p+1 < s[1]; p++ {
				if n := count[[2]int32{int32(p), int32(p + 1)}]; n != epochs {
					t.Fatalf("token %d came %d times in %d epochs", p, n, epochs)
				}
			}
		}
	})
}

func cloneBatch(b Batch) Batch {
	return Batch{slices.Clone(b.Tokens), slices.Clone(b.Targets), slices.Clone(b.Lengths), b.Predicted}
}

func sameBatch(a, b Batch) bool {
	return slices.Equal(a.Tokens, b.Tokens) && slices.Equal(a.Targets, b.Targets) && slices.Equal(a.Lengths, b.Lengths) && a.Predicted == b.Predicted
}

// A loader restored from JSON, anywhere, in a new process so to say, deals out exactly what the first would have.
func TestResume(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := drawDataset(t)
		o := LoaderOptions{Context: rapid.IntRange(1, 20).Draw(t, "T"), Batch: rapid.IntRange(1, 5).Draw(t, "B"), Seed: 5, Shuffle: rapid.Bool().Draw(t, "shuffle"), Once: rapid.Bool().Draw(t, "once")}
		l, err := NewLoader(d.All(), o)
		if err != nil {
			t.Fatal(err)
		}
		var states [][]byte
		var want []Batch
		var b Batch
		for range 30 {
			state, err := json.Marshal(l.State())
			if err != nil {
				t.Fatal(err)
			}
			states = append(states, state)
			if !l.Next(&b) {
				break
			}
			want = append(want, cloneBatch(b))
		}
		at := rapid.IntRange(0, len(states)-1).Draw(t, "at")
		var state LoaderState
		if err := json.Unmarshal(states[at], &state); err != nil {
			t.Fatal(err)
		}
		fresh, err := NewLoader(d.All(), o)
		if err != nil {
			t.Fatal(err)
		}
		if err := fresh.Restore(state); err != nil {
			t.Fatal(err)
		}
		for i, w := range want[at:] {
			if !fresh.Next(&b) || !sameBatch(b, w) {
				t.Fatalf("batch %d after resuming at %d differs", at+i, at)
			}
		}
		if o.Once && len(states) > len(want) && fresh.Next(&b) {
			t.Fatal("a batch after the last")
		}
	})
}

// Another batch size deals out the same rows.
func TestResumeWithAnotherBatch(t *testing.T) {
	d := numbered(t, []int{100}, []int{57}, []int{200})
	rows := func(batch, n int, from *LoaderState) (list [][]int32, l *Loader) {
		l, err := NewLoader(d.All(), LoaderOptions{Context: 16, Batch: batch, Seed: 1, Shuffle: true})
		if err != nil {
			t.Fatal(err)
		}
		if from != nil {
			if err := l.Restore(*from); err != nil {
				t.Fatal(err)
			}
		}
		var b Batch
		for range n {
			l.Next(&b)
			for i := range batch {
				list = append(list, slices.Clone(b.Tokens[16*i:16*i+16]))
			}
		}
		return list, l
	}
	want, _ := rows(1, 60, nil)
	first, l := rows(4, 6, nil)
	state := l.State()
	second, _ := rows(3, 12, &state)
	if fmt.Sprint(append(first, second...)) != fmt.Sprint(want) {
		t.Fatal("the rows differ")
	}
}

func TestShuffle(t *testing.T) {
	d := numbered(t, []int{1000}, []int{2000}, []int{500})
	epochs := func(seed uint64, shuffle bool) (list []string) {
		l, err := NewLoader(d.All(), LoaderOptions{Context: 50, Batch: 1, Seed: seed, Shuffle: shuffle})
		if err != nil {
			t.Fatal(err)
		}
		var b Batch
		for range 2 {
			var s strings.Builder
			for range l.Rows() {
				l.Next(&b)
				fmt.Fprintln(&s, b.Tokens)
			}
			list = append(list, s.String())
		}
		return list
	}
	a, again, other, plain := epochs(1, true), epochs(1, true), epochs(2, true), epochs(1, false)
	if !slices.Equal(a, again) {
		t.Error("the same seed gave another order")
	}
	if a[0] == a[1] || a[0] == other[0] || a[0] == plain[0] {
		t.Error("epochs or seeds share an order")
	}
	if plain[0] != plain[1] {
		t.Error("the order without shuffle changes")
	}
	// The order is part of exact resume: it must not change from one version to the next.
	l, _ := NewLoader(d.All(), LoaderOptions{Context: 50, Batch: 1, Seed: 1, Shuffle: true})
	if got := fmt.Sprint(l.shift, l.order[:8]); got != goldenOrder {
		t.Errorf("order %s, was %s", got, goldenOrder)
	}
}

const goldenOrder = "48 [5 38 35 3 8 46 43 65]"

func TestNextAllocatesNothing(t *testing.T) {
	var docs [][]int
	for i := range 200 {
		docs = append(docs, []int{i%37 + 1})
	}
	l, err := NewLoader(numbered(t, docs...).All(), LoaderOptions{Context: 64, Batch: 8, Shuffle: true})
	if err != nil {
		t.Fatal(err)
	}
	var b Batch
	for range 3 * l.Rows() { // Lengths grow to their longest
		l.Next(&b)
	}
	b.Lengths = slices.Grow(b.Lengths, 64*8)
	if n := testing.AllocsPerRun(100, func() { l.Next(&b) }); n != 0 {
		t.Fatalf("%v allocations a batch", n)
	}
}

func TestLoaderErrors(t *testing.T) {
	d := numbered(t, []int{10}, []int{10})
	for _, o := range []LoaderOptions{{Context: 0, Batch: 1}, {Context: 1, Batch: 0}, {Context: 1 << 40, Batch: 1 << 40}} {
		if _, err := NewLoader(d.All(), o); err == nil {
			t.Errorf("%+v was accepted", o)
		}
	}
	if _, err := NewLoader(numbered(t, []int{0}).All(), LoaderOptions{Context: 1, Batch: 1}); err == nil {
		t.Error("no tokens were accepted")
	}
	o := LoaderOptions{Context: 4, Batch: 2, Seed: 1, Shuffle: true}
	l, err := NewLoader(d.All(), o)
	if err != nil {
		t.Fatal(err)
	}
	state := l.State()
	other := numbered(t, []int{10}, []int{10})
	other.key = key{2}
	_, held, err := d.Split(0.5, 1)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		v *View
		o LoaderOptions
	}{
		"data":    {other.All(), o},
		"part":    {held, o},
		"context": {d.All(), LoaderOptions{Context: 5, Batch: 2, Seed: 1, Shuffle: true}},
		"seed":    {d.All(), LoaderOptions{Context: 4, Batch: 2, Seed: 2, Shuffle: true}},
		"shuffle": {d.All(), LoaderOptions{Context: 4, Batch: 2, Seed: 1}},
	} {
		l, err := NewLoader(c.v, c.o)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Restore(state); err == nil || !strings.Contains(err.Error(), "other data") {
			t.Errorf("%s: %v", name, err)
		}
	}
	state.Row = 100
	if err := l.Restore(state); err == nil {
		t.Error("row 100 was accepted")
	}
}
