package generate

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"

	"nha/tokenizer"
)

// configName is the file of a model directory that holds its way of generating.
const configName = "generation_config.json"

// ignoredKeys do not change what is generated here: bookkeeping, and limits of caches that this memory does not have.
var ignoredKeys = []string{"_from_model_config", "transformers_version", "bos_token_id", "pad_token_id", "decoder_start_token_id", "max_length",
	"use_cache", "cache_implementation", "cache_config", "return_dict_in_generate", "output_scores", "output_logits", "output_attentions",
	"output_hidden_states", "trust_remote_code", "chat_format", "max_window_size", "disable_compile", "prefill_chunk_size"}

// neutralKeys ask for ways of generating that are not understood, unless they have these values, which switch them off.
var neutralKeys = map[string]any{"num_beams": 1.0, "num_beam_groups": 1.0, "num_return_sequences": 1.0, "diversity_penalty": 0.0,
	"length_penalty": 1.0, "early_stopping": false, "no_repeat_ngram_size": 0.0, "encoder_no_repeat_ngram_size": 0.0,
	"encoder_repetition_penalty": 1.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "min_length": 0.0, "min_new_tokens": 0.0,
	"renormalize_logits": false, "remove_invalid_values": false, "low_memory": false}

// Defaults is the sampling that a model directory asks for in its generation_config.json, or DefaultSampling without one. The
// end tokens are those of the file, else the model's, else the tokenizer's; of a model that is one file, a GGUF, all that the
// tokenizer knows to end a turn, since llama.cpp stops there. As with Hugging Face, without "do_sample": true
// the likeliest token is taken. A key that is not known is an error.
func (g *Generator) Defaults(dir string) (Sampling, error) {
	o := DefaultSampling()
	path := filepath.Join(dir, configName)
	data, err := os.ReadFile(path)
	if err == nil {
		err = o.readConfig(data)
		if err == nil {
			err = o.Check(g.m.Config.VocabSize)
		}
		if err != nil {
			return Sampling{}, fmt.Errorf("%s: %w", path, err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) && !isFile(dir) {
		return Sampling{}, err
	}
	if t, ok := g.tk.(*tokenizer.BPE); ok && o.EndTokens == nil && isFile(dir) {
		for _, id := range t.Ends() {
			if int(id) < g.m.Config.VocabSize {
				o.EndTokens = append(o.EndTokens, id)
			}
		}
	}
	if o.EndTokens == nil {
		for _, id := range g.m.Config.EosTokenIDs {
			o.EndTokens = append(o.EndTokens, int32(id))
		}
	}
	if o.EndTokens == nil {
		if id := g.m.Config.EosTokenID; id != nil {
			o.EndTokens = []int32{int32(*id)}
		} else if id, ok := g.tk.EOS(); ok && int(id) < g.m.Config.VocabSize {
			o.EndTokens = []int32{id}
		}
	}
	return o, nil
}

// isFile says whether a model is one file, which has no other beside it.
func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && !info.IsDir()
}

// readConfig takes in the text of a generation_config.json.
func (o *Sampling) readConfig(data []byte) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil {
		return fmt.Errorf("not a JSON object: %w", err)
	}
	sample := false
	o.Temperature = 1
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		raw := fields[key]
		if string(raw) == "null" || slices.Contains(ignoredKeys, key) {
			continue
		}
		neutral, off := neutralKeys[key]
		switch {
		case key == "do_sample":
			if err := unmarshal(key, raw, &sample); err != nil {
				return err
			}
		case off:
			var value any
			if err := unmarshal(key, raw, &value); err != nil {
				return err
			}
			if !reflect.DeepEqual(value, neutral) {
				return fmt.Errorf("%s %s is not supported: remove the key, or set it to %v", key, raw, neutral)
			}
		default:
			known, err := o.set(key, raw)
			if err != nil {
				return err
			}
			if !known {
				return fmt.Errorf("unknown key %s: it may change what is generated; remove it if it does not", key)
			}
		}
	}
	if !sample {
		o.Temperature = 0
	}
	return nil
}

// set takes in one option by its Hugging Face name; false if there is none of that name.
func (o *Sampling) set(key string, raw json.RawMessage) (known bool, err error) {
	var into any
	switch key {
	case "temperature":
		into = &o.Temperature
	case "top_k":
		into = &o.TopK
	case "top_p":
		into = &o.TopP
	case "min_p":
		into = &o.MinP
	case "repetition_penalty":
		into = &o.RepetitionPenalty
	case "max_new_tokens":
		into = &o.MaxNewTokens
	case "stop_strings":
		o.Stop = nil
		return true, oneOrMore(key, raw, &o.Stop)
	case "eos_token_id":
		o.EndTokens = nil
		return true, oneOrMore(key, raw, &o.EndTokens)
	default:
		return false, nil
	}
	return true, unmarshal(key, raw, into)
}

// oneOrMore reads a value or a list of them.
func oneOrMore[T any](key string, raw json.RawMessage, list *[]T) error {
	if len(raw) > 0 && raw[0] == '[' {
		return unmarshal(key, raw, list)
	}
	*list = make([]T, 1)
	return unmarshal(key, raw, &(*list)[0])
}

// unmarshal reads one value; the error names its key.
func unmarshal(key string, raw json.RawMessage, into any) error {
	if err := json.Unmarshal(raw, into); err != nil {
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) {
			return fmt.Errorf("%s %s: want a value of type %s", key, raw, wrong.Type)
		}
		return fmt.Errorf("%s: %w", key, err)
	}
	return nil
}
