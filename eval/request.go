package eval

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"nha/tokenizer"
)

// request is one question to the model, in tokens. With continuation it is scored: log p(continuation | context) as
// lm-evaluation-harness defines it; else the context is continued greedily.
type request struct {
	context, continuation []int32
	greedy                bool // of a scored request: is every token of the continuation the likeliest?
	byPosition            bool // of a scored request: the sums by position bucket are wanted

	maxNew int // of a generating request
	until  []string

	arguments [2]string // the texts behind it, for samples
	truncated int       // tokens cut off on the left
	place     string    // task and document, for messages
}

// answer is what the model says to a request.
type answer struct {
	LogProb float64   `json:"log_prob,omitempty"`
	Greedy  bool      `json:"greedy,omitempty"`
	Buckets []float64 `json:"buckets,omitempty"` // LogProb by position bucket of the token that was predicted from
	Text    string    `json:"text,omitempty"`
}

// generates reports whether the request is to be continued.
func (r *request) generates() bool { return r.maxNew > 0 }

// input is what the model reads to score: all tokens but the last.
func (r *request) input() []int32 {
	all := slices.Concat(r.context, r.continuation)
	return all[:len(all)-1]
}

// key identifies a request among all requests to one model.
func (r *request) key() string {
	h := sha256.New()
	number := func(x int) { _ = binary.Write(h, binary.LittleEndian, int64(x)) }
	for _, list := range [][]int32{r.context, r.continuation} {
		number(len(list))
		_ = binary.Write(h, binary.LittleEndian, list)
	}
	number(r.maxNew)
	for _, flag := range []bool{r.greedy, r.byPosition} {
		_ = binary.Write(h, binary.LittleEndian, flag)
	}
	for _, s := range r.until {
		number(len(s))
		h.Write([]byte(s))
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// Position buckets: [0, 16), [16, 32), [32, 64), ... by powers of two.
const firstBucket = 16

func bucketOf(position int) int { return bits.Len(uint(position) / firstBucket) }

// bucketRange is the positions of a bucket, [from, to).
func bucketRange(i int) (from, to int) {
	if i == 0 {
		return 0, firstBucket
	}
	return firstBucket << (i - 1), firstBucket << i
}

// encoder turns the texts of a protocol into tokens as lm-evaluation-harness does with a Hugging Face tokenizer.
type encoder struct {
	tk         tokenizer.Tokenizer
	prefix     []int32 // BOS, or EOS where there is none: what stands for an empty context
	prefixText string
	maxLength  int // tokens that the model reads at most; 0: no limit
}

func newEncoder(tk tokenizer.Tokenizer, maxLength int) *encoder {
	e := &encoder{tk: tk, maxLength: maxLength}
	id, ok := tk.BOS()
	if !ok {
		id, ok = tk.EOS()
	}
	if ok {
		e.prefix, e.prefixText = []int32{id}, string(tk.Token(id))
	}
	return e
}

// encode is the ids of a text with what the tokenizer's template adds, unless the text begins with that itself.
func (e *encoder) encode(text string) []int32 {
	if e.prefixText != "" && strings.HasPrefix(text, e.prefixText) {
		return e.tk.Encode(text)
	}
	before, behind := e.tk.Template()
	return append(e.tk.EncodeAppend(slices.Clone(before), text), behind...)
}

// score is the request for log p(continuation | context). White space at the context's end belongs to the continuation.
func (e *encoder) score(context, continuation string) (request, error) {
	r := request{greedy: true, arguments: [2]string{context, continuation}}
	if context == "" {
		r.context, r.continuation = e.prefix, e.tk.Encode(continuation)
		if len(e.prefix) == 0 {
			return r, errors.New("an empty context, and the tokenizer has no token that begins or ends a text")
		}
		if len(r.continuation) > 1 && r.continuation[0] == e.prefix[0] {
			r.continuation = r.continuation[1:]
		}
	} else {
		trimmed := strings.TrimRightFunc(context, isSpace)
		continuation = context[len(trimmed):] + continuation
		r.context = e.encode(trimmed)
		whole := e.encode(trimmed + continuation)
		r.continuation = whole[min(len(r.context), len(whole)):]
		if len(r.context) == 0 {
			r.context = e.prefix
		}
	}
	return r, e.fit(&r)
}

// fit cuts the left end of a scored request that is longer than the model reads.
func (e *encoder) fit(r *request) error {
	switch {
	case len(r.continuation) == 0:
		return errors.New("the continuation has no tokens: there is nothing to score")
	case len(r.context) == 0:
		return errors.New("an empty context, and the tokenizer has no token that begins or ends a text")
	case e.maxLength == 0:
		return nil
	case len(r.continuation) > e.maxLength:
		return fmt.Errorf("the continuation has %d tokens, more than the context of %d: raise --context", len(r.continuation), e.maxLength)
	}
	if over := len(r.context) + len(r.continuation) - e.maxLength - 1; over > 0 {
		r.context, r.truncated = r.context[over:], over
	}
	return nil
}

// generate is the request for a greedy continuation of at most maxNew tokens, ended by any of until.
func (e *encoder) generate(prompt string, maxNew int, until ...string) (request, error) {
	r := request{context: e.encode(prompt), maxNew: maxNew, until: until, arguments: [2]string{prompt}}
	if len(r.context) == 0 {
		r.context = e.prefix
	}
	if len(r.context) == 0 {
		return r, errors.New("an empty prompt, and the tokenizer has no token that begins or ends a text")
	}
	if e.maxLength > 0 {
		room := e.maxLength - maxNew
		if room < 1 {
			return r, fmt.Errorf("a context of %d leaves no room for a prompt before %d new tokens: raise --context", e.maxLength, maxNew)
		}
		if over := len(r.context) - room; over > 0 {
			r.context, r.truncated = r.context[over:], over
		}
	}
	return r, nil
}

// rolling is the requests that together score a text: windows of at most length tokens, each predicting the tokens behind the
// window before it. With stride = length the windows are disjoint, conditioned on the one token before them (lm-evaluation-
// harness' loglikelihood_rolling); with a smaller stride each window has length - stride tokens of context, at least one.
func (e *encoder) rolling(tokens []int32, length, stride int) ([]request, error) {
	if len(tokens) == 0 {
		return nil, errors.New("the text has no tokens: there is nothing to score")
	}
	if len(e.prefix) == 0 {
		return nil, errors.New("the tokenizer has no token that begins or ends a text: nothing to predict the first token from")
	}
	first := min(length, len(tokens))
	list := []request{{context: e.prefix, continuation: tokens[:first]}}
	for at := first; at < len(tokens); {
		n := min(stride, len(tokens)-at)
		from := max(0, min(at-1, at+n-1-length))
		if stride == length {
			from = at - 1
		}
		list = append(list, request{context: tokens[from:at], continuation: tokens[at : at+n]})
		at += n
	}
	return list, nil
}
