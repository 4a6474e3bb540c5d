//go:build linux && (amd64 || arm64)

package cuda

import "github.com/ebitengine/purego"

// supported says why this system cannot open CUDA's libraries; empty: it can.
const supported = ""

func openLibrary(path string) (uintptr, error) {
	return purego.Dlopen(path, purego.RTLD_NOW|purego.RTLD_GLOBAL)
}

func symbol(library uintptr, name string) (uintptr, error) { return purego.Dlsym(library, name) }

// call calls a C function by its address. Pointers converted to uintptr in the argument list stay alive and in place.
//
//go:uintptrescapes
func call(f uintptr, args ...uintptr) uintptr {
	r, _, _ := purego.SyscallN(f, args...)
	return r
}
