package cuda

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Where the three libraries come from. The driver's is found by the loader (openDriver). The other two come from, in this order:
// NHA_CUDA_PATH (folders, separated as in PATH), the loader's own path, CUDA_HOME or CUDA_PATH, /usr/local/cuda, and the
// nvidia packages of a Python environment (VIRTUAL_ENV, then the python3 on PATH). A folder is searched itself, then its
// lib64, lib and nvidia/*/lib.

// installCommand brings what is missing.
const installCommand = "pip install nvidia-cuda-nvrtc nvidia-cublas"

// library is an opened shared library.
type library struct {
	path   string
	handle uintptr
}

// functions resolves names into addresses, all or none.
func (l *library) functions(names []string, into []uintptr) error {
	for i, name := range names {
		f, err := symbol(l.handle, name)
		if err != nil {
			return fmt.Errorf("%s has no function %s: install a newer one", l.path, name)
		}
		into[i] = f
	}
	return nil
}

// toolkitFolders are where toolkits and Python environments usually are.
func toolkitFolders() []string {
	var list []string
	for _, v := range []string{"CUDA_HOME", "CUDA_PATH"} {
		if d := os.Getenv(v); d != "" {
			list = append(list, d)
		}
	}
	list = append(list, "/usr/local/cuda")
	if d := os.Getenv("VIRTUAL_ENV"); d != "" {
		list = append(list, d)
	}
	return list
}

// pythonPath is where the python3 on PATH looks for packages; it is asked once, and only when nothing else had a match.
var pythonPath = sync.OnceValue(func() []string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "python3", "-c", "import sys; print('\\n'.join(sys.path))").Output()
	if err != nil {
		return nil
	}
	return strings.Fields(string(out))
})

// under lists the files of that name in a folder.
func under(folder, name string) []string {
	var found []string
	for _, sub := range []string{"", "lib64", "lib", "nvidia/*/lib", "lib/python3*/site-packages/nvidia/*/lib"} {
		paths, _ := filepath.Glob(filepath.Join(folder, sub, name))
		found = append(found, paths...)
	}
	return found
}

// open tries the names (best first) in every place and returns the first library that opens.
func open(names ...string) (*library, error) {
	if supported != "" {
		return nil, errors.New(supported)
	}
	var broken error
	try := func(paths ...string) *library {
		for _, p := range paths {
			preloadBuiltins(p)
			h, err := openLibrary(p)
			if err == nil {
				return &library{p, h}
			}
			if filepath.IsAbs(p) && broken == nil {
				broken = err
			}
		}
		return nil
	}
	inside := func(folders []string) *library {
		for _, folder := range folders {
			for _, name := range names {
				if l := try(under(folder, name)...); l != nil {
					return l
				}
			}
		}
		return nil
	}
	if l := inside(filepath.SplitList(os.Getenv("NHA_CUDA_PATH"))); l != nil {
		return l, nil
	}
	if l := try(names...); l != nil {
		return l, nil
	}
	if l := inside(toolkitFolders()); l != nil {
		return l, nil
	}
	if l := inside(pythonPath()); l != nil {
		return l, nil
	}
	if broken != nil {
		return nil, fmt.Errorf("%s does not open: %v", names[0], broken)
	}
	return nil, fmt.Errorf("%s is not on the loader's path, in NHA_CUDA_PATH, CUDA_HOME, /usr/local/cuda or a Python environment", names[0])
}

// openDriver finds libcuda, which comes with the driver: on the loader's path, or where WSL and containers put it.
func openDriver() (*library, error) {
	for _, path := range []string{"libcuda.so.1", "/usr/lib/wsl/lib/libcuda.so.1", "/usr/local/nvidia/lib64/libcuda.so.1"} {
		if h, err := openLibrary(path); err == nil {
			return &library{path, h}, nil
		}
	}
	return nil, errors.New("no NVIDIA driver here: libcuda.so.1 is not on the loader's path")
}

// preloadBuiltins opens the library that NVRTC opens by name when it compiles: outside the loader's path it would not find it.
func preloadBuiltins(path string) {
	if dir, file := filepath.Split(path); dir != "" && strings.HasPrefix(file, "libnvrtc.so") {
		builtins, _ := filepath.Glob(dir + "libnvrtc-builtins.so*")
		for _, b := range builtins {
			_, _ = openLibrary(b) // NVRTC says so itself when it misses them
		}
	}
}

// ordered is the names of a library's versions, the one that fits the driver's first.
func ordered(base string, driverVersion int) []string {
	if driverVersion > 0 && driverVersion < 13000 {
		return []string{base + ".so.12", base + ".so.13"}
	}
	return []string{base + ".so.13", base + ".so.12"}
}

// Report says what of CUDA this machine has, a fact a line, and what to do about what is missing.
func Report() []string {
	if supported != "" {
		return []string{"cuda: " + supported}
	}
	var lines []string
	missing := false
	version := 0
	if d, err := loadDriver(); err != nil {
		lines = append(lines, "cuda driver: "+err.Error())
	} else {
		version = d.version
		lines = append(lines, fmt.Sprintf("cuda driver: %s, CUDA %d.%d", d.lib.path, version/1000, version%1000/10))
	}
	if c, err := loadCompiler(version); err != nil {
		missing = true
		lines = append(lines, "cuda compiler: "+err.Error())
	} else {
		lines = append(lines, fmt.Sprintf("cuda compiler: %s, NVRTC %d.%d", c.lib.path, c.major, c.minor))
	}
	if l, err := open(ordered("libcublasLt", version)...); err != nil {
		missing = true
		lines = append(lines, "cuda matrix products: "+err.Error())
	} else {
		lines = append(lines, "cuda matrix products: "+l.path)
	}
	switch {
	case version == 0:
		lines = append(lines, "cuda: an NVIDIA card wants its driver (nvidia.com/drivers), for CUDA 12.0 or newer, and: "+installCommand)
	case missing:
		lines = append(lines, "cuda: what is missing comes with: "+installCommand)
	}
	return lines
}
