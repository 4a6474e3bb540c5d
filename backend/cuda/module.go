package cuda

import (
	"embed"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"unsafe"
)

//go:embed kernels/*.cu kernels/*.cuh
var kernelFiles embed.FS

// define is a constant of a kernel, -Dname=value.
type define struct {
	name, text string
	number     int
}

// number is an integer constant, word one of any other kind: a type.
func number(name string, value int) define { return define{name: name, number: value} }

func word(name, text string) define { return define{name: name, text: text} }

func flag(name string, on bool) define {
	if on {
		return number(name, 1)
	}
	return number(name, 0)
}

func (d define) String() string {
	if d.text != "" {
		return d.name + "=" + d.text
	}
	return d.name + "=" + strconv.Itoa(d.number)
}

const maxDefines = 16

// moduleKey is a kernel file under one set of constants.
type moduleKey struct {
	file    string
	defines [maxDefines]define
}

// kernel is a compiled function on the card.
type kernel struct {
	module   moduleKey
	entry    string
	function uintptr
	shared   int // dynamic shared memory it may use so far
}

// modules are the kernels loaded on a device.
type modules struct {
	compiler *compiler
	kernels  map[uint64][]*kernel // by a hash of file, entry and constants
	loaded   map[moduleKey]uintptr
}

// moduleSource is a kernel file with its constants, ready to compile.
type moduleSource struct {
	moduleKey
	text string
}

func key(file string, defines []define) moduleKey {
	k := moduleKey{file: file}
	if len(defines) > maxDefines {
		panic(fmt.Sprintf("cuda: %d constants for %s", len(defines), file))
	}
	copy(k.defines[:], defines)
	return k
}

// source reads an embedded kernel file; common.cuh stands in front of every one, and a file may include others.
func (k moduleKey) source() *moduleSource {
	return &moduleSource{k, kernelText("common.cuh") + "\n" + kernelText(k.file)}
}

// kernelText is a kernel file with the files that it includes in place: NVRTC sees no folder.
func kernelText(name string) string {
	b, err := kernelFiles.ReadFile("kernels/" + name)
	if err != nil {
		panic("cuda: no kernel file " + name)
	}
	lines := strings.Split("#line 1 \""+name+"\"\n"+string(b), "\n")
	for i, l := range lines {
		if included, ok := strings.CutPrefix(l, "#include "); ok {
			lines[i] = kernelText(strings.Trim(included, "\"")) + fmt.Sprintf("\n#line %d \"%s\"", i+1, name)
		}
	}
	return strings.Join(lines, "\n")
}

// used is the constants that are there.
func (k *moduleKey) used() []define {
	n := 0
	for n < maxDefines && k.defines[n].name != "" {
		n++
	}
	return k.defines[:n]
}

// list is the constants as words.
func (k moduleKey) list() []string {
	var s []string
	for _, d := range k.defines {
		if d.name != "" {
			s = append(s, d.String())
		}
	}
	return s
}

func (m *moduleSource) options(target string) []string {
	o := []string{"--gpu-architecture=" + target, "--std=c++20", "--device-as-default-execution-space"}
	for _, d := range m.list() {
		o = append(o, "-D"+d)
	}
	return o
}

func (m *moduleSource) defines() []string { return m.list() }

// kernel is a function of kernels/file under the given constants, compiled and loaded the first time. After that it costs a
// look-up. An entry is declared extern "C".
func (d *device) kernel(file, entry string, defines ...define) *kernel {
	h := hash(file, entry, defines)
	for _, k := range d.modules.kernels[h] {
		if k.is(file, entry, defines) {
			return k
		}
	}
	if d.collecting {
		return d.note(file, entry, defines)
	}
	k := d.newKernel(key(file, defines), entry)
	d.modules.kernels[h] = append(d.modules.kernels[h], k)
	return k
}

// note is a kernel that is only wanted, not there.
func (d *device) note(file, entry string, defines []define) *kernel {
	for _, k := range d.noted {
		if k.is(file, entry, defines) {
			return k
		}
	}
	k := &kernel{module: key(file, defines), entry: entry}
	d.noted = append(d.noted, k)
	return k
}

// Compile finds the kernels that uses queues, without running any, compiles those that are missing, as many at a time as there
// are processors, and loads them all. progress may be nil.
func (b *Backend) Compile(uses func(), progress func(done, total int)) error {
	d := b.d
	func() {
		d.collecting = true
		defer func() { d.collecting = false }()
		uses()
	}()
	noted := d.noted
	d.noted = nil
	var list []moduleKey
	for _, k := range noted {
		if _, ok := d.modules.loaded[k.module]; !ok && !slices.Contains(list, k.module) {
			list = append(list, k.module)
		}
	}
	if err := d.prepare(progress, list); err != nil {
		return err
	}
	for _, k := range noted {
		defines := k.module.used()
		d.kernel(k.module.file, k.entry, defines...)
	}
	return nil
}

// hash mixes what tells kernels apart, quickly; is decides.
func hash(file, entry string, defines []define) uint64 {
	h := uint64(len(file))
	mix := func(s string) {
		if s != "" {
			h = h*1099511628211 ^ uint64(len(s))<<8 ^ uint64(s[0])
		}
	}
	mix(file)
	mix(entry)
	for i := range defines {
		mix(defines[i].name)
		mix(defines[i].text)
		h = h*1099511628211 ^ uint64(defines[i].number)
	}
	return h
}

func (k *kernel) is(file, entry string, defines []define) bool {
	if k.entry != entry || k.module.file != file {
		return false
	}
	for i := range k.module.defines {
		if i < len(defines) && k.module.defines[i] != defines[i] || i >= len(defines) && k.module.defines[i].name != "" {
			return false
		}
	}
	return true
}

func (d *device) newKernel(m moduleKey, entry string) *kernel {
	if _, ok := d.modules.loaded[m]; !ok {
		if err := d.load(m); err != nil {
			panic(err)
		}
	}
	f := &kernel{module: m, entry: entry, shared: 48 << 10}
	d.must(func() error {
		name := cBytes(entry)
		return d.driver.do(cuModuleGetFunction, uintptr(unsafe.Pointer(&f.function)), d.modules.loaded[m], uintptr(unsafe.Pointer(&name[0])))
	})
	return f
}

// load has modules ready, compiled together; while kernels are only noted it leaves them to Compile.
func (d *device) load(list ...moduleKey) error {
	if d.collecting {
		return nil
	}
	return d.prepare(nil, list)
}

// prepare compiles modules, as many at a time as there are processors, and loads them. progress, which may be nil, is told how many
// of those that were not in the cache are done.
func (d *device) prepare(progress func(done, total int), list []moduleKey) error {
	images, errs := make([][]byte, len(list)), make([]error, len(list))
	sources := make([]*moduleSource, len(list))
	var missing []int
	for i, k := range list {
		sources[i] = k.source()
		if images[i] = d.modules.compiler.cached(sources[i], d.arch); images[i] == nil {
			missing = append(missing, i)
		}
	}
	done, places := make(chan struct{}), make(chan struct{}, runtime.NumCPU())
	for _, i := range missing {
		go func() {
			places <- struct{}{}
			images[i], errs[i] = d.modules.compiler.image(sources[i], d.arch)
			<-places
			done <- struct{}{}
		}()
	}
	for n := range missing {
		if progress != nil {
			progress(n, len(missing))
		}
		<-done
	}
	if progress != nil && len(missing) > 0 {
		progress(len(missing), len(missing))
	}
	for i, k := range list {
		if errs[i] != nil {
			return errs[i]
		}
		if _, ok := d.modules.loaded[k]; ok {
			continue
		}
		var module uintptr
		if err := d.try(func() error {
			err := d.driver.do(cuModuleLoadData, uintptr(unsafe.Pointer(&module)), uintptr(unsafe.Pointer(&images[i][0])))
			if e, ok := err.(*Error); ok {
				e.Advice = fmt.Sprintf("kernels/%s was compiled by NVRTC %d.%d, the driver is for CUDA %d.%d: update the driver or install an older nvidia-cuda-nvrtc",
					k.file, d.modules.compiler.major, d.modules.compiler.minor, d.driver.version/1000, d.driver.version%1000/10)
			}
			return err
		}); err != nil {
			return err
		}
		d.modules.loaded[k] = module
	}
	return nil
}

func (m *modules) close(d *device) {
	for _, module := range m.loaded {
		_ = d.driver.do(cuModuleUnload, module)
	}
}
