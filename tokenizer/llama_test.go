package tokenizer

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"nha/weights"
)

// openGGUF returns the tokenizer of a GGUF file.
func openGGUF(t testing.TB, path string) (Tokenizer, error) {
	t.Helper()
	g, err := weights.OpenGGUF(path)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	return FromGGUF(g.Value)
}

// llamaSource is the folder of llama.cpp's source, whose models/ has vocabularies with test strings and ids.
func llamaSource(t testing.TB) string {
	dir := os.Getenv("NHA_LLAMA_SRC")
	if dir == "" {
		t.Skip("scripts/tokenizer-truth/run runs this against llama.cpp's vocabularies (NHA_LLAMA_SRC)")
	}
	return dir
}

// TestLlamaVocabularies encodes llama.cpp's own test strings with every vocabulary of its source.
func TestLlamaVocabularies(t *testing.T) {
	paths, err := filepath.Glob(filepath.Join(llamaSource(t), "models", "ggml-vocab-*.gguf"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no vocabularies: %v", err)
	}
	supported := 0
	for _, path := range paths {
		name := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), "ggml-vocab-"), ".gguf")
		tk, err := openGGUF(t, path)
		if err != nil {
			t.Logf("%s: not supported: %v", name, strings.SplitN(err.Error(), ": gpt2 and", 2)[0])
			continue
		}
		in, err := os.ReadFile(path + ".inp")
		if err != nil {
			t.Logf("%s: no test strings", name)
			continue
		}
		out, err := os.ReadFile(path + ".out")
		if err != nil {
			t.Fatal(err)
		}
		supported++
		texts := strings.Split(strings.TrimSuffix(string(in), "\n__ggml_vocab_test__\n"), "\n__ggml_vocab_test__\n")
		answers := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
		if len(texts) != len(answers) || len(texts) < 40 {
			t.Fatalf("%s: %d texts, %d answers", name, len(texts), len(answers))
		}
		wrong := 0
		for i, text := range texts {
			var want []int32
			for _, s := range strings.Fields(answers[i]) {
				id, err := strconv.Atoi(s)
				if err != nil {
					t.Fatal(err)
				}
				want = append(want, int32(id))
			}
			if got := tk.EncodeOrdinary(nil, text); !slices.Equal(got, want) {
				wrong++
				t.Errorf("%s: %q:\n got %v\nwant %v", name, text, got, want)
			}
		}
		t.Logf("%s: %d strings, %d differ", name, len(texts), wrong)
	}
	if supported < 8 {
		t.Errorf("%d vocabularies supported, want at least 8", supported)
	}
}

// truthStrings is how many strings at random each comparison with another program takes.
var truthStrings = sync.OnceValue(func() int {
	if s := os.Getenv("NHA_STRINGS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			panic(fmt.Sprintf("NHA_STRINGS: %v", err))
		}
		return n
	}
	return 5000
})

// withTokens puts added tokens into every other text.
func withTokens(rng *rand.Rand, texts []string, tk *BPE) []string {
	if len(tk.list) == 0 {
		return texts
	}
	for i := 0; i < len(texts); i += 2 {
		s := texts[i]
		for range 1 + rng.IntN(3) {
			at := rng.IntN(len(s) + 1)
			for at > 0 && at < len(s) && !utf8.RuneStart(s[at]) {
				at--
			}
			s = s[:at] + tk.list[rng.IntN(len(tk.list))].content + s[at:]
		}
		texts[i] = s
	}
	return texts
}

// TestLlamaTruth encodes and decodes strings at random beside llama.cpp itself, which NHA_LLAMA_TOKENIZE answers for
// (scripts/tokenizer-truth/llama.c), with every vocabulary of its source and the files of NHA_GGUF.
func TestLlamaTruth(t *testing.T) {
	program := os.Getenv("NHA_LLAMA_TOKENIZE")
	if program == "" {
		t.Skip("scripts/tokenizer-truth/run runs this against llama.cpp, where a built one is (NHA_LLAMA_TOKENIZE)")
	}
	paths, err := filepath.Glob(filepath.Join(llamaSource(t), "models", "ggml-vocab-*.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	corpus := goSources(t, 2<<20)
	for _, path := range append(filepath.SplitList(os.Getenv("NHA_GGUF")), paths...) {
		tk, err := openGGUF(t, path)
		if err != nil {
			continue // TestLlamaVocabularies says why
		}
		t.Run(filepath.Base(path), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(11, 12))
			texts := withTokens(rng, truthTexts(rng, corpus), tk.(*BPE))
			compareLlama(t, program, path, tk, texts)
		})
	}
}

func compareLlama(t *testing.T, program, path string, tk Tokenizer, texts []string) {
	var in bytes.Buffer
	for _, text := range texts {
		in.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(text))))
		in.WriteString(text)
	}
	cmd := exec.Command(program, path)
	cmd.Stdin, cmd.Stderr = &in, os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v", program, path, err)
	}
	next := func(size int) []byte {
		n := int(binary.LittleEndian.Uint32(out)) * size
		part := out[4 : 4+n]
		out = out[4+n:]
		return part
	}
	ids := func() (list []int32) {
		raw := next(4)
		for i := 0; i < len(raw); i += 4 {
			list = append(list, int32(binary.LittleEndian.Uint32(raw[i:])))
		}
		return list
	}
	wrong, tokens := 0, 0
	for _, text := range texts {
		ordinary, special, decoded := ids(), ids(), string(next(1))
		tokens += len(special)
		if strings.ContainsFunc(text, func(r rune) bool { return unicode.In(r, lettersSince15, numbersSince15) }) {
			continue // unassigned in llama.cpp's tables; ours are those of Hugging Face
		}
		gotOrdinary, gotSpecial := tk.EncodeOrdinary(nil, text), tk.Encode(text)
		if slices.Equal(gotOrdinary, ordinary) && slices.Equal(gotSpecial, special) && tk.Decode(special) == decoded {
			continue
		}
		if wrong++; wrong <= mostShown {
			t.Errorf("%q:\n got %v\nwant %v\nwith special tokens %v\nwant %v\ndecoded %q\nwant %q", text, gotOrdinary, ordinary, gotSpecial, special, tk.Decode(special), decoded)
		}
	}
	t.Logf("%d strings, %d tokens, %d differ", len(texts), tokens, wrong)
}

// TestMeasureGGUF encodes NHA_MEASURE_TEXT with the tokenizers of NHA_GGUF and llama.cpp's vocabularies, and prints the speed:
//
//	NHA_LLAMA_SRC=llama.cpp NHA_MEASURE_TEXT=english.txt go test -run TestMeasureGGUF -v ./tokenizer
func TestMeasureGGUF(t *testing.T) {
	path := os.Getenv("NHA_MEASURE_TEXT")
	if path == "" {
		t.Skip("set NHA_MEASURE_TEXT to a text to measure speed")
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	paths := filepath.SplitList(os.Getenv("NHA_GGUF"))
	for _, name := range []string{"llama-spm", "llama-bpe", "qwen2", "gpt-2", "phi-3"} {
		paths = append(paths, filepath.Join(llamaSource(t), "models", "ggml-vocab-"+name+".gguf"))
	}
	var ids []int32
	for _, path := range paths {
		tk, err := openGGUF(t, path)
		if err != nil {
			t.Fatal(err)
		}
		var took [4]time.Duration
		for i := range took { // the first with a cold cache
			start := time.Now()
			ids = tk.EncodeAppend(ids[:0], text)
			took[i] = time.Since(start)
		}
		start := time.Now()
		long := strings.Repeat("abcdefghijklmnopqrstuvwxyz日", 1<<20/29)
		tk.Encode(long)
		t.Logf("%s: %.1f MB/s cold, %.1f MB/s warm, %.2f bytes a token; %d bytes without a space in %v", filepath.Base(path),
			float64(len(text))/1e6/took[0].Seconds(), float64(len(text))/1e6/slices.Min(took[1:]).Seconds(), float64(len(text))/float64(len(ids)),
			len(long), time.Since(start).Round(time.Millisecond))
	}
}

// jsonOf writes a byte-level vocabulary of a GGUF as the tokenizer.json of the same model.
func jsonOf(t testing.TB, path string) []byte {
	g, err := weights.OpenGGUF(path)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	v := ggufVocab{value: g.Value}
	v.read()
	merges, pre := v.texts("merges"), v.text("pre")
	if v.err != nil {
		t.Fatal(v.err)
	}
	stages := map[string]any{
		"gpt-2": map[string]any{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
		"smollm": map[string]any{"type": "Sequence", "pretokenizers": []any{
			map[string]any{"type": "Digits", "individual_digits": true},
			map[string]any{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}}},
		"llama3": splitStage(llama3Pattern),
		"qwen2":  splitStage(qwen2Pattern),
	}
	root := map[string]any{"version": "1.0", "pre_tokenizer": stages[ggufNames[pre]],
		"decoder": map[string]any{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}}
	var list []any
	for id, typ := range v.types {
		if typ == controlToken || typ == unknownToken || typ == userToken {
			list = append(list, added(id, v.tokens[id], typ != userToken, false))
		}
	}
	root["added_tokens"] = list
	root["model"] = map[string]any{"type": "BPE", "vocab": v.ids, "merges": merges, "ignore_merges": slices.Contains(ggufWhole, pre)}
	return vary(t, []byte("{}"), func(empty map[string]any) { maps.Copy(empty, root) })
}

// loses says whether a byte of s is no token.
func loses(t *BPE, s string) bool {
	for i := range len(s) {
		if t.byteIDs[s[i]] < 0 {
			return true
		}
	}
	return false
}

// TestLlamaJSON holds vocabularies of GGUF files against Hugging Face's answers for the tokenizer.json of the same model: here
// the two programs agree.
func TestLlamaJSON(t *testing.T) {
	python := os.Getenv("NHA_PYTHON")
	if python == "" {
		t.Skip("scripts/tokenizer-truth/run runs this against Hugging Face tokenizers")
	}
	paths := filepath.SplitList(os.Getenv("NHA_GGUF"))
	for _, name := range []string{"gpt-2", "llama-bpe", "qwen2"} {
		paths = append(paths, filepath.Join(llamaSource(t), "models", "ggml-vocab-"+name+".gguf"))
	}
	corpus := goSources(t, 2<<20)
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			tk, err := openGGUF(t, path)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), fileName)
			if err := os.WriteFile(file, jsonOf(t, path), 0o644); err != nil {
				t.Fatal(err)
			}
			loaded, err := Load(file)
			if err != nil {
				t.Fatal(err)
			}
			rng := rand.New(rand.NewPCG(21, 22))
			texts := slices.DeleteFunc(withTokens(rng, truthTexts(rng, corpus), tk.(*BPE)), func(s string) bool {
				return strings.Contains(s, "'ſ") // llama.cpp takes it for no contraction
			})
			wrong, tokens := 0, 0
			ask(t, python, texts, func(i int, raw json.RawMessage) {
				var want struct{ IDs []int32 }
				unmarshal(t, raw, &want)
				tokens += len(want.IDs)
				got, json := tk.Encode(texts[i]), loaded.Encode(texts[i])
				if loses(tk.(*BPE), texts[i]) {
					got = json // llama.cpp keeps apart what a lost byte stood between
				}
				if !slices.Equal(got, want.IDs) || !slices.Equal(json, want.IDs) {
					if wrong++; wrong <= mostShown {
						t.Errorf("%q:\n got %v\nwant %v", texts[i], got, want.IDs)
					}
				}
			}, "encode", file)
			t.Logf("%d strings, %d tokens, %d differ", len(texts), tokens, wrong)
		})
	}
}
