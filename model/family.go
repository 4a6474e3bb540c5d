package model

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// family is one model_type of Hugging Face: how its config.json is read and what its tensors are called. Each has a file of its own,
// which registers it.
type family struct {
	modelType    string
	architecture string // of "architectures"
	keys         keyNames
	tensors      tensorNames
	parse        func(f *family, raw map[string]json.RawMessage) (Config, error)

	context int                                          // max_position_embeddings where the key is absent
	own     func(c *Config, k *fields, layers int) error // reads what only this pretrained family has, its windows among it
}

// keyNames are keys of config.json that families spell differently.
type keyNames struct{ heads, kvHeads, normEps string }

// tensorNames are the parts of tensor names that families spell differently.
type tensorNames struct{ embedding, attnNorm, mixer, gate, mlpNorm string }

var families = map[string]*family{}

func register(f *family) { families[f.modelType] = f }

// ModelTypes lists the supported families.
func ModelTypes() []string { return slices.Sorted(maps.Keys(families)) }

func (c *Config) family() (*family, error) {
	if f := families[c.ModelType]; f != nil {
		return f, nil
	}
	return nil, fmt.Errorf("model_type %q is not supported: use one of %s", c.ModelType, strings.Join(ModelTypes(), ", "))
}

// findFamily goes by model_type, or by architectures where that is missing, and holds the two against each other: a
// LlamaForSequenceClassification is no language model.
func findFamily(raw map[string]json.RawMessage) (*family, error) {
	k := &fields{raw: raw}
	var kind string
	var architectures []string
	named := k.read("model_type", &kind)
	k.read("architectures", &architectures)
	if k.err != nil {
		return nil, k.err
	}
	var f *family
	for _, one := range families {
		if named && one.modelType == kind || !named && slices.Contains(architectures, one.architecture) {
			f = one
		}
	}
	switch {
	case f == nil && !named && architectures == nil:
		return nil, fmt.Errorf("model_type (missing) is not supported: use one of %s", strings.Join(ModelTypes(), ", "))
	case f == nil && !named:
		return nil, fmt.Errorf("architecture %s is not supported: use one of %s", strings.Join(architectures, ", "), strings.Join(architectureNames(), ", "))
	case f == nil:
		return nil, fmt.Errorf("model_type %q is not supported: use one of %s", kind, strings.Join(ModelTypes(), ", "))
	case f.modelType != nhaType && architectures != nil && !slices.Contains(architectures, f.architecture):
		return nil, fmt.Errorf("architecture %s of model_type %s is not supported: use %s", strings.Join(architectures, ", "), f.modelType, f.architecture)
	}
	return f, nil
}

func architectureNames() (names []string) {
	for _, f := range families {
		names = append(names, f.architecture)
	}
	slices.Sort(names)
	return names
}

// fields reads the keys of a JSON object one by one and knows which nobody has asked for. A null counts as absent, as in
// Hugging Face's files. The first error stays.
type fields struct {
	object string // the object's own key, for errors; empty: the file
	raw    map[string]json.RawMessage
	asked  map[string]bool
	err    error
}

func (k *fields) fail(format string, a ...any) {
	if k.err == nil {
		k.err = fmt.Errorf(format, a...)
		if k.object != "" {
			k.err = fmt.Errorf("%s: %w", k.object, k.err)
		}
	}
}

// ask marks a key as known and returns its value, if there is one.
func (k *fields) ask(key string) (json.RawMessage, bool) {
	if k.asked == nil {
		k.asked = map[string]bool{}
	}
	k.asked[key] = true
	raw, ok := k.raw[key]
	return raw, ok && string(raw) != "null"
}

// read decodes the value of a key into a pointer; false: there is none, and into keeps what it holds.
func (k *fields) read(key string, into any) bool {
	raw, ok := k.ask(key)
	if !ok {
		return false
	}
	if err := json.Unmarshal(raw, into); err != nil {
		k.fail("%s %s: want a value like %s", key, raw, kindOf(into))
		return false
	}
	return true
}

// need is read of a key that must be there.
func (k *fields) need(key string, into any) {
	if !k.read(key, into) {
		k.fail("%s is missing", key)
	}
}

// only refuses any other value of a key than those that leave the function as it is.
func (k *fields) only(key string, values ...any) {
	raw, ok := k.ask(key)
	if !ok {
		return
	}
	var have any
	if json.Unmarshal(raw, &have) == nil {
		for _, v := range values {
			if reflect.DeepEqual(have, v) {
				return
			}
		}
	}
	k.fail("%s %s is not supported: only %v is", key, raw, values[0])
}

// null reports a key that is there and null.
func (k *fields) null(key string) bool { return string(k.raw[key]) == "null" }

// finish refuses the keys that nobody asked for, apart from those of the list and nulls.
func (k *fields) finish(ignored []string) error {
	var unknown []string
	for key := range k.raw {
		if !k.asked[key] && !k.null(key) && !slices.Contains(ignored, key) {
			unknown = append(unknown, key)
		}
	}
	if len(unknown) > 0 {
		slices.Sort(unknown)
		k.fail("unknown key %s: it may change what the model computes", strings.Join(unknown, ", "))
	}
	return k.err
}

func kindOf(into any) string {
	switch reflect.TypeOf(into).Elem().Kind() {
	case reflect.Int:
		return "4"
	case reflect.Float64:
		return "0.5"
	case reflect.Bool:
		return "true"
	case reflect.Slice:
		return "[...]"
	case reflect.Map:
		return "{...}"
	}
	return `"text"`
}
