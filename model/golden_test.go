package model_test

import (
	"os"
	"path/filepath"
	"testing"

	"nha/backend"
	_ "nha/backend/all"
	"nha/model"
)

// backends starts the backend that NHA_BACKEND names, or every one that opens here.
func backends(t *testing.T) []backend.Backend {
	names, chosen := backend.Names(), os.Getenv("NHA_BACKEND")
	if chosen != "" {
		names = []string{chosen}
	}
	var list []backend.Backend
	for _, name := range names {
		b, err := backend.Open(name, 2)
		if err != nil {
			if chosen != "" {
				t.Fatal(err)
			}
			t.Logf("skip: backend %s does not open here: %v", name, err)
			continue
		}
		t.Cleanup(func() { b.Close() })
		list = append(list, b)
	}
	return list
}

// TestGolden holds tiny models of every family against numbers that an independent implementation computed in float64
// (SPEC 1.5).
func TestGolden(t *testing.T) {
	list := backends(t)
	for _, dir := range goldens(t) {
		g, err := model.ReadGolden(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range list {
			limits := g.Limits(b)
			e, err := g.Run(b)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s %s: logits %.2g, loss %.2g, gradients %.2g", filepath.Base(dir), b.Name(), e.Logits, e.Loss, e.Gradients)
			if !(e.Logits <= limits.Logits && e.Loss <= limits.Loss && (!g.HasGradients() || e.Gradients <= limits.Gradients)) {
				t.Errorf("%s %s: errors %+v, limits %+v", dir, b.Name(), e, limits)
			}
		}
	}
}

// goldens lists the model directories with expectations; TestGoldenFamilies says that none is missing.
func goldens(t *testing.T) []string {
	found, err := filepath.Glob("../testdata/golden/*/expected.json")
	if err != nil {
		t.Fatal(err)
	}
	for i := range found {
		found[i] = filepath.Dir(found[i])
	}
	return found
}

func TestGoldenFamilies(t *testing.T) {
	have := map[string]bool{}
	for _, dir := range goldens(t) {
		c, err := model.ReadConfig(dir)
		if err != nil {
			t.Fatal(err)
		}
		have[c.ModelType] = true
	}
	for _, kind := range model.ModelTypes() {
		if !have[kind] {
			t.Errorf("no golden model of %s", kind)
		}
	}
}
