package hybridize

import (
	"context"
	"regexp"
	"strings"
	"testing"

	_ "nha/backend/cpu"

	"nha/backend"
	"nha/model"
)

// TestPasskeys: every text hides one number and asks for it; the targets are that number's tokens, each where it is predicted.
func TestPasskeys(t *testing.T) {
	path := tinyBase(t)
	b, err := backend.Open("cpu", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	m, err := model.Load(path, b, model.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	o := DefaultTuneOptions()
	o.RecallLength, o.RecallCount = 900, 12
	u := &tuner{TuneOptions: &o, m: m}
	if u.tk, err = model.Tokenizer(path); err != nil {
		t.Fatal(err)
	}
	list, err := u.passkeys(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	texts := 0
	for _, x := range list {
		from := 0
		for _, n := range x.Lengths {
			text, targets := u.tk.Decode(x.Tokens[from:from+n]), []int32(nil)
			for i := from; i < from+n; i++ {
				if id := x.Targets[i]; id >= 0 {
					targets = append(targets, id)
					if x.Tokens[i+1] != id {
						t.Fatalf("target %d at %d, the next token is %d", id, i, x.Tokens[i+1])
					}
				}
			}
			key := u.tk.Decode(targets)
			if !regexp.MustCompile(`^ [0-9]{7}$`).MatchString(key) || strings.Count(text, key[1:]) != 3 || n > 900 {
				t.Errorf("key %q in %d tokens that end in %q", key, n, text[max(0, len(text)-60):])
			}
			texts, from = texts+1, from+n
		}
	}
	if texts != 12 || len(list) < 2 {
		t.Errorf("%d texts in %d batches", texts, len(list))
	}
}
