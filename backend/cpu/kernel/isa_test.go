package kernel

import (
	"slices"
	"strings"
	"testing"
)

// NHA_CPU decides, with and without Setup; a name that is none, or that the machine cannot run, is an error with the choices.
func TestSetupFromEnvironment(t *testing.T) {
	before := Active()
	defer Use(before)
	for _, name := range Available() {
		t.Setenv("NHA_CPU", name)
		active = ""
		if got := Active(); got != name {
			t.Errorf("NHA_CPU=%s: %s is active", name, got)
		}
	}
	t.Setenv("NHA_CPU", "")
	if err := Setup(); err != nil || active != Available()[len(Available())-1] {
		t.Errorf("without NHA_CPU %s is active, error %v", active, err)
	}
	bad := []string{"sse9"}
	for _, im := range implementations {
		if !slices.Contains(Available(), im.name) {
			bad = append(bad, im.name)
		}
	}
	choices := "choose one of " + strings.Join(Available(), ", ")
	for _, name := range bad {
		t.Setenv("NHA_CPU", name)
		was := active
		if err := Setup(); err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), choices) {
			t.Errorf("NHA_CPU=%s: error %v", name, err)
		}
		if active != was {
			t.Errorf("NHA_CPU=%s: %s is active after the error", name, active)
		}
	}
	active = ""
	defer func() {
		if recover() == nil {
			t.Errorf("NHA_CPU=%s: Active says %s", bad[0], active)
		}
	}()
	t.Setenv("NHA_CPU", bad[0])
	Active()
}
