package eval

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// TestRolling: windows of any length and stride predict every token once, read no more than the length, and have the context
// that the stride leaves.
func TestRolling(t *testing.T) {
	e := newEncoder(bytesTokenizer, 0)
	rapid.Check(t, func(t *rapid.T) {
		length := rapid.IntRange(1, 20).Draw(t, "length")
		stride := rapid.IntRange(1, length).Draw(t, "stride")
		tokens := rapid.SliceOfN(rapid.Int32Range(0, 255), 1, 100).Draw(t, "tokens")
		list, err := e.rolling(tokens, length, stride)
		if err != nil {
			t.Fatal(err)
		}
		at := 0
		for i, r := range list {
			if len(r.input()) > length {
				t.Fatalf("window %d reads %d tokens of %d", i, len(r.input()), length)
			}
			for _, id := range r.continuation {
				if tokens[at] != id {
					t.Fatalf("window %d predicts token %d wrongly", i, at)
				}
				at++
			}
			if i == 0 {
				continue
			}
			from := at - len(r.continuation) - len(r.context)
			for k, id := range r.context {
				if tokens[from+k] != id {
					t.Fatalf("window %d has a wrong context", i)
				}
			}
			want := 1
			if stride < length {
				want = min(length-len(r.continuation)+1, at-len(r.continuation))
			}
			if len(r.context) != want {
				t.Fatalf("window %d has %d tokens of context, want %d", i, len(r.context), want)
			}
		}
		if at != len(tokens) {
			t.Fatalf("%d of %d tokens predicted", at, len(tokens))
		}
	})
}

// TestText: the sum over positions is the text's, a stride lowers nothing but the loss, and the files are written.
func TestText(t *testing.T) {
	m := tiny(t, 8, full())
	text := strings.Repeat("the quick brown fox. ", 30)
	path := filepath.Join(folder(t, map[string]string{"a.txt": text}), "a.txt")
	o := Options{Tasks: []string{"text", "share"}, Data: path, Context: 128, BatchTokens: 50}
	r, err := Run(context.Background(), m, bytesTokenizer, "tiny model", o)
	if err != nil {
		t.Fatal(err)
	}
	value := func(metric string) float64 {
		v, ok := r.Value("text", metric)
		if !ok {
			t.Fatalf("no %s", metric)
		}
		return v.Value
	}
	n, loss := 0, 0.0
	for _, p := range r.Tasks[0].Positions() {
		n, loss = n+p.Tokens, loss+p.Loss*float64(p.Tokens)
	}
	if n != len(text) {
		t.Errorf("%d tokens by position of %d", n, len(text))
	}
	if want := math.Log(value("token_perplexity")) * float64(n); math.Abs(loss-want) > 1e-6*want {
		t.Errorf("positions add up to %v, want %v", loss, want)
	}
	if want := math.Log2(value("token_perplexity")); math.Abs(value("bits_per_byte")-want) > 1e-9 { // a byte is a token
		t.Errorf("bits per byte %v, want %v", value("bits_per_byte"), want)
	}
	dir := t.TempDir()
	file, err := r.Write(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{filepath.Base(file), "text_by_position.json", "text_by_position.svg", "text_by_position.png", "slot_share.json",
		"slot_share_layers.svg", "slot_share_positions.png"} {
		if info, err := os.Stat(filepath.Join(dir, "tiny_model", name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	o.Stride = 200
	_, err = Run(context.Background(), m, bytesTokenizer, "tiny", o)
	wantError(t, err, "stride of 200", "128")
}

// TestShares: with everything in the window no slot is read but the empty ones; behind a short one shares grow, and
// the mean over heads is the layer's.
func TestShares(t *testing.T) {
	m := tiny(t, 2, full())
	path := filepath.Join(folder(t, map[string]string{"a.txt": strings.Repeat("abcdefgh ", 40)}), "a.txt")
	for _, batch := range []int{7, 1000} { // in pieces and whole
		r, err := Run(context.Background(), m, bytesTokenizer, "tiny", Options{Tasks: []string{"share"}, Data: path, Context: 180, BatchTokens: batch})
		if err != nil {
			t.Fatal(err)
		}
		s := r.Tasks[0].Shares
		if s.Tokens != 360 || len(s.Layers) != 2 || len(s.Heads[0]) != 2 || s.Windows[1] != 180 {
			t.Fatalf("%+v", s)
		}
		if got := (s.Heads[0][0] + s.Heads[0][1]) / 2; math.Abs(got-s.Layers[0]) > 1e-12 {
			t.Errorf("heads %v, layer %v", s.Heads[0], s.Layers[0])
		}
		last := s.Positions[len(s.Positions)-1]
		if last.Layers[0] < 2*last.Layers[1] || s.Positions[0].Layers[1] < last.Layers[1] {
			t.Errorf("a window of 2 reads its slots at %.3f, a full one at %.3f, after %.3f at the beginning", last.Layers[0], last.Layers[1], s.Positions[0].Layers[1])
		}
		sum, n := 0.0, 0
		for _, p := range s.Positions {
			sum, n = sum+p.Mean*float64(p.Tokens), n+p.Tokens
		}
		if v, _ := r.Value("share", "slot_share"); n != 360 || math.Abs(sum/360-v.Value) > 1e-9 {
			t.Errorf("positions give %v over %d tokens, the mean is %v", sum/360, n, v.Value)
		}
	}
}
