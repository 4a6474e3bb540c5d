package hybridize

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"nha/eval"
	"nha/model"
)

// The recall objective of the search is the pass keys of package eval (EVAL C), scored and not written:
//
//	recall = exp(mean over the keys' tokens of log p(token | text, question, the key's tokens before it))
//
// Keys that are found or not change by several points when nothing of weight has changed, and a layer's part would drown in that; probabilities of the
// same keys differ by what the layer does. They cost one packed forward and no decoding.

// passkeys are texts with a key, in batches of about as many tokens as a row of text, with the key's tokens as the only targets.
func (t *tuner) passkeys(ctx context.Context) ([]model.Batch, error) {
	if t.RecallLength == 0 {
		return nil, nil
	}
	var text bytes.Buffer
	o := eval.Options{Tasks: []string{"passkey"}, Lengths: []int{t.RecallLength}, Limit: t.RecallCount, Haystack: t.Haystack, Seed: t.Seed}
	if err := eval.Export(ctx, t.m, t.tk, &text, o); err != nil {
		return nil, err
	}
	before, _ := t.tk.Template()
	list := []model.Batch{{}}
	for d := json.NewDecoder(&text); ; {
		var x struct {
			Doc struct {
				Input     string   `json:"input"`
				Prefix    string   `json:"gen_prefix"`
				Delimiter string   `json:"delimiter"`
				Outputs   []string `json:"outputs"`
			} `json:"doc"`
		}
		if err := d.Decode(&x); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("pass keys: %w", err)
		}
		asked := t.tk.EncodeAppend(append([]int32(nil), before...), x.Doc.Input+x.Doc.Delimiter+x.Doc.Prefix)
		key := t.tk.Encode(" " + x.Doc.Outputs[0])
		b := &list[len(list)-1]
		if n := len(b.Tokens); n > 0 && n+len(asked)+len(key) > max(t.Context, 8<<10) {
			list = append(list, model.Batch{})
			b = &list[len(list)-1]
		}
		tokens := append(asked, key...)
		for i := range tokens {
			target := int32(-1)
			if next := i + 1; next >= len(asked) && next < len(tokens) {
				target = tokens[next]
			}
			b.Targets = append(b.Targets, target)
		}
		b.Tokens, b.Lengths = append(b.Tokens, tokens...), append(b.Lengths, len(tokens))
	}
	return list, nil
}
