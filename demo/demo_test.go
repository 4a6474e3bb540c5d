package demo

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"nha/model"
)

// The four models are of equal size, or the table would compare sizes.
func TestEqualSizes(t *testing.T) {
	sizes := map[string]int{}
	for _, p := range model.Presets {
		c, err := recallConfig(p.Name)
		if err != nil {
			t.Fatal(err)
		}
		sizes[p.Name] = c.Account(recallLength).Parameters
	}
	if len(sizes) != 4 {
		t.Fatalf("%d models, want 4: %v", len(sizes), sizes)
	}
	for name, n := range sizes {
		if base := sizes["nha"]; 100*max(n-base, base-n) > base {
			t.Errorf("%s has %d parameters, nha %d: more than 1%% apart", name, n, base)
		}
	}
}

// A source that goes on from a saved position draws what the first would have drawn; steps and seeds differ.
func TestRecallSource(t *testing.T) {
	draw := func(s *recallSource) (b model.Batch) {
		if err := s.Next(&b); err != nil {
			t.Fatal(err)
		}
		return b
	}
	a, other := &recallSource{seed: 1}, &recallSource{seed: 2}
	first := draw(a)
	if n := recallBatch * recallLength; len(first.Tokens) != n || len(first.Targets) != n || len(first.Lengths) != recallBatch {
		t.Fatalf("%d tokens, %d targets, %d rows", len(first.Tokens), len(first.Targets), len(first.Lengths))
	}
	if slices.Equal(first.Tokens, draw(other).Tokens) {
		t.Error("two seeds draw the same")
	}
	state, err := a.State()
	if err != nil {
		t.Fatal(err)
	}
	second := draw(a)
	if slices.Equal(first.Tokens, second.Tokens) {
		t.Error("two steps draw the same")
	}
	b := &recallSource{seed: 1}
	if err := b.Restore(state); err != nil {
		t.Fatal(err)
	}
	if again := draw(b); !slices.Equal(again.Tokens, second.Tokens) || !slices.Equal(again.Targets, second.Targets) {
		t.Error("a restored source draws something else")
	}
}

// Only what a demo has made is cleared away.
func TestPrepare(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "demo")
	write := func(name string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have := func() (names []string) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	if err := prepare(dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range made {
		if name != marker {
			write(name)
		}
	}
	write("notes.txt")
	if err := prepare(dir); err != nil {
		t.Fatal(err)
	}
	if got, want := have(), []string{marker, "notes.txt"}; !slices.Equal(got, want) {
		t.Errorf("%v is left, want %v", got, want)
	}
	if err := os.Remove(filepath.Join(dir, marker)); err != nil {
		t.Fatal(err)
	}
	if err := prepare(dir); err == nil {
		t.Error("a folder that no demo has made is taken")
	}
	if got := have(); !slices.Equal(got, []string{"notes.txt"}) {
		t.Errorf("%v is left of a folder that was refused", got)
	}
}
