package generate

import (
	"context"
	"html"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"nha/attention"
	"nha/backend"
	"nha/model"
)

// Slot shares: 1 where the window is 0, from the first token on; 0 without slots; the same for any chunk; and between them the
// share that a state's definition gives: nothing but empty slots takes part before the window is full.
func TestShares(t *testing.T) {
	onBackends(t, func(t *testing.T, b backend.Backend) {
		g := tiny(t, b, model.Windows{4, attention.Full, 0}, 30)
		prompt := g.Prompt(proverb)
		var want []float64
		for _, chunk := range []int{512, 1, 9} {
			g.Chunk = chunk
			var shares []float64
			var tokens []int32
			if err := g.NewSession().PrefillShares(context.Background(), prompt, func(id int32, s Share) {
				tokens, shares = append(tokens, id), append(shares, s.Layers...)
				mean := (s.Layers[0] + s.Layers[1] + s.Layers[2]) / 3
				if math.Abs(s.Mean-mean) > 1e-12 || math.Abs(s.Layers[2]-1) > 1e-6 || !(s.Layers[0] > 0 && s.Layers[0] < 1) {
					t.Fatalf("share %+v", s)
				}
			}); err != nil {
				t.Fatal(err)
			}
			same(t, "tokens", tokens, prompt)
			if want == nil {
				want = shares
			}
			near(t, b, "shares", shares, want)
		}
		masked := tinyRule(t, b, model.Windows{attention.Full, 8}, 30, 5, "mask")
		position := 0
		if err := masked.NewSession().PrefillShares(context.Background(), prompt, func(_ int32, s Share) {
			if s.Layers[0] != 0 || (s.Layers[1] > 0) != (position >= 8) {
				t.Errorf("position %d: share %+v", position, s)
			}
			position++
		}); err != nil {
			t.Fatal(err)
		}
		if _, err := g.Generate(context.Background(), g.NewSession(), prompt, sampled(3), func(k Token) error {
			if k.Share.Layers != nil {
				t.Error("a share that nobody asked for")
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	})
}

func trace(t *testing.T) *Trace {
	t.Helper()
	g := tiny(t, ref(t), model.Windows{4, 0}, 31)
	g.Shares = true
	tr, s := g.NewTrace(), g.NewSession()
	if err := s.PrefillShares(context.Background(), g.Prompt("<b>é & \"so\"\n</b>"), tr.Prompt); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Generate(context.Background(), s, nil, sampled(4), tr.Token); err != nil {
		t.Fatal(err)
	}
	return tr
}

func TestTraceHTML(t *testing.T) {
	tr := trace(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "m.html")
	if err := tr.WriteHTML(path, "a <title>"); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	page := string(data)
	for _, want := range []string{"a &lt;title&gt;", "&lt;</span>", "é</span>", `data-layers="0.`, "layer"} {
		if !strings.Contains(page, want) {
			t.Errorf("no %q in the page", want)
		}
	}
	if n := strings.Count(page, "<span"); n != len(tr.spans) {
		t.Errorf("%d spans for %d tokens", n, len(tr.spans))
	}
	for _, bad := range []string{"ZgotmplZ", "http://", "https://", "<b>é"} {
		if strings.Contains(page, bad) {
			t.Errorf("%q in the page", bad)
		}
	}
	// The text between the tags is the tokens' text: the page shows what was said.
	main := page[strings.Index(page, "<main>"):strings.Index(page, "</main>")]
	text, want := html.UnescapeString(regexp.MustCompile("<[^>]*>").ReplaceAllString(main, "")), ""
	for _, s := range tr.spans {
		want += s.Text
	}
	if text != strings.ReplaceAll(want, "\x00", "\uFFFD") || !strings.HasPrefix(text, "<b>é & \"so\"\n</b>") || len(tr.spans) != 17+4 {
		t.Errorf("text %q, want %q in %d spans", text, want, len(tr.spans))
	}
	if err := tr.WriteHTML(filepath.Join(dir, "no", "m.html"), ""); err == nil || !strings.Contains(err.Error(), "m.html") {
		t.Errorf("error %v", err)
	}
}

func TestTraceTerminal(t *testing.T) {
	var b strings.Builder
	if err := trace(t).WriteTerminal(&b); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), "é\x1b[0m") || !strings.Contains(b.String(), "long-term memory") {
		t.Errorf("%q", b.String())
	}
}

func TestHighlight(t *testing.T) {
	for _, tt := range []struct {
		text  string
		share float64
		want  string
	}{
		{"", 1, ""}, {"\n", 1, "\n"},
		{"a", 0, "\x1b[48;5;231m\x1b[38;5;16ma\x1b[0m"},
		{"a", 1.1, "\x1b[48;5;18m\x1b[38;5;231ma\x1b[0m"},
		{"a\nb", 0.5, "\x1b[48;5;45m\x1b[38;5;16ma\x1b[0m\n\x1b[48;5;45m\x1b[38;5;16mb\x1b[0m"},
	} {
		if got := Highlight(tt.text, tt.share); got != tt.want {
			t.Errorf("%q at %v: %q", tt.text, tt.share, got)
		}
	}
}

func TestMeanShare(t *testing.T) {
	spans := []span{{Share: Share{0.5, []float64{1, 0}}}, {Prompt: true, Share: Share{1, []float64{1, 1}}}, {Share: Share{0.3, []float64{0.2, 0.4}}}}
	m := meanShare(spans, func(s span) bool { return !s.Prompt })
	if math.Abs(m.Mean-0.4) > 1e-12 || math.Abs(m.Layers[0]-0.6) > 1e-12 || math.Abs(m.Layers[1]-0.2) > 1e-12 {
		t.Errorf("mean %+v", m)
	}
}
