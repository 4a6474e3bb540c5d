package tokenizer

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"sort"
	"strings"
)

// Reading a tokenizer.json. Every key of every object is either understood, known not to touch the ids, or an error:
// fields.go holds the reader that keeps count of them.

// parse builds the tokenizer that a tokenizer.json (source) and a tokenizer_config.json (config, may be nil) describe.
func parse(path string, source []byte, configPath string, config []byte) (*BPE, error) {
	t := &BPE{bos: -1, eos: -1, source: source, config: config}
	d := &document{}
	if root := d.open(source); d.err == nil {
		t.parseRoot(root)
	}
	if d.err != nil {
		return nil, fmt.Errorf("%s: %w", path, d.err)
	}
	if config != nil {
		d := &document{}
		if root := d.open(config); d.err == nil {
			t.bos = t.namedToken(root, "bos_token")
			t.eos = t.namedToken(root, "eos_token")
		}
		if d.err != nil {
			return nil, fmt.Errorf("%s: %w", configPath, d.err)
		}
	} else {
		t.guessEnds()
	}
	t.hash = t.computeHash()
	t.cache = newPieceCache()
	return t, nil
}

func (t *BPE) parseRoot(root *object) {
	var version string
	root.get("version", &version)
	if version != "1.0" {
		root.fail("version", "%q is not supported: want \"1.0\"", version)
	}
	for _, key := range []string{"truncation", "padding"} {
		if root.raw(key) != nil {
			root.fail(key, "would cut or fill every text: set it to null")
		}
	}
	if n := root.object("normalizer"); n != nil {
		root.fail("normalizer", "type %q is not supported: only null is", n.text("type"))
	}
	t.parseDecoder(root)
	t.parsePreTokenizer(root)
	vocab := t.parseVocab(root)
	t.parseTemplate(root, vocab)
	root.end()
}

// parseVocab reads model and added_tokens, which share one range of ids, and returns all tokens by their spelling.
func (t *BPE) parseVocab(root *object) map[string]int32 {
	model := root.object("model")
	if model == nil {
		root.fail("model", "is missing")
		return nil
	}
	ignoreMerges := parseModelOptions(model)
	vocab := map[string]int32{}
	if model.get("vocab", &vocab); len(vocab) == 0 {
		model.fail("vocab", "is missing or empty")
	}
	added := t.parseAdded(root, vocab)
	byID := spellings(model, vocab)
	if model.failed() {
		return nil
	}
	t.tokens = make([][]byte, len(byID))
	t.special = make([]bool, len(byID))
	for i := range t.byteIDs {
		t.byteIDs[i] = -1
	}
	if ignoreMerges {
		t.whole = map[string]int32{}
	}
	for id, token := range byID {
		raw, ok := fromByteRunes(token)
		if ok && len(raw) == 1 && !added.outside[token] {
			t.byteIDs[raw[0]] = int32(id)
		}
		if ok && ignoreMerges && !added.outside[token] {
			t.whole[string(raw)] = int32(id)
		}
		if !ok {
			raw = []byte(token)
		}
		t.tokens[id] = raw
	}
	for b, id := range t.byteIDs {
		if id < 0 {
			model.fail("vocab", "has no token for the byte 0x%02x, spelled %q", b, byteRunes[b])
			return nil
		}
	}
	for _, a := range added.list {
		t.tokens[a.id] = []byte(a.content)
		t.special[a.id] = a.special
		pass := 0
		if a.normalized {
			pass = 1
		}
		t.added[pass].add(a.content, a.id)
		if !a.special {
			t.ordinary[pass].add(a.content, a.id)
		}
	}
	for token := range added.outside {
		delete(vocab, token) // merges cannot name these
	}
	t.parseMerges(model, vocab)
	model.end()
	for _, a := range added.list {
		vocab[a.content] = a.id
	}
	return vocab
}

// parseModelOptions refuses every kind of BPE but the byte-level one.
func parseModelOptions(model *object) (ignoreMerges bool) {
	if typ := model.text("type"); typ != "BPE" && typ != "" {
		model.fail("type", "%q is not supported: want \"BPE\"", typ)
	}
	if dropout := model.raw("dropout"); dropout != nil {
		model.fail("dropout", "%s is not supported: want null", dropout)
	}
	for _, key := range []string{"continuing_subword_prefix", "end_of_word_suffix"} {
		if s := model.text(key); s != "" {
			model.fail(key, "%q is not supported: want null", s)
		}
	}
	if model.flag("byte_fallback", false) {
		model.fail("byte_fallback", "is not supported: want false")
	}
	model.ignore("unk_token", "fuse_unk") // every byte is a token (checked below), so nothing is unknown
	return model.flag("ignore_merges", false)
}

// spellings lists the tokens by their ids, which must be 0 to n-1, each once.
func spellings(model *object, vocab map[string]int32) []string {
	byID := make([]string, len(vocab))
	seen := make([]bool, len(vocab))
	for token, id := range vocab {
		switch {
		case id < 0 || int(id) >= len(byID):
			model.fail("vocab", "token %q has id %d: %d tokens must have the ids 0 to %d without a hole", token, id, len(byID), len(byID)-1)
			return nil
		case seen[id]:
			model.fail("vocab", "tokens %q and %q have the same id %d", min(token, byID[id]), max(token, byID[id]), id)
			return nil
		}
		byID[id], seen[id] = token, true
	}
	return byID
}

type addedToken struct {
	content             string
	id                  int32
	special, normalized bool
}

type addedList struct {
	list    []addedToken
	outside map[string]bool // those that the model's own vocabulary lacks
}

// parseAdded reads added_tokens and enters them into vocab.
func (t *BPE) parseAdded(root *object, vocab map[string]int32) addedList {
	added := addedList{outside: map[string]bool{}}
	contents := map[string]bool{}
	for _, o := range root.objects("added_tokens") {
		a := addedToken{content: o.text("content"), id: -1, special: o.flag("special", false)}
		o.get("id", &a.id)
		a.normalized = o.flag("normalized", !a.special)
		for _, key := range []string{"single_word", "lstrip", "rstrip"} {
			if o.flag(key, false) {
				o.fail(key, "is not supported: want false (token %q)", a.content)
			}
		}
		o.end()
		id, inside := vocab[a.content]
		switch {
		case o.failed():
			return added
		case a.content == "":
			o.fail("content", "is empty")
		case contents[a.content]:
			o.fail("content", "%q stands there twice", a.content)
		case inside && id != a.id:
			o.fail("id", "%q has id %d here and %d in model.vocab", a.content, a.id, id)
		case !inside:
			vocab[a.content] = a.id
			added.outside[a.content] = true
		}
		contents[a.content] = true
		added.list = append(added.list, a)
	}
	return added
}

// parseMerges reads the merges, spelled "a b" or ["a", "b"], in the order of their ranks.
func (t *BPE) parseMerges(model *object, vocab map[string]int32) {
	raw := model.raw("merges")
	if raw == nil {
		model.fail("merges", "is missing")
		return
	}
	var pairs [][]string
	if inside := bytes.TrimLeft(raw[1:], " \t\r\n"); len(inside) > 0 && inside[0] == '[' {
		model.get("merges", &pairs)
	} else {
		var lines []string
		model.get("merges", &lines)
		pairs = make([][]string, 0, len(lines))
		for _, line := range lines {
			if !strings.HasPrefix(line, "#version") { // the first line of an old merges.txt
				pairs = append(pairs, strings.Split(line, " "))
			}
		}
	}
	t.merges = newMergeTable(len(pairs))
	for rank, pair := range pairs {
		if len(pair) != 2 {
			model.fail(fmt.Sprintf("merges[%d]", rank), "%q is not a pair of tokens", strings.Join(pair, " "))
			return
		}
		var ids [3]int32
		for i, token := range []string{pair[0], pair[1], pair[0] + pair[1]} {
			id, ok := vocab[token]
			if !ok {
				model.fail(fmt.Sprintf("merges[%d]", rank), "%q: the token %q is not in model.vocab", strings.Join(pair, " "), token)
				return
			}
			ids[i] = id
		}
		t.merges.set(mergeRule{pairOf(ids[0], ids[1]), int32(rank), ids[2]})
	}
}

// parsePreTokenizer understands ByteLevel, Split(regex) and Digits, alone or in a Sequence that comes to digits first,
// one pattern, then bytes.
func (t *BPE) parsePreTokenizer(root *object) {
	stages := root.stages("pre_tokenizer", "pretokenizers")
	byteLevel := false
	for i, o := range stages {
		typ := o.text("type")
		if byteLevel {
			o.fail("type", "%q behind ByteLevel is not supported", typ)
			return
		}
		switch typ {
		case "ByteLevel":
			byteLevel = true
			if o.flag("add_prefix_space", true) {
				if i > 0 {
					o.fail("add_prefix_space", "behind another stage is not supported: want false")
				}
				t.pre.prefixSpace = true
			}
			if o.flag("use_regex", true) {
				t.pre.setPattern(o, "use_regex", gpt2Pattern)
			}
			o.ignore("trim_offsets")
		case "Split":
			pattern := o.object("pattern")
			if pattern == nil {
				o.fail("pattern", "is missing")
				return
			}
			t.pre.setPattern(pattern, "Regex", pattern.text("Regex"))
			pattern.end()
			// The known patterns match every character, so keeping the matches alone (Removed, inverted) is the same.
			behavior, invert := o.text("behavior"), o.flag("invert", false)
			if !(behavior == "Isolated" || behavior == "Removed" && invert) {
				o.fail("behavior", "%q (invert: %v) is not supported: want \"Isolated\"", behavior, invert)
			}
		case "Digits":
			if t.pre.scan != nil || t.pre.digits != digitsStay {
				o.fail("type", "\"Digits\" behind another stage is not supported")
			}
			t.pre.digits = digitsRuns
			if o.flag("individual_digits", false) {
				t.pre.digits = digitsSingle
			}
		default:
			o.fail("type", "%q is not supported: ByteLevel, Split and Digits are", typ)
			return
		}
		o.end()
	}
	if !byteLevel {
		root.fail("pre_tokenizer", "has no ByteLevel stage: only byte-level BPE is supported")
	}
}

func (p *preTokenizer) setPattern(o *object, key, pattern string) {
	if p.scan != nil {
		o.fail(key, "a second pattern is not supported")
		return
	}
	scan, err := scannerOf(pattern)
	if err != nil {
		o.fail(key, "%v", err)
		return
	}
	p.pattern, p.scan = pattern, scan
}

func (t *BPE) parseDecoder(root *object) {
	stages := root.stages("decoder", "decoders")
	if len(stages) != 1 || stages[0].text("type") != "ByteLevel" {
		root.fail("decoder", "is not supported: want ByteLevel")
		return
	}
	stages[0].ignore("add_prefix_space", "trim_offsets", "use_regex") // they do nothing when decoding
	stages[0].end()
}

// parseTemplate reads the post_processor: ByteLevel moves offsets, which are not kept here; TemplateProcessing names
// the tokens around a single text.
func (t *BPE) parseTemplate(root *object, vocab map[string]int32) {
	templates := 0
	for _, o := range root.stages("post_processor", "processors") {
		switch typ := o.text("type"); typ {
		case "ByteLevel":
			o.ignore("add_prefix_space", "trim_offsets", "use_regex")
		case "TemplateProcessing":
			if templates++; templates > 1 {
				o.fail("type", "a second TemplateProcessing is not supported")
			}
			t.parseSingle(o, vocab)
			o.ignore("pair")
		default:
			o.fail("type", "%q is not supported: ByteLevel and TemplateProcessing are", typ)
			return
		}
		o.end()
	}
}

// parseSingle reads the template for one text, such as <s> $A </s>.
func (t *BPE) parseSingle(o *object, vocab map[string]int32) {
	specials := o.object("special_tokens")
	around, texts := [2][]int32{}, 0
	for _, piece := range o.objects("single") {
		sequence, special := piece.object("Sequence"), piece.object("SpecialToken")
		piece.end()
		switch {
		case piece.failed():
			return
		case sequence != nil && special == nil && sequence.text("id") == "A" && texts == 0:
			texts++
		case special != nil && sequence == nil && specials != nil:
			name := special.text("id")
			s := specials.object(name)
			if s == nil {
				specials.fail(name, "is missing, but the template uses it")
				return
			}
			var ids []int32
			s.get("ids", &ids)
			var tokens []string
			s.get("tokens", &tokens)
			for i, id := range ids {
				if len(tokens) != len(ids) || !hasID(vocab, tokens[i], id) {
					s.fail("ids", "%v do not belong to the tokens %q", ids, tokens)
					return
				}
			}
			around[texts] = append(around[texts], ids...)
		default:
			o.fail("single", "is not supported: want special tokens around one sequence A")
			return
		}
	}
	if texts != 1 {
		o.fail("single", "has no sequence A")
	}
	t.before, t.behind = around[0], around[1]
}

func hasID(vocab map[string]int32, token string, id int32) bool {
	have, ok := vocab[token]
	return ok && have == id
}

// namedToken reads a token from tokenizer_config.json, where it is a string or an added token's object; -1 for none.
func (t *BPE) namedToken(root *object, key string) int32 {
	raw := root.raw(key)
	if raw == nil {
		return -1
	}
	var name string
	if bytes.HasPrefix(raw, []byte("{")) {
		if o := root.object(key); o != nil {
			name = o.text("content")
		}
	} else {
		root.get(key, &name)
	}
	if root.failed() {
		return -1
	}
	id, ok := t.ID(name)
	if !ok {
		id = int32(slices.IndexFunc(t.tokens, func(token []byte) bool { return string(token) == name }))
	}
	if id < 0 {
		root.fail(key, "%q is not a token of the tokenizer.json", name)
	}
	return id
}

// guessEnds finds BOS and EOS without a tokenizer_config.json.
func (t *BPE) guessEnds() {
	if len(t.before) == 1 {
		t.bos = t.before[0]
	}
	if len(t.behind) == 1 {
		t.eos = t.behind[0]
	}
	if id, ok := t.ID(EndOfText); ok && t.eos < 0 && t.special[id] {
		t.eos = id
	}
}

// computeHash covers what the ids depend on, not how the files spell it.
func (t *BPE) computeHash() string {
	h := sha256.New()
	put := func(s []byte) {
		h.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(s))))
		h.Write(s)
	}
	put(fmt.Appendf(nil, "nha byte-level bpe 1 %q %v %d %v", t.pre.pattern, t.pre.prefixSpace, t.pre.digits, t.whole != nil))
	put(fmt.Appendf(nil, "%d %d %v %v %v", t.bos, t.eos, t.before, t.behind, t.byteIDs))
	put(fmt.Append(nil, len(t.tokens)))
	for _, token := range t.tokens {
		put(token)
	}
	for pass := range t.added {
		put(fmt.Append(nil, len(t.added[pass].ids)))
		for _, id := range sortedValues(t.added[pass].ids) {
			put(fmt.Append(nil, id, t.special[id]))
		}
	}
	if t.whole != nil {
		for _, id := range sortedValues(t.whole) {
			put(fmt.Append(nil, id))
		}
	}
	rules := slices.DeleteFunc(slices.Clone(t.merges.slots), func(r mergeRule) bool { return r.pair == noPair })
	sort.Slice(rules, func(i, j int) bool { return rules[i].rank < rules[j].rank })
	var line []byte
	for _, r := range rules {
		line = binary.LittleEndian.AppendUint64(line[:0], r.pair)
		h.Write(binary.LittleEndian.AppendUint32(line, uint32(r.id)))
	}
	return hex.EncodeToString(h.Sum(nil))
}

func sortedValues(m map[string]int32) []int32 {
	ids := make([]int32, 0, len(m))
	for _, id := range m {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}
