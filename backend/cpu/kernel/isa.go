// Package kernel is the CPU's arithmetic: float32 loops over slices, each in generic Go and in assembly for the
// instruction sets that machines have. It knows nothing of tensors, tapes or models.
//
// Every exported function dispatches through a variable that Use points at one implementation; the generic twin is always
// there and is what the assembly is tested against. Callers guarantee lengths; nothing here fails.
package kernel

import (
	"fmt"
	"os"
	"strings"
)

// An implementation is one instruction set's kernels: install points the dispatch variables at them.
type implementation struct {
	name      string
	available bool
	install   []func()
}

// implementations, best last. The files of one instruction set add to theirs by register, from init.
var implementations = []*implementation{
	{name: "generic", available: true},
	{name: "neon", available: hasNEON},
	{name: "avx2", available: hasAVX2},
	{name: "avx512", available: hasAVX512},
}

var active string

// register adds an installer to the named implementation. An installer of a better set overrides what the lesser sets installed.
func register(name string, install func()) {
	for _, im := range implementations {
		if im.name == name {
			im.install = append(im.install, install)
			return
		}
	}
	panic("kernel: no implementation " + name)
}

// Active is the name of the instruction set in use. Where Setup has not run it runs it, and panics with its error.
func Active() string { choose(); return active }

// Available lists the instruction sets that this machine and this build can run, best last.
func Available() []string {
	var names []string
	for _, im := range implementations {
		if im.available && (im.name == "generic" || len(im.install) > 0) {
			names = append(names, im.name)
		}
	}
	return names
}

// Use switches every kernel to the named instruction set. It is not safe while kernels run: at start-up and in tests only.
func Use(name string) error {
	for _, im := range implementations {
		if im.name != name {
			continue
		}
		if !im.available || (name != "generic" && len(im.install) == 0) {
			return fmt.Errorf("NHA_CPU=%s: this machine or build cannot run it: choose one of %s", name, strings.Join(Available(), ", "))
		}
		for _, lesser := range implementations {
			if lesser.available {
				for _, install := range lesser.install {
					install()
				}
			}
			if lesser.name == name {
				break
			}
		}
		active = name
		return nil
	}
	return fmt.Errorf("NHA_CPU=%q is not an instruction set: choose one of %s", name, strings.Join(Available(), ", "))
}

// Setup selects what the environment variable NHA_CPU names, or the best instruction set of the machine. The cpu backend
// calls it once.
func Setup() error {
	if name := os.Getenv("NHA_CPU"); name != "" {
		return Use(name)
	}
	names := Available()
	return Use(names[len(names)-1])
}

// choose is for those who compute without a backend, tests above all: the same choice as Setup's, NHA_CPU included.
func choose() {
	if active == "" {
		if err := Setup(); err != nil {
			panic(err)
		}
	}
}
