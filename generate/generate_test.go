package generate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"nha/attention"
	"nha/backend"
	"nha/model"
	"nha/tokenizer"
)

// Samples side by side are what one at a time would have been, whatever their lengths.
func TestSamplesAreOneAtATime(t *testing.T) {
	onBackends(t, func(t *testing.T, b backend.Backend) {
		g := tiny(t, b, hybrid, 8)
		g.Shares = true
		o := sampled(20)
		for id := range int32(24) { // some end early
			o.EndTokens = append(o.EndTokens, id*11)
		}
		const n = 4
		var ids [n][]int32
		var logProbs, shares [n][]float64
		s := g.NewSession()
		prompt := g.Prompt(proverb)
		forks, reasons, err := g.Samples(context.Background(), s, prompt, o, n, func(i int, k Token) error {
			ids[i], logProbs[i], shares[i] = append(ids[i], k.ID), append(logProbs[i], k.LogProb), append(shares[i], k.Share.Layers...)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		lengths := map[int]bool{}
		for i := range n {
			o.Sample = i
			var oneShares []float64
			one := g.NewSession()
			mustPrefill(t, one, prompt)
			reason, err := g.Generate(context.Background(), one, nil, o, func(k Token) error {
				oneShares = append(oneShares, k.Share.Layers...)
				return nil
			})
			if err != nil || reason != reasons[i] {
				t.Fatalf("sample %d ends with %q, alone with %q (%v)", i, reasons[i], reason, err)
			}
			want, wantLogProbs, _, _ := run(t, g, s.Clone(), nil, o)
			same(t, "tokens", ids[i], want)
			near(t, b, "log-probabilities", logProbs[i], wantLogProbs)
			near(t, b, "shares", shares[i], oneShares)
			near(t, b, "logits", forks[i].Logits(), one.Logits())
			if forks[i].Position() != len(prompt)+len(want) {
				t.Errorf("sample %d is at position %d after %d + %d tokens", i, forks[i].Position(), len(prompt), len(want))
			}
			lengths[len(want)] = true
		}
		if len(lengths) < 2 || s.Position() != len(prompt) {
			t.Errorf("lengths %v, the prompt's session at %d", lengths, s.Position())
		}
	})
}

// Sessions of other lengths and histories in one batch.
func TestContinueTogether(t *testing.T) {
	onBackends(t, func(t *testing.T, b backend.Backend) {
		g := tiny(t, b, hybrid, 9)
		var together, apart []*Session
		for _, text := range []string{"a", proverb, "three blind mice"} {
			s := g.NewSession()
			mustPrefill(t, s, g.Prompt(text))
			together, apart = append(together, s), append(apart, s.Clone())
		}
		var got [3][]int32
		if _, err := g.Continue(context.Background(), together, sampled(9), func(i int, k Token) error {
			got[i] = append(got[i], k.ID)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		for i, s := range apart {
			o := sampled(9)
			o.Sample = i
			want, _, _, _ := run(t, g, s, nil, o)
			same(t, "tokens", got[i], want)
			near(t, b, "logits", together[i].Logits(), s.Logits())
		}
	})
}

func TestSeedsAndSamplesDiffer(t *testing.T) {
	g := tiny(t, ref(t), hybrid, 8)
	s := g.NewSession()
	mustPrefill(t, s, g.Prompt(proverb))
	var all []string
	for _, change := range []func(*Sampling){func(*Sampling) {}, func(o *Sampling) { o.Seed++ }, func(o *Sampling) { o.Sample++ }} {
		o := sampled(12)
		change(&o)
		ids, _, _, _ := run(t, g, s.Clone(), nil, o)
		again, _, _, _ := run(t, g, s.Clone(), nil, o)
		same(t, "the same seed", again, ids)
		all = append(all, string(g.tk.Decode(ids)))
	}
	if all[0] == all[1] || all[0] == all[2] || all[1] == all[2] {
		t.Errorf("another seed or sample writes the same: %q", all)
	}
}

func TestTextIsWholeCharacters(t *testing.T) {
	g := tiny(t, ref(t), hybrid, 10)
	o := sampled(300)
	o.TopK, o.Temperature = 0, 2
	var ids []int32
	text := ""
	if _, err := g.Generate(context.Background(), g.NewSession(), g.Prompt("é"), o, func(k Token) error {
		if !utf8.ValidString(k.Text) {
			t.Errorf("piece %q", k.Text)
		}
		ids, text = append(ids, k.ID), text+k.Text
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	ids = slices.DeleteFunc(ids, g.tk.Special)
	raw := g.tk.Decode(ids)
	raw = raw[:tornFrom([]byte(raw))]
	if want := tokenizer.Lossy(raw); text != want {
		t.Errorf("text %q, want %q", text, want)
	}
}

// A character whose bytes the model writes in two calls, with a file between them, comes out whole.
func TestCharacterAcrossCalls(t *testing.T) {
	g := tiny(t, ref(t), model.Windows{3}, 10)
	s := g.NewSession()
	euro := []int32{'a', 0xe2, 0x82, 0xac}
	mustPrefill(t, s, euro[:3])
	path := filepath.Join(t.TempDir(), "s")
	if err := s.Save(path); err != nil {
		t.Fatal(err)
	}
	s, err := g.LoadSession(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*Session{s, s.Clone()} {
		x := newTextStream(g.tk, nil, s.tail)
		if text, _ := x.push(euro[3]); text != "€" {
			t.Errorf("text %q", text)
		}
	}
	mustPrefill(t, s, euro[3:])
	if len(s.tail)+len(s.torn) != 0 {
		t.Errorf("tail %v of a whole character", s.tail)
	}
	mustPrefill(t, s, []int32{0xe2, 0x82, 0xf0, 0x9f})
	same(t, "tail of a character begun after a broken one", s.tail, []int32{0xf0, 0x9f})
	mustPrefill(t, s, []int32{256})
	if len(s.tail)+len(s.torn) != 0 {
		t.Errorf("tail %v after a special token", s.tail)
	}
}

func TestSpecialTokensAreNotShown(t *testing.T) {
	x := newTextStream(tokenizer.Bytes{EndOfText: true}, []string{"xy"}, nil)
	text := ""
	for _, id := range []int32{'a', 256, 0xc3, 256, 'x', 256, 'z', 0xc3} {
		piece, _ := x.push(id)
		text += piece
	}
	if text += x.end(); text != "a\uFFFDxz\uFFFD" {
		t.Errorf("text %q", text)
	}
}

func TestFirstOfSeveralStopStrings(t *testing.T) {
	for _, stops := range [][]string{{"1", "2"}, {"2", "1"}} {
		x := newTextStream(tokenizer.Bytes{}, stops, nil)
		if text, stopped := x.hold("a1b2"); text != "a" || !stopped {
			t.Errorf("stops %q: text %q", stops, text)
		}
	}
}

// What was held because it might have begun a stop string comes out when the text ends otherwise, for whatever reason.
func TestHeldTextComesOut(t *testing.T) {
	g := tiny(t, ref(t), hybrid, 11)
	o := sampled(30)
	prompt := g.Prompt(proverb)
	ids, _, text, _ := run(t, g, g.NewSession(), prompt, o)
	last := []rune(text)[len([]rune(text))-1]
	if !strings.ContainsRune(string(g.tk.Token(ids[len(ids)-1])), last) {
		t.Fatalf("the last token completes no character: choose another seed")
	}
	o.Stop = []string{string(last) + "never"}
	if _, _, got, reason := run(t, g, g.NewSession(), prompt, o); got != text || reason != Length {
		t.Errorf("length: text %q, want %q", got, text)
	}
	s := g.NewSession()
	mustPrefill(t, s, prompt)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	got := ""
	q, n := sampled(1), 0
	_, _, want, _ := run(t, g, s.Clone(), nil, q)
	q.MaxNewTokens, q.Stop = 9, []string{want + "never"}
	if reasons, err := g.Continue(ctx, []*Session{s}, q, func(_ int, k Token) error { got += k.Text; n++; return nil }); want == "" ||
		got != want || n != 1 || reasons[0] != Cancelled || !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: text %q, want %q; %v, %v", got, want, reasons, err)
	}
	o.EndTokens = []int32{ids[len(ids)-1]}
	first := slices.Index(ids, ids[len(ids)-1])
	whole := tokenizer.Lossy(g.tk.Decode(slices.DeleteFunc(slices.Clone(ids[:first]), g.tk.Special)))
	r := []rune(whole)
	o.Stop = []string{string(r[len(r)-1]) + "never"}
	if _, _, got, reason := run(t, g, g.NewSession(), prompt, o); got != whole || reason != Stop {
		t.Errorf("end token: text %q, want %q", got, whole)
	}
}

func TestTornFrom(t *testing.T) {
	for text, want := range map[string]int{"": 0, "a": 1, "é": 2, "a\xc3": 1, "\xe2\x82": 0, "a\xf0\x9f\x98": 1, "\xf0\x9f\x98\x80": 4, "\x82\x82\x82": 3, "\xe2(": 2, "\xff": 1} {
		if got := tornFrom([]byte(text)); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
}

func TestStopStringsInPieces(t *testing.T) {
	for _, tt := range []struct {
		text  string
		stops []string
		want  string
		stop  bool
	}{
		{"hello END there", []string{"END"}, "hello ", true},
		{"hello EN there", []string{"END"}, "hello EN there", false},
		{"aab", []string{"ab"}, "a", true},
		{"ababac", []string{"abac"}, "ab", true},
		{"xabcy", []string{"abcd", "bc"}, "xa", true},
		{"ends in EN", []string{"END"}, "ends in EN", false},
		{"grün und gelb", []string{"ün"}, "gr", true},
		{"grün", []string{"è", "ü!"}, "grün", false},
		{"a\n\nb", []string{"\n\n", "b"}, "a", true},
	} {
		x := newTextStream(tokenizer.Bytes{}, tt.stops, nil)
		text, stopped := "", false
		for i := 0; i < len(tt.text) && !stopped; i++ {
			var piece string
			piece, stopped = x.push(int32(tt.text[i]))
			text += piece
			for _, s := range tt.stops {
				if strings.Contains(text, s) {
					t.Errorf("%q shows its stop string", text)
				}
			}
			if !strings.HasPrefix(tt.want, text) {
				t.Errorf("%q shows too much: %q", tt.text, text)
			}
		}
		if !stopped {
			text += x.end()
		}
		if text != tt.want || stopped != tt.stop {
			t.Errorf("%q with stops %q gives %q, %t", tt.text, tt.stops, text, stopped)
		}
	}
}

func TestStopStringEndsGeneration(t *testing.T) {
	g := tiny(t, ref(t), hybrid, 11)
	o := sampled(60)
	ids, _, text, reason := run(t, g, g.NewSession(), g.Prompt(proverb), o)
	if reason != Length || len(ids) != 60 {
		t.Fatalf("%d tokens, %q", len(ids), reason)
	}
	runes := []rune(text)
	stop := string(runes[20:23])
	o.Stop = []string{"never, never", stop}
	s := g.NewSession()
	stoppedIDs, _, stopped, reason := run(t, g, s, g.Prompt(proverb), o)
	if want := text[:strings.Index(text, stop)]; stopped != want || reason != Stop {
		t.Errorf("text %q (%s), want %q", stopped, reason, want)
	}
	same(t, "tokens", stoppedIDs, ids[:len(stoppedIDs)])
	if s.Position() != len(g.Prompt(proverb))+len(stoppedIDs) {
		t.Errorf("position %d", s.Position())
	}
}

func TestEndTokens(t *testing.T) {
	g := tiny(t, ref(t), hybrid, 12)
	o := sampled(40)
	ids, _, _, _ := run(t, g, g.NewSession(), g.Prompt(proverb), o)
	o.EndTokens = []int32{ids[25], ids[10]}
	got, _, text, reason := run(t, g, g.NewSession(), g.Prompt(proverb), o)
	first := slices.IndexFunc(ids, o.ends)
	same(t, "tokens", got, ids[:first+1])
	if reason != Stop || text != tokenizer.Lossy(g.tk.Decode(slices.DeleteFunc(slices.Clone(ids[:first]), g.tk.Special))) {
		t.Errorf("text %q, %q", text, reason)
	}
}

func TestCancel(t *testing.T) {
	g := tiny(t, ref(t), hybrid, 13)
	o := sampled(30)
	want, _, wantText, _ := run(t, g, g.NewSession(), g.Prompt(proverb), o)
	ctx, cancel := context.WithCancel(context.Background())
	s := g.NewSession()
	var ids []int32
	var text string
	reason, err := g.Generate(ctx, s, g.Prompt(proverb), o, func(k Token) error {
		ids, text = append(ids, k.ID), text+k.Text
		if len(ids) == 5 {
			cancel()
		}
		return nil
	})
	if reason != Cancelled || !errors.Is(err, context.Canceled) || len(ids) != 6 {
		t.Errorf("%q, %v after %d tokens", reason, err, len(ids))
	}
	if s.Position() != len(g.Prompt(proverb))+len(ids) {
		t.Errorf("position %d", s.Position())
	}
	o.MaxNewTokens -= len(ids)
	rest, _, restText, _ := run(t, g, s, nil, o)
	same(t, "tokens of both parts", append(ids, rest...), want)
	if text+restText != wantText {
		t.Errorf("text %q, want %q", text+restText, wantText)
	}
	if _, err := g.Generate(ctx, g.NewSession(), g.Prompt(proverb), o, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestEmitErrorStops(t *testing.T) {
	g := tiny(t, ref(t), hybrid, 13)
	broken := errors.New("broken pipe")
	n := 0
	reason, err := g.Generate(context.Background(), g.NewSession(), g.Prompt("x"), sampled(30), func(Token) error { n++; return broken })
	if !errors.Is(err, broken) || n != 1 || reason != Unfinished {
		t.Errorf("%v after %d tokens, %q", err, n, reason)
	}
}

func TestEmptyPrompt(t *testing.T) {
	g := tiny(t, ref(t), hybrid, 14)
	ids, _, _, _ := run(t, g, g.NewSession(), g.Prompt(""), sampled(5))
	want, _, _, _ := run(t, g, g.NewSession(), []int32{256}, sampled(5))
	same(t, "from EOS", ids, want)
	g.tk = tokenizer.Bytes{}
	if _, err := g.Generate(context.Background(), g.NewSession(), nil, sampled(5), nil); err == nil || !strings.Contains(err.Error(), "give a prompt") {
		t.Errorf("error %v", err)
	}
	if _, err := g.Continue(context.Background(), []*Session{g.NewSession()}, sampled(5), nil); err == nil {
		t.Error("an empty session is continued")
	}
	s := g.NewSession()
	if ids, _, _, reason := run(t, g, s, []int32{1}, sampled(0)); len(ids) != 0 || reason != Length || s.Position() != 1 {
		t.Errorf("0 new tokens: %v, %q", ids, reason)
	}
}

func TestDefaults(t *testing.T) {
	g := tiny(t, ref(t), model.Windows{attention.Full}, 15)
	dir := t.TempDir()
	base := DefaultSampling()
	with := func(change func(o *Sampling)) Sampling {
		o := base
		o.EndTokens = []int32{256}
		change(&o)
		return o
	}
	check := func(text string, want Sampling) {
		t.Helper()
		if got, err := g.Defaults(dir); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v; want %+v", text, got, err, want)
		}
	}
	check("no file", with(func(*Sampling) {}))
	for text, want := range map[string]Sampling{
		`{}`:                  with(func(*Sampling) {}),
		`{"temperature":0.6}`: with(func(*Sampling) {}), // Hugging Face: greedy without do_sample
		`{"do_sample":true}`:  with(func(o *Sampling) { o.Temperature = 1 }),
		`{"do_sample":true,"temperature":0.6,"top_k":20,"top_p":0.9,"min_p":0.1,"repetition_penalty":1.1,"max_new_tokens":5,"eos_token_id":[3,4],
		  "bos_token_id":1,"pad_token_id":null,"transformers_version":"4","num_beams":1,"typical_p":1.0,"early_stopping":false,"stop_strings":"x"}`: with(func(o *Sampling) {
			*o = Sampling{Temperature: 0.6, TopK: 20, TopP: 0.9, MinP: 0.1, RepetitionPenalty: 1.1, MaxNewTokens: 5, EndTokens: []int32{3, 4}, Stop: []string{"x"}}
		}),
		`{"eos_token_id":7}`: with(func(o *Sampling) { o.EndTokens = []int32{7} }),
	} {
		if err := os.WriteFile(filepath.Join(dir, configName), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		check(text, want)
	}
	for text, want := range map[string]string{
		`{"top_q":1}`:                  "unknown key top_q",
		`{"num_beams":4}`:              "num_beams 4 is not supported",
		`{"top_k":"many"}`:             "top_k",
		`{"eos_token_id":[1,"x"]}`:     "eos_token_id",
		`{"eos_token_id":300}`:         "eos_token_id 300",
		`{"do_sample":1}`:              "do_sample",
		`{"do_sample":true,"top_p":7}`: "top_p 7",
		`[1]`:                          "not a JSON object",
	} {
		if err := os.WriteFile(filepath.Join(dir, configName), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := g.Defaults(dir); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), configName) {
			t.Errorf("%s: error %v, want one with %q", text, err, want)
		}
	}
}

// A model that is one file ends where its tokenizer knows that a turn does, within the model's vocabulary.
func TestDefaultsOfFile(t *testing.T) {
	tokens := []string{"a", "b", "<|im_end|>", "<|eot_id|>"}
	for len(tokens) < 300 {
		tokens = append(tokens, fmt.Sprintf("[PAD%d]", len(tokens)))
	}
	tokens[299] = "</s>"
	tk, err := tokenizer.FromGGUF(func(key string) (any, bool) {
		v, ok := map[string]any{"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": []string{},
			"tokenizer.ggml.eos_token_id": uint64(1)}[key]
		return v, ok
	})
	if err != nil {
		t.Fatal(err)
	}
	g := tiny(t, ref(t), model.Windows{attention.Full}, 15)
	g.tk = tk
	file := filepath.Join(t.TempDir(), "model.gguf")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string][]int32{file: {1, 2, 3}, filepath.Dir(file): {1}} {
		if o, err := g.Defaults(path); err != nil || !slices.Equal(o.EndTokens, want) {
			t.Errorf("%s ends with %v, want %v: %v", path, o.EndTokens, want, err)
		}
	}
}
