package eval

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
)

// RULER (Hsieh et al. 2024) as lm-evaluation-harness asks it: a synthetic text as long as fits, a question, the beginning of the
// answer; the score is the part of the references that the greedy continuation holds, whatever the case. Every sample is drawn from the seed,
// the task, the length and its number.
//
// What differs from the original, none of it in the protocol: the words are ours (words.go) in place of wonderwords', the
// essays are the built-in text or --haystack in place of Paul Graham's, repeated where they end, and sentences end by the rule
// of sentences below in place of NLTK's punkt.

// sample is a generated question.
type sample struct {
	input   string // the text and the question
	prefix  string // the beginning of the answer
	join    string // between the two; "": a space
	outputs []string
	tokens  int // that may be generated
}

// prompt is what the model continues.
func (x sample) prompt() string { return x.input + cmp.Or(x.join, " ") + x.prefix }

// generator draws samples of one task at one length.
type generator struct {
	r       *rand.Rand
	length  int
	tokens  func(string) int
	words   []string // of the haystack
	context context.Context
}

// rulerSamples is how many there are of a length without --limit.
const rulerSamples = 500

// generated is the documents of a task that draws its samples: build is called once a length and gives a function that is
// called once a sample.
func generated(build func(g *generator) (func() (sample, error), error)) func(context.Context, *setup) error {
	return func(ctx context.Context, s *setup) error {
		text, err := haystackText(s.o.Haystack)
		if err != nil {
			return err
		}
		words := strings.FieldsFunc(text, isSpace)
		for _, length := range s.lengths {
			g := &generator{r: s.random(length), length: length, words: words, context: ctx,
				tokens: func(text string) int { return len(s.encoder.encode(text)) }}
			next, err := build(g)
			if err != nil {
				return fmt.Errorf("%s at %d tokens: %w", s.task.Name, length, err)
			}
			n := rulerSamples
			if s.o.Limit > 0 {
				n = s.o.Limit
			}
			for i := range n {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				x, err := next()
				if err != nil {
					return fmt.Errorf("%s at %d tokens, sample %d: %w", s.task.Name, length, i+1, err)
				}
				if err := s.sample(x, length, i); err != nil {
					return err
				}
			}
		}
		return nil
	}
}

// sample adds a generated question.
func (s *setup) sample(x sample, length, number int) error {
	d := document{place: fmt.Sprintf("sample %d at %d tokens", number+1, length), length: length, target: strings.Join(x.outputs, " | "),
		fields: map[string]any{"index": number, "input": x.input, "gen_prefix": x.prefix, "delimiter": cmp.Or(x.join, " "), "outputs": x.outputs, "max_length": length, "max_gen_toks": x.tokens}}
	metric := s.task.Metrics[0].Name
	if s.task.Output == "loglikelihood" {
		q, err := s.encoder.score(x.prompt(), " "+x.outputs[0])
		if err != nil {
			return fmt.Errorf("%s, %s: %w", s.task.Name, d.place, err)
		}
		d.score = func(a []answer) []measure { return []measure{{metric: metric, value: truth(a[0].Greedy)}} }
		s.add(d, q)
		return nil
	}
	q, err := s.encoder.generate(x.prompt(), x.tokens)
	if err != nil {
		return fmt.Errorf("%s, %s: %w", s.task.Name, d.place, err)
	}
	d.score = func(a []answer) []measure {
		text, found := strings.ToLower(printable(a[0].Text)), 0
		for _, o := range x.outputs {
			if strings.Contains(text, strings.ToLower(o)) {
				found++
			}
		}
		return []measure{{metric: metric, value: float64(found) / float64(len(x.outputs))}}
	}
	s.add(d, q)
	return nil
}

// printable is a continuation with line ends in place of control characters.
func printable(text string) string {
	return strip(strings.Map(func(r rune) rune {
		if r < 0x20 {
			return '\n'
		}
		return r
	}, strip(text)))
}

var errTooShort = errors.New("the shortest text does not fit: ask for a greater length")

// grow is the largest multiple of step, at least one step, at which build's text with the tokens to come still fits; limit, where
// it is not 0, is the largest that there is.
func (g *generator) grow(step, room, limit int, build func(n int) string) (int, error) {
	fits := func(n int) bool { return g.tokens(build(n))+room <= g.length }
	if !fits(step) {
		return 0, errTooShort
	}
	low, high := step, 2*step
	for (limit == 0 || high <= limit) && fits(high) {
		if g.context.Err() != nil {
			return 0, context.Cause(g.context)
		}
		low, high = high, 2*high
	}
	for high-low > step {
		if middle := low + (high-low)/(2*step)*step; (limit == 0 || middle <= limit) && fits(middle) {
			low = middle
		} else {
			high = middle
		}
	}
	return low, nil
}

// draw builds a sample of size n, or of as much less as makes it fit.
func (g *generator) draw(n, step, room int, build func(n int) sample) (sample, error) {
	for range 20 {
		x := build(n)
		if x.tokens = room; g.tokens(x.prompt())+room <= g.length {
			return x, nil
		}
		if n > step {
			n -= step
		}
	}
	return sample{}, fmt.Errorf("no sample fits %d tokens", g.length)
}

// The needles.
const (
	noise    = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
	essay    = "essay"
	needles  = "needle"
	wordKeys = "words"
	numbers  = "numbers"
	uuids    = "uuids"

	niahTokens   = 128
	niahTemplate = "Some special magic TYPE are hidden within the following text. Make sure to memorize it. I will quiz you about the TYPE afterwards.\n" +
		"CONTEXT\nWhat are all the special magic TYPE for QUERY mentioned in the provided text?"
)

// niah is a needle-in-a-haystack task: k keys with v values each are hidden, q of the keys are asked for.
type niah struct {
	haystack, keys, values string
	k, v, q                int
}

// random is a key or a value.
func (g *generator) random(kind string) string {
	switch kind {
	case numbers:
		return fmt.Sprint(1_000_000 + g.r.IntN(9_000_000))
	case uuids:
		hi, lo := g.r.Uint64(), g.r.Uint64()
		hi, lo = hi&^0xf000|0x4000, lo&^(3<<62)|1<<63 // version 4
		return fmt.Sprintf("%08x-%04x-%04x-%04x-%012x", hi>>32, hi>>16&0xffff, hi&0xffff, lo>>48, lo&0xffffffffffff)
	}
	return adjectives[g.r.IntN(len(adjectives))] + "-" + nouns[g.r.IntN(len(nouns))]
}

func needleText(kind, key, value string) string {
	return fmt.Sprintf("One of the special magic %s for %s is: %s.", kind, key, value)
}

func (n niah) sample(g *generator) (func() (sample, error), error) {
	step := 25
	if n.haystack == essay {
		step = 500
	} else if g.length < 4096 {
		step = 5
	}
	whole := func(size int) string {
		x := n.build(g, size)
		return x.input + strings.Join(x.outputs, " ")
	}
	size, err := g.grow(step, niahTokens, 0, whole)
	if err != nil && n.haystack == essay {
		step = 50 // a length at which not even 500 words fit
		size, err = g.grow(step, niahTokens, 0, whole)
	}
	return func() (sample, error) {
		return g.draw(size, step, niahTokens, func(size int) sample { return n.build(g, size) })
	}, err
}

// build draws one sample with a haystack of the given size, in words of essays or in lines.
func (n niah) build(g *generator, size int) sample {
	var keys, hidden []string
	values := make([][]string, n.k)
	for i := range n.k {
		keys = append(keys, g.random(n.keys))
		for range n.v {
			values[i] = append(values[i], g.random(n.values))
			hidden = append(hidden, needleText(n.values, keys[i], values[i][len(values[i])-1]))
		}
	}
	g.r.Shuffle(len(hidden), func(i, j int) { hidden[i], hidden[j] = hidden[j], hidden[i] })
	text := ""
	if n.haystack == essay {
		text = g.hide(hidden, size)
	} else {
		lines := make([]string, size)
		for i := range lines {
			if lines[i] = n.haystack; n.haystack == needles {
				lines[i] = needleText(n.values, g.random(n.keys), g.random(n.values))
			}
		}
		places := g.r.Perm(size)[:min(size, len(hidden))]
		slices.Sort(places)
		for i, at := range slices.Backward(places) { // from the end, so that places stay right
			lines = slices.Insert(lines, at, hidden[len(places)-1-i])
		}
		text = strings.Join(lines, "\n")
	}
	var asked, outputs []string
	for _, i := range g.r.Perm(n.k)[:n.q] {
		asked, outputs = append(asked, keys[i]), append(outputs, values[i]...)
	}
	query := asked[0]
	if last := len(asked) - 1; last > 0 {
		query = strings.Join(asked[:last], ", ") + ", and " + asked[last]
	}
	template, kind, prefix := niahTemplate, n.values, "The special magic TYPE for QUERY mentioned in the provided text are"
	if n.q*n.v == 1 {
		template = strings.NewReplacer("Some", "A", "are all", "is", "are", "is").Replace(template)
		kind, prefix = strings.TrimSuffix(kind, "s"), strings.TrimSuffix(prefix, "are")+"is"
	}
	return sample{input: strings.NewReplacer("TYPE", kind, "QUERY", query, "CONTEXT", text).Replace(template),
		prefix: strings.NewReplacer("TYPE", kind, "QUERY", query).Replace(prefix), outputs: outputs}
}

// haystackWords are the first n words of the haystack, from its beginning again where it ends.
func (g *generator) haystackWords(n int) string {
	list := make([]string, n)
	for i := range list {
		list[i] = g.words[i%len(g.words)]
	}
	return strings.Join(list, " ")
}

// hide puts needles between the sentences of size words of essays, at depths out of 40 from 0 to 100 percent.
func (g *generator) hide(needles []string, size int) string {
	list := sentences(g.haystackWords(size))
	var places []int
	for _, i := range g.r.Perm(40)[:len(needles)] {
		depth := math.RoundToEven(float64(i) * 100 / 39)
		places = append(places, int(float64(len(list))*(depth/100)))
	}
	slices.Sort(places)
	var parts []string
	from := 0
	for i, to := range places {
		parts = append(parts, strings.Join(list[from:to], " "), needles[i])
		from = to
	}
	return strings.Join(append(parts, strings.Join(list[from:], " ")), " ")
}

var sentenceEnd = regexp.MustCompile(`[.!?]["')\]]* `)

// sentences cuts a text behind full stops, question and exclamation marks that a space follows.
func sentences(text string) []string {
	var list []string
	from := 0
	for _, at := range sentenceEnd.FindAllStringIndex(text, -1) {
		list = append(list, text[from:at[1]-1])
		from = at[1]
	}
	if from < len(text) {
		list = append(list, text[from:])
	}
	return list
}

// Variable tracking.
const (
	vtTokens   = 30
	vtHops     = 4
	vtTemplate = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\nCONTEXT\n" +
		"Question: Find all variables that are assigned the value QUERY in the text above."
	vtPrefix = "Answer: According to the chain(s) of variable assignment in the text above, 5 variables are assgined the value QUERY, they are:"
)

// variableTracking hides VAR A = 12345, VAR B = VAR A, ... in noise; an example of the same kind, answered, stands in front.
func variableTracking(g *generator) (func() (sample, error), error) {
	example := &generator{r: g.r, length: 500, tokens: g.tokens, context: g.context}
	size, err := example.grow(5, vtTokens, 0, func(n int) string { return chain(example, n, 3).whole() })
	if err != nil {
		size = 1 // a tokenizer to which 500 tokens are little
	}
	shown := chain(example, size, 3)
	room := vtTokens + g.tokens(shown.whole()+"\n\n\n\n")
	step, whole := 10, func(n int) string { return chain(g, n, 5).whole() }
	if size, err = g.grow(step, room, 0, whole); err != nil {
		step = 1 // a length at which not even ten lines fit
		size, err = g.grow(step, room, 0, whole)
	}
	return func() (sample, error) {
		x, err := g.draw(size, step, room, func(n int) sample { return chain(g, n, 5) })
		renamed := shown.whole()
		for _, name := range shown.outputs {
			renamed = strings.ReplaceAll(renamed, name, g.letters(len(name), 'A'))
		}
		x.input, x.tokens = renamed+"\n\n\n\n"+x.input, vtTokens
		return x, err
	}, err
}

// whole is a sample with its answer.
func (x sample) whole() string { return x.prompt() + "  " + strings.Join(x.outputs, " ") }

// letters is a word of n random letters from first on.
func (g *generator) letters(n int, first byte) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = first + byte(g.r.IntN(26))
	}
	return string(b)
}

// chain is one chain of assignments to names of so many letters, in lines of noise.
func chain(g *generator, lines, nameLetters int) sample {
	names := g.distinct(vtHops+1, func() string { return g.letters(nameLetters, 'A') })
	value := fmt.Sprint(10000 + g.r.IntN(89999))
	statements := []string{"VAR " + names[0] + " = " + value}
	for i := range vtHops {
		statements = append(statements, "VAR "+names[i+1]+" = VAR "+names[i]+" ")
	}
	text := slices.Repeat([]string{noise + "\n"}, lines)
	if len(text) <= len(statements) { // too few lines: the sentences are the places
		text = nil
		for _, s := range slices.Repeat(strings.Split(noise+"\n", "."), lines) {
			if strip(s) != "" {
				s += "."
			}
			text = append(text, s)
		}
	}
	places := g.r.Perm(len(text))[:len(statements)]
	slices.Sort(places)
	for i, at := range places {
		text = slices.Insert(text, at+i, statements[i])
	}
	fill := strings.NewReplacer("QUERY", value, "CONTEXT", strings.ReplaceAll(strings.Join(text, " "), ". \n", ".\n"))
	return sample{input: fill.Replace(vtTemplate), prefix: fill.Replace(vtPrefix), outputs: names}
}

// distinct draws n different texts.
func (g *generator) distinct(n int, draw func() string) []string {
	seen := map[string]bool{}
	var list []string
	for len(list) < n {
		if s := draw(); !seen[s] {
			seen[s] = true
			list = append(list, s)
		}
	}
	return list
}

// Common words.
const (
	cweTokens   = 120
	cweCommon   = 10
	cweTemplate = "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that appear most often.\n" +
		"CONTEXT\nQuestion: What are the 10 most common words in the above list?"
	cwePrefix = "Answer: The top 10 words that appear most often in the list are:"
)

// commonWords repeats ten words more often than the rest, in random order; a short list, answered, stands in front.
func commonWords(g *generator) (func() (sample, error), error) {
	all := vocabulary()
	list := func(n, often, seldom int) sample {
		var chosen, shuffled []string
		for _, i := range g.r.Perm(len(all))[:min(n, len(all))] {
			chosen = append(chosen, all[i])
		}
		for i, w := range chosen {
			times := seldom
			if i < cweCommon {
				times = often
			}
			shuffled = append(shuffled, slices.Repeat([]string{w}, times)...)
		}
		g.r.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		return sample{input: strings.Replace(cweTemplate, "CONTEXT", numbered(shuffled), 1), prefix: cwePrefix, outputs: chosen[:cweCommon]}
	}
	bare := false // RULER's shortest text is one of 100 words with its worked example; where that is too long, the example goes
	build := func(n int) sample {
		example, x := list(40, 10, 3), sample{}
		if g.length < 4096 {
			example, x = list(20, 3, 1), list(n, 6, 1)
		} else {
			x = list(n, 30, 3)
		}
		if !bare {
			x.input = example.prompt() + " " + numbered(example.outputs) + "\n" + x.input
		}
		x.join = "\n\n"
		return x
	}
	const step = 10
	grow := func() (int, error) {
		return g.grow(step, cweTokens, len(all), func(n int) string {
			x := build(n)
			return x.prompt() + " " + numbered(x.outputs)
		})
	}
	size, err := grow()
	if errors.Is(err, errTooShort) {
		bare = true
		size, err = grow()
	}
	if size < 2*cweCommon && err == nil {
		size = min(2*cweCommon, size+step)
	}
	return func() (sample, error) { return g.draw(size, step, cweTokens, build) }, err
}

func numbered(words []string) string {
	var b strings.Builder
	for i, w := range words {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%d. %s", i+1, w)
	}
	return b.String()
}

// Frequent words.
const (
	fweTokens   = 50
	fweTemplate = "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared coded words. " +
		"CONTEXT\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently appeared words in the above coded text?"
	fwePrefix = "Answer: According to the coded text above, the three most frequently appeared words are:"
)

// frequentWords draws coded words with the frequencies of a zeta distribution, alpha = 2; the most frequent is dots.
func frequentWords(g *generator) (func() (sample, error), error) {
	build := func(n int) sample {
		words := g.distinct(max(4, g.length/50), func() string { return g.letters(6, 'a') })
		words[0] = "..."
		var text []string
		for i, w := range words {
			times := int(float64(n) / (float64((i+1)*(i+1)) * (math.Pi * math.Pi / 6)))
			text = append(text, slices.Repeat([]string{w}, times)...)
		}
		g.r.Shuffle(len(text), func(i, j int) { text[i], text[j] = text[j], text[i] })
		return sample{input: strings.Replace(fweTemplate, "CONTEXT", strings.Join(text, " "), 1), prefix: fwePrefix, outputs: words[1:4]}
	}
	step := max(1, g.length/32)
	size, err := g.grow(step, fweTokens, 0, func(n int) string { return build(n).prompt() })
	return func() (sample, error) { return g.draw(size, step, fweTokens, build) }, err
}
