package eval

import (
	"context"
	"strings"
	"testing"
)

func recallDocument(t *testing.T, task, row string, length int) (*document, int) {
	t.Helper()
	m := tiny(t, 4)
	tasks, err := Select([]string{task})
	if err != nil {
		t.Fatal(err)
	}
	name := task
	if task == "nq" {
		name = "nq_512"
		length = 512
	}
	o := Options{Data: folder(t, map[string]string{name + ".jsonl": row}), Lengths: []int{length}, Context: 100000}
	s := newSetup(tasks[0], m, bytesTokenizer, &o)
	if err := tasks[0].documents(context.Background(), s); err != nil {
		t.Fatal(err)
	}
	if len(s.documents) == 0 {
		return nil, s.skipped
	}
	return &s.documents[0], s.skipped
}

// TestRecallPrompts: each task's prompt where nothing is cut.
func TestRecallPrompts(t *testing.T) {
	for _, c := range []struct{ task, row, want, labels string }{
		{"fda", `{"text": "\nThe device is blue. Maker name: Acme. maker name:Maker name:", "key": "maker name", "value": "Acme"}`,
			"The device is blue. Maker name: Acme. . Maker name:", "Acme"},
		{"swde", `{"text": "Title: Up. year: 1999. Summary of information above... year:", "key": "year", "value": "1999"}`, "Title: Up. year: 1999. Year:", "1999"},
		{"squad", `{"text": " Rain fell. The city was ", "value": "Rome", "context": "c", "question": "q"}`, "Rain fell. The city was", "Rome"},
		{"nq", `{"context": " A long page about Rome. where is it", "question": "where is it ", "answers": ["Rome", "Roma"]}`,
			"A long page about Rome. where is it", "Rome | Roma"},
		{"triviaqa", `{"context": "[DOC] [TLE] Facts [PAR] It is Oslo. Which city?WHICH city?", "question": "Which city?", "answers": ["Oslo"]}`,
			"Facts  It is Oslo. Which city?", "Oslo"},
		{"drop", `{"context": "They won 3 games...", "question": " How many? ", "answers": ["3"]}`, "They won 3 games. How many?", "3"},
	} {
		d, _ := recallDocument(t, c.task, c.row, 1000)
		if got := d.requests[0].arguments[0]; got != c.want || d.target != c.labels {
			t.Errorf("%s: %q, labels %q\nwant %q, labels %q", c.task, got, d.target, c.want, c.labels)
		}
		if q := d.requests[0]; q.maxNew != 48 || len(q.until) != 1 || q.until[0] != "\n" {
			t.Errorf("%s: %d new tokens until %q", c.task, q.maxNew, q.until)
		}
	}
}

// TestRecallTruncation: bytes are tokens, so the part that is kept can be counted by hand.
func TestRecallTruncation(t *testing.T) {
	long := strings.Repeat("a", 200) + "KEY" + strings.Repeat("b", 200)
	row := func(text, value string) string {
		return `{"text": "` + text + `", "value": "` + value + `", "context": "c", "question": "q"}`
	}
	for _, c := range []struct{ name, row, want string }{
		// L = 110 keeps 60 tokens: 30 before the answer and 30 from it on.
		{"middle", row(long, "key"), long[170:230]},
		{"beginning", row("xKEY"+long[3:], "KEY"), ("xKEY" + long[3:])[:60]},
		// Not in the text: taken to stand at the end, before the last character.
		{"absent", row(long, "zzz"), long[402-30:]},
	} {
		d, _ := recallDocument(t, "squad", c.row, 110)
		if got := d.requests[0].arguments[0]; got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	// FDA: the key counts too, and the first of both.
	fda := `{"text": "` + strings.Repeat("a", 100) + "Maker" + strings.Repeat("b", 300) + `Acme", "key": "maker", "value": "acme"}`
	d, _ := recallDocument(t, "fda", fda, 110)
	if want := strings.Repeat("a", 30) + "Maker" + strings.Repeat("b", 25) + ". Maker:"; d.requests[0].arguments[0] != want {
		t.Errorf("fda: %q, want %q", d.requests[0].arguments[0], want)
	}
	// TriviaQA keeps the beginning.
	d, _ = recallDocument(t, "triviaqa", `{"context": "`+long+`", "question": "q?", "answers": ["KEY"]}`, 110)
	if want := long[:60] + ". q?"; d.requests[0].arguments[0] != want {
		t.Errorf("triviaqa: %q, want %q", d.requests[0].arguments[0], want)
	}
	// An answer of one character is no answer.
	if d, skipped := recallDocument(t, "squad", row("text", "x"), 110); d != nil || skipped != 1 {
		t.Errorf("a one-character answer: %v, %d skipped", d, skipped)
	}
}

// TestTooLong: documents longer than the context lose their left end, and are counted.
func TestTooLong(t *testing.T) {
	m := tiny(t, 4)
	dir := folder(t, map[string]string{
		"squad.jsonl":          `{"text": "` + strings.Repeat("a b ", 100) + `", "value": "zz", "context": "c", "question": "q"}` + "\n" + `{"text": "short", "value": "zz", "context": "c", "question": "q"}`,
		"lambada_openai.jsonl": `{"text": "` + strings.Repeat("a b ", 100) + `c"}`,
	})
	r, err := Run(context.Background(), m, bytesTokenizer, "tiny", Options{Tasks: []string{"squad", "lambada_openai"}, Data: dir, Context: 100, Lengths: []int{512}})
	if err != nil {
		t.Fatal(err)
	}
	if r.Tasks[0].Truncated != 1 || r.Tasks[1].Truncated != 1 {
		t.Errorf("%d and %d truncated, want 1 and 1", r.Tasks[0].Truncated, r.Tasks[1].Truncated)
	}
	var b strings.Builder
	if err := WriteTable(&b, "markdown", []*Report{r}); err != nil || !strings.Contains(b.String(), "1 requests longer than the context") {
		t.Errorf("the table does not say so: %v\n%s", err, &b)
	}
	b.Reset()
	if err := WriteTable(&b, "csv", []*Report{r, r}); err != nil || strings.Count(b.String(), `"squad: 1 requests longer than the context, their left ends cut; lambada_openai: 1 requests`) != 2 {
		t.Errorf("the table of several models does not say so: %v\n%s", err, &b)
	}
}

func TestContainsScore(t *testing.T) {
	d, _ := recallDocument(t, "nq", `{"context": "c", "question": "q", "answers": ["Rome", "Roma (it)"]}`, 512)
	for text, want := range map[string]float64{" it is ROMA (IT).": 1, "Paris": 0, "": 0, "rome": 1} {
		if got := d.score([]answer{{Text: text}})[0].value; got != want {
			t.Errorf("%q scores %v", text, got)
		}
	}
}
