package cuda

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"nha/tensor"
)

// function is a function of the driver, an index into its table of addresses.
type function int

const (
	cuInit function = iota
	cuDriverGetVersion
	cuDeviceGetCount
	cuDeviceGet
	cuDeviceGetName
	cuDeviceGetAttribute
	cuDeviceTotalMem
	cuDevicePrimaryCtxRetain
	cuDevicePrimaryCtxRelease
	cuCtxSetCurrent
	cuStreamCreate
	cuStreamDestroy
	cuStreamSynchronize
	cuEventCreate
	cuEventDestroy
	cuEventRecord
	cuEventSynchronize
	cuEventElapsedTime
	cuMemAlloc
	cuMemFree
	cuMemAllocHost
	cuMemFreeHost
	cuMemGetInfo
	cuMemcpyHtoDAsync
	cuMemcpyDtoHAsync
	cuMemcpyDtoDAsync
	cuMemsetD8Async
	cuModuleLoadData
	cuModuleUnload
	cuModuleGetFunction
	cuFuncSetAttribute
	cuLaunchKernel
	cuGetErrorName
	cuGetErrorString
	functions
)

// driverNames are the symbols; those with a suffix are the current versions of their interface.
var driverNames = [functions]string{
	"cuInit", "cuDriverGetVersion", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute", "cuDeviceTotalMem_v2",
	"cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease_v2", "cuCtxSetCurrent", "cuStreamCreate", "cuStreamDestroy_v2",
	"cuStreamSynchronize", "cuEventCreate", "cuEventDestroy_v2", "cuEventRecord", "cuEventSynchronize", "cuEventElapsedTime",
	"cuMemAlloc_v2", "cuMemFree_v2", "cuMemAllocHost_v2", "cuMemFreeHost", "cuMemGetInfo_v2", "cuMemcpyHtoDAsync_v2",
	"cuMemcpyDtoHAsync_v2", "cuMemcpyDtoDAsync_v2", "cuMemsetD8Async", "cuModuleLoadData", "cuModuleUnload", "cuModuleGetFunction",
	"cuFuncSetAttribute", "cuLaunchKernel", "cuGetErrorName", "cuGetErrorString",
}

// String is the name without the suffix of its version.
func (f function) String() string {
	name, _, _ := strings.Cut(driverNames[f], "_")
	return name
}

// Attributes of a device (CUdevice_attribute) and of a function (CUfunction_attribute).
const (
	attributeSMs             = 16
	attributeComputeMajor    = 75
	attributeComputeMinor    = 76
	attributeSharedPerBlock  = 97 // with opt-in
	functionMaxDynamicShared = 8
)

const (
	codeOutOfMemory = 2
	codeUnavailable = 46
	codeNoDevice    = 100
)

// driver is libcuda: its functions, initialised.
type driver struct {
	lib     *library
	version int // 13000 is CUDA 13.0
	f       [functions]uintptr
}

// loadDriver opens libcuda and initialises it, once.
var loadDriver = sync.OnceValues(func() (*driver, error) {
	if supported != "" {
		return nil, fmt.Errorf("%s", supported)
	}
	l, err := openDriver()
	if err != nil {
		return nil, err
	}
	d := &driver{lib: l}
	if err := l.functions(driverNames[:], d.f[:]); err != nil {
		return nil, fmt.Errorf("the NVIDIA driver is too old: %w", err)
	}
	if err := d.start(); err != nil {
		return nil, err
	}
	return d, nil
})

// start initialises the driver.
func (d *driver) start() error {
	if err := d.do(cuInit, 0); err != nil {
		if err.(*Error).Code == codeNoDevice {
			return fmt.Errorf("the NVIDIA driver finds no card (%s)", err.(*Error).Name)
		}
		return err
	}
	var version int32
	if err := d.do(cuDriverGetVersion, uintptr(unsafe.Pointer(&version))); err != nil {
		return err
	}
	if version < 12000 {
		return fmt.Errorf("the NVIDIA driver is for CUDA %d.%d: install one for CUDA 12.0 or newer", version/1000, version%1000/10)
	}
	d.version = int(version)
	return nil
}

// do calls a function of the driver and turns its code into an error.
//
//go:uintptrescapes
func (d *driver) do(f function, args ...uintptr) error {
	if code := int(int32(call(d.f[f], args...))); code != 0 {
		return d.failure(f.String(), code)
	}
	return nil
}

// failure is the error for a driver's code.
func (d *driver) failure(what string, code int) *Error {
	e := &Error{Call: what, Code: code, Name: fmt.Sprintf("CUDA error %d", code)}
	var text uintptr
	if call(d.f[cuGetErrorName], uintptr(code), uintptr(unsafe.Pointer(&text))) == 0 {
		e.Name = cString(text)
	}
	if call(d.f[cuGetErrorString], uintptr(code), uintptr(unsafe.Pointer(&text))) == 0 {
		e.Text = cString(text)
	}
	return e
}

// cString copies a C string that lives outside Go's memory.
func cString(p uintptr) string {
	if p == 0 {
		return ""
	}
	base := *(*unsafe.Pointer)(unsafe.Pointer(&p))
	n := 0
	for *(*byte)(unsafe.Add(base, n)) != 0 {
		n++
	}
	return string(unsafe.Slice((*byte)(base), n))
}

// cBytes is a Go string with C's zero at its end.
func cBytes(s string) []byte { return append([]byte(s), 0) }

// Error is a failure of the card or of its libraries while an op was queued or ran.
type Error struct {
	Code   int            // CUresult, cublasStatus_t or nvrtcResult
	Name   string         // CUDA_ERROR_..., as the library calls it
	Text   string         // what it means
	Call   string         // the function that said so
	Op     string         // the op of the table; empty outside one
	Shapes []tensor.Shape // of the op's tensors
	Advice string         // what to do; may be empty
}

// Fault marks it as a backend.Fault.
func (e *Error) Fault() {}

func (e *Error) Error() string {
	var s strings.Builder
	s.WriteString("cuda: ")
	if e.Op != "" {
		s.WriteString(e.Op)
		for _, shape := range e.Shapes {
			s.WriteString(" " + shape.String())
		}
		s.WriteString(": ")
	}
	words := slices.DeleteFunc([]string{e.Call, e.Name, e.Text, e.Advice}, func(w string) bool { return w == "" })
	s.WriteString(strings.Join(words, ": "))
	return s.String()
}
