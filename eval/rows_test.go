package eval

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/parquet-go/parquet-go"
)

func rowsIn(path string) (list []*row, err error) {
	err = readRows(path, func(r *row) (bool, error) {
		list = append(list, r)
		return true, nil
	})
	return list, err
}

// TestRows: JSONL and parquet files of one dataset give the same fields, lists of objects and objects of lists too.
func TestRows(t *testing.T) {
	type choices struct {
		Text  []string `parquet:"text,list" json:"text"`
		Label []string `parquet:"label,list" json:"label"`
	}
	type question struct {
		Question string  `parquet:"question" json:"question"`
		Choices  choices `parquet:"choices" json:"choices"`
		Number   int64   `parquet:"number" json:"number"`
		Weight   float64 `parquet:"weight" json:"weight"`
		Answer   *string `parquet:"answer,optional" json:"answer"`
	}
	b := "B"
	rows := []question{
		{"what?", choices{[]string{"one", "two", "three"}, []string{"A", "B", "C"}}, 3, 0.5, &b},
		{"none", choices{[]string{}, []string{}}, -1, 1.25, nil},
		{"ünï", choices{[]string{"x"}, []string{"1"}}, 0, -2.5, &b},
	}
	dir := t.TempDir()
	var lines []string
	for _, r := range rows {
		line, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, string(line))
	}
	if err := parquet.WriteFile(filepath.Join(dir, "a.parquet"), rows); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "a.jsonl"), []byte(strings.Join(lines, "\n\n")), 0o644); err != nil {
		t.Fatal(err)
	}
	fromParquet, err := rowsIn(filepath.Join(dir, "a.parquet"))
	if err != nil {
		t.Fatal(err)
	}
	fromJSONL, err := rowsIn(filepath.Join(dir, "a.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	if len(fromParquet) != len(rows) || len(fromJSONL) != len(rows) {
		t.Fatalf("%d and %d rows of %d", len(fromParquet), len(fromJSONL), len(rows))
	}
	for i := range rows {
		if !reflect.DeepEqual(fromParquet[i].fields, fromJSONL[i].fields) {
			t.Errorf("row %d: parquet %v, JSONL %v", i, fromParquet[i].fields, fromJSONL[i].fields)
		}
		got, err := fromParquet[i].list("choices.text")
		if err != nil || !reflect.DeepEqual(got, rows[i].Choices.Text) {
			t.Errorf("row %d: %v, %v", i, got, err)
		}
	}
	// ARC as AI2 published it first.
	path := filepath.Join(dir, "b.jsonl")
	if err := os.WriteFile(path, []byte(`{"choices": [{"text": "one", "label": "A"}, {"text": "two", "label": "B"}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	list, err := rowsIn(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := list[0].list("choices.label"); err != nil || !reflect.DeepEqual(got, []string{"A", "B"}) {
		t.Errorf("labels %v, %v", got, err)
	}
}

// TestBadRows: what is wrong with a row is said with its file and line.
func TestBadRows(t *testing.T) {
	m := tiny(t, 4)
	arc := `{"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"}` + "\n"
	for name, c := range map[string]struct{ task, rows, want string }{
		"no object":    {"arc_easy", arc + "[1]\n", "line 2: not a JSON object"},
		"cut":          {"arc_easy", arc + `{"question": "q", "cho`, "line 2: not a JSON object"},
		"null":         {"arc_easy", arc + "null", "line 2: not a JSON object but null"},
		"two objects":  {"arc_easy", arc + "{} {}", "line 2: more than one JSON object"},
		"no field":     {"arc_easy", arc + `{"question": "q", "answerKey": "A", "choices": {"label": ["A"]}}`, `line 2: no field "choices.text"`},
		"wrong type":   {"arc_easy", arc + `{"question": 5, "answerKey": "A", "choices": {"text": ["a"], "label": ["A"]}}`, `line 2: field "question" is 5`},
		"no choices":   {"arc_easy", arc + `{"question": "q", "answerKey": "A", "choices": {"text": [], "label": []}}`, "line 2: there are no choices"},
		"empty choice": {"arc_easy", arc + `{"question": "q", "answerKey": "A", "choices": {"text": ["", "b"], "label": ["A", "B"]}}`, "line 2: choice 1 is empty"},
		"label":        {"arc_easy", arc + `{"question": "q", "answerKey": "E", "choices": {"text": ["a", "b"], "label": ["A", "B"]}}`, `line 2: the label "E" is not among`},
		"labels":       {"arc_easy", arc + `{"question": "q", "answerKey": "A", "choices": {"text": ["a", "b"], "label": ["A"]}}`, "line 2: 1 labels for 2 choices"},
		"index":        {"piqa", `{"goal": "g", "sol1": "a", "sol2": "b", "label": 2}`, "line 1: the label 2 is not among the 2 choices"},
		"answer":       {"winogrande", `{"sentence": "a _ b", "option1": "x", "option2": "y", "answer": ""}`, "line 1: field \"answer\""},
		"no gap":       {"winogrande", `{"sentence": "a b", "option1": "x", "option2": "y", "answer": "1"}`, "line 1: no _ in the sentence"},
		"ending":       {"hellaswag", `{"activity_label": "l", "ctx_a": "a", "ctx_b": "b", "endings": ["[x]"], "label": "0"}`, "line 1: choice 1 is empty"},
		"key":          {"fda", `{"text": "t", "value": "vv"}`, `line 1: no field "key"`},
		"not UTF-8":    {"lambada_openai", "{\"text\": \"a \xff\"}", "line 1: not valid UTF-8"},
	} {
		dir := folder(t, map[string]string{c.task + ".jsonl": c.rows})
		_, err := Run(context.Background(), m, bytesTokenizer, "tiny", Options{Tasks: []string{c.task}, Data: dir, Lengths: []int{200}})
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.task+".jsonl") {
			t.Errorf("%s: error %v, want %q", name, err, c.want)
		}
	}
}

// TestAbsent: a task without its files is an error before anything is asked, and says where they are to be had.
func TestAbsent(t *testing.T) {
	m := tiny(t, 4)
	dir := folder(t, map[string]string{"arc_easy.jsonl": `{"question": "q", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "A"}`})
	o := Options{Tasks: []string{"commonsense"}, Data: dir, Progress: func(Progress) { t.Error("something was asked") }}
	_, err := Run(context.Background(), m, bytesTokenizer, "tiny", o)
	wantError(t, err, "arc_challenge", "allenai/ai2_arc", "ARC-Challenge", "test")
	o.Data = ""
	_, err = Run(context.Background(), m, bytesTokenizer, "tiny", o)
	wantError(t, err, "arc_easy needs --data", "ARC-Easy")
	_, err = Run(context.Background(), m, bytesTokenizer, "tiny", Options{Tasks: []string{"arc"}})
	wantError(t, err, `unknown task "arc"`, "arc_easy")
}

// TestLocate finds the layouts in which datasets come.
func TestLocate(t *testing.T) {
	for _, c := range []struct {
		task, file string
		length     int
		other      string
	}{
		{"arc_easy", "allenai/ai2_arc/ARC-Easy/test-00000-of-00001.parquet", 0, "allenai/ai2_arc/ARC-Challenge/test-00000-of-00001.parquet"},
		{"arc_challenge", "ai2_arc/ARC-Challenge/test-00000-of-00001.parquet", 0, "ai2_arc/ARC-Challenge/train-00000-of-00001.parquet"},
		{"hellaswag", "hellaswag/data/validation-00000-of-00001.parquet", 0, "hellaswag/data/test-00000-of-00001.parquet"},
		{"lambada_openai", "EleutherAI/lambada_openai/data/lambada_test.jsonl", 0, "EleutherAI/lambada_openai/data/lambada_test_de.jsonl"},
		{"winogrande", "allenai___winogrande/winogrande_xl/validation/0000.parquet", 0, "allenai___winogrande/winogrande_xs/validation/0000.parquet"},
		{"nq", "hazyresearch/based_nq_1024/data/validation-00000-of-00001.parquet", 1024, "hazyresearch/based_nq_512/data/validation-00000-of-00001.parquet"},
		{"nq", "nq_512.jsonl.zst", 512, "nq_1024.jsonl"},
	} {
		dir := folder(t, map[string]string{c.file: "x", c.other: "x"})
		tasks, err := Select([]string{c.task})
		if err != nil {
			t.Fatal(err)
		}
		got, err := tasks[0].locate(dir, c.length)
		if err != nil || len(got) != 1 || got[0] != filepath.Join(dir, c.file) {
			t.Errorf("%s: %v, %v, want %s", c.task, got, err, c.file)
		}
	}
}
