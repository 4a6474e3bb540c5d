package weights

import (
	"fmt"
	"strings"

	"nha/tensor"
)

// Spec is a tensor that a model wants.
type Spec struct {
	Name  string
	Shape tensor.Shape
}

// MatchError lists where a source and a model disagree.
type MatchError struct {
	Missing   []string // wanted, not there
	Misshaped []string // "NAME is [2 3], want [3 2]"
	Extra     []string // there, not wanted
}

// Error names the first few of each list and counts the rest.
func (e *MatchError) Error() string {
	var parts []string
	for _, list := range []struct {
		what  string
		names []string
	}{{"missing", e.Missing}, {"mis-shaped", e.Misshaped}, {"not part of the model", e.Extra}} {
		const shown = 5
		n := len(list.names)
		switch {
		case n == 0:
			continue
		case n > shown:
			parts = append(parts, fmt.Sprintf("%d tensors %s: %s, and %d more", n, list.what, strings.Join(list.names[:shown], ", "), n-shown))
		case n == 1:
			parts = append(parts, fmt.Sprintf("1 tensor %s: %s", list.what, list.names[0]))
		default:
			parts = append(parts, fmt.Sprintf("%d tensors %s: %s", n, list.what, strings.Join(list.names, ", ")))
		}
	}
	return strings.Join(parts, "; ")
}

// Match holds a source against the tensors that a model wants: it must have each of them in its shape and nothing else.
// The error is a *MatchError.
func Match(s Source, want []Spec) error {
	var e MatchError
	wanted := make(map[string]bool, len(want))
	for _, w := range want {
		wanted[w.Name] = true
		t, ok := s.Tensor(w.Name)
		switch {
		case !ok:
			e.Missing = append(e.Missing, w.Name)
		case t.Shape != w.Shape:
			e.Misshaped = append(e.Misshaped, fmt.Sprintf("%s is %v, want %v", w.Name, t.Shape, w.Shape))
		}
	}
	for _, name := range s.Names() {
		if !wanted[name] {
			e.Extra = append(e.Extra, name)
		}
	}
	if len(e.Missing)+len(e.Misshaped)+len(e.Extra) > 0 {
		return &e
	}
	return nil
}
