package model_test

import (
	"os"
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

// TestGolden holds the tiny model against numbers that an independent implementation computed in float64 (SPEC 1.5).
func TestGolden(t *testing.T) {
	g, err := model.ReadGolden("../testdata/golden/nha-tiny")
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range backends(t) {
		limits := g.Limits(b)
		e, err := g.Run(b)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: logits %.2g, loss %.2g, gradients %.2g", b.Name(), e.Logits, e.Loss, e.Gradients)
		if !(e.Logits <= limits.Logits && e.Loss <= limits.Loss && e.Gradients <= limits.Gradients) {
			t.Errorf("%s: errors %+v, limits %+v", b.Name(), e, limits)
		}
	}
}
