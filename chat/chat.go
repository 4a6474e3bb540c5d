// Package chat writes a conversation as the text that a model was trained on: the model's own template, in Jinja, rendered as
// Hugging Face's apply_chat_template renders it (scripts/chat-truth compares).
//
//	t, err := chat.Load(dir)
//	ids, err := t.Encode(tk, messages, chat.Options{AddGenerationPrompt: true})
//
// A template comes with a model and is a program: it can neither read files nor run for ever on a range, and what it refuses
// (roles out of order, say) is an error with its line.
package chat

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"nha/tokenizer"
)

// Message is one turn. The roles that templates know are system, user and assistant.
type Message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// Options are what a template sees beside the messages.
type Options struct {
	AddGenerationPrompt bool           // end with what begins the assistant's turn
	BOS, EOS            string         // the texts of these tokens, "" for none; Encode takes the tokenizer's
	Variables           map[string]any // others, such as enable_thinking
	Now                 time.Time      // of strftime_now; zero means the clock
}

// ErrNoTemplate says that a model has no chat template: it was not trained to chat.
var ErrNoTemplate = errors.New("there is no chat template: the model was not trained to chat")

// The files of a directory that may hold the template, and the one among several by name that is meant.
const (
	templateFile = "chat_template.jinja"
	jsonFile     = "chat_template.json"
	configFile   = "tokenizer_config.json"
	configKey    = "chat_template"
	defaultName  = "default"
)

// Load reads the template of a model directory: chat_template.jinja, or the key chat_template of chat_template.json or
// tokenizer_config.json, a string or a list of named ones of which the default is taken.
func Load(dir string) (*Template, error) {
	path := filepath.Join(dir, templateFile)
	source, err := os.ReadFile(path)
	if err == nil {
		return Parse(path, string(source))
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("chat: %w", err)
	}
	for _, name := range []string{jsonFile, configFile} {
		path := filepath.Join(dir, name)
		source, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("chat: %w", err)
		}
		text, err := configTemplate(source)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if text != "" {
			return Parse(path, text)
		}
	}
	return nil, fmt.Errorf("%s: %w", dir, ErrNoTemplate)
}

// configTemplate reads the key chat_template; "" if there is none.
func configTemplate(source []byte) (string, error) {
	var config struct {
		Template json.RawMessage `json:"chat_template"`
	}
	if err := json.Unmarshal(source, &config); err != nil {
		return "", fmt.Errorf("is not valid JSON: %w", err)
	}
	if len(config.Template) == 0 || string(config.Template) == "null" {
		return "", nil
	}
	var text string
	if json.Unmarshal(config.Template, &text) == nil {
		return text, nil
	}
	var list []struct{ Name, Template string }
	if json.Unmarshal(config.Template, &list) != nil {
		return "", errors.New(configKey + ": want a string, or a list of {name, template}")
	}
	named := map[string]string{}
	for _, t := range list {
		named[t.Name] = t.Template
	}
	if text, ok := named[defaultName]; ok {
		return text, nil
	}
	return "", fmt.Errorf("%s: of its templates (%s) none is named %s", configKey, strings.Join(slices.Sorted(maps.Keys(named)), ", "), defaultName)
}

// FromGGUF reads the template of a GGUF file, whose metadata value returns by key.
func FromGGUF(value func(key string) (any, bool)) (*Template, error) {
	const key = "tokenizer.chat_template"
	v, ok := value(key)
	if !ok {
		return nil, ErrNoTemplate
	}
	text, ok := v.(string)
	if !ok {
		return nil, fmt.Errorf("%s: is a %T, want a string", key, v)
	}
	return Parse(key, text)
}

// Encode renders messages and returns the ids of the text. Special tokens that the template writes are such tokens, and
// nothing is put in front: a template that wants BOS writes it. What a user writes is encoded alike, special tokens too.
func (t *Template) Encode(tk tokenizer.Tokenizer, messages []Message, o Options) ([]int32, error) {
	text, err := t.Render(messages, o.withTokens(tk))
	if err != nil {
		return nil, err
	}
	return tk.Encode(text), nil
}

// withTokens is o with the texts of the tokenizer's BOS and EOS where it names none.
func (o Options) withTokens(tk tokenizer.Tokenizer) Options {
	if id, ok := tk.BOS(); ok && o.BOS == "" {
		o.BOS = string(tk.Token(id))
	}
	if id, ok := tk.EOS(); ok && o.EOS == "" {
		o.EOS = string(tk.Token(id))
	}
	return o
}
