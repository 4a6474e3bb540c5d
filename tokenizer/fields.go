package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"unicode/utf8"
)

// A document reads a JSON file field by field. Its first error stays, with the path of the field; after it, reading
// goes on with zero values, so that callers check once. Keys are matched exactly (encoding/json would fold case).
type document struct{ err error }

// object is a JSON object at a path; end reports the keys that nobody asked for.
type object struct {
	d      *document
	path   string
	fields map[string]json.RawMessage
	asked  map[string]bool
}

// open returns the object that source holds.
func (d *document) open(source []byte) *object {
	if !utf8.Valid(source) { // encoding/json would replace what is not
		d.err = errors.New("is not UTF-8: not a JSON file, or damaged")
		return nil
	}
	return d.object("", source)
}

func (d *document) object(path string, raw json.RawMessage) *object {
	o := &object{d: d, path: path, asked: map[string]bool{}}
	if err := json.Unmarshal(raw, &o.fields); err != nil {
		o.fail("", "%s", reason(err, raw))
	}
	return o
}

func (o *object) at(key string) string {
	if o.path == "" || key == "" {
		return o.path + key
	}
	return o.path + "." + key
}

// fail records the document's first error.
func (o *object) fail(key, format string, args ...any) {
	if o.d.err != nil {
		return
	}
	message := fmt.Sprintf(format, args...)
	if at := o.at(key); at != "" {
		message = at + ": " + message
	}
	o.d.err = errors.New(message)
}

func (o *object) failed() bool { return o.d.err != nil }

// raw returns the value of key, nil if it is absent or null.
func (o *object) raw(key string) json.RawMessage {
	o.asked[key] = true
	if v := o.fields[key]; string(v) != "null" {
		return v
	}
	return nil
}

// get reads the value of key into the variable into points to, and leaves it as it is if key is absent or null.
func (o *object) get(key string, into any) {
	if raw := o.raw(key); raw != nil {
		if err := json.Unmarshal(raw, into); err != nil {
			o.fail(key, "%s", reason(err, raw))
		}
	}
}

func (o *object) text(key string) (s string) {
	o.get(key, &s)
	return s
}

func (o *object) flag(key string, absent bool) bool {
	o.get(key, &absent)
	return absent
}

// ignore marks keys that do not touch the ids.
func (o *object) ignore(keys ...string) {
	for _, key := range keys {
		o.asked[key] = true
	}
}

// object returns the object at key, nil if it is absent or null.
func (o *object) object(key string) *object {
	if raw := o.raw(key); raw != nil {
		return o.d.object(o.at(key), raw)
	}
	return nil
}

// objects returns the list of objects at key.
func (o *object) objects(key string) []*object {
	var raws []json.RawMessage
	o.get(key, &raws)
	list := make([]*object, len(raws))
	for i, raw := range raws {
		list[i] = o.d.object(fmt.Sprintf("%s[%d]", o.at(key), i), raw)
	}
	return list
}

// stages returns the object at key, or, if it is a Sequence, the objects in its list.
func (o *object) stages(key, list string) []*object {
	stage := o.object(key)
	if stage == nil {
		return nil
	}
	if stage.text("type") != "Sequence" {
		return []*object{stage}
	}
	stages := stage.objects(list)
	stage.end()
	return stages
}

// end fails on a key that was not asked for: it might change the ids.
func (o *object) end() {
	var unknown []string
	for key := range o.fields {
		if !o.asked[key] {
			unknown = append(unknown, key)
		}
	}
	if len(unknown) > 0 {
		sort.Strings(unknown)
		o.fail(unknown[0], "unknown key")
	}
}

// reason is an error of encoding/json without Go's types.
func reason(err error, raw json.RawMessage) string {
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		return fmt.Sprintf("JSON type %s, want %s", wrong.Value, jsonKind(wrong.Type.Kind().String()))
	}
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return fmt.Sprintf("is not valid JSON (truncated?): %v", err)
	}
	const most = 40
	if len(raw) > most {
		raw = append(raw[:most:most], "..."...)
	}
	return fmt.Sprintf("%s: %v", raw, err)
}

func jsonKind(kind string) string {
	switch kind {
	case "map", "struct":
		return "object"
	case "slice":
		return "array"
	case "int32":
		return "a whole number of 32 bits"
	case "bool":
		return "boolean"
	}
	return kind
}
