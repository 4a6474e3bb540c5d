package model

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"nha/attention"
)

// Windows is the window of every layer, attention.Full for the whole context: the model's dial (SPEC 2, per-layer windows).
// In JSON it is a number, "full", a pattern, or a list of numbers and "full".
type Windows []int

// ParseWindows reads a pattern such as "32", "full", "32 32 32 full" or "7*64 full" and tiles it over the layers, which its
// length must divide. Commas may stand for spaces.
func ParseWindows(pattern string, layers int) (Windows, error) {
	var one []int
	for _, word := range strings.FieldsFunc(pattern, func(r rune) bool { return r == ' ' || r == ',' || r == '\t' }) {
		repeats, name := 1, word
		if n, rest, ok := strings.Cut(word, "*"); ok {
			var err error
			if repeats, err = strconv.Atoi(n); err != nil || repeats < 1 {
				return nil, fmt.Errorf("windows %q: %q does not repeat a window: write 7*64", pattern, word)
			}
			name = rest
		}
		w, err := parseWindow(name)
		if err != nil {
			if name == pattern {
				return nil, fmt.Errorf("windows %q: %s", pattern, windowUse)
			}
			return nil, fmt.Errorf("windows %q: %w", pattern, err)
		}
		if repeats > layers {
			return nil, fmt.Errorf("windows %q: %q repeats more often than the model's %d layers", pattern, word, layers)
		}
		for range repeats {
			one = append(one, w)
		}
	}
	return tile(one, layers, pattern)
}

const windowUse = "use a number of tokens from 0, or full"

func parseWindow(s string) (int, error) {
	if s == "full" {
		return attention.Full, nil
	}
	w, err := strconv.Atoi(s)
	if err != nil || w < 0 || w >= attention.Full {
		return 0, fmt.Errorf("window %q: %s", s, windowUse)
	}
	return w, nil
}

func tile(one []int, layers int, pattern string) (Windows, error) {
	if len(one) == 0 || layers%len(one) != 0 {
		return nil, fmt.Errorf("windows %q: a pattern of %d does not divide %d layers", pattern, len(one), layers)
	}
	all := make(Windows, layers)
	for i := range all {
		all[i] = one[i%len(one)]
	}
	return all, nil
}

// String is the shortest pattern that ParseWindows reads back: repeats are written n*w.
func (w Windows) String() string {
	period := len(w)
	for p := 1; p < len(w); p++ {
		if len(w)%p == 0 && tiles(w, p) {
			period = p
			break
		}
	}
	var words []string
	for i := 0; i < period; {
		n := 1
		for i+n < period && w[i+n] == w[i] {
			n++
		}
		name := "full"
		if w[i] != attention.Full {
			name = strconv.Itoa(w[i])
		}
		if n > 1 {
			name = fmt.Sprintf("%d*%s", n, name)
		}
		words = append(words, name)
		i += n
	}
	return strings.Join(words, " ")
}

func tiles(w Windows, period int) bool {
	for i := range w {
		if w[i] != w[i%period] {
			return false
		}
	}
	return true
}

// MarshalJSON writes a list of numbers and "full".
func (w Windows) MarshalJSON() ([]byte, error) {
	list := make([]any, len(w))
	for i, x := range w {
		list[i] = x
		if x == attention.Full {
			list[i] = "full"
		}
	}
	return json.Marshal(list)
}

// windowsFromJSON reads any of the spellings for a model of so many layers.
func windowsFromJSON(raw json.RawMessage, layers int) (Windows, error) {
	var pattern string
	if json.Unmarshal(raw, &pattern) == nil {
		return ParseWindows(pattern, layers)
	}
	var one json.Number
	if json.Unmarshal(raw, &one) == nil {
		return ParseWindows(one.String(), layers)
	}
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) != nil {
		return nil, fmt.Errorf("layer_windows %s: use a number, \"full\", a pattern or a list of them", raw)
	}
	var windows []int
	for _, entry := range list {
		w, err := parseWindow(strings.Trim(string(entry), `"`))
		if err != nil {
			return nil, fmt.Errorf("layer_windows: %w", err)
		}
		windows = append(windows, w)
	}
	if len(windows) != layers {
		return nil, fmt.Errorf("layer_windows lists %d windows, num_hidden_layers is %d", len(windows), layers)
	}
	return windows, nil
}
