package tokenizer

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
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

	"golang.org/x/text/unicode/norm"

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

// saved returns the tokenizer.json that Save writes, and what Load reads there.
func saved(t *testing.T, tk Tokenizer) (path string, loaded *BPE) {
	t.Helper()
	dir := t.TempDir()
	if err := tk.Save(dir); err != nil {
		t.Fatal(err)
	}
	again, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, fileName), again.(*BPE)
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

// TestLlamaJSON saves vocabularies of GGUF files as tokenizer.json and holds Hugging Face's ids for it, ours, and those of the GGUF
// against each other. Where the package says that the two programs differ, Hugging Face decides.
func TestLlamaJSON(t *testing.T) {
	python := os.Getenv("NHA_PYTHON")
	if python == "" {
		t.Skip("scripts/tokenizer-truth/run runs this against Hugging Face tokenizers")
	}
	paths := filepath.SplitList(os.Getenv("NHA_GGUF"))
	for _, name := range []string{"gpt-2", "llama-bpe", "qwen2", "starcoder", "refact", "llama-spm", "phi-3"} {
		paths = append(paths, filepath.Join(llamaSource(t), "models", "ggml-vocab-"+name+".gguf"))
	}
	corpus := goSources(t, 2<<20)
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			opened, err := openGGUF(t, path)
			if err != nil {
				t.Fatal(err)
			}
			tk := opened.(*BPE)
			file, loaded := saved(t, tk)
			rng := rand.New(rand.NewPCG(21, 22))
			texts := withTokens(rng, truthTexts(rng, corpus), tk)
			wrong, tokens, known := 0, 0, 0
			ask(t, python, texts, func(i int, raw json.RawMessage) {
				var want struct{ IDs, Template, Ordinary []int32 }
				unmarshal(t, raw, &want)
				tokens += len(want.IDs)
				text := texts[i]
				before, behind := loaded.Template()
				ok := slices.Equal(loaded.Encode(text), want.IDs) && slices.Equal(loaded.EncodeOrdinary(nil, text), want.Ordinary) &&
					slices.Equal(slices.Concat(before, want.IDs, behind), want.Template)
				if differs(tk, text) {
					known++
				} else {
					ok = ok && slices.Equal(tk.Encode(text), want.IDs)
				}
				if !ok {
					if wrong++; wrong <= mostShown {
						t.Errorf("%q:\nloaded %v\nGGUF %v\nwant %v", text, loaded.Encode(text), tk.Encode(text), want)
					}
				}
			}, "encode", file)
			t.Logf("%d strings, %d tokens, %d differ; %d of those that the programs read in two ways", len(texts), tokens, wrong, known)
		})
	}
}

// differs says whether Hugging Face reads text in another way than llama.cpp: the long s, bytes that are no token,
// letters that the family's normalizer composes, white space behind a token that takes it along.
func differs(t *BPE, text string) bool {
	return t.chars == nil && (strings.Contains(text, "'ſ") || loses(t, text)) || t.gguf.pre == "qwen2" && !norm.NFC.IsNormalString(text) ||
		slices.ContainsFunc(t.list, func(a *addedToken) bool { return a.rstrip }) &&
			strings.ContainsFunc(text, func(r rune) bool { return r >= utf8.RuneSelf && unicode.IsSpace(r) })
}
