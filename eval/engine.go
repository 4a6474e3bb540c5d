package eval

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	"nha/autograd"
	"nha/backend"
	"nha/generate"
	"nha/model"
	"nha/tensor"
	"nha/tokenizer"
)

// The engine answers requests. Scoring costs what it must and no more:
//
//	no padding    sequences of any lengths are packed into batches of about batchTokens tokens (SPEC 1, Sequences)
//	no repetition the inputs of a document's requests begin alike: that part is read once and its state forked, where the
//	              tokens saved are worth the copies
//	no waste      only rows whose next token is asked for pass through the head; logits reach the host only where the
//	              likeliest token or several targets of one row are wanted
//
// Batches depend on the list of requests alone, so that an evaluation that is interrupted and resumed gives the same bits.
type engine struct {
	m           *model.Model
	tk          tokenizer.Tokenizer
	g           *generate.Generator
	tape        *autograd.Tape
	batchTokens int
	stateBytes  int // states that a batch may hold
	headRows    int // rows of logits that exist at a time
	forkTokens  int // a fork must save so many tokens of work

	loss       tensor.Tensor // [headRows], on the backend
	host, lost tensor.Tensor // logits and losses on the host
}

const (
	forkPrefix = 12      // tokens of a common beginning that is worth a fork
	stateLimit = 1 << 30 // bytes of states in a batch
	genBatch   = 32      // sequences that are continued side by side
)

func newEngine(m *model.Model, tk tokenizer.Tokenizer, batchTokens int) *engine {
	e := &engine{m: m, tk: tk, g: generate.New(m, tk), tape: autograd.New(m.Backend()), batchTokens: batchTokens, stateBytes: stateLimit,
		headRows: 64, forkTokens: 24}
	if !backend.OnHost(m.Backend()) { // a card reads a few tokens more in no time, and likes large products
		e.headRows, e.forkTokens = 256, 512
	}
	e.tape.Record(false)
	e.loss = m.Backend().Alloc(lossType(m.Backend().DType()), tensor.Of(e.headRows))
	e.host = tensor.New(tensor.F32, tensor.Of(e.headRows*m.Config.VocabSize))
	e.lost = tensor.New(tensor.F64, tensor.Of(e.headRows))
	return e
}

// lossType is what a backend of a type writes losses in: 16 bits would leave three digits of a log-likelihood.
func lossType(d tensor.DType) tensor.DType {
	if d.Size() < 4 {
		return tensor.F32
	}
	return d
}

func (e *engine) close() {
	e.m.Backend().Free(e.loss)
	e.tape.Close()
	e.g.Close()
}

// unit is requests that are answered together: those of a document with a common beginning, or one alone.
type unit struct {
	requests []int   // indices into the engine's list
	prefix   []int32 // read once; empty: nothing is shared
	tokens   int     // read in all
}

// batch is units that share forwards.
type batch struct {
	units    []unit
	generate bool
}

func (b *batch) tokens() (n int) {
	for _, u := range b.units {
		n += u.tokens
	}
	return n
}

// plan cuts the requests of documents, given by the index at which each ends, into batches, longest first.
func (e *engine) plan(list []request, ends []int) []batch {
	var alone, shared, generating []unit
	start := 0
	for _, end := range ends {
		n, total, prefix := 0, 0, []int32(nil)
		for i := start; i < end; i++ {
			if list[i].generates() {
				generating = append(generating, unit{requests: []int{i}, tokens: len(list[i].context) + list[i].maxNew})
				continue
			}
			input := list[i].input()
			if prefix = prefix[:commonPrefix(prefix, input)]; n == 0 {
				prefix = input
			}
			n, total = n+1, total+len(input)
		}
		if saved := len(prefix) * (n - 1); n > 1 && len(prefix) >= forkPrefix && saved >= e.forkTokens {
			u := unit{prefix: prefix, tokens: total - saved}
			for i := start; i < end; i++ {
				if !list[i].generates() {
					u.requests = append(u.requests, i)
				}
			}
			shared = append(shared, u)
		} else {
			for i := start; i < end; i++ {
				if !list[i].generates() {
					alone = append(alone, unit{requests: []int{i}, tokens: len(list[i].context) + len(list[i].continuation) - 1})
				}
			}
		}
		start = end
	}
	var batches []batch
	for _, units := range [][]unit{alone, shared, generating} {
		slices.SortStableFunc(units, func(a, b unit) int { return cmp.Compare(b.tokens, a.tokens) })
		batches = append(batches, e.pack(units, list)...)
	}
	return batches
}

func commonPrefix(a, b []int32) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// pack fills batches with units in their order, within the limits on tokens and states.
func (e *engine) pack(units []unit, list []request) []batch {
	var batches []batch
	tokens, states := 0, 0
	for _, u := range units {
		generates, need := list[u.requests[0]].generates(), 0
		if generates || len(u.prefix) > 0 {
			need = e.m.Config.Account(max(1, u.tokens)).StateBytes * len(u.requests)
		}
		limit := e.batchTokens
		if generates {
			limit = math.MaxInt // prompts are read one after the other
		}
		n := len(batches)
		full := n == 0 || tokens+u.tokens > limit || states+need > e.stateBytes || generates && len(batches[n-1].units) == genBatch
		if full {
			batches = append(batches, batch{generate: generates})
			n, tokens, states = n+1, 0, 0
		}
		batches[n-1].units = append(batches[n-1].units, u)
		tokens, states = tokens+u.tokens, states+need
	}
	return batches
}

// answer works through one batch and sets the answers of its requests.
func (e *engine) answer(ctx context.Context, b *batch, list []request, answers []answer) error {
	if b.generate {
		return e.continueAll(ctx, b, list, answers)
	}
	for _, u := range b.units {
		for _, i := range u.requests {
			answers[i] = answer{Greedy: list[i].greedy}
			if list[i].byPosition {
				answers[i].Buckets = make([]float64, bucketOf(len(list[i].context)+len(list[i].continuation)-2)+1)
			}
		}
	}
	var prefixes, tails []sequence
	for _, u := range b.units {
		if len(u.prefix) == 0 {
			i := u.requests[0]
			s := sequence{tokens: list[i].input()}
			s.ask(list, i, 0)
			tails = append(tails, s)
			continue
		}
		s := sequence{tokens: u.prefix, state: e.m.NewState()}
		for _, i := range u.requests {
			s.ask(list, i, 0)
		}
		prefixes = append(prefixes, s)
	}
	if err := e.forward(ctx, prefixes, list, answers); err != nil {
		return err
	}
	at := 0
	for _, u := range b.units {
		if len(u.prefix) == 0 {
			continue
		}
		state, forked := prefixes[at].state, false
		at++
		for _, i := range slices.Backward(u.requests) {
			input := list[i].input()
			if len(input) == len(u.prefix) {
				continue
			}
			s := sequence{tokens: input[len(u.prefix):], state: state}
			if forked {
				s.state = nil
			}
			forked = true
			s.ask(list, i, len(u.prefix))
			s.fork = state
			tails = append(tails, s)
		}
	}
	// Copies are made before the first forward moves the state that they come from.
	for i := range tails {
		if s := &tails[i]; s.fork != nil && s.state == nil {
			s.state = s.fork.Clone()
		}
	}
	return e.forward(ctx, tails, list, answers)
}

// sequence is tokens to read, from a state or from nothing, and what is asked of its rows.
type sequence struct {
	tokens      []int32
	state, fork *model.State
	asks        []ask
}

// ask wants log p(target) at a row of a sequence; the row is position in the request's whole input.
type ask struct {
	row      int // in the sequence, later in the batch
	target   int32
	request  int
	position int
}

// ask adds what request i wants of the rows of the sequence, which begin at position from of its input.
func (s *sequence) ask(list []request, i, from int) {
	r := &list[i]
	for k, target := range r.continuation {
		if position := len(r.context) - 1 + k; position >= from && position < from+len(s.tokens) {
			s.asks = append(s.asks, ask{row: position - from, target: target, request: i, position: position})
		}
	}
}

// forward reads sequences, all with states or all without, in one packed batch; a single one that is longer than a batch
// goes in pieces.
func (e *engine) forward(ctx context.Context, list []sequence, requests []request, answers []answer) error {
	if len(list) == 0 {
		return nil
	}
	if s := &list[0]; len(list) == 1 && len(s.tokens) > e.batchTokens {
		state := s.state
		if state == nil {
			state = e.m.NewState()
		}
		for from := 0; from < len(s.tokens); from += e.batchTokens {
			to := min(len(s.tokens), from+e.batchTokens)
			piece := sequence{tokens: s.tokens[from:to], state: state}
			for _, a := range s.asks {
				if a.row >= from && a.row < to {
					a.row -= from
					piece.asks = append(piece.asks, a)
				}
			}
			if err := e.forward(ctx, []sequence{piece}, requests, answers); err != nil {
				return err
			}
		}
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var b model.Batch
	var asks []ask
	for _, s := range list {
		for _, a := range s.asks {
			a.row += len(b.Tokens)
			asks = append(asks, a)
		}
		b.Tokens, b.Lengths = append(b.Tokens, s.tokens...), append(b.Lengths, len(s.tokens))
		if s.state != nil {
			b.States = append(b.States, s.state)
		}
	}
	if err := e.m.Check(&b); err != nil {
		return err
	}
	e.tape.Reset()
	hidden := e.m.Hidden(e.tape, &b)
	slices.SortStableFunc(asks, func(a, b ask) int { return cmp.Compare(a.row, b.row) })
	return e.head(hidden, asks, requests, answers)
}

// head gathers the rows that are asked for and takes their log-probabilities. asks are in the order of their rows.
func (e *engine) head(hidden *autograd.Value, asks []ask, requests []request, answers []answer) error {
	var rows []int32
	for _, a := range asks {
		if n := len(rows); n == 0 || rows[n-1] != int32(a.row) {
			rows = append(rows, int32(a.row))
		}
	}
	if len(rows) == 0 {
		return nil
	}
	if len(rows) < hidden.Rows() {
		hidden = e.tape.Embed(hidden, e.tape.Input(tensor.FromI32(rows, len(rows))))
	}
	for from := 0; from < len(rows); from += e.headRows {
		to, n := min(len(rows), from+e.headRows), 0
		for n < len(asks) && asks[n].row <= int(rows[to-1]) {
			n++
		}
		mark := e.tape.Mark()
		if err := e.rows(e.m.Logits(e.tape, hidden, from, to), rows[from:to], asks[:n], requests, answers); err != nil {
			return err
		}
		e.tape.Keep(mark, nil)
		asks = asks[n:]
	}
	return nil
}

// rows takes in the answers of some rows of logits [n, vocabulary].
func (e *engine) rows(logits *autograd.Value, rows []int32, asks []ask, requests []request, answers []answer) error {
	b, vocabulary := e.m.Backend(), e.m.Config.VocabSize
	targets := make([]int32, len(rows))
	toHost := len(asks) > len(rows)
	at := 0
	for i := range asks {
		if asks[i].row != int(rows[at]) {
			at++
		}
		if i == 0 || asks[i].row != asks[i-1].row {
			targets[at] = asks[i].target
		}
		toHost = toHost || requests[asks[i].request].greedy
	}
	var host []float32
	if toHost {
		t := e.host.At(0, logits.Shape)
		b.Read(t, logits.Tensor)
		host = t.F32()
	}
	loss := e.loss.At(0, tensor.Of(len(rows)))
	backend.CrossEntropy(b, loss, logits.Tensor, e.tape.Input(tensor.FromI32(targets, len(targets))).Tensor, 1)
	lost := e.lost.At(0, loss.Shape)
	b.Read(lost, loss)
	at = 0
	likeliest := -1
	for i := range asks {
		a := &asks[i]
		if i == 0 || a.row != asks[i-1].row {
			if i > 0 {
				at++
			}
			likeliest = -1
		}
		p := -lost.F64()[at]
		if a.target != targets[at] {
			p += float64(host[at*vocabulary+int(a.target)]) - float64(host[at*vocabulary+int(targets[at])])
		}
		r := &requests[a.request]
		if math.IsNaN(p) || math.IsInf(p, 0) {
			return fmt.Errorf("%s: the log-probability of token %d behind position %d is %v: the model's logits are not finite", r.place, a.target, a.position, p)
		}
		x := &answers[a.request]
		x.LogProb += p
		if x.Buckets != nil {
			x.Buckets[bucketOf(a.position)] += p
		}
		if r.greedy {
			if likeliest < 0 {
				likeliest = argmax(host[at*vocabulary : (at+1)*vocabulary])
			}
			x.Greedy = x.Greedy && likeliest == int(a.target)
		}
	}
	return nil
}

// continueAll reads the prompts of a batch and continues them side by side.
func (e *engine) continueAll(ctx context.Context, b *batch, list []request, answers []answer) error {
	groups := map[string][]int{} // by what ends them
	var order []string
	for _, u := range b.units {
		i := u.requests[0]
		key := fmt.Sprint(list[i].maxNew, list[i].until)
		if groups[key] == nil {
			order = append(order, key)
		}
		groups[key] = append(groups[key], i)
	}
	for _, key := range order {
		members := groups[key]
		sessions := make([]*generate.Session, len(members))
		for k, i := range members {
			sessions[k] = e.g.NewSession()
			if err := sessions[k].Prefill(ctx, list[i].context); err != nil {
				return fmt.Errorf("%s: %w", list[i].place, err)
			}
			for _, x := range sessions[k].Logits() {
				if math.IsNaN(x) {
					return fmt.Errorf("%s: the model's logits are not finite", list[i].place)
				}
			}
		}
		ids := make([][]int32, len(members))
		o := generate.DefaultSampling()
		o.MaxNewTokens, o.Stop, o.EndTokens = list[members[0]].maxNew, list[members[0]].until, e.endTokens()
		_, err := e.g.Continue(ctx, sessions, o, func(k int, t generate.Token) error {
			ids[k] = append(ids[k], t.ID)
			return nil
		})
		if err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("%s and %d others: %w", list[members[0]].place, len(members)-1, err)
		}
		for k, i := range members { // a character that the last token cuts counts as U+FFFD, as in Hugging Face's decoders
			text := decode(e.tk, ids[k])
			for _, stop := range list[i].until {
				text, _, _ = strings.Cut(text, stop)
			}
			answers[i] = answer{Text: text}
		}
	}
	return nil
}

// endTokens are what ends a continuation: the model's and the tokenizer's end of text.
func (e *engine) endTokens() (ids []int32) {
	if id := e.m.Config.EosTokenID; id != nil {
		ids = append(ids, int32(*id))
	}
	if id, ok := e.tk.EOS(); ok && !slices.Contains(ids, id) {
		ids = append(ids, id)
	}
	return ids
}
