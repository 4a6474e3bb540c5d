package hybridize

import (
	"context"

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
	keys, err := eval.Requests(ctx, t.m, t.tk, eval.Options{Tasks: []string{"passkey"}, Lengths: []int{t.RecallLength}, Limit: t.RecallCount, Haystack: t.Haystack, Seed: t.Seed})
	if err != nil {
		return nil, err
	}
	list := []model.Batch{{}}
	for _, k := range keys {
		b := &list[len(list)-1]
		if n := len(b.Tokens); n > 0 && n+len(k.Tokens) > max(t.Context, 8<<10) {
			list = append(list, model.Batch{})
			b = &list[len(list)-1]
		}
		for i := range k.Tokens {
			target := int32(-1)
			if next := i + 1; next >= k.From && next < len(k.Tokens) {
				target = k.Tokens[next]
			}
			b.Targets = append(b.Targets, target)
		}
		b.Tokens, b.Lengths = append(b.Tokens, k.Tokens...), append(b.Lengths, len(k.Tokens))
	}
	return list, nil
}
