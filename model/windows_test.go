package model

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"nha/attention"
)

func TestParseWindows(t *testing.T) {
	full := attention.Full
	for _, c := range []struct {
		pattern string
		layers  int
		want    Windows
		shown   string
	}{
		{"32", 4, Windows{32, 32, 32, 32}, "32"},
		{"full", 2, Windows{full, full}, "full"},
		{"32 32 32 full", 8, Windows{32, 32, 32, full, 32, 32, 32, full}, "3*32 full"},
		{"7*64 full", 8, Windows{64, 64, 64, 64, 64, 64, 64, full}, "7*64 full"},
		{"0,16", 4, Windows{0, 16, 0, 16}, "0 16"},
		{"2*0 2*full", 4, Windows{0, 0, full, full}, "2*0 2*full"},
	} {
		got, err := ParseWindows(c.pattern, c.layers)
		if err != nil || !slices.Equal(got, c.want) || got.String() != c.shown {
			t.Errorf("%q: %v (%v), %v", c.pattern, []int(got), got, err)
		}
		again, err := ParseWindows(got.String(), c.layers)
		if err != nil || !slices.Equal(again, got) {
			t.Errorf("%q does not read back: %v", got, err)
		}
		data, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		back, err := windowsFromJSON(data, c.layers)
		if err != nil || !slices.Equal(back, got) {
			t.Errorf("%s does not read back: %v", data, err)
		}
	}
}

func TestParseWindowsRefuses(t *testing.T) {
	for pattern, says := range map[string]string{
		"-1": `"-1": use a number`, "ful": `"ful": use a number`, "": "does not divide", "32 full 32": "does not divide 4 layers", "0*32": "does not repeat",
		"x*32": "does not repeat", "5*32": "more often", "1e9": `"1e9": use a number`, "2147483647": "window", "3*": `window ""`,
	} {
		if _, err := ParseWindows(pattern, 4); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %q", pattern, err, says)
		}
	}
	for _, raw := range []string{`[32]`, `["ful",1,2,3]`, `[-1,1,1,1]`, `{}`, `1.5`, `null`} {
		if w, err := windowsFromJSON(json.RawMessage(raw), 4); err == nil {
			t.Errorf("%s: accepted as %v", raw, w)
		}
	}
}
