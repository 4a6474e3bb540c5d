package chat

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ardanlabs/jinja"
)

// Template is a parsed chat template. Its methods may be called from several goroutines at once.
type Template struct {
	name   string
	source string
	parsed *jinja.Template
}

// Parse reads a template; name stands in errors. Blocks are laid out as transformers sets Jinja up: a newline behind one, and
// white space before it, are not text.
func Parse(name, source string) (*Template, error) {
	parsed, err := compile(source)
	if err != nil {
		return nil, fmt.Errorf("%s: the chat template cannot be read: %w", name, err)
	}
	return &Template{name, source, parsed}, nil
}

func compile(source string) (t *jinja.Template, err error) {
	defer rescue(&err)
	return jinja.Compile(source)
}

// rescue makes an error of the library's panics: what comes with a model must not end the program.
func rescue(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("%v", p)
	}
}

// Source returns the template's text.
func (t *Template) Source() string { return t.source }

// Render writes the conversation.
func (t *Template) Render(messages []Message, o Options) (string, error) {
	r := rendering{messages: messages, o: o}
	text, err := r.run(t.parsed)
	if err != nil {
		return "", t.explain(err, r)
	}
	return text, nil
}

// rendering is what one run of a template sees and leaves behind.
type rendering struct {
	messages []Message
	o        Options
	raised   error // by raise_exception
	line     int   // the last that was marked
}

func (r *rendering) run(t *jinja.Template) (text string, err error) {
	defer rescue(&err)
	return t.RenderValues(r.variables())
}

func (r *rendering) variables() map[string]jinja.Value {
	list := make([]jinja.Value, len(r.messages))
	for i, m := range r.messages {
		list[i] = jinja.NewDict()
		list[i].AsDict().Set("role", jinja.NewString(m.Role))
		list[i].AsDict().Set("content", jinja.NewString(m.Content))
	}
	now := r.o.Now
	if now.IsZero() {
		now = time.Now()
	}
	v := map[string]jinja.Value{
		"messages":              jinja.NewList(list),
		"add_generation_prompt": jinja.NewBool(r.o.AddGenerationPrompt),
		"tools":                 jinja.None(),
		"documents":             jinja.None(),
		"raise_exception": function("raise_exception", func(args []jinja.Value) (jinja.Value, error) {
			r.raised = errors.New("raise_exception without a message")
			if len(args) > 0 && args[0].IsString() {
				r.raised = errors.New(args[0].AsString())
			}
			return jinja.Undefined(), r.raised
		}),
		"strftime_now": function("strftime_now", func(args []jinja.Value) (jinja.Value, error) {
			if len(args) != 1 || !args[0].IsString() {
				return jinja.Undefined(), errors.New("strftime_now wants a format")
			}
			s, err := strftime(now, args[0].AsString())
			return jinja.NewString(s), err
		}),
		"range": function("range", boundedRange),
		markName: function(markName, func(args []jinja.Value) (jinja.Value, error) {
			r.line = int(args[0].AsInt())
			return jinja.NewString(""), nil
		}),
	}
	if r.o.BOS != "" {
		v["bos_token"] = jinja.NewString(r.o.BOS)
	}
	if r.o.EOS != "" {
		v["eos_token"] = jinja.NewString(r.o.EOS)
	}
	for key, value := range r.o.Variables {
		v[key] = jinja.FromGoValue(value)
	}
	return v
}

func function(name string, f func([]jinja.Value) (jinja.Value, error)) jinja.Value {
	return jinja.NewCallable(name, func(args []jinja.Value, _ map[string]jinja.Value) (jinja.Value, error) { return f(args) })
}

// explain says which line failed: the library does not, so the template is run once more with its lines marked.
func (t *Template) explain(err error, failed rendering) error {
	where := ""
	if marked, markedErr := compile(mark(t.source)); markedErr == nil {
		r := rendering{messages: failed.messages, o: failed.o}
		if _, again := r.run(marked); again != nil && again.Error() == err.Error() && r.line > 0 {
			where = fmt.Sprintf(", line %d", r.line)
		}
	}
	if failed.raised != nil {
		return fmt.Errorf("%s: the chat template refuses the conversation%s: %w", t.name, where, failed.raised)
	}
	return fmt.Errorf("%s: the chat template failed%s: %w", t.name, where, err)
}

// maxRange is the longest range that transformers grants a template.
const maxRange = 100000

func boundedRange(args []jinja.Value) (jinja.Value, error) {
	bounds := []int64{0, 0, 1}
	if len(args) == 0 || len(args) > 3 {
		return jinja.Undefined(), fmt.Errorf("range of %d arguments", len(args))
	}
	for i, arg := range args {
		if !arg.IsInt() {
			return jinja.Undefined(), fmt.Errorf("range of %s, which is no whole number", arg.String())
		}
		bounds[i] = arg.AsInt()
	}
	if len(args) == 1 {
		bounds[0], bounds[1] = 0, bounds[0]
	}
	start, stop, step := bounds[0], bounds[1], bounds[2]
	if step == 0 {
		return jinja.Undefined(), errors.New("range with step 0")
	}
	list := []jinja.Value{}
	for i := start; step > 0 && i < stop || step < 0 && i > stop; i += step {
		if len(list) == maxRange {
			return jinja.Undefined(), fmt.Errorf("range of more than %d numbers", maxRange)
		}
		list = append(list, jinja.NewInt(i))
	}
	return jinja.NewList(list), nil
}

// strftime formats a time as Python's strftime does for the directives that templates use.
func strftime(t time.Time, format string) (string, error) {
	layouts := map[string]string{
		"d": "02", "-d": "2", "m": "01", "-m": "1", "Y": "2006", "y": "06", "B": "January", "b": "Jan", "A": "Monday", "a": "Mon", "H": "15",
		"I": "03", "M": "04", "S": "05", "p": "PM", "j": "002", "F": "2006-01-02", "T": "15:04:05", "D": "01/02/06", "e": "_2", "Z": "MST", "z": "-0700",
	}
	var b strings.Builder
	for {
		text, rest, found := strings.Cut(format, "%")
		b.WriteString(text)
		if !found {
			return b.String(), nil
		}
		n := 1
		if strings.HasPrefix(rest, "-") {
			n = 2
		}
		if len(rest) < n {
			return "", errors.New("strftime_now: the format ends with %")
		}
		directive := rest[:n]
		format = rest[n:]
		if directive == "%" {
			b.WriteByte('%')
			continue
		}
		layout, ok := layouts[directive]
		if !ok {
			return "", fmt.Errorf("strftime_now: %%%s is not supported", directive)
		}
		b.WriteString(t.Format(layout))
	}
}
