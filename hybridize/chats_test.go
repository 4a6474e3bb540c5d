package hybridize

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nha/chat"
	"nha/model"
	"nha/tokenizer"
)

// plain writes every turn as "<role>text/"; forgetful writes what was thought, the text before a "|", in the last turn alone.
const (
	plain     = `{% for m in messages %}<{{ m.role }}>{{ m.content }}/{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}`
	forgetful = `{% for m in messages %}<{{ m.role }}>{% if loop.last %}{{ m.content }}{% else %}{{ m.content.split("|")[-1] }}{% endif %}/{% endfor %}` +
		`{% if add_generation_prompt %}<assistant>{% endif %}`
	dated = `{{ strftime_now("%Y") }}` + plain
)

// newlines is the byte tokenizer with a token for two newlines, which joins what asks for an answer and the answer.
type newlines struct{ tokenizer.Bytes }

const twoNewlines = 0x12c

func (n newlines) Encode(text string) (ids []int32) {
	for i, part := range strings.Split(text, "\n\n") {
		if i > 0 {
			ids = append(ids, twoNewlines)
		}
		ids = append(ids, n.Bytes.Encode(part)...)
	}
	return ids
}

func turns(list ...string) (m []chat.Message) {
	for _, s := range list {
		role, content, _ := strings.Cut(s, ":")
		m = append(m, chat.Message{Role: role, Content: content})
	}
	return m
}

func parse(t *testing.T, source string) *chat.Template {
	t.Helper()
	p, err := chat.Parse("test", source)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// shown is a conversation's text and its targets, "_" for none.
func shown(c conversation) (text, targets string) {
	for i, id := range c.tokens {
		text += string(rune(id))
		if c.targets[i] < 0 {
			targets += "_"
		} else {
			targets += string(rune(c.targets[i]))
		}
	}
	return text, targets
}

// TestAnswersAreTheTargets: every answer, and what ends it, stands under the token before it; nothing else is predicted.
func TestAnswersAreTheTargets(t *testing.T) {
	two := turns("user:a", "assistant:yes", "user:b", "assistant:no", "user:c")
	thoughts := turns("user:a", "assistant:hm|yes", "user:b", "assistant:er|no")
	for _, c := range []struct {
		name, template string
		tk             tokenizer.Tokenizer
		messages       []chat.Message
		context        int
		want           []string // text, then targets, for every conversation
	}{
		{"two answers", plain, tokenizer.Bytes{}, two, 99, []string{
			"<user>a/<assistant>yes/<user>b/<assistant>no/",
			"__________________yes/___________________no/_"}},
		{"cut in an answer", plain, tokenizer.Bytes{}, two, 21, []string{
			"<user>a/<assistant>ye",
			"__________________yes"}},
		{"thoughts are left out later", forgetful, tokenizer.Bytes{}, thoughts, 99, []string{
			"<user>a/<assistant>hm|yes/",
			"__________________hm|yes/_",
			"<user>a/<assistant>yes/<user>b/<assistant>er|no/",
			"_________________________________________er|no/_"}},
		{"the second does not fit", forgetful, tokenizer.Bytes{}, thoughts, 30, []string{
			"<user>a/<assistant>hm|yes/",
			"__________________hm|yes/_"}},
		{"the answer joins the line before it", strings.NewReplacer("}}>", "}}>\n", "assistant>", "assistant>\n").Replace(plain), newlines{}, turns("user:a", "assistant:\nyes"), 99, []string{
			"<user>\na/<assistant>\u012cyes/",
			"___________________\u012cyes/_"}},
	} {
		list, err := encodeChat(parse(t, c.template), c.tk, c.messages, c.context)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		var got []string
		for _, one := range list {
			text, targets := shown(one)
			got = append(got, text, targets)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s:\n got %q\nwant %q", c.name, got, c.want)
		}
	}
}

func TestChatRefusals(t *testing.T) {
	otherwise := strings.ReplaceAll(plain, "<assistant>{% endif %}", "<answer>{% endif %}")
	for want, c := range map[string]struct {
		template string
		messages []chat.Message
		context  int
	}{
		`no message with role "assistant"`:  {plain, turns("user:a"), 99},
		"after a context of 17 tokens":      {plain, turns("user:a", "assistant:b"), 17},
		"message 2: the template writes an": {otherwise, turns("user:a", "assistant:b"), 99},
		"refuses the conversation":          {`{{ raise_exception("no") }}`, turns("user:a", "assistant:b"), 99},
	} {
		if _, err := encodeChat(parse(t, c.template), tokenizer.Bytes{}, c.messages, c.context); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// chatFiles is a model directory with a template, and a file of conversations.
func chatFiles(t *testing.T, template string, lines ...string) (dir, file string) {
	t.Helper()
	dir = t.TempDir()
	file = filepath.Join(dir, "chats.jsonl")
	for path, text := range map[string]string{filepath.Join(dir, "chat_template.jinja"): template, file: strings.Join(lines, "\n")} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir, file
}

func chatLine(user, assistant string) string {
	return `{"messages": [{"role": "user", "content": "` + user + `"}, {"role": "assistant", "content": "` + assistant + `"}]}`
}

func TestReadChats(t *testing.T) {
	dir, file := chatFiles(t, dated, chatLine("a", "b"), chatLine("c", "d"))
	c, err := readChats([]string{file}, dir, tokenizer.Bytes{}, 99)
	if err != nil || len(c.list) != 2 {
		t.Fatal(c, err)
	}
	if text, _ := shown(c.list[1]); text != "2025<user>c/<assistant>d/" { // on every day
		t.Errorf("%q", text)
	}
	other, err := readChats([]string{file}, dir, tokenizer.Bytes{}, 23)
	if err != nil || other.hash == c.hash {
		t.Errorf("another context has the same hash (%v)", err)
	}
	_, bad := chatFiles(t, plain, chatLine("a", "b"), `{"messages": [{"role": "user", "content": "a"}]}`)
	if _, err := readChats([]string{bad}, dir, tokenizer.Bytes{}, 99); err == nil || !strings.Contains(err.Error(), "chats.jsonl: line 2: no message with role") {
		t.Errorf("a line without an answer: %v", err)
	}
	_, empty := chatFiles(t, plain)
	if _, err := readChats([]string{empty}, dir, tokenizer.Bytes{}, 99); err == nil || !strings.Contains(err.Error(), "no conversations") {
		t.Errorf("an empty file: %v", err)
	}
	if _, err := readChats([]string{file}, t.TempDir(), tokenizer.Bytes{}, 99); err == nil || !strings.Contains(err.Error(), "no chat template") {
		t.Errorf("a model without a template: %v", err)
	}
}

// numbered are conversations of so many tokens, all of their number.
func numbered(lengths ...int) *chats {
	c := &chats{}
	for i, n := range lengths {
		ids := slices.Repeat([]int32{int32(i)}, n)
		c.list = append(c.list, conversation{ids, ids})
	}
	return c
}

// TestChatSource: whole conversations within the tokens, each once an epoch, in another order the next, and exactly so after a restart.
func TestChatSource(t *testing.T) {
	c := numbered(3, 5, 2, 4, 6, 1, 9)
	s := c.source(1, 8)
	var b model.Batch
	var orders [2][]int32
	for len(orders[1]) < 7 {
		if err := s.Next(&b); err != nil {
			t.Fatal(err)
		}
		if len(b.Tokens) > 8 && len(b.Lengths) > 1 || len(b.Tokens) != len(b.Targets) {
			t.Errorf("%d tokens of lengths %v, %d targets", len(b.Tokens), b.Lengths, len(b.Targets))
		}
		at := 0
		for _, n := range b.Lengths {
			id := b.Tokens[at]
			if at += n; n != len(c.list[id].tokens) {
				t.Errorf("conversation %d has %d tokens", id, n)
			}
			if len(orders[0]) < 7 {
				orders[0] = append(orders[0], id)
			} else if len(orders[1]) < 7 {
				orders[1] = append(orders[1], id)
			}
		}
	}
	if slices.Equal(orders[0], orders[1]) {
		t.Errorf("two epochs in the same order %v", orders[0])
	}
	for _, o := range orders {
		if slices.Sort(o); !slices.Equal(o, []int32{0, 1, 2, 3, 4, 5, 6}) {
			t.Errorf("an epoch of %v", o)
		}
	}
	state, err := s.State()
	if err != nil {
		t.Fatal(err)
	}
	again := c.source(1, 8)
	if err := again.Restore(state); err != nil {
		t.Fatal(err)
	}
	var other model.Batch
	for range 9 {
		if s.Next(&b) != nil || again.Next(&other) != nil || !slices.Equal(b.Tokens, other.Tokens) {
			t.Fatalf("after a restart %v, without %v", other.Tokens, b.Tokens)
		}
	}
	if err := again.Restore([]byte(`{"next": 8}`)); err == nil || !strings.Contains(err.Error(), "8 of 7") {
		t.Errorf("a state beyond the end: %v", err)
	}
}

func TestHoldOutChats(t *testing.T) {
	c := numbered(slices.Repeat([]int{2}, 250)...)
	held := c.holdOut(3)
	if len(held) != 3 || len(c.list) != 247 {
		t.Fatalf("%d held out, %d left", len(held), len(c.list))
	}
	for _, b := range held {
		if slices.ContainsFunc(c.list, func(x conversation) bool { return x.tokens[0] == b.Tokens[0] }) {
			t.Errorf("conversation %d is held out and trained on", b.Tokens[0])
		}
	}
	if one := numbered(4); len(one.holdOut(3)) != 0 || len(one.list) != 1 {
		t.Error("the only conversation is held out")
	}
}
