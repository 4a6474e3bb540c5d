package generate

import (
	"bytes"
	"context"
	"encoding/json"
	"math"
	"strings"
	"testing"

	"nha/backend"
	"nha/tokenizer"
)

func TestJSONL(t *testing.T) {
	onBackends(t, func(t *testing.T, b backend.Backend) {
		g := tiny(t, b, hybrid, 20)
		o := sampled(6)
		in := "\uFEFF{\"prompt\": \"one <&> é\"}\r\n\n{\"prompt\":\"two\",\"max_new_tokens\":3,\"temperature\":0,\"seed\":9,\"stop\":[\"~~\"]}\n{\"prompt\":\"three\",\"n\":2,\"seed\":null}"
		var out bytes.Buffer
		if err := g.JSONL(context.Background(), "in.jsonl", strings.NewReader(in), &out, o, 1); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out.String(), `"prompt":"one <&> é"`) {
			t.Errorf("escaped: %s", out.String())
		}
		two, three := o, o
		two.MaxNewTokens, two.Temperature, two.Seed = 3, 0, 9
		d := json.NewDecoder(&out)
		for i, want := range []struct {
			prompt string
			o      Sampling
			sample int
		}{{"one <&> é", o, 0}, {"two", two, 0}, {"three", three, 0}, {"three", three, 1}} {
			var got Result
			if err := d.Decode(&got); err != nil {
				t.Fatal(err)
			}
			want.o.Sample = want.sample
			ids, logProbs, text, reason := run(t, g, g.NewSession(), g.Prompt(want.prompt), want.o)
			if got.Prompt != want.prompt || got.Text != text || got.FinishReason != reason {
				t.Errorf("line %d: %+v, want text %q", i, got, text)
			}
			same(t, "tokens", got.Tokens, ids)
			near(t, b, "log-probabilities", got.LogProbs, logProbs)
		}
		if d.More() {
			t.Error("more lines than prompts")
		}
	})
}

func TestJSONLErrors(t *testing.T) {
	g := tiny(t, ref(t), hybrid, 20)
	good := "{\"prompt\":\"x\"}\n\n"
	for line, want := range map[string]string{
		`{"prompt":"x"`:                      "not a JSON object",
		`[1]`:                                "not a JSON object",
		`{}`:                                 `no "prompt"`,
		`null`:                               `no "prompt"`,
		`{"prompt":7}`:                       "prompt",
		`{"prompt":"x","tmperature":1}`:      `unknown key "tmperature"`,
		`{"prompt":"x","top_p":0}`:           "top_p 0",
		`{"prompt":"x","n":0}`:               "0 samples",
		`{"prompt":"x","seed":-1}`:           "seed",
		"{\"prompt\":\"\xff\"}":              "UTF-8",
		`{"prompt":"x","eos_token_id":3}`:    "eos_token_id",
		`{"prompt":"x","max_new_tokens":.5}`: "JSON",
	} {
		var out bytes.Buffer
		err := g.JSONL(context.Background(), "in.jsonl", strings.NewReader(good+line), &out, sampled(1), 1)
		if err == nil || !strings.HasPrefix(err.Error(), "in.jsonl: line 3: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want one with %q", line, err, want)
		}
		if strings.Count(out.String(), "\n") != 1 {
			t.Errorf("%s: wrote %q", line, out.String())
		}
	}
	g.tk = tokenizer.Bytes{}
	err := g.JSONL(context.Background(), "in.jsonl", strings.NewReader(`{"prompt":""}`), &bytes.Buffer{}, sampled(1), 1)
	if err == nil || !strings.Contains(err.Error(), "line 1") || !strings.Contains(err.Error(), "give a prompt") {
		t.Errorf("error %v", err)
	}
}

func TestScoreJSONL(t *testing.T) {
	g := tiny(t, ref(t), hybrid, 21)
	in := `{"prompt":"The cat ","continuation":"sat"}` + "\n" + `{"prompt":"","continuation":"x"}` + "\n"
	var out bytes.Buffer
	if err := g.ScoreJSONL(context.Background(), "in.jsonl", strings.NewReader(in), &out); err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(&out)
	for _, want := range []struct{ before, after string }{{"The cat", " sat"}, {tokenizer.EndOfText, "x"}} {
		var got Score
		if err := d.Decode(&got); err != nil {
			t.Fatal(err)
		}
		s := g.NewSession()
		mustPrefill(t, s, g.tk.Encode(want.before))
		sum := 0.0
		for i, id := range g.tk.Encode(want.after) {
			lse, err := logSumExp(s.Logits())
			if err != nil || got.Tokens[i] != id || math.Abs(got.LogProbs[i]-(s.Logits()[id]-lse)) > 1e-9 {
				t.Errorf("token %d: %d with %v, want %d with %v", i, got.Tokens[i], got.LogProbs[i], id, s.Logits()[id]-lse)
			}
			sum += s.Logits()[id] - lse
			if err := s.Step(id); err != nil {
				t.Fatal(err)
			}
		}
		if math.Abs(got.Sum-sum) > 1e-9 || len(got.Tokens) != len(want.after) {
			t.Errorf("sum %v over %d tokens, want %v", got.Sum, len(got.Tokens), sum)
		}
	}
	for line, want := range map[string]string{
		`{"prompt":"x"}`:                          `no "continuation"`,
		`{"prompt":"x","continuation":""}`:        "empty",
		`{"prompt":"x","continuation":"y","k":1}`: `unknown key "k"`,
	} {
		err := g.ScoreJSONL(context.Background(), "in.jsonl", strings.NewReader(line), &bytes.Buffer{})
		if err == nil || !strings.HasPrefix(err.Error(), "in.jsonl: line 1: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want one with %q", line, err, want)
		}
	}
}
