package tokenizer

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
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
		t.norm = parseNormalizer(nil, n)
	}
	byteLevel := t.parsePreTokenizer(root)
	d := parseDecoder(root)
	if d.byteLevel != byteLevel && !root.failed() {
		root.fail("decoder", "and pre_tokenizer must both be ByteLevel, or neither")
	}
	vocab := t.parseVocab(root, d)
	t.parseTemplate(root, vocab)
	root.end()
}

// parseVocab reads model and added_tokens, which share one range of ids, and returns all tokens by their spelling.
func (t *BPE) parseVocab(root *object, d decoder) map[string]int32 {
	model := root.object("model")
	if model == nil {
		root.fail("model", "is missing")
		return nil
	}
	o := parseModelOptions(model, d.byteLevel)
	vocab := map[string]int32{}
	if model.get("vocab", &vocab); len(vocab) == 0 {
		model.fail("vocab", "is missing or empty")
	}
	added := parseAdded(root, vocab)
	byID := spellings(model, vocab)
	if model.failed() {
		return nil
	}
	t.special = make([]bool, len(byID))
	if o.ignoreMerges {
		t.whole = map[string]int32{}
	}
	if d.byteLevel {
		t.byteAlphabet(model, byID, added, o)
	} else {
		t.charAlphabet(model, byID, added, vocab, d, o)
	}
	if model.failed() {
		return nil
	}
	t.enterAdded(added.list)
	for _, a := range added.list {
		text := a.content
		if a.normalized {
			text = normalize(t.norm, text)
		}
		t.spell(a.id, text, d)
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

// byteAlphabet gives the tokens their bytes, and finds those of one byte. A byte without a token (SmolLM2 lacks some control
// characters) is dropped, as Hugging Face drops it.
func (t *BPE) byteAlphabet(model *object, byID []string, added addedList, o modelOptions) {
	t.tokens = make([][]byte, len(byID))
	for i := range t.byteIDs {
		t.byteIDs[i] = noByte
	}
	for id, token := range byID {
		raw, ok := fromByteRunes(token)
		if ok && len(raw) == 1 && !added.outside[token] {
			t.byteIDs[raw[0]] = int32(id)
		}
		if ok && t.whole != nil && !added.outside[token] {
			t.whole[string(raw)] = int32(id)
		}
		if !ok {
			raw = []byte(token)
		}
		t.tokens[id] = raw
	}
	for b, id := range t.byteIDs {
		switch {
		case id >= 0:
		case o.unk != "" && !slices.Contains(neverUTF8, byte(b)):
			model.fail("vocab", "has no token for the byte 0x%02x, spelled %q, and an unknown token in its place is not supported", b, byteRunes[b])
			return
		default:
			t.lost = lostBefore
		}
	}
}

// noByte stands in byteIDs for a byte that is no token.
const noByte = -2

// neverUTF8 are the bytes that valid text does not hold, which a vocabulary may lack.
var neverUTF8 = []byte{0xc0, 0xc1, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff}

// charAlphabet is the same for tokens of characters.
func (t *BPE) charAlphabet(model *object, byID []string, added addedList, vocab map[string]int32, d decoder, o modelOptions) {
	t.tokens = make([][]byte, len(byID))
	t.chars = newCharTable()
	t.chars.fuse = o.fuseUnk
	inModel := func(token string) int32 {
		if id, ok := vocab[token]; ok && !added.outside[token] {
			return id
		}
		return -1
	}
	for b := range t.byteIDs {
		t.byteIDs[b] = -1
		if o.byteFallback {
			t.byteIDs[b] = inModel(byteToken(byte(b)))
		}
	}
	if o.unk != "" {
		if t.chars.unk = inModel(o.unk); t.chars.unk < 0 {
			model.fail("unk_token", "%q is not in model.vocab", o.unk)
			return
		}
	}
	for id, token := range byID {
		t.spell(int32(id), token, d)
		if added.outside[token] {
			continue
		}
		if r, n := utf8.DecodeRuneInString(token); n == len(token) && n > 0 {
			t.chars.set(r, int32(id))
		}
		if t.whole != nil {
			t.whole[token] = int32(id)
		}
	}
	t.head.stripSpace = d.stripSpace
}

// spell gives a token the text that d makes of its spelling.
func (t *BPE) spell(id int32, token string, d decoder) {
	t.tokens[id] = d.bytes(token)
	delete(t.head.bare, id)
	if d.metaspace && strings.Contains(token, metaspace) {
		if t.head.bare == nil {
			t.head.bare = map[int32][]byte{}
		}
		t.head.bare[id] = []byte(strings.ReplaceAll(token, metaspace, ""))
	}
}

// byteToken is how SentencePiece spells the token of a byte.
func byteToken(b byte) string { return fmt.Sprintf("<0x%02X>", b) }

// byteOfToken inverts byteToken; it takes small letters too, as the decoders do.
func byteOfToken(token string) (byte, bool) {
	if len(token) != 6 || token[:3] != "<0x" || token[5] != '>' {
		return 0, false
	}
	b, err := strconv.ParseUint(token[3:5], 16, 8)
	return byte(b), err == nil
}

// enterAdded makes the added tokens findable: the special ones first, and of two that are spelled alike the first counts.
func (t *BPE) enterAdded(list []*addedToken) {
	t.list = list
	for _, special := range []bool{true, false} {
		for _, a := range list {
			switch {
			case a.special != special:
			case a.normalized:
				t.added[1].add(normalize(t.norm, a.content), a)
			default:
				t.added[0].add(a.content, a)
			}
		}
	}
	for _, a := range list {
		t.special[a.id] = a.special
	}
}

type modelOptions struct {
	ignoreMerges, byteFallback, fuseUnk bool
	unk                                 string
}

// parseModelOptions refuses every kind of BPE but the two.
func parseModelOptions(model *object, byteLevel bool) (o modelOptions) {
	if typ := model.text("type"); typ != "BPE" && typ != "" {
		model.fail("type", "%q is not supported: want \"BPE\"", typ)
	}
	if dropout := model.raw("dropout"); dropout != nil && string(dropout) != "0.0" && string(dropout) != "0" {
		model.fail("dropout", "%s is not supported: want null", dropout)
	}
	for _, key := range []string{"continuing_subword_prefix", "end_of_word_suffix"} {
		if s := model.text(key); s != "" {
			model.fail(key, "%q is not supported: want null", s)
		}
	}
	o.ignoreMerges = model.flag("ignore_merges", false)
	o.byteFallback = model.flag("byte_fallback", false)
	if byteLevel {
		if o.byteFallback {
			model.fail("byte_fallback", "is not supported beside ByteLevel: want false")
		}
		o.unk = model.text("unk_token")
		model.ignore("fuse_unk") // no byte may be unknown where there is an unknown token
		return o
	}
	o.unk = model.text("unk_token")
	o.fuseUnk = model.flag("fuse_unk", false)
	return o
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

type addedList struct {
	list    []*addedToken
	outside map[string]bool // those that the model's own vocabulary lacks
}

// parseAdded reads added_tokens and enters them into vocab.
func parseAdded(root *object, vocab map[string]int32) addedList {
	added := addedList{outside: map[string]bool{}}
	contents := map[string]bool{}
	for _, o := range root.objects("added_tokens") {
		a := &addedToken{content: o.text("content"), id: -1, special: o.flag("special", false),
			singleWord: o.flag("single_word", false), lstrip: o.flag("lstrip", false), rstrip: o.flag("rstrip", false)}
		o.get("id", &a.id)
		a.normalized = o.flag("normalized", !a.special)
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
	if t.chars != nil && t.whole == nil {
		t.cutWords(pairs)
	}
}

// cutWords adds the stage that cuts where merges cannot reach across. It is sure of that only if every symbol of a merge
// stands for its own spelling, which an unknown token or a byte's does not; and two unknown characters may become one token.
func (t *BPE) cutWords(pairs [][]string) {
	for _, pair := range pairs {
		for _, token := range pair {
			_, isByte := byteOfToken(token)
			if isByte || t.chars.unk != absent && token == string(t.tokens[t.chars.unk]) {
				return
			}
		}
		t.chars.crosses(pair[0], pair[1])
	}
	if t.chars.symbol('\u2581') == absent {
		return
	}
	for a := range t.chars.joins {
		for b := range t.chars.joins[a] {
			if t.chars.ascii[a] == absent && t.chars.ascii[b] == absent {
				t.chars.joins[a][b] = true
			}
		}
	}
	t.pre.stages = append(t.pre.stages, stage{scan: t.chars.scanWord})
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
	put(fmt.Appendf(nil, "nha bpe 2 %v %v %v", t.pre.prefixSpace, t.pre.meta, t.whole != nil))
	for _, s := range t.pre.stages {
		put([]byte(s.name))
	}
	for _, n := range t.norm {
		put([]byte("normalizer " + n.name))
	}
	if c := t.chars; c != nil {
		put(fmt.Appendf(nil, "characters %v %d %v %v", c.late, c.unk, c.fuse, t.head))
	}
	put(fmt.Appendf(nil, "%d %d %v %v %v %v", t.bos, t.eos, t.before, t.behind, t.byteIDs, t.turnEnds))
	put(fmt.Append(nil, len(t.tokens)))
	for _, token := range t.tokens {
		put(token)
	}
	for _, a := range slices.SortedFunc(slices.Values(t.list), func(a, b *addedToken) int { return int(a.id - b.id) }) {
		put(fmt.Appendf(nil, "%+v", *a))
	}
	if t.whole != nil {
		for _, id := range slices.Sorted(maps.Values(t.whole)) {
			put(fmt.Append(nil, id))
		}
	}
	rules := slices.DeleteFunc(slices.Clone(t.merges.slots), func(r mergeRule) bool { return r.pair == noPair })
	slices.SortFunc(rules, func(a, b mergeRule) int { return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(a.pair, b.pair)) })
	var line []byte
	for i, r := range rules {
		line = binary.LittleEndian.AppendUint64(line[:0], r.pair)
		line = binary.LittleEndian.AppendUint32(line, uint32(r.id))
		h.Write(append(line, byte(btoi(i > 0 && r.rank == rules[i-1].rank))))
	}
	return hex.EncodeToString(h.Sum(nil))
}
