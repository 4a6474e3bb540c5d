package chat

import (
	"bufio"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"nha/tokenizer"
)

// truthNow is the time that scripts/chat-truth gives strftime_now.
var truthNow = time.Date(2025, 3, 7, 9, 5, 4, 0, time.UTC)

// ends are the BOS and EOS that scripts/chat-truth gives templates, by the beginning of their names.
var ends = []struct{ prefix, bos, eos string }{
	{"llama-2", "<s>", "</s>"}, {"mistral", "<s>", "</s>"}, {"llama-3", "<|begin_of_text|>", "<|eot_id|>"},
	{"deepseek", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"}, {"smollm2", "<|im_start|>", "<|im_end|>"}, {"", "", "<|im_end|>"},
}

type truthCase struct {
	Template   string
	Messages   []Message
	Generation bool
	Variables  map[string]any
	Want       string
	Error      string
}

// Every template on every conversation gives what transformers gives, or refuses it as transformers does.
func TestTruth(t *testing.T) {
	f, err := os.Open(filepath.Join("testdata", "cases.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	templates := map[string]*Template{}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	cases := 0
	for ; lines.Scan(); cases++ {
		var c truthCase
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			t.Fatal(err)
		}
		if templates[c.Template] == nil {
			source, err := os.ReadFile(filepath.Join("testdata", c.Template))
			if err != nil {
				t.Fatal(err)
			}
			if templates[c.Template], err = Parse(c.Template, string(source)); err != nil {
				t.Fatal(err)
			}
		}
		o := Options{AddGenerationPrompt: c.Generation, Variables: c.Variables, Now: truthNow}
		for _, e := range ends {
			if strings.HasPrefix(c.Template, e.prefix) {
				o.BOS, o.EOS = e.bos, e.eos
				break
			}
		}
		got, err := templates[c.Template].Render(c.Messages, o)
		switch {
		case c.Error != "":
			if err == nil || !strings.Contains(err.Error(), c.Error) || !strings.Contains(err.Error(), ", line ") {
				t.Errorf("%s: %v: error %v, want %q with a line", c.Template, c.Messages, err, c.Error)
			}
		case err != nil:
			t.Errorf("%s: %v: %v", c.Template, c.Messages, err)
		case got != c.Want:
			t.Errorf("%s: %v:\n got %q\nwant %q", c.Template, c.Messages, got, c.Want)
		}
	}
	if cases < 500 || len(templates) < 12 {
		t.Errorf("%d cases of %d templates", cases, len(templates))
	}
}

// What fails says so, with the line where there is one.
func TestErrors(t *testing.T) {
	for _, c := range []struct{ source, want string }{
		{"{% if %}", "cannot be read"},
		{"a\nb\n{{ 'x' ", "line 3"},
		{"a\n{% include '/etc/passwd' %}", "line 2"},
		{"{% if true %}", "unclosed if"},
		{"a\n\n{{ raise_exception('no ' ~ messages[0].role) }}", "t: the chat template refuses the conversation, line 3: no user"},
		{"{% for m in messages %}\n{%- if m.role == 'user' %}\n{{- raise_exception(\"}}\") -}}{% endif %}{% endfor %}", "line 3: }}"},
		{"x\n{% set x = 1 %}\n{{ x.y.z() }}", "the chat template failed, line 3: x.y.z is not callable"},
		{"\n{%- set s = messages[0].content.nosuch() -%}\n", "failed, line 2"},
		{"{# a\nb #}\n{% if 'x' | nosuch %}{% endif %}", "failed, line 3: unknown filter"},
		{"{{ strftime_now('%Q') }}", "%Q is not supported"},
		{"{{ strftime_now('%') }}", "ends with %"},
		{"{% for i in range(1000000) %}{% endfor %}", "more than 100000"},
		{"{% for i in range(1, 2, 0) %}{% endfor %}", "step 0"},
	} {
		tt, err := Parse("t", c.source)
		if err == nil {
			_, err = tt.Render([]Message{{"user", "hi"}}, Options{})
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "t: ") {
			t.Errorf("%q: error %v, want one with %s", c.source, err, c.want)
		}
	}
}

func TestOptions(t *testing.T) {
	tt, err := Parse("t", "{{ bos_token }}{{ messages | length }}{% if thinking %} on{% endif %} {{ strftime_now('%d %b %Y %-d %%') }}"+
		"{% if tools is none and bos_token is defined %}{{ eos_token }}{% endif %}")
	if err != nil {
		t.Fatal(err)
	}
	got, err := tt.Render(nil, Options{BOS: "<s>", EOS: "</s>", Variables: map[string]any{"thinking": true}, Now: truthNow})
	if want := "<s>0 on 07 Mar 2025 7 %</s>"; err != nil || got != want {
		t.Errorf("%q %v, want %q", got, err, want)
	}
	if got, err := tt.Render(nil, Options{Now: truthNow}); err != nil || got != "0 07 Mar 2025 7 %" {
		t.Errorf("%q %v", got, err)
	}
}

func TestLoad(t *testing.T) {
	for _, c := range []struct {
		files map[string]string
		want  string // what is rendered, or the error
	}{
		{map[string]string{templateFile: "a", configFile: `{"chat_template": "b"}`}, "a"},
		{map[string]string{configFile: `{"chat_template": "b"}`}, "b"},
		{map[string]string{jsonFile: `{"chat_template": "c"}`, configFile: "{}"}, "c"},
		{map[string]string{configFile: `{"chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "d"}]}`}, "d"},
		{map[string]string{configFile: `{"chat_template": [{"name": "rag", "template": "x"}]}`}, "of its templates (rag) none is named default"},
		{map[string]string{configFile: `{"chat_template": 7}`}, "chat_template: want a string"},
		{map[string]string{configFile: `{"chat_template": `}, "not valid JSON"},
		{map[string]string{configFile: `{"chat_template": null}`}, "there is no chat template"},
		{map[string]string{}, "there is no chat template"},
		{map[string]string{templateFile: "{% if"}, templateFile + ": the chat template cannot be read"},
	} {
		dir := t.TempDir()
		for name, text := range c.files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		tt, err := Load(dir)
		got := ""
		if err != nil {
			got = err.Error()
			if !strings.Contains(got, dir) {
				t.Errorf("%v: error %v without the path", c.files, err)
			}
		} else if got, err = tt.Render(nil, Options{}); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%v: %q, want %q", c.files, got, c.want)
		}
	}
	if _, err := Load(t.TempDir()); !errors.Is(err, ErrNoTemplate) {
		t.Errorf("no template: %v", err)
	}
	value := func(v any) func(string) (any, bool) {
		return func(key string) (any, bool) { return v, key == "tokenizer.chat_template" }
	}
	if tt, err := FromGGUF(value("g")); err != nil || tt.Source() != "g" {
		t.Errorf("from a GGUF: %v %v", tt, err)
	}
	if _, err := FromGGUF(value(7)); err == nil || !strings.Contains(err.Error(), "tokenizer.chat_template: is a int") {
		t.Errorf("from a GGUF with a number: %v", err)
	}
	if _, err := FromGGUF(func(string) (any, bool) { return nil, false }); !errors.Is(err, ErrNoTemplate) {
		t.Errorf("from a GGUF without: %v", err)
	}
}

// Special tokens that the template writes are such tokens; nothing is added.
func TestEncode(t *testing.T) {
	tk := tokenizer.Bytes{EndOfText: true}
	tt, err := Parse("t", "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}")
	if err != nil {
		t.Fatal(err)
	}
	ids, err := tt.Encode(tk, []Message{{"user", "a"}, {"user", "b"}}, Options{})
	if want := []int32{'a', 256, 'b', 256}; err != nil || !slices.Equal(ids, want) {
		t.Errorf("%v %v, want %v", ids, err, want)
	}
	if _, err := tt.Encode(tk, nil, Options{}); err != nil {
		t.Error(err)
	}
}

// A template is a program of a stranger's: whatever it is, no panic.
func FuzzTemplate(f *testing.F) {
	paths, err := filepath.Glob(filepath.Join("testdata", "*.jinja"))
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range paths {
		source, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(source))
	}
	messages := []Message{{"system", "s"}, {"user", "hi"}, {"assistant", "yes"}, {"user", "x"}}
	f.Fuzz(func(t *testing.T, source string) {
		if len(source) > 1<<14 {
			return
		}
		tt, err := Parse("t", source)
		if err != nil {
			return
		}
		_, _ = tt.Render(messages, Options{BOS: "<s>", Now: truthNow})
	})
}

// Marked templates write what unmarked ones do.
func TestMark(t *testing.T) {
	paths, err := filepath.Glob(filepath.Join("testdata", "*.jinja"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no templates: %v", err)
	}
	for _, path := range paths {
		source, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		plain, err := Parse(path, string(source))
		if err != nil {
			t.Fatal(err)
		}
		marked, err := Parse(path, mark(string(source)))
		if err != nil {
			t.Fatal(err)
		}
		messages := []Message{{"user", "hi"}, {"assistant", "<think>a</think>yes"}, {"user", "x"}}
		o := Options{BOS: "<s>", EOS: "</s>", AddGenerationPrompt: true, Now: truthNow}
		want, err := plain.Render(messages, o)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := marked.Render(messages, o); err != nil || got != want {
			t.Errorf("%s: marked %q %v, want %q", path, got, err, want)
		}
	}
}
