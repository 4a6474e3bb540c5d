package eval

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"reflect"
	"strings"
	"testing"

	"nha/tensor"
)

// randomDocuments draws documents whose requests begin alike, or not, with continuations of one token or more.
func randomDocuments(r *rand.Rand, n int) (list []request, ends []int) {
	draw := func(n int) []int32 {
		x := make([]int32, n)
		for i := range x {
			x[i] = r.Int32N(257)
		}
		return x
	}
	for d := range n {
		common := draw(1 + r.IntN(60))
		for range 1 + r.IntN(4) {
			q := request{context: common, continuation: draw(1 + r.IntN(5)), greedy: true, place: fmt.Sprint("document ", d)}
			if r.IntN(4) == 0 { // as in winogrande: contexts differ, continuations do not
				q.context = append(draw(0), append(common[:len(common):len(common)], draw(1+r.IntN(3))...)...)
			}
			list = append(list, q)
		}
		ends = append(ends, len(list))
	}
	return list, ends
}

func answersOf(t *testing.T, e *engine, list []request, ends []int) []answer {
	t.Helper()
	answers := make([]answer, len(list))
	for _, b := range e.plan(list, ends) {
		if err := e.answer(context.Background(), &b, list, answers); err != nil {
			t.Fatal(err)
		}
	}
	return answers
}

// TestEngine: packed, forked and cut into pieces, every answer is that of a request scored alone.
func TestEngine(t *testing.T) {
	for _, windows := range [][]int{{4, 4}, {0, 9}, {5, full()}, {full(), full()}} {
		for _, tokens := range []int{16, 100, 2000} {
			m := tiny(t, windows...)
			e := newEngine(m, bytesTokenizer, tokens)
			list, ends := randomDocuments(rand.New(rand.NewPCG(uint64(tokens), 5)), 25)
			shared := 0
			for _, b := range e.plan(list, ends) {
				for _, u := range b.units {
					if len(u.prefix) > 0 {
						shared++
					}
				}
			}
			if shared == 0 {
				t.Fatal("no document's beginning is shared: the test shows nothing")
			}
			greedy := 0
			for i, got := range answersOf(t, e, list, ends) {
				want := slow(t, m, &list[i])
				if math.Abs(got.LogProb-want.LogProb) > 2e-4 || got.Greedy != want.Greedy {
					t.Errorf("windows %v, %d tokens a batch, request %d: %+v, want %+v", windows, tokens, i, got, want)
				}
				if got.Greedy {
					greedy++
				}
			}
			if tokens == 2000 && greedy == len(list) {
				t.Error("everything is greedy: the test shows nothing")
			}
			e.close()
		}
	}
}

// TestEngineGreedy: the likeliest continuation is called that.
func TestEngineGreedy(t *testing.T) {
	m := tiny(t, 4, 4)
	e := newEngine(m, bytesTokenizer, 100)
	defer e.close()
	r := []request{{context: []int32{1, 2, 3}, continuation: []int32{0}, greedy: true}}
	for id := range int32(257) {
		r[0].continuation[0] = id
		if answersOf(t, e, r, []int{1})[0].Greedy {
			if want := slow(t, m, &r[0]); !want.Greedy {
				t.Errorf("token %d called the likeliest", id)
			}
			return
		}
	}
	t.Error("no token is the likeliest")
}

// TestPositions: the sums by bucket are those of the tokens at these positions, and add up.
func TestPositions(t *testing.T) {
	m := tiny(t, 8, full())
	e := newEngine(m, bytesTokenizer, 50)
	defer e.close()
	r := rand.New(rand.NewPCG(1, 1))
	q := request{context: []int32{256}, byPosition: true}
	for range 120 {
		q.continuation = append(q.continuation, r.Int32N(256))
	}
	got := answersOf(t, e, []request{q}, []int{1})[0]
	if len(got.Buckets) != 4 { // 16, 32, 64, 128
		t.Fatalf("buckets %v", got.Buckets)
	}
	sum := 0.0
	for k, x := range got.Buckets {
		from, to := bucketRange(k)
		to = min(to, len(q.continuation))
		part := q
		part.context, part.continuation = append([]int32{256}, q.continuation[:from]...), q.continuation[from:to]
		if want := slow(t, m, &part).LogProb; math.Abs(want-x) > 1e-3 {
			t.Errorf("bucket %d: %v, want %v", k, x, want)
		}
		sum += x
	}
	if math.Abs(sum-got.LogProb) > 1e-6 {
		t.Errorf("buckets add up to %v of %v", sum, got.LogProb)
	}
}

// TestLossType: log-likelihoods keep their digits on a backend of 16 bits.
func TestLossType(t *testing.T) {
	for from, want := range map[tensor.DType]tensor.DType{tensor.BF16: tensor.F32, tensor.F16: tensor.F32, tensor.F32: tensor.F32, tensor.F64: tensor.F64} {
		if got := lossType(from); got != want {
			t.Errorf("losses of %v are %v, want %v", from, got, want)
		}
	}
}

// TestNaN: logits that are not finite stop the evaluation with the request's name.
func TestNaN(t *testing.T) {
	m := tiny(t, 4)
	p, ok := m.Parameter("model.norm.weight")
	if !ok {
		t.Fatal("no final norm")
	}
	x := make([]float32, p.Value.Len())
	x[3] = float32(math.NaN())
	m.Backend().Write(p.Value.Tensor, tensor.FromF32(x, len(x)))
	dir := folder(t, map[string]string{"lambada_openai.jsonl": `{"text": "one two three"}`})
	_, err := Run(context.Background(), m, bytesTokenizer, "tiny", Options{Tasks: []string{"lambada_openai"}, Data: dir})
	wantError(t, err, "lambada_openai", "line 1", "not finite")
	_, err = Run(context.Background(), m, bytesTokenizer, "tiny", Options{Tasks: []string{"niah_single_1"}, Lengths: []int{1200}, Limit: 1})
	wantError(t, err, "niah_single_1, sample 1 at 1200 tokens", "not finite")
}

// TestResume: an evaluation that is interrupted and started again gives the same bits and asks no batch twice.
func TestResume(t *testing.T) {
	m := tiny(t, 4, full())
	rows := ""
	for i := range 40 {
		rows += fmt.Sprintf("{\"goal\": \"the %dth goal of many\", \"sol1\": \"do this %d times\", \"sol2\": \"do that\", \"label\": %d}\n", i, i*i, i%2)
	}
	o := Options{Tasks: []string{"piqa", "niah_single_1"}, Data: folder(t, map[string]string{"piqa.jsonl": rows}), BatchTokens: 200, Lengths: []int{1200}}
	o.Limit = 40
	if testing.Short() {
		o.Tasks = o.Tasks[:1]
	}
	want, err := Run(context.Background(), m, bytesTokenizer, "tiny", o)
	if err != nil {
		t.Fatal(err)
	}
	o.Cache = t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	batches := 0
	o.Progress = func(p Progress) {
		if batches++; batches == 3 {
			cancel()
		}
	}
	if _, err = Run(ctx, m, bytesTokenizer, "tiny", o); !errors.Is(err, context.Canceled) {
		t.Fatalf("interrupted: %v", err)
	}
	files, _ := os.ReadDir(o.Cache)
	if len(files) != 1 {
		t.Fatalf("%d cache files", len(files))
	}
	path := o.Cache + "/" + files[0].Name()
	kept, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(kept, `{"key": "a line that a crash c`...), 0o644); err != nil {
		t.Fatal(err)
	}
	first := Progress{}
	o.Progress = func(p Progress) {
		if first.Done == 0 {
			first = p
		}
	}
	got, err := Run(context.Background(), m, bytesTokenizer, "tiny", o)
	if err != nil {
		t.Fatal(err)
	}
	if first.TokensPerS != 0 {
		t.Error("the first batch was asked again")
	}
	if !reflect.DeepEqual(valuesOf(got), valuesOf(want)) {
		t.Errorf("resumed %v, want %v", valuesOf(got), valuesOf(want))
	}
	if files, _ := os.ReadDir(o.Cache); len(files) != 0 {
		t.Error("the cache of a complete evaluation stays")
	}
}

func valuesOf(r *Report) (list []Value) {
	for _, t := range r.Tasks {
		list = append(list, t.Values...)
	}
	return list
}

// TestContinuations: side by side, every continuation is the likeliest token after the likeliest token, up to a stop string, the
// end of the text or the length, with U+FFFD for what is no character.
func TestContinuations(t *testing.T) {
	m := tiny(t, 4, full())
	e := newEngine(m, bytesTokenizer, 100)
	defer e.close()
	r := rand.New(rand.NewPCG(9, 9))
	var list []request
	var ends []int
	for i := range 12 {
		q := request{maxNew: 10 + i, until: []string{"\n", "e"}}
		for range 1 + r.IntN(40) {
			q.context = append(q.context, r.Int32N(256))
		}
		list, ends = append(list, q), append(ends, i+1)
	}
	lengths := map[int]bool{}
	for i, got := range answersOf(t, e, list, ends) {
		ids := list[i].context
		for range list[i].maxNew {
			best, bestAt := math.Inf(-1), int32(0)
			session := e.g.NewSession()
			if err := session.Prefill(context.Background(), ids); err != nil {
				t.Fatal(err)
			}
			for id, x := range session.Logits() {
				if x > best {
					best, bestAt = x, int32(id)
				}
			}
			ids = append(ids[:len(ids):len(ids)], bestAt)
			if bestAt == 256 {
				break
			}
		}
		want := decode(bytesTokenizer, ids[len(list[i].context):])
		for _, stop := range list[i].until {
			want, _, _ = strings.Cut(want, stop)
		}
		if got.Text != want {
			t.Errorf("prompt %d: %q, want %q", i, got.Text, want)
		}
		lengths[len(got.Text)] = true
	}
	if len(lengths) < 3 {
		t.Error("the continuations are all alike: the test shows little")
	}
}
