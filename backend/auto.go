package backend

import "fmt"

// Auto names no backend but the best that there is.
const Auto = "auto"

// preferred are the backends that Auto tries before cpu.
var preferred []preference

type preference struct {
	name   string
	here   func() bool
	report func() []string
}

// Prefer has Auto try a registered backend where here sees a sign of its device. report says what of the device's needs is here,
// a line "what: where" for each, and how to get what is not. A backend's package calls it from init.
func Prefer(name string, here func() bool, report func() []string) {
	preferred = append(preferred, preference{name, here, report})
}

// Report is what the preferred backends need of this machine, found or missing, a line each.
func Report() (lines []string) {
	for _, p := range preferred {
		lines = append(lines, p.report()...)
	}
	return lines
}

// OpenBest is Open that knows Auto: a preferred backend whose device is here and can be used, otherwise cpu. A device that is here
// and cannot be used is told to notice, in one line.
func OpenBest(name string, threads int, notice func(string)) (Backend, error) {
	if name != Auto {
		return Open(name, threads)
	}
	for _, p := range preferred {
		if !p.here() {
			continue
		}
		b, err := Open(p.name, threads)
		if err == nil {
			return b, nil
		}
		notice(fmt.Sprintf("computing on the processor, %s is not usable: %v", p.name, err))
	}
	return Open("cpu", threads)
}
