package hybridize

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nha/attention"
	"nha/model"
)

func TestJournalResumes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "search.jsonl")
	identity := map[string]string{"model": "abc", "text": "def"}
	calls := 0
	measure := func(w model.Windows) (Quality, error) {
		calls++
		return Quality{Loss: float64(w[0]) / 3, Recall: .5}, nil
	}
	ask := func(windows ...model.Windows) {
		t.Helper()
		j, err := OpenJournal(path, identity)
		if err != nil {
			t.Fatal(err)
		}
		defer j.Close()
		for _, w := range windows {
			if q, err := j.Remember(measure)(w); err != nil || q != (Quality{float64(w[0]) / 3, .5}) {
				t.Errorf("%v: %v, %v", w, q, err)
			}
		}
	}
	ask(model.Windows{64, attention.Full}, model.Windows{32, 32}, model.Windows{64, attention.Full})
	if calls != 2 {
		t.Errorf("%d measurements, want 2", calls)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString(`{"windows":[1,1],"lo`) // a crash in the middle of a line
	f.Close()
	ask(model.Windows{32, 32}, model.Windows{1, 1}, model.Windows{64, attention.Full})
	ask(model.Windows{1, 1})
	if calls != 3 {
		t.Errorf("%d measurements, want 3", calls)
	}
}

func TestJournalRefusals(t *testing.T) {
	path := filepath.Join(t.TempDir(), "search.jsonl")
	j, err := OpenJournal(path, map[string]string{"model": "abc"})
	if err != nil {
		t.Fatal(err)
	}
	j.Close()
	if _, err := OpenJournal(path, map[string]string{"model": "xyz"}); err == nil || !strings.Contains(err.Error(), `model "abc", this search has "xyz"`) {
		t.Errorf("another model: %v", err)
	}
	for text, want := range map[string]string{"hello\n": ":1: not a journal", "{\"identity\":{}}\n[]\n": ":2: not a measurement"} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenJournal(path, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
