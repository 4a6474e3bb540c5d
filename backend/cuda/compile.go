package cuda

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"nha/atomicfile"
)

// compiler is NVRTC. It needs no card and no context, and several threads may compile at once.
type compiler struct {
	lib          *library
	f            [nvrtcFunctions]uintptr
	major, minor int
	archs        []int // what it can compile for, ascending: 80, 90, ...
}

const (
	nvrtcVersion = iota
	nvrtcCreateProgram
	nvrtcDestroyProgram
	nvrtcCompileProgram
	nvrtcGetProgramLogSize
	nvrtcGetProgramLog
	nvrtcGetCUBINSize
	nvrtcGetCUBIN
	nvrtcGetPTXSize
	nvrtcGetPTX
	nvrtcGetNumSupportedArchs
	nvrtcGetSupportedArchs
	nvrtcGetErrorString
	nvrtcFunctions
)

var nvrtcNames = [nvrtcFunctions]string{"nvrtcVersion", "nvrtcCreateProgram", "nvrtcDestroyProgram", "nvrtcCompileProgram",
	"nvrtcGetProgramLogSize", "nvrtcGetProgramLog", "nvrtcGetCUBINSize", "nvrtcGetCUBIN", "nvrtcGetPTXSize", "nvrtcGetPTX",
	"nvrtcGetNumSupportedArchs", "nvrtcGetSupportedArchs", "nvrtcGetErrorString"}

// loadCompiler opens NVRTC, once; the driver's version says which is tried first.
var loadCompiler = func(driverVersion int) (*compiler, error) {
	compilerOnce.Do(func() { theCompiler, compilerError = newCompiler(driverVersion) })
	return theCompiler, compilerError
}

var (
	compilerOnce  sync.Once
	theCompiler   *compiler
	compilerError error
)

func newCompiler(driverVersion int) (*compiler, error) {
	l, err := open(ordered("libnvrtc", driverVersion)...)
	if err != nil {
		return nil, err
	}
	c := &compiler{lib: l}
	if err := l.functions(nvrtcNames[:], c.f[:]); err != nil {
		return nil, err
	}
	var major, minor, n int32
	if err := c.do(nvrtcVersion, uintptr(unsafe.Pointer(&major)), uintptr(unsafe.Pointer(&minor))); err != nil {
		return nil, err
	}
	if err := c.do(nvrtcGetNumSupportedArchs, uintptr(unsafe.Pointer(&n))); err != nil {
		return nil, err
	}
	archs := make([]int32, n)
	if err := c.do(nvrtcGetSupportedArchs, uintptr(unsafe.Pointer(unsafe.SliceData(archs)))); err != nil {
		return nil, err
	}
	c.major, c.minor = int(major), int(minor)
	for _, a := range archs {
		c.archs = append(c.archs, int(a))
	}
	return c, nil
}

//go:uintptrescapes
func (c *compiler) do(f int, args ...uintptr) error {
	if code := int(int32(call(c.f[f], args...))); code != 0 {
		return &Error{Call: nvrtcNames[f], Code: code, Name: cString(call(c.f[nvrtcGetErrorString], uintptr(code)))}
	}
	return nil
}

// target is the architecture to ask NVRTC for: the card's own machine code, or where NVRTC is older than the card the newest
// portable code it knows, which the driver then finishes.
func (c *compiler) target(arch string) (option string, portable bool) {
	number, _ := strconv.Atoi(strings.TrimRight(strings.TrimPrefix(arch, "sm_"), "abcdefghijklmnopqrstuvwxyz"))
	newest := 0
	for _, a := range c.archs {
		if a == number {
			return arch, false
		}
		if a < number {
			newest = max(newest, a)
		}
	}
	return fmt.Sprintf("compute_%d", newest), true
}

// compile turns a kernel file into an image that cuModuleLoadData takes.
func (c *compiler) compile(m *moduleSource, arch string) ([]byte, error) {
	target, portable := c.target(arch)
	options := m.options(target)
	name, text := cBytes(m.file), cBytes(m.text)
	var program uintptr
	if err := c.do(nvrtcCreateProgram, uintptr(unsafe.Pointer(&program)), uintptr(unsafe.Pointer(&text[0])), uintptr(unsafe.Pointer(&name[0])), 0, 0, 0); err != nil {
		return nil, err
	}
	defer func() { _ = c.do(nvrtcDestroyProgram, uintptr(unsafe.Pointer(&program))) }()
	strings, list := make([][]byte, len(options)), make([]*byte, len(options))
	for i, o := range options {
		strings[i] = cBytes(o)
		list[i] = &strings[i][0]
	}
	err := c.do(nvrtcCompileProgram, program, uintptr(len(list)), uintptr(unsafe.Pointer(&list[0])))
	if err != nil {
		e := err.(*Error)
		e.Text = fmt.Sprintf("kernels/%s for %s with %v: %s", m.file, target, m.defines(), bytes.TrimSpace(c.output(program, nvrtcGetProgramLogSize, nvrtcGetProgramLog)))
		return nil, e
	}
	if portable {
		return c.output(program, nvrtcGetPTXSize, nvrtcGetPTX), nil
	}
	return c.output(program, nvrtcGetCUBINSize, nvrtcGetCUBIN), nil
}

// output reads one of a program's results; empty where there is none.
func (c *compiler) output(program uintptr, size, get int) []byte {
	var n uintptr
	if c.do(size, program, uintptr(unsafe.Pointer(&n))) != nil || n == 0 {
		return nil
	}
	b := make([]byte, n)
	if c.do(get, program, uintptr(unsafe.Pointer(&b[0]))) != nil {
		return nil
	}
	if get == nvrtcGetProgramLog {
		return bytes.TrimRight(b, "\x00")
	}
	return b
}

// image is the compiled module from the cache on disk, or compiled now and put there. A file of the cache is the image's
// SHA-256 and the image: one that was damaged is compiled again. A cache that cannot be written is done without.
func (c *compiler) image(m *moduleSource, arch string) ([]byte, error) {
	if b := c.cached(m, arch); b != nil {
		return b, nil
	}
	path := c.cachePath(m, arch)
	b, err := c.compile(m, arch)
	if err != nil || path == "" {
		return b, err
	}
	if os.MkdirAll(filepath.Dir(path), 0o755) == nil {
		sum := sha256.Sum256(b)
		_ = atomicfile.WriteFile(path, 0o644, func(w io.Writer) error {
			if _, err := w.Write(sum[:]); err != nil {
				return err
			}
			_, err := w.Write(b)
			return err
		})
	}
	return b, nil
}

// cached is the image from the cache on disk; nil: it is not there, or damaged.
func (c *compiler) cached(m *moduleSource, arch string) []byte {
	path := c.cachePath(m, arch)
	if path == "" {
		return nil
	}
	b, err := os.ReadFile(path)
	if err != nil || len(b) <= sha256.Size {
		return nil
	}
	if sum := sha256.Sum256(b[sha256.Size:]); !bytes.Equal(sum[:], b[:sha256.Size]) {
		return nil
	}
	return b[sha256.Size:]
}

// cachePath names the image by everything that it depends on; empty where the user has no cache folder.
func (c *compiler) cachePath(m *moduleSource, arch string) string {
	dir, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	target, _ := c.target(arch)
	h := sha256.New()
	for _, s := range append(m.options(target), m.text, fmt.Sprintf("nvrtc %d.%d", c.major, c.minor)) {
		fmt.Fprintf(h, "%d:%s\n", len(s), s)
	}
	return filepath.Join(dir, "nha", "cuda", strings.TrimSuffix(m.file, ".cu")+"-"+hex.EncodeToString(h.Sum(nil))+".image")
}
