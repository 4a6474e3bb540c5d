package backend

import (
	"errors"
	"strings"
	"testing"
)

// named is a backend that is nothing but a name.
type named struct {
	Backend
	name string
}

func (n named) Name() string { return n.name }

// TestOpenBest: the device where it is here and works; else the processor, with one line if a device was here.
func TestOpenBest(t *testing.T) {
	before, opened := preferred, openers
	defer func() { preferred, openers = before, opened }()
	for _, c := range []struct {
		name, asked, want string
		here              bool
		failure           error
		notice            string
	}{
		{"a card", Auto, "card", true, nil, ""},
		{"no driver", Auto, "cpu", false, errors.New("never asked"), ""},
		{"a card that is full", Auto, "cpu", true, errors.New("out of memory"), "card is not usable: out of memory"},
		{"asked for the processor", "cpu", "cpu", true, nil, ""},
	} {
		preferred, openers = nil, map[string]func(int) (Backend, error){}
		Register("cpu", func(int) (Backend, error) { return named{name: "cpu"}, nil })
		Register("card", func(int) (Backend, error) { return named{name: "card"}, c.failure })
		Prefer("card", func() bool { return c.here }, func() []string { return nil })
		var told []string
		b, err := OpenBest(c.asked, 0, func(s string) { told = append(told, s) })
		if err != nil || b.Name() != c.want {
			t.Errorf("%s: %v (%v), want %s", c.name, b, err, c.want)
		}
		if got := strings.Join(told, "; "); got != "" != (c.notice != "") || !strings.Contains(got, c.notice) || len(told) > 1 {
			t.Errorf("%s: told %q, want one line with %q", c.name, told, c.notice)
		}
	}
	openers["card"] = func(int) (Backend, error) { return nil, errors.New("out of memory") }
	if _, err := OpenBest("card", 0, nil); err == nil {
		t.Error("a card that was asked for by name fell back to the processor")
	}
}
