package eval

import (
	"math"
	"reflect"
	"strings"
	"testing"
)

// TestPrompts: the words of every multiple-choice task, from rows as they are published.
func TestPrompts(t *testing.T) {
	m := tiny(t, 4)
	for _, c := range []struct {
		task, row string
		want      [][2]string
		target    string
	}{
		{"arc_challenge", `{"id": "x", "question": "Which is wet?", "choices": {"text": ["sand", "water"], "label": ["1", "2"]}, "answerKey": "2"}`,
			[][2]string{{"Question: Which is wet?\nAnswer:", " sand"}, {"Question: Which is wet?\nAnswer:", " water"}}, "water"},
		{"hellaswag", `{"activity_label": "Roof work", "ctx_a": "[header] How to [title] Lay tiles", "ctx_b": "a MAN", "endings": [" goes  up. [step] Now", "falls [x]"], "label": "1"}`,
			[][2]string{{"Roof work: How to. Lay tiles A man", " goes up. Now"}, {"Roof work: How to. Lay tiles A man", " falls "}}, "falls "},
		{"piqa", `{"goal": "Open a jar.", "sol1": "Twist it.", "sol2": "Sing.", "label": 0}`,
			[][2]string{{"Question: Open a jar.\nAnswer:", " Twist it."}, {"Question: Open a jar.\nAnswer:", " Sing."}}, "Twist it."},
		{"winogrande", `{"sentence": "Ann saw Eve, and _ waved twice. ", "option1": "Ann", "option2": "Eve", "answer": "2"}`,
			[][2]string{{"Ann saw Eve, and Ann", " waved twice."}, {"Ann saw Eve, and Eve", " waved twice."}}, "waved twice."},
		{"lambada_openai", `{"text": "He said \"go  home\" now"}`, [][2]string{{`He said "go  home"`, " now"}}, " now"},
		{"lambada_standard", `{"text": "one"}`, [][2]string{{"", " one"}}, " one"},
	} {
		dir := folder(t, map[string]string{c.task + ".jsonl": c.row})
		docs, err := built(t, m, Options{Tasks: []string{c.task}, Data: dir})
		if err != nil {
			t.Errorf("%s: %v", c.task, err)
			continue
		}
		var got [][2]string
		for _, q := range docs[0].requests {
			got = append(got, q.arguments)
		}
		if !reflect.DeepEqual(got, c.want) || docs[0].target != c.target {
			t.Errorf("%s: %q, target %q\nwant %q, target %q", c.task, got, docs[0].target, c.want, c.target)
		}
	}
}

// TestScoreRequest: tokens of context and continuation are those of lm-evaluation-harness.
func TestScoreRequest(t *testing.T) {
	e := newEncoder(bytesTokenizer, 6)
	for _, c := range []struct {
		context, continuation string
		ids, want             string
		truncated             int
	}{
		{"ab", " cd", "ab", " cd", 0},
		{"ab \n", "cd", "ab", " \ncd", 0},
		{"", "abc", "\x00", "abc", 0},      // EOS, the prefix
		{"abcdef", " g", "bcdef", " g", 1}, // 6 tokens are read: the last is only predicted
		{"abcdefgh", " i", "defgh", " i", 3},
	} {
		r, err := e.score(c.context, c.continuation)
		if err != nil {
			t.Errorf("%q, %q: %v", c.context, c.continuation, err)
			continue
		}
		ids := strings.ReplaceAll(bytesTokenizer.Decode(r.context), "<|endoftext|>", "\x00")
		if ids != c.ids || bytesTokenizer.Decode(r.continuation) != c.want || r.truncated != c.truncated {
			t.Errorf("%q, %q: context %q, continuation %q, %d cut", c.context, c.continuation, ids, bytesTokenizer.Decode(r.continuation), r.truncated)
		}
	}
	_, err := e.score("a", " 1234567")
	wantError(t, err, "8 tokens, more than the context of 6", "--context")
	_, err = e.score("a", "")
	wantError(t, err, "no tokens")
}

func TestChosen(t *testing.T) {
	a := []answer{{LogProb: -4}, {LogProb: -3}, {LogProb: -3}, {LogProb: -8}}
	for gold, want := range map[int][2]float64{1: {1, 0}, 2: {0, 0}, 3: {0, 1}} {
		m := chosen(gold, []int{3, 1, 1, 20})(a)
		if m[0].value != want[0] || m[1].value != want[1] {
			t.Errorf("gold %d: %v", gold, m)
		}
	}
}

// TestDetokenize: a page as WikiText writes it.
func TestDetokenize(t *testing.T) {
	page := " = The song 's title = \n \n It sold 1 @,@ 500 copies ( in 3 @.@ 5 days ) ; the twins ' \" first song \" was well @-@ known . N . \n"
	want := " = The song's title =\n\nIt sold 1,500 copies (in 3.5 days); the twins' \"first song\" was well-known. N.\n"
	if got := detokenize(page); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if got := countWords(" one two\n\nthree "); got != 5 { // as Python's re.split, the empty ends count
		t.Errorf("%d words", got)
	}
}

// TestWikitext: windows of the context cover the page once, and the ratios are over the page as it is written.
func TestWikitext(t *testing.T) {
	m := tiny(t, 4)
	page := strings.Repeat("some words , and more . ", 100)
	docs, err := built(t, m, Options{Tasks: []string{"wikitext"}, Data: folder(t, map[string]string{"wikitext.jsonl": `{"page": "` + page + `"}`})})
	if err != nil {
		t.Fatal(err)
	}
	text := ""
	answers := make([]answer, len(docs[0].requests))
	for i, q := range docs[0].requests {
		text += bytesTokenizer.Decode(q.continuation)
		answers[i].LogProb = -100
		if len(q.context) != 1 {
			t.Errorf("window %d has %d tokens of context", i, len(q.context))
		}
	}
	if want := detokenize(page); text != want {
		t.Errorf("the windows' text is not the page's")
	}
	n := float64(len(answers))
	v := aggregate(&Tasks[7], docs, [][]measure{docs[0].score(answers)})
	if got, want := v[0].Value, math.Exp(100*n/601); math.Abs(got-want) > 1e-9*want {
		t.Errorf("word perplexity %v, want %v", got, want)
	}
	if got, want := v[2].Value, 100*n/float64(len(page))/math.Ln2; math.Abs(got-want) > 1e-9 {
		t.Errorf("bits per byte %v, want %v", got, want)
	}
}

func TestPython(t *testing.T) {
	for in, want := range map[string]string{"": "", "hELLO wORLD": "Hello world", "éTÉ": "Été", "ǆx": "ǅx"} {
		if got := capitalize(in); got != want {
			t.Errorf("capitalize(%q) = %q", in, got)
		}
	}
	if got := strip("\x1c\u00a0 a b\u3000\u0085"); got != "a b" {
		t.Errorf("strip gives %q", got)
	}
	if !contains("It was NAÏVE (2).", "naïve (2)") || contains("ab", "a.") {
		t.Error("contains")
	}
}
