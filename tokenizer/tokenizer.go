// Package tokenizer turns text into token ids and back.
//
// Bytes is the plain kind, where a token is a byte. BPE is byte-pair encoding, byte-level (GPT-2, Llama 3, Qwen, SmolLM) or over
// characters with byte fallback (SentencePiece: Llama 2, Mistral). A BPE is trained by Train, read from a Hugging Face
// tokenizer.json by Load, or from the vocabulary of a GGUF by FromGGUF. Whatever such a file asks for that is not understood
// here is an error that names the field, never a wrong id.
//
// A tokenizer.json gives the ids of Hugging Face `tokenizers`, a GGUF those of llama.cpp; scripts/tokenizer-truth proves both.
// For one model they are the same but for this, where the kind of the file decides:
//   - llama.cpp applies no normalizer (Qwen's NFC), and its contractions know no long s;
//   - a SentencePiece token that merges in two ways: llama.cpp takes the leftmost, a tokenizer.json lists an order (chars.go);
//   - bytes that are no token (SmolLM2 lacks some) are dropped before merging by Hugging Face, behind it by llama.cpp;
//   - special tokens that overlap: Hugging Face finds the leftmost, llama.cpp the longest (added.go);
//   - the white space that Phi-3's special tokens take along is ASCII in llama.cpp.
//
// Save writes a GGUF's vocabulary as the tokenizer.json of the model, with Qwen2's NFC, wherever there is one of the same ids but
// for that list (ggufsave.go); what is loaded from there follows Hugging Face.
//
// Letters and numbers are those of Hugging Face's Unicode 16 for both; llama.cpp's tables are older. Decoding is exact where
// llama.cpp tidies up spaces. A run of byte tokens that is no UTF-8 is U+FFFD for each broken part, in Hugging Face for each byte.
//
// Encoding never adds tokens the text does not hold: what a model wants in front of and behind a text (BOS, EOS) is
// Template's answer, and the caller's decision.
package tokenizer

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"nha/atomicfile"
)

// A Tokenizer maps text to ids in [0, VocabSize) and back. Every method may be called from several goroutines at once.
type Tokenizer interface {
	// Encode returns the ids of text. Special tokens spelled out in text become their ids; nothing is added.
	Encode(text string) []int32
	// EncodeAppend appends what Encode returns to dst.
	EncodeAppend(dst []int32, text string) []int32
	// EncodeOrdinary appends the ids of text to dst, reading special tokens spelled out in it as ordinary text:
	// the encoder for text that nobody vouches for.
	EncodeOrdinary(dst []int32, text string) []int32
	// Decode returns the bytes of ids, special tokens included, ids outside the vocabulary skipped. The bytes are
	// exact, so any cut through a character shows; Lossy and StreamDecoder give valid UTF-8.
	Decode(ids []int32) string
	// Token returns the bytes of one token (a special token's are its text), nil if id is outside the vocabulary.
	// The caller must not change them.
	Token(id int32) []byte
	// Special says whether id is a special token, which a reader is usually not shown.
	Special(id int32) bool
	// VocabSize is the number of ids.
	VocabSize() int
	// BOS is the token that begins a text, and whether there is one.
	BOS() (int32, bool)
	// EOS is the token that ends a text, and whether there is one.
	EOS() (int32, bool)
	// Template returns the ids that the tokenizer's own template puts before and behind a single text (what
	// Hugging Face adds under add_special_tokens). The caller must not change them.
	Template() (before, behind []int32)
	// Hash is the SHA-256, in hexadecimal, of all that determines the methods above: a key for caches.
	Hash() string
	// Save writes tokenizer.json and tokenizer_config.json into dir, each atomically.
	Save(dir string) error
}

// EndOfText is the special token that Train and Bytes use to end a document.
const EndOfText = "<|endoftext|>"

const (
	fileName   = "tokenizer.json"
	configName = "tokenizer_config.json"
)

// Load reads the tokenizer in a directory, or the tokenizer.json that path names. A tokenizer_config.json beside it
// says which tokens are BOS and EOS; without one they are the template's, or else <|endoftext|> is EOS if it is special.
func Load(path string) (Tokenizer, error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		path = filepath.Join(path, fileName)
	}
	source, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("tokenizer: %w", err)
	}
	configPath := filepath.Join(filepath.Dir(path), configName)
	config, err := os.ReadFile(configPath)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("tokenizer: %w", err)
	}
	t, err := parse(path, source, configPath, config)
	if err != nil {
		return nil, err
	}
	// A byte tokenizer is saved as the BPE it is equal to; give back the plain one, whose hash is the original's.
	for _, b := range []Bytes{{}, {EndOfText: true}} {
		if bytes.Equal(source, b.source()) && bytes.Equal(config, b.config()) {
			return b, nil
		}
	}
	return t, nil
}

// save writes the two files of a tokenizer; an empty config is not written.
func save(dir string, source, config []byte) error {
	err := atomicfile.Write(filepath.Join(dir, fileName), 0o644, source)
	if err == nil && len(config) > 0 {
		err = atomicfile.Write(filepath.Join(dir, configName), 0o644, config)
	}
	if err != nil {
		return fmt.Errorf("tokenizer: %w", err)
	}
	return nil
}
