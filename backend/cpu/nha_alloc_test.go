package cpu

import (
	"testing"

	"nha/attention"
	"nha/backend/cpu/kernel"
	"nha/tensor"
)

// A training step and a decode step allocate nothing once the scratch has grown.
func TestNHADoesNotAllocate(t *testing.T) {
	pool := kernel.NewPool(2)
	defer pool.Close()
	n := newNHA(pool)
	c, g := randomCall(2, 150, 4, 2, 24, 20)
	cut, cutG := randomCall(1, 700, 2, 1, 24, 20)
	step, _ := randomCall(3, 1, 4, 2, 24, 20)
	for range step.Lengths {
		s := attention.NewState(step.Config, tensor.F32)
		step.Initial, step.Final = append(step.Initial, s), append(step.Final, s)
	}
	long, _ := stepCalls(attention.Config{QueryHeads: 4, KVHeads: 2, KeyDim: 32, ValueDim: 32, Window: 600, Scale: 1}, []int{2000, 100}, tensor.F16)
	for name, f := range map[string]func(){
		"forward":           func() { n.Forward(c) },
		"backward":          func() { n.Backward(c, g) },
		"forward in parts":  func() { n.Forward(cut) },
		"backward in parts": func() { n.Backward(cut, cutG) },
		"step":              func() { n.Forward(step) },
		"step of reaches":   func() { n.Forward(long) },
	} {
		for range 8 {
			f() // both workers must have met the work
		}
		if allocations := testing.AllocsPerRun(20, f); allocations > 0 {
			t.Errorf("%s: %v allocations", name, allocations)
		}
	}
}
