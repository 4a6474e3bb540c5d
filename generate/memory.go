package generate

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"strings"

	"nha/atomicfile"
	"nha/tokenizer"
)

// Trace collects tokens with their slot shares, those of the prompt and those that were generated, to show where a model read
// its long-term memory. Text that several tokens make together stands with the last of them.
//
//	g.Shares = true
//	t := g.NewTrace()
//	err := s.PrefillShares(ctx, prompt, t.Prompt)
//	_, err = g.Generate(ctx, s, nil, sampling, t.Token)
//	err = t.WriteHTML("memory.html", "my prompt")
type Trace struct {
	tk      tokenizer.Tokenizer
	decoder *tokenizer.StreamDecoder
	spans   []span
}

type span struct {
	Text   string
	Prompt bool
	Share
}

// NewTrace is an empty trace.
func (g *Generator) NewTrace() *Trace {
	return &Trace{tk: g.tk, decoder: tokenizer.NewStreamDecoder(g.tk)}
}

// Prompt adds a token of the prompt, special tokens in their own spelling; it fits PrefillShares.
func (t *Trace) Prompt(id int32, share Share) {
	t.spans = append(t.spans, span{Text: t.decoder.Push(id), Prompt: true, Share: share})
}

// Token adds a generated token; it fits Generate. It never fails.
func (t *Trace) Token(k Token) error {
	t.spans = append(t.spans, span{Text: k.Text, Share: k.Share})
	return nil
}

// ramp is the background of slot shares from 0 to 1 in a terminal of 256 colours, white to dark blue.
var ramp = [...]int{231, 195, 159, 123, 81, 45, 39, 33, 27, 21, 18}

// Highlight is text on a background that shows the slot share, with ANSI escapes. Line ends stay outside the colour.
func Highlight(text string, share float64) string {
	step := int(min(max(share, 0), 1)*float64(len(ramp)-1) + 0.5)
	foreground := 16
	if step > 6 {
		foreground = 231
	}
	var b strings.Builder
	for line := range strings.Lines(text) {
		body := strings.TrimRight(line, "\r\n")
		if body != "" {
			fmt.Fprintf(&b, "\x1b[48;5;%dm\x1b[38;5;%dm%s\x1b[0m", ramp[step], foreground, body)
		}
		b.WriteString(line[len(body):])
	}
	return b.String()
}

// Legend is a line that explains Highlight.
func Legend() string {
	var b strings.Builder
	b.WriteString("attention that read long-term memory: 0% ")
	for i := range ramp {
		b.WriteString(Highlight("  ", float64(i)/float64(len(ramp)-1)))
	}
	b.WriteString(" 100%\n")
	return b.String()
}

// WriteTerminal writes the text, every token on the colour of its mean share, and the legend.
func (t *Trace) WriteTerminal(w io.Writer) error {
	for _, s := range t.spans {
		if _, err := io.WriteString(w, Highlight(s.Text, s.Mean)); err != nil {
			return err
		}
	}
	_, err := io.WriteString(w, "\n"+Legend())
	return err
}

//go:embed memory.html
var page string

var pageTemplate = template.Must(template.New("memory").Funcs(template.FuncMap{
	"percent": func(x float64) string { return fmt.Sprintf("%.1f%%", 100*x) },
	"shares": func(s Share) string {
		words := make([]string, len(s.Layers))
		for i, x := range s.Layers {
			words[i] = fmt.Sprintf("%.4f", x)
		}
		return strings.Join(words, " ")
	},
	"colour": func(x float64) template.CSS { return template.CSS(colour(x)) },
	"ink": func(x float64) template.CSS {
		if x > 0.55 {
			return "#fff"
		}
		return "#1a1d21"
	},
}).Parse(page))

// colour goes from white over blue to dark blue.
func colour(share float64) string {
	stops := [...][3]float64{{255, 255, 255}, {120, 180, 240}, {15, 50, 120}}
	x := min(max(share, 0), 1) * float64(len(stops)-1)
	i := min(int(x), len(stops)-2)
	var c [3]int
	for k := range c {
		c[k] = int(stops[i][k] + (x-float64(i))*(stops[i+1][k]-stops[i][k]) + 0.5)
	}
	return fmt.Sprintf("#%02x%02x%02x", c[0], c[1], c[2])
}

// WriteHTML writes one page that needs nothing else: the text with every token on the colour of its mean share, the shares of
// the layers at the pointer, averages and a legend. The file is written atomically.
func (t *Trace) WriteHTML(path, title string) error {
	data := struct {
		Title                      string
		Spans                      []span
		Overall, Written           Share
		PromptTokens, WrittenCount int
		Steps                      []float64
	}{Title: title, Spans: t.spans, Overall: meanShare(t.spans, func(span) bool { return true }),
		Written: meanShare(t.spans, func(s span) bool { return !s.Prompt })}
	for _, s := range t.spans {
		if s.Prompt {
			data.PromptTokens++
		} else {
			data.WrittenCount++
		}
	}
	for i := range 21 {
		data.Steps = append(data.Steps, float64(i)/20)
	}
	return atomicfile.WriteFile(path, 0o644, func(w io.Writer) error { return pageTemplate.Execute(w, data) })
}

// meanShare is the mean over the tokens that are wanted.
func meanShare(spans []span, want func(span) bool) Share {
	var m Share
	n := 0.0
	for _, s := range spans {
		if !want(s) {
			continue
		}
		n++
		m.Mean += (s.Mean - m.Mean) / n
		if m.Layers == nil {
			m.Layers = make([]float64, len(s.Layers))
		}
		for i, x := range s.Layers {
			m.Layers[i] += (x - m.Layers[i]) / n
		}
	}
	return m
}
