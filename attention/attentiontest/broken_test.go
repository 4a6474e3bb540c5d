package attentiontest

import (
	"math"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"nha/attention"
	"nha/tensor"
)

// broken is the reference with a mistake: before may change a copy of the call, after its results.
type broken struct {
	dtype         tensor.DType
	before, after func(c *attention.Call)
	backward      func(c *attention.Call, g *attention.Gradients) // before backward
}

func (b broken) DType() tensor.DType { return b.dtype }

func (b broken) Forward(c *attention.Call) {
	call := *c
	config := *c.Config
	call.Config = &config
	if b.before != nil {
		b.before(&call)
	}
	attention.Forward(&call)
	if b.after != nil {
		b.after(&call)
	}
}

func (b broken) Backward(c *attention.Call, g *attention.Gradients) {
	gradients := *g
	if b.backward != nil {
		b.backward(c, &gradients)
	}
	attention.Backward(c, &gradients)
}

func isStep(c *attention.Call) bool {
	return len(c.Lengths) == 1 && c.Lengths[0] == 1 && c.Initial != nil
}

// mistakes are operators that are wrong and the subtests of TestBroken that must say so: those of SPEC 4 by name, and others.
var mistakes = map[string]struct {
	subtest string
	op      broken
}{
	"decode without a window's rotation": {"errors not to repeat/decode is the trained function", broken{before: func(c *attention.Call) {
		if isStep(c) {
			c.Rope = nil
		}
	}}},
	"window 0 adds a token": {"errors not to repeat/window 0 is not unlimited", broken{after: func(c *attention.Call) {
		if c.Window == 0 {
			for i := range c.Share.Len() {
				c.Share.SetValue(i, 0.9)
			}
		}
	}}},
	"full is 2048": {"errors not to repeat/full is the whole context", broken{before: func(c *attention.Call) {
		if c.Window == attention.Full && c.Lengths[0] > 2048 {
			c.Window, c.Final = 2048, nil
		}
	}}},
	"several tokens start afresh": {"errors not to repeat/continuing by several tokens keeps the window", broken{before: func(c *attention.Call) {
		if c.Initial != nil && c.Lengths[0] > 1 {
			c.Initial = nil
		}
	}}},
	"no sinks in decode": {"errors not to repeat/same sinks in prefill and decode", broken{before: func(c *attention.Call) {
		if isStep(c) {
			c.EmptySlots = attention.Mask
		}
	}}},
	"positions count pads": {"errors not to repeat/pads never enter the slots", broken{after: func(c *attention.Call) {
		for _, s := range c.Final {
			s.Position = 65
		}
	}}},
	"write strength in bfloat16": {"errors not to repeat/write strength in float32", broken{after: func(c *attention.Call) {
		for _, s := range c.Final {
			for i := range s.SlotKeys.Len() {
				s.SlotKeys.SetValue(i, float64(tensor.BF16ToF32(tensor.F32ToBF16(float32(s.SlotKeys.Value(i))))))
			}
		}
	}}},
	"queries enter the state": {"errors not to repeat/state per kv head", broken{after: func(c *attention.Call) {
		for _, s := range c.Final {
			s.SlotKeys.SetValue(0, c.Q.Value(0))
		}
	}}},
	"packed as one document": {"errors not to repeat/packed documents do not leak", broken{before: func(c *attention.Call) {
		if len(c.Lengths) > 1 {
			c.Lengths, c.Final = []int{c.Q.Dim(0)}, nil
		}
	}}},
	"the initial state is used up": {"errors not to repeat/states fork", broken{after: func(c *attention.Call) {
		for _, s := range c.Initial {
			s.Position++
		}
	}}},
	"a window one too wide": {"match", broken{before: func(c *attention.Call) {
		if c.Final == nil {
			c.Window++
		}
	}}},
	"another denominator":                       {"match", broken{after: func(c *attention.Call) { c.LSE.SetValue(0, c.LSE.Value(0)+0.01) }}},
	"gradient of the final state ignored":       {"match", broken{backward: func(c *attention.Call, g *attention.Gradients) { g.DFinal = nil }}},
	"gradient of the initial state not written": {"match", broken{backward: func(c *attention.Call, g *attention.Gradients) { g.DInitial = nil }}},
	"cut gradients": {"properties/any cut is the same function", broken{backward: func(c *attention.Call, g *attention.Gradients) {
		if c.Initial != nil && c.Initial[0] != nil {
			g.DFinal = nil
		}
	}}},
	"the batch decides": {"properties/packed is separate", broken{after: func(c *attention.Call) {
		if len(c.Lengths) > 1 {
			c.O.SetValue(0, c.O.Value(0)+1e-3)
		}
	}}},
	"a neighbour's NaN": {"properties/neighbours change nothing", broken{after: func(c *attention.Call) {
		sum := 0.0
		for i := range c.V.Len() {
			sum += c.V.Value(i)
		}
		for i := range c.O.Len() {
			c.O.SetValue(i, c.O.Value(i)+0*sum)
		}
	}}},
	"steps that cannot be repeated": {"properties/fork then continue", broken{after: func(c *attention.Call) {
		if c.Initial != nil && c.Initial[0] == c.Final[0] {
			c.O.SetValue(0, c.O.Value(0)+1e-6)
		}
	}}},
	"a lost mass": {"long/mass at gate logit 8, single steps", broken{after: func(c *attention.Call) {
		for i := range c.Final[0].SlotKeys.Len() {
			c.Final[0].SlotKeys.F32()[i] = math.Nextafter32(c.Final[0].SlotKeys.F32()[i], 0) // an ulp a step
		}
	}}},
	"hard gates overflow": {"long/T", broken{after: func(c *attention.Call) {
		for i := range c.Z.Len() {
			if c.Z.Value(i) < -59 {
				c.O.SetValue(0, math.Inf(1))
			}
		}
	}}},
}

const brokenVariable = "ATTENTIONTEST_MISTAKE"

// TestBroken runs the shared tests on one of the mistakes, in the process that TestTheTestsCanFail starts.
func TestBroken(t *testing.T) {
	name := os.Getenv(brokenVariable)
	if name == "" {
		return
	}
	op := mistakes[name].op
	op.dtype = tensor.F32
	Run(t, op, TolerancesFor(tensor.F32))
	t.Run("long", func(t *testing.T) { LongRun(t, op) })
}

// TestTheTestsCanFail: each mistake is found by the subtest that is there for it.
func TestTheTestsCanFail(t *testing.T) {
	for name, m := range mistakes {
		t.Run(name, func(t *testing.T) {
			pattern := "^TestBroken$"
			for _, part := range strings.Split(m.subtest, "/") {
				pattern += "/^" + regexp.QuoteMeta(strings.ReplaceAll(part, " ", "_"))
			}
			command := exec.Command(os.Args[0], "-test.run", pattern, "-rapid.nofailfile", "-rapid.shrinktime=1ms", "-rapid.checks=20")
			command.Env = append(os.Environ(), brokenVariable+"="+name)
			out, err := command.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "--- FAIL: TestBroken/"+strings.ReplaceAll(m.subtest, " ", "_")) {
				t.Errorf("%q does not find it (%v):\n%s", m.subtest, err, out)
			}
		})
	}
}
