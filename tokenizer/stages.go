package tokenizer

import "strings"

// The stages of a tokenizer.json around its model: what cuts text before it (pre_tokenizer), what joins tokens behind it
// (decoder), and what it puts around a text (post_processor).

// parsePreTokenizer understands ByteLevel, Split(regex) and Digits, alone or in a Sequence that comes to digits first, one
// pattern, then bytes; or Metaspace; or none. It returns whether the tokens are of bytes.
func (t *BPE) parsePreTokenizer(root *object) (byteLevel bool) {
	stages := root.stages("pre_tokenizer", "pretokenizers")
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
				t.pre.addPattern(o, "use_regex", gpt2Pattern)
			}
			o.ignore("trim_offsets")
		case "Split":
			pattern := o.object("pattern")
			if pattern == nil {
				o.fail("pattern", "is missing")
				return
			}
			t.pre.addPattern(pattern, "Regex", pattern.text("Regex"))
			pattern.end()
			// The known patterns match every character, so keeping the matches alone (Removed, inverted) is the same.
			behavior, invert := o.text("behavior"), o.flag("invert", false)
			if !(behavior == "Isolated" || behavior == "Removed" && invert) {
				o.fail("behavior", "%q (invert: %v) is not supported: want \"Isolated\"", behavior, invert)
			}
		case "Digits":
			if i > 0 {
				o.fail("type", "\"Digits\" behind another stage is not supported")
			}
			if o.flag("individual_digits", false) {
				t.pre.stages = append(t.pre.stages, stage{"single digits", scanSingleDigits})
			} else {
				t.pre.stages = append(t.pre.stages, stage{"digit runs", scanDigitRuns})
			}
		case "Metaspace":
			if len(stages) > 1 {
				o.fail("type", "\"Metaspace\" beside another stage is not supported")
			}
			t.parseMetaspace(o)
		default:
			o.fail("type", "%q is not supported: ByteLevel, Split, Digits and Metaspace are", typ)
			return
		}
		o.end()
	}
	if len(stages) > 0 && !byteLevel && !t.pre.meta.on {
		root.fail("pre_tokenizer", "ends with no ByteLevel stage: only byte-level BPE is cut by patterns")
	}
	return byteLevel
}

func (t *BPE) parseMetaspace(o *object) {
	m := metaspaceScheme(o)
	t.pre.meta = metaspaceRule{on: true, scheme: m}
	if o.flag("split", true) {
		t.pre.stages = append(t.pre.stages, stage{"metaspace", scanMetaspace})
	}
}

// metaspaceScheme reads what the Metaspace stages of pre_tokenizer and decoder have in common. Older files say
// add_prefix_space instead of a scheme.
func metaspaceScheme(o *object) string {
	if r := o.text("replacement"); r != metaspace {
		o.fail("replacement", "%q is not supported: want %q", r, metaspace)
	}
	scheme := "always"
	o.get("prepend_scheme", &scheme)
	if scheme != "always" && scheme != "first" && scheme != "never" {
		o.fail("prepend_scheme", "%q is not supported: always, first and never are", scheme)
	}
	if !o.flag("add_prefix_space", true) && scheme != "never" {
		o.fail("add_prefix_space", "false needs prepend_scheme \"never\", not %q", scheme)
	}
	o.ignore("str_rep")
	return scheme
}

// addPattern cuts by a regular expression, once.
func (p *preTokenizer) addPattern(o *object, key, pattern string) {
	for _, s := range p.stages {
		if strings.HasPrefix(s.name, patternName) {
			o.fail(key, "a second pattern is not supported")
			return
		}
	}
	scan, err := scannerOf(pattern)
	if err != nil {
		o.fail(key, "%v", err)
		return
	}
	p.stages = append(p.stages, stage{patternName + pattern, scan})
}

const patternName = "pattern "

// decoder says how a token becomes text: texts replaced in it, then <0x41> read as a byte; and what is taken from the first.
type decoder struct {
	byteLevel    bool
	replace      [][2]string
	byteFallback bool
	metaspace    bool // the Metaspace decoder, which drops the metaspaces of a text's first token
	stripSpace   bool // one space is taken from the text's start
}

// bytes returns the text of a token that is not byte-level.
func (d *decoder) bytes(token string) []byte {
	for _, r := range d.replace {
		token = strings.ReplaceAll(token, r[0], r[1])
	}
	if d.byteFallback {
		if b, ok := byteOfToken(token); ok {
			return []byte{b}
		}
	}
	return []byte(token)
}

// parseDecoder understands ByteLevel, Metaspace, and what SentencePiece's tokenizers have: Replace, ByteFallback, Fuse and
// Strip in this order.
func parseDecoder(root *object) (d decoder) {
	stages := root.stages("decoder", "decoders")
	order := map[string]int{"Replace": 1, "ByteFallback": 2, "Fuse": 3, "Strip": 4}
	last := ""
	for _, o := range stages {
		typ := o.text("type")
		switch {
		case typ == "ByteLevel" && len(stages) == 1:
			d.byteLevel = true
			o.ignore("add_prefix_space", "trim_offsets", "use_regex") // they do nothing when decoding
		case typ == "Metaspace" && len(stages) == 1:
			d.replace = [][2]string{{metaspace, " "}}
			d.metaspace = metaspaceScheme(o) != "never"
			o.ignore("split")
		case order[typ] == 0 || order[typ] < order[last] || typ == last && typ != "Replace" || typ == "Strip" && last != "Fuse":
			o.fail("type", "%q is not supported here: want ByteLevel, Metaspace, or Replace, ByteFallback, Fuse, Strip in this order", typ)
			return d
		case typ == "Replace":
			d.replace = append(d.replace, [2]string{parsePattern(o), o.text("content")})
		case typ == "ByteFallback":
			d.byteFallback = true
		case typ == "Strip":
			start, stop := 0, 0
			o.get("start", &start)
			o.get("stop", &stop)
			if content := o.text("content"); content != " " || start < 0 || start > 1 || stop != 0 {
				o.fail("content", "%q with start %d and stop %d is not supported: want one space at the start", content, start, stop)
			}
			d.stripSpace = start == 1
		}
		o.end()
		last = typ
	}
	if len(stages) == 0 {
		root.fail("decoder", "is missing: Hugging Face would put spaces between all tokens")
	}
	return d
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
