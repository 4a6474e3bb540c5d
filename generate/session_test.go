package generate

import (
	"bytes"
	"context"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nha/attention"
	"nha/backend"
	"nha/model"
	"nha/tensor"
	"nha/tokenizer"
)

func TestAnyChunkGivesTheSameContinuation(t *testing.T) {
	onBackends(t, func(t *testing.T, b backend.Backend) {
		g := tiny(t, b, hybrid, 1)
		prompt := g.Prompt(proverb)
		var want []int32
		var wantLogits, wantLogProbs []float64
		for _, chunk := range []int{512, 1, 2, 5, 7, 64} {
			g.Chunk = chunk
			s := g.NewSession()
			mustPrefill(t, s, prompt)
			logits := slices.Clone(s.Logits())
			got, logProbs, _, _ := run(t, g, s, nil, sampled(12))
			if want == nil {
				want, wantLogits, wantLogProbs = got, logits, logProbs
				continue
			}
			near(t, b, "logits", logits, wantLogits)
			near(t, b, "log-probabilities", logProbs, wantLogProbs)
			same(t, "tokens", got, want)
		}
		if want[0] == want[1] && want[1] == want[2] {
			t.Fatalf("the model repeats itself, the test shows nothing: %v", want)
		}
		g.Chunk = 0
		if err := g.NewSession().Prefill(context.Background(), prompt); err == nil {
			t.Error("a chunk of 0 is taken")
		}
	})
}

func TestForkAndRewind(t *testing.T) {
	onBackends(t, func(t *testing.T, b backend.Backend) {
		g := tiny(t, b, hybrid, 2)
		s := g.NewSession()
		mustPrefill(t, s, g.Prompt(proverb))
		fork := s.Clone()
		want, wantLogProbs, _, _ := run(t, g, s.Clone(), nil, sampled(10))
		run(t, g, fork, g.Prompt("something else"), sampled(9))
		got, logProbs, _, _ := run(t, g, s, nil, sampled(10))
		same(t, "tokens after a fork went its own way", got, want)
		same(t, "log-probabilities", logProbs, wantLogProbs)
	})
}

// A continuation in pieces, saved and loaded between them, is the continuation in one, to the bit.
func TestSaveAndLoad(t *testing.T) {
	onBackends(t, func(t *testing.T, b backend.Backend) {
		for _, windows := range []model.Windows{hybrid, {0, 0}, {3, 6}} {
			g := tiny(t, b, windows, 3)
			path := filepath.Join(t.TempDir(), "s.session")
			o := sampled(24)
			want, wantLogProbs, wantText, _ := run(t, g, g.NewSession(), g.Prompt(proverb), o)

			s := g.NewSession()
			mustPrefill(t, s, g.Prompt(proverb))
			var got []int32
			var logProbs []float64
			var text string
			for _, n := range []int{1, 5, 7, 11} {
				if err := s.Save(path); err != nil {
					t.Fatal(err)
				}
				var err error
				if s, err = g.LoadSession(path); err != nil {
					t.Fatal(err)
				}
				o.MaxNewTokens = n
				i, p, piece, _ := run(t, g, s, nil, o)
				got, logProbs, text = append(got, i...), append(logProbs, p...), text+piece
			}
			same(t, "tokens", got, want)
			same(t, "log-probabilities", logProbs, wantLogProbs)
			if text != wantText {
				t.Errorf("text %q, want %q", text, wantText)
			}
		}
	})
}

// A session may go on on another backend: logits as they were, the state in that backend's type.
func TestSessionOfAnotherBackend(t *testing.T) {
	g := tiny(t, ref(t), hybrid, 3)
	path := filepath.Join(t.TempDir(), "s.session")
	written := g.NewSession()
	mustPrefill(t, written, g.Prompt(proverb))
	if err := written.Save(path); err != nil {
		t.Fatal(err)
	}
	_, want, _, _ := run(t, g, written.Clone(), nil, sampled(5))
	onBackends(t, func(t *testing.T, b backend.Backend) {
		g := tiny(t, b, hybrid, 3)
		s, err := g.LoadSession(path)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "logits", s.Logits(), written.Logits())
		_, got, _, _ := run(t, g, s, nil, sampled(5))
		near(t, b, "log-probabilities", got, want)
	})
}

func TestLoadRefusesWhatDoesNotFit(t *testing.T) {
	b := ref(t)
	path := filepath.Join(t.TempDir(), "s.session")
	g := tiny(t, b, hybrid, 4)
	s := g.NewSession()
	mustPrefill(t, s, g.Prompt(proverb))
	if err := s.Save(path); err != nil {
		t.Fatal(err)
	}
	other := tiny(t, b, hybrid, 4)
	other.tk = tokenizer.Bytes{}
	for want, g := range map[string]*Generator{
		"another model": tiny(t, b, hybrid, 5),
		"layer windows 4 full 0, the model has 4": tiny(t, b, model.Windows{4, 4, 4}, 4),
		"num_hidden_layers 3, the model has 2":    tiny(t, b, model.Windows{4, 4}, 4),
		"num_slots 5, the model has 6":            tinyRule(t, b, hybrid, 4, 6, "count"),
		"empty_slots count, the model has mask":   tinyRule(t, b, hybrid, 4, 5, "mask"),
		"another tokenizer":                       other,
	} {
		_, err := g.LoadSession(path)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
	if _, err := g.LoadSession(path + "x"); err == nil || !strings.Contains(err.Error(), path+"x") {
		t.Errorf("error %v for a file that is not there", err)
	}
}

// Every cut and every flipped byte is an error, never a wrong session.
func TestDamagedSessionFile(t *testing.T) {
	g := tiny(t, ref(t), model.Windows{3, 0}, 4)
	s := g.NewSession()
	mustPrefill(t, s, g.Prompt(proverb))
	var file bytes.Buffer
	if err := s.write(&file); err != nil {
		t.Fatal(err)
	}
	data := file.Bytes()
	if _, err := g.readSession(bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	for n := 0; n < len(data); n += 1 + n/40 {
		if _, err := g.readSession(bytes.NewReader(data[:n])); err == nil || !strings.Contains(err.Error(), "truncated") {
			t.Fatalf("cut to %d of %d bytes: error %v", n, len(data), err)
		}
	}
	for i := 0; i < len(data); i += 1 + i/40 {
		data[i] ^= 0x10
		if _, err := g.readSession(bytes.NewReader(data)); err == nil {
			t.Fatalf("byte %d of %d changed: no error", i, len(data))
		}
		data[i] ^= 0x10
	}
}

func TestSaveIsAtomic(t *testing.T) {
	g := tiny(t, ref(t), model.Windows{3}, 4)
	dir := t.TempDir()
	path := filepath.Join(dir, "no", "s.session")
	if err := g.NewSession().Save(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v", err)
	}
	path = filepath.Join(dir, "s.session")
	if err := g.NewSession().Save(path); err != nil {
		t.Fatal(err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
	s, err := g.LoadSession(path)
	if err != nil || s.Position() != 0 {
		t.Fatal(err)
	}
}

func TestTokensOutsideTheVocabulary(t *testing.T) {
	g := tiny(t, ref(t), model.Windows{3}, 4)
	s := g.NewSession()
	for _, id := range []int32{-1, 257} {
		if err := s.Prefill(context.Background(), []int32{1, id}); err == nil || s.Position() != 0 {
			t.Errorf("prefill of %d: %v, position %d", id, err, s.Position())
		}
		if err := s.Step(id); err == nil || s.Position() != 0 {
			t.Errorf("step of %d: %v", id, err)
		}
	}
}

func TestLogitsThatAreNotNumbers(t *testing.T) {
	g := tiny(t, ref(t), model.Windows{3}, 4)
	p, ok := g.m.Parameter("model.norm.weight")
	if !ok {
		t.Fatal("no final norm")
	}
	bad := tensor.New(tensor.F64, p.Value.Shape)
	bad.F64()[0] = math.NaN()
	g.m.Backend().Write(p.Value.Tensor, bad)
	_, err := g.Generate(context.Background(), g.NewSession(), []int32{1, 2, 3}, sampled(3), func(Token) error { return nil })
	if err == nil || !strings.Contains(err.Error(), "after token 2") || !strings.Contains(err.Error(), "NaN") {
		t.Errorf("error %v", err)
	}
	s := g.NewSession()
	mustPrefill(t, s, []int32{1, 2})
	if _, err := s.Score(context.Background(), []int32{3, 4}); err == nil || !strings.Contains(err.Error(), "token 2 of") {
		t.Errorf("error %v", err)
	}
	for i := range s.logits {
		s.logits[i] = 0
	}
	if _, err := s.Score(context.Background(), []int32{3, 4, 5}); err == nil || !strings.Contains(err.Error(), "token 3 of") {
		t.Errorf("error %v", err)
	}
}

// The state is as large after a thousand tokens as after a hundred, and a step takes as little from the heap.
func TestMemoryIsConstantInTheLength(t *testing.T) {
	onBackends(t, func(t *testing.T, b backend.Backend) {
		g := tiny(t, b, model.Windows{8, 0}, 6)
		s := g.NewSession()
		mustPrefill(t, s, slices.Repeat([]int32{5, 6, 7, 8}, 25))
		sessions, id := []*Session{s}, []int32{0}
		step := func() {
			id[0] = (id[0]*7 + 3) % 256
			if err := g.Step(sessions, id); err != nil {
				t.Fatal(err)
			}
		}
		size, scratch, early := s.StateBytes(), 0, testing.AllocsPerRun(50, step)
		scratch = g.tape.Bytes()
		for s.Position() < 1000 {
			step()
		}
		late := testing.AllocsPerRun(50, step)
		if s.StateBytes() != size || g.tape.Bytes() != scratch {
			t.Errorf("state of %d bytes, scratch of %d; at 100 tokens %d and %d", s.StateBytes(), g.tape.Bytes(), size, scratch)
		}
		if late > early {
			t.Errorf("%v allocations a step at 1000 tokens, %v at 100", late, early)
		}
		if strings.HasPrefix(b.Name(), "cpu") && late > 8 { // the reference allocates its rows anew in every call, a card's states pass through the host
			t.Errorf("%v allocations a step", late)
		}
		t.Logf("%v allocations a step, state %d bytes", late, size)
	})
}

// A prompt far longer than the model was made for takes no more memory to read than a short one.
func TestLongPrompt(t *testing.T) {
	onBackends(t, func(t *testing.T, b backend.Backend) {
		g := tiny(t, b, model.Windows{8, 0}, 6)
		g.Chunk = 128
		s := g.NewSession()
		mustPrefill(t, s, make([]int32, 256))
		state, scratch := s.StateBytes(), g.tape.Bytes()
		mustPrefill(t, s, make([]int32, 4096))
		if s.Position() <= g.m.Config.MaxPositionEmbeddings || s.StateBytes() != state || g.tape.Bytes() != scratch {
			t.Errorf("position %d: state of %d bytes, scratch of %d; at 256 tokens %d and %d", s.Position(), s.StateBytes(), g.tape.Bytes(), state, scratch)
		}
	})
}

func TestScore(t *testing.T) {
	onBackends(t, func(t *testing.T, b backend.Backend) {
		g := tiny(t, b, model.Windows{4, attention.Full}, 7)
		o := sampled(50)
		o.RepetitionPenalty, o.EndTokens = 1, nil
		prompt := g.Prompt(proverb)
		tokens, want, _, _ := run(t, g, g.NewSession(), prompt, o)
		for _, chunk := range []int{512, 1, 7, 45} {
			g.Chunk = chunk
			s := g.NewSession()
			mustPrefill(t, s, prompt)
			got, err := s.Score(context.Background(), tokens)
			if err != nil {
				t.Fatal(err)
			}
			near(t, b, "log-probabilities", got, want)
			if s.Position() != len(prompt)+len(tokens) {
				t.Errorf("position %d after scoring", s.Position())
			}
		}
		if _, err := g.NewSession().Score(context.Background(), tokens); err == nil {
			t.Error("a first token has a probability")
		}
	})
}
