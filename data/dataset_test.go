package data

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// checkParts: the two parts are the whole, without overlap, in tokens and in bytes.
func checkParts(t interface{ Fatalf(string, ...any) }, all, train, held *View) {
	both := append(train.stretches(), held.stretches()...)
	slices.SortFunc(both, func(a, b [2]int64) int { return int(a[0] - b[0]) })
	at := int64(0)
	for _, s := range both {
		if s[0] != at {
			t.Fatalf("parts meet at %d and %d", at, s[0])
		}
		at = s[1]
	}
	if at != all.Tokens() || train.TextBytes()+held.TextBytes() != all.TextBytes() || held.TextBytes() == 0 || train.TextBytes() == 0 {
		t.Fatalf("%d of %d tokens, %d and %d of %d bytes", at, all.Tokens(), train.TextBytes(), held.TextBytes(), all.TextBytes())
	}
	for _, v := range []*View{train, held} {
		if v.TextBytes() != 3*v.Tokens() {
			t.Fatalf("%d bytes for %d tokens", v.TextBytes(), v.Tokens())
		}
	}
}

func TestSplitDocuments(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var docs [][]int
		n := rapid.IntRange(2, 60).Draw(t, "documents")
		for i := range n {
			docs = append(docs, []int{i%9 + 1})
		}
		d := numbered(t, docs...)
		fraction := rapid.Float64Range(1/float64(n)+1e-9, 0.999).Draw(t, "fraction")
		seed := rapid.Uint64().Draw(t, "seed")
		train, held, err := d.Split(fraction, seed)
		if err != nil {
			t.Fatal(err)
		}
		checkParts(t, d.All(), train, held)
		if want := fraction * float64(n); float64(held.Documents()) < want-1 || float64(held.Documents()) > want+1 {
			t.Fatalf("%d of %d documents for %v", held.Documents(), n, fraction)
		}
		_, again, _ := d.Split(fraction, seed)
		if !slices.Equal(again.stretches(), held.stretches()) || again.Fingerprint() != held.Fingerprint() {
			t.Fatal("the split is not deterministic")
		}
		if held.Fingerprint() == train.Fingerprint() || held.Fingerprint() == d.All().Fingerprint() {
			t.Fatal("parts share a fingerprint")
		}
	})
}

func TestSplitDependsOnSeed(t *testing.T) {
	docs := make([][]int, 100)
	for i := range docs {
		docs[i] = []int{3}
	}
	d := numbered(t, docs...)
	_, a, _ := d.Split(0.2, 1)
	_, b, _ := d.Split(0.2, 2)
	if slices.Equal(a.stretches(), b.stretches()) {
		t.Fatal("two seeds hold the same documents out")
	}
}

// Where the fraction is less than a document, the tail of the longest one goes: as close to the fraction as pieces allow.
func TestSplitTail(t *testing.T) {
	pieces := slices.Repeat([]int{10}, 50)
	for _, docs := range [][][]int{{pieces}, {{30}, pieces, {20, 20}}, {pieces, {3}}} {
		d := numbered(t, docs...)
		train, held, err := d.Split(0.1, 7)
		if err != nil {
			t.Fatal(err)
		}
		checkParts(t, d.All(), train, held)
		if n := held.Tokens(); held.Documents() != 1 || n != 50 && n != 60 {
			t.Fatalf("%d tokens held out of %d", n, d.All().Tokens())
		}
		longest := d.documents[0]
		if len(docs) == 3 {
			longest = d.documents[1]
		}
		if s := held.stretches()[0]; s[1] != longest.to || s[0] <= longest.from {
			t.Fatalf("held out %v of %+v", s, longest)
		}
	}
	// The training part must not see across the cut: its last token has no target.
	train, _, _ := numbered(t, []int{10, 10}).Split(0.5, 0)
	l, err := NewLoader(train, LoaderOptions{Context: 10, Batch: 1, Once: true})
	if err != nil {
		t.Fatal(err)
	}
	var b Batch
	if !l.Next(&b) || b.Targets[9] != -1 || b.Tokens[9] != 9 {
		t.Fatalf("%+v", b)
	}
}

func TestSplitErrors(t *testing.T) {
	d := numbered(t, []int{100})
	for _, fraction := range []float64{-1, 0, 1, 2} {
		if _, _, err := d.Split(fraction, 0); err == nil || !strings.Contains(err.Error(), "between 0 and 1") {
			t.Errorf("%v: %v", fraction, err)
		}
	}
	if _, _, err := d.Split(0.1, 0); err == nil || !strings.Contains(err.Error(), "too short") {
		t.Error(err)
	}
}

// A real text file: the tail is about the fraction asked for, and its bytes are those of its text.
func TestSplitTextFile(t *testing.T) {
	text := strings.Repeat("It was the age of wisdom, it was the age of foolishness.\n", 5000)
	path := write(t, filepath.Join(t.TempDir(), "a.txt"), text)
	d := mustPrepare(t, Spec{Paths: []string{path}}, letters{noEOS: true}, Options{CacheDir: t.TempDir()})
	train, held, err := d.Split(0.05, 1)
	if err != nil {
		t.Fatal(err)
	}
	if n := float64(held.TextBytes()) / float64(len(text)); n < 0.04 || n > 0.06 {
		t.Fatalf("held out %v", n)
	}
	if held.TextBytes() != held.Tokens() || train.TextBytes() != train.Tokens() {
		t.Fatal("bytes and byte tokens differ")
	}
}

func TestViewOfEmptyDocuments(t *testing.T) {
	v := numbered(t, []int{0}, []int{5}, []int{0, 0}, []int{0, 4}).All()
	if v.Documents() != 2 || v.Tokens() != 9 || v.Predicted() != 7 {
		t.Fatalf("%d documents, %d tokens, %d predicted", v.Documents(), v.Tokens(), v.Predicted())
	}
}
