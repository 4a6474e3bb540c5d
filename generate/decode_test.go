package generate

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"nha/attention"
	"nha/backend"
	"nha/model"
	"nha/tokenizer"
)

// programmed is a generator on a backend that has a program of decoding steps; the test is skipped where none is.
func programmed(t *testing.T, vocabulary int) *Generator {
	t.Helper()
	b, err := backend.Open("cuda", 0)
	if err != nil {
		t.Skipf("no backend with a program of decoding steps: %v", err)
	}
	c := model.NewConfig(vocabulary, 64, 3)
	c.NumHeads, c.NumKVHeads, c.HeadDim, c.IntermediateSize = 4, 2, 16, 96
	c.NumSlots, c.LayerWindows = 8, model.Windows{4, attention.Full, 33}
	m, err := model.New(c, b, model.Init{Seed: 3, Std: 0.35})
	if err != nil {
		t.Fatal(err)
	}
	g := New(m, tokenizer.Bytes{EndOfText: true})
	t.Cleanup(func() { g.Close(); m.Close(); b.Close() })
	if g.decoder() == nil {
		_, err := m.Decoder()
		t.Fatal(err)
	}
	return g
}

// TestProgramDraws: what a program draws is what the sampler here draws from the same logits: with one new token a call every draw is made
// here, from the logits that the sequence left the program with.
func TestProgramDraws(t *testing.T) {
	g := programmed(t, 257)
	prompt := []int32(nil)
	for _, b := range []byte(proverb) {
		prompt = append(prompt, int32(b))
	}
	for n, o := range []Sampling{
		{TopP: 1, RepetitionPenalty: 1}, {TopP: 1, RepetitionPenalty: 1.3}, {Temperature: 1, TopP: 1, RepetitionPenalty: 1}, {Temperature: 0.7, TopK: 5, TopP: 1, RepetitionPenalty: 1},
		{Temperature: 1.5, TopK: 60, TopP: 0.9, RepetitionPenalty: 1.2}, {Temperature: 1, TopP: 0.8, RepetitionPenalty: 1}, {Temperature: 1, TopP: 1, MinP: 0.05, RepetitionPenalty: 1.1},
		{Temperature: 1.2, TopK: 40, TopP: 0.95, MinP: 0.01, RepetitionPenalty: 0.9}, {Temperature: 3, TopK: 256, TopP: 0.5, RepetitionPenalty: 1}, {Temperature: 1, TopK: 1, TopP: 1, RepetitionPenalty: 1},
	} {
		for sample := range 4 {
			o.Seed, o.Sample, o.MaxNewTokens = uint64(n), sample, 40
			long := g.NewSession()
			ids, logProbs, _, _ := run(t, g, long, prompt, o)
			short := g.NewSession()
			mustPrefill(t, short, prompt)
			o.MaxNewTokens = 1
			for i := range ids {
				one, p, _, _ := run(t, g, short, nil, o)
				if one[0] != ids[i] || p[0]-logProbs[i] > 1e-5 || logProbs[i]-p[0] > 1e-5 {
					t.Fatalf("%+v: token %d is %d with %v, the sampler draws %d with %v", o, i, ids[i], logProbs[i], one[0], p[0])
				}
			}
			if !slices.Equal(long.seen, short.seen) || long.Position() != short.Position() || !slices.Equal(long.Logits(), short.Logits()) {
				t.Fatalf("%+v: other sessions", o)
			}
		}
	}
}

// TestProgramJSONL: lines side by side give what each gives alone, in the lines' order.
func TestProgramJSONL(t *testing.T) {
	g := programmed(t, 257)
	var input strings.Builder
	for i := range 70 {
		fmt.Fprintf(&input, "{\"prompt\": %q, \"max_new_tokens\": %d, \"temperature\": %v, \"n\": %d, \"seed\": %d}\n", proverb[:1+i%60], i*7%23, float64(i%2), 1+i%3*2, i)
	}
	read := func(text string) (list []Result) {
		var out bytes.Buffer
		if err := g.JSONL(context.Background(), "input", strings.NewReader(text), &out, DefaultSampling(), 1); err != nil {
			t.Fatal(err)
		}
		for d := json.NewDecoder(&out); d.More(); {
			var r Result
			if err := d.Decode(&r); err != nil {
				t.Fatal(err)
			}
			list = append(list, r)
		}
		return list
	}
	together := read(input.String())
	var alone []Result
	for _, line := range strings.SplitAfter(input.String(), "\n") {
		alone = append(alone, read(line)...)
	}
	if len(together) != len(alone) {
		t.Fatalf("%d results, alone %d", len(together), len(alone))
	}
	wrong := 0
	for i := range together {
		x, y := together[i], alone[i]
		if x.Prompt != y.Prompt || x.FinishReason != y.FinishReason || len(x.Tokens) != len(y.Tokens) {
			t.Fatalf("result %d: %+v, alone %+v", i, x, y)
		}
		if !slices.Equal(x.Tokens, y.Tokens) { // a step of other rows adds in another order
			wrong++
		}
	}
	if wrong > len(alone)/10 {
		t.Errorf("%d of %d results differ", wrong, len(alone))
	}
	err := g.JSONL(context.Background(), "input", strings.NewReader("{\"prompt\": \"a\"}\n{\"promt\": \"b\"}\n"), &bytes.Buffer{}, DefaultSampling(), 1)
	if err == nil || !strings.Contains(err.Error(), "input: line 2:") {
		t.Errorf("error %v does not name the line", err)
	}
}
