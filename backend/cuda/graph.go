package cuda

import (
	"runtime"
	"unsafe"
)

// A graph is a list of kernels that the card runs one after the other at a single command: recorded from the stream once, launched as
// often as wanted. From Hopper on a kernel of it may begin while the one before ends (programmatic dependent launch); it waits by
// itself for what it reads.

const (
	cuStreamBeginCapture = iota
	cuStreamEndCapture
	cuGraphInstantiate
	cuGraphLaunch
	cuGraphExecDestroy
	cuGraphDestroy
	cuLaunchKernelEx
	graphFunctions
)

var graphNames = [graphFunctions]string{"cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags", "cuGraphLaunch",
	"cuGraphExecDestroy", "cuGraphDestroy", "cuLaunchKernelEx"}

// recorder is the driver's functions for graphs.
type recorder struct {
	d     *device
	f     [graphFunctions]uintptr
	early bool // kernels begin before their predecessor has ended
}

// earlyVersion is the first driver that records programmatic dependent launches into graphs.
const earlyVersion = 12030

func newRecorder(d *device) (*recorder, error) {
	r := &recorder{d: d, early: d.major >= 9 && d.driver.version >= earlyVersion}
	return r, d.driver.lib.functions(graphNames[:], r.f[:])
}

//go:uintptrescapes
func (r *recorder) do(f int, args ...uintptr) error {
	if code := int(int32(call(r.f[f], args...))); code != 0 {
		return r.d.driver.failure(graphNames[f], code)
	}
	return nil
}

// node is a kernel of a graph. Its one parameter is a struct, which is copied when the node is recorded.
type node struct {
	kernel *kernel
	grid   grid
	block  int
	shared int            // bytes of dynamic shared memory
	args   unsafe.Pointer // on the heap
}

// launchConfig is CUlaunchConfig, launchAttribute CUlaunchAttribute.
type launchConfig struct {
	grid, block   [3]uint32
	shared, _     uint32
	stream        uintptr
	attributes    *launchAttribute
	count, _      uint32
	attributeHere launchAttribute // what attributes points to
}

type launchAttribute struct {
	id, _ uint32
	value [16]uint32
}

const programmaticSerialization = 6

// record makes a graph of the nodes.
func (r *recorder) record(nodes []node) (exec uintptr) {
	r.d.must(func() error {
		for _, n := range nodes {
			if n.shared > n.kernel.shared {
				if err := r.d.driver.do(cuFuncSetAttribute, n.kernel.function, functionMaxDynamicShared, uintptr(n.shared)); err != nil {
					return err
				}
				n.kernel.shared = n.shared
			}
		}
		const relaxed = 2 // other threads may use the driver meanwhile
		if err := r.do(cuStreamBeginCapture, r.d.stream, relaxed); err != nil {
			return err
		}
		first := r.launchAll(nodes)
		var graph uintptr
		if err := r.do(cuStreamEndCapture, r.d.stream, uintptr(unsafe.Pointer(&graph))); first == nil {
			first = err
		}
		if first != nil {
			return first
		}
		err := r.do(cuGraphInstantiate, uintptr(unsafe.Pointer(&exec)), graph, 0)
		_ = r.do(cuGraphDestroy, graph)
		return err
	})
	return exec
}

// launchAll puts the nodes into the stream that is being recorded.
func (r *recorder) launchAll(nodes []node) error {
	for i, n := range nodes {
		c := &launchConfig{grid: [3]uint32{uint32(n.grid.x), uint32(n.grid.y), uint32(n.grid.z)}, block: [3]uint32{uint32(n.block), 1, 1}, shared: uint32(n.shared), stream: r.d.stream}
		if r.early && i > 0 {
			c.attributeHere.id, c.attributeHere.value[0] = programmaticSerialization, 1
			c.attributes, c.count = &c.attributeHere, 1
		}
		params := &[1]unsafe.Pointer{n.args}
		err := r.do(cuLaunchKernelEx, uintptr(unsafe.Pointer(c)), n.kernel.function, uintptr(unsafe.Pointer(params)), 0)
		runtime.KeepAlive(c)
		runtime.KeepAlive(params)
		if err != nil {
			e := err.(*Error)
			e.Call += " " + n.kernel.entry
			return e
		}
	}
	return nil
}

// forget frees a graph.
func (r *recorder) forget(exec uintptr) {
	r.d.must(func() error {
		_ = r.d.driver.do(cuStreamSynchronize, r.d.stream)
		return r.do(cuGraphExecDestroy, exec)
	})
}
