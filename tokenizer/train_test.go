package tokenizer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func trained(t testing.TB, o TrainOptions, documents ...string) *BPE {
	t.Helper()
	b, err := Train(context.Background(), all(documents), o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestTrainSmall(t *testing.T) {
	// "hug" 10 times, "pug" 5, "pun" 12, "bun" 4, "hugs" 5: u g (20) and u n (16) first, then h ug (15).
	text := strings.Repeat("hug\n", 10) + strings.Repeat("pug\n", 5) + strings.Repeat("pun\n", 12) + strings.Repeat("bun\n", 4) + strings.Repeat("hugs\n", 5)
	b := trained(t, TrainOptions{VocabSize: 257 + 3}, text)
	var got []string
	for id := int32(257); id < 260; id++ {
		got = append(got, string(b.Token(id)))
	}
	if want := []string{"ug", "un", "hug"}; !slices.Equal(got, want) {
		t.Errorf("merged %q, want %q", got, want)
	}
	if b.VocabSize() != 260 || string(b.Token(0)) != EndOfText || string(b.Token(1)) != "!" {
		t.Errorf("%d tokens, the first %q and %q", b.VocabSize(), b.Token(0), b.Token(1))
	}
	if got := b.Decode(b.Encode("hugs")[:1]); got != "hug" {
		t.Errorf("hugs begins with %q", got)
	}
	// The text holds no more pairs seen twice.
	if b := trained(t, TrainOptions{VocabSize: 1000}, "abab ab"); b.VocabSize() != 258 || string(b.Token(257)) != "ab" {
		t.Errorf("%d tokens from abab ab", b.VocabSize())
	}
	if b := trained(t, TrainOptions{VocabSize: 1000, MinFrequency: 1}, "ab"); b.VocabSize() != 258 {
		t.Errorf("%d tokens with minimal frequency 1", b.VocabSize())
	}
	// Merges do not cross words.
	if b := trained(t, TrainOptions{VocabSize: 300}, strings.Repeat("a b", 9)); slices.Contains(tokensOf(b), "a b") {
		t.Error("merged across a space")
	}
}

func tokensOf(b *BPE) (tokens []string) {
	for id := range b.VocabSize() {
		tokens = append(tokens, string(b.Token(int32(id))))
	}
	return tokens
}

// trainNaively counts all pairs anew before every merge.
func trainNaively(counts map[string]int64, merges int, least int64) (tokens []string) {
	ids := map[string]int32{}
	var vocab []string
	add := func(s string) int32 {
		if _, ok := ids[s]; !ok {
			ids[s] = int32(len(vocab))
			vocab = append(vocab, s)
		}
		return ids[s]
	}
	runes := slices.Sorted(slices.Values(byteRunes[:]))
	for _, r := range runes {
		add(string([]byte{byte(runeBytes[r])}))
	}
	words := map[string][]int32{}
	for word := range counts {
		for i := range len(word) {
			words[word] = append(words[word], ids[word[i:i+1]])
		}
	}
	for len(vocab) < 256+merges {
		pairs := map[uint64]int64{}
		for word, w := range words {
			for i := 1; i < len(w); i++ {
				pairs[pairOf(w[i-1], w[i])] += counts[word]
			}
		}
		best := noPair
		for _, p := range slices.Sorted(maps.Keys(pairs)) {
			if best == noPair || pairs[p] > pairs[best] {
				best = p
			}
		}
		if best == noPair || pairs[best] < least {
			break
		}
		a, b := int32(best>>32), int32(uint32(best))
		c := add(vocab[a] + vocab[b])
		for word, w := range words {
			out := w[:0]
			for i := 0; i < len(w); i++ {
				if w[i] == a && i+1 < len(w) && w[i+1] == b {
					out = append(out, c)
					i++
				} else {
					out = append(out, w[i])
				}
			}
			words[word] = out
		}
	}
	return vocab[256:]
}

func TestTrainAgainstNaive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		words := rapid.SliceOfN(rapid.StringMatching(`[abc]{1,8}`), 1, 30).Draw(t, "words")
		least := rapid.Int64Range(1, 3).Draw(t, "least")
		merges := rapid.IntRange(0, 40).Draw(t, "merges")
		counts := map[string]int64{}
		for _, w := range words {
			counts["\t"]++ // a tab is a pre-token of its own, and no part of the next
			counts[w]++
		}
		b, err := Train(context.Background(), all([]string{"\t" + strings.Join(words, "\t")}),
			TrainOptions{VocabSize: 256 + merges, MinFrequency: least, Special: []string{}})
		if err != nil {
			t.Fatal(err)
		}
		if got, want := tokensOf(b)[256:], trainNaively(counts, merges, least); !slices.Equal(got, want) {
			t.Fatalf("%q, want %q", got, want)
		}
	})
}

// The order of documents and the number of threads change nothing.
func TestTrainDeterministic(t *testing.T) {
	documents := readAll(t, "*.go")
	want := trained(t, TrainOptions{VocabSize: 1500, Threads: 1}, documents...)
	slices.Reverse(documents)
	for threads := 1; threads <= 3; threads++ {
		if got := trained(t, TrainOptions{VocabSize: 1500, Threads: threads}, documents...); got.Hash() != want.Hash() {
			t.Errorf("%d threads gave another tokenizer", threads)
		}
	}
	if want.VocabSize() != 1500 {
		t.Errorf("%d tokens", want.VocabSize())
	}
}

func TestTrainOddText(t *testing.T) {
	long := strings.Repeat("acgtgac", 100_000)
	b := trained(t, TrainOptions{VocabSize: 280, Special: []string{"<eos>", "<pad>"}}, long, "\xff\xfe\xff\xfe", "", "é日本 é日本")
	if b.VocabSize() != 280 {
		t.Errorf("%d tokens", b.VocabSize())
	}
	if eos, ok := b.EOS(); !ok || string(b.Token(eos)) != "<eos>" || !b.Special(1) {
		t.Errorf("EOS = %d %v", eos, ok)
	}
	for _, text := range []string{long, "\xff\xfe\xff", "é日本<pad>"} {
		if b.Decode(b.Encode(text)) != text {
			t.Errorf("%.20q does not come back", text)
		}
	}
	if b := trained(t, TrainOptions{VocabSize: 256, Special: []string{}}, "x"); b.VocabSize() != 256 {
		t.Errorf("%d tokens without special ones", b.VocabSize())
	}
}

func TestTrainErrors(t *testing.T) {
	for _, c := range []struct {
		o    TrainOptions
		want string
	}{
		{TrainOptions{VocabSize: 256}, "vocabulary size 256 is too small"},
		{TrainOptions{VocabSize: 1 << 31}, "too large"},
		{TrainOptions{VocabSize: 300, MinFrequency: -1}, "minimal frequency -1"},
		{TrainOptions{VocabSize: 300, Special: []string{""}}, `special token ""`},
		{TrainOptions{VocabSize: 300, Special: []string{"<a>", "<a>"}}, `special token "<a>"`},
		{TrainOptions{VocabSize: 300, Special: []string{"a"}}, `special token "a"`},
	} {
		if _, err := Train(context.Background(), all([]string{"x"}), c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: error %v, want %s", c.o, err, c.want)
		}
	}
	if _, err := Train(context.Background(), all(nil), TrainOptions{VocabSize: 300}); err == nil || !strings.Contains(err.Error(), "no text") {
		t.Errorf("no documents: %v", err)
	}
	broken := errors.New("line 3 is broken")
	documents := func(yield func(string, error) bool) {
		_ = yield("some text", nil) && yield("", broken)
	}
	if _, err := Train(context.Background(), documents, TrainOptions{VocabSize: 300}); !errors.Is(err, broken) {
		t.Errorf("error of the documents: %v", err)
	}
}

// A cancelled context ends an endless text, and the merging.
func TestTrainCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	n := 0
	endless := func(yield func(string, error) bool) {
		for yield(fmt.Sprint("word", n, strings.Repeat(" more words", 1000)), nil) {
			if n++; n == 200 {
				cancel()
			}
		}
	}
	if _, err := Train(ctx, endless, TrainOptions{VocabSize: 300}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v after %d documents", err, n)
	}
	d := description{vocab: []string{}}
	for _, r := range slices.Sorted(slices.Values(byteRunes[:])) {
		d.vocab = append(d.vocab, string(r))
	}
	if err := newMerger(&d, map[string]int64{"aaaa": 5}).run(ctx, TrainOptions{VocabSize: 300}); !errors.Is(err, context.Canceled) {
		t.Errorf("merging: %v", err)
	}
}

func TestTrainProgress(t *testing.T) {
	var last TrainProgress
	documents := readAll(t, "*.go")
	trained(t, TrainOptions{VocabSize: 400, Progress: func(p TrainProgress) { last = p }}, documents...)
	size := int64(0)
	for _, d := range documents {
		size += int64(len(d))
	}
	if last.Bytes != size || last.Merges != 143 || last.Want != 143 || last.Words == 0 {
		t.Errorf("%+v at the end of %d bytes", last, size)
	}
}
