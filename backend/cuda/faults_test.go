//go:build linux && (amd64 || arm64)

package cuda

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"github.com/ebitengine/purego"

	"nha/autograd"
	"nha/model"
	"nha/tensor"
	"nha/train"
)

// fake is a driver whose functions are Go's: every one answers code[function], 0 where there is none, and the few that tell
// something tell what the test says. Callbacks are never freed, so they are made once.
var fake struct {
	code           [functions]int
	version, major int32
	name           string
	texts          map[int][]byte // names of codes, which C strings must outlive
	next           uintptr
	host           [][]byte
}

var fakeDriver = sync.OnceValue(func() *driver {
	d := &driver{lib: &library{path: "libfake.so"}}
	for f := range functions {
		d.f[f] = purego.NewCallback(func(a, b, c, _, _, _ uintptr) uintptr {
			switch f {
			case cuDriverGetVersion:
				*(*int32)(at(a)) = fake.version
			case cuDeviceGetName:
				copy(unsafe.Slice((*byte)(at(a)), b), fake.name+"\x00")
			case cuDeviceGetAttribute:
				*(*int32)(at(a)) = map[uintptr]int32{attributeComputeMajor: fake.major, attributeComputeMinor: 0, attributeSMs: 4, attributeSharedPerBlock: int32(nhaSharedPerBlock["sm_80"])}[b]
			case cuGetErrorName:
				if fake.texts[int(a)] == nil {
					return 1
				}
				*(*uintptr)(at(b)) = uintptr(unsafe.Pointer(&fake.texts[int(a)][0]))
			case cuGetErrorString:
				return 1
			case cuMemAlloc: // nothing on the card is ever touched
				fake.next += 1 << 40
				*(*uintptr)(at(a)) = fake.next
			case cuMemAllocHost:
				fake.host = append(fake.host, make([]byte, b))
				*(*uintptr)(at(a)) = uintptr(unsafe.Pointer(&fake.host[len(fake.host)-1][0]))
			}
			return uintptr(fake.code[f])
		})
	}
	return d
})

// at is a pointer to memory that C was given.
func at(p uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&p)) }

// healthy has the fake driver stand in for the machine's, with a card in order.
func healthy(t *testing.T) *driver {
	t.Helper()
	d := fakeDriver()
	before := loadDriver
	loadDriver = func() (*driver, error) { return d, d.start() }
	t.Cleanup(func() { loadDriver = before })
	fake.code, fake.version, fake.major, fake.name = [functions]int{}, 13000, 9, "Fake H1"
	fake.texts = map[int][]byte{2: []byte("CUDA_ERROR_OUT_OF_MEMORY\x00"), 46: []byte("CUDA_ERROR_DEVICE_UNAVAILABLE\x00"), 100: []byte("CUDA_ERROR_NO_DEVICE\x00"),
		999: []byte("CUDA_ERROR_UNKNOWN\x00")}
	return d
}

// TestCardThatCannotBeUsed: every reason is one line that says what to do.
func TestCardThatCannotBeUsed(t *testing.T) {
	for _, c := range []struct {
		name   string
		broken func()
		want   []string
	}{
		{"no card", func() { fake.code[cuInit] = codeNoDevice }, []string{"the NVIDIA driver finds no card", "CUDA_ERROR_NO_DEVICE"}},
		{"a driver that is broken", func() { fake.code[cuInit] = 999 }, []string{"cuInit", "CUDA_ERROR_UNKNOWN"}},
		{"an old driver", func() { fake.version = 11080 }, []string{"for CUDA 11.8", "install one for CUDA 12.0 or newer"}},
		{"an old card", func() { fake.major, fake.name = 7, "Fake V100" }, []string{"Fake V100", "compute capability 70", "sm_80", "--backend cpu"}},
		{"a card in use", func() { fake.code[cuDevicePrimaryCtxRetain] = codeUnavailable }, []string{"cannot be used", "CUDA_ERROR_DEVICE_UNAVAILABLE", "another program", "CUDA_VISIBLE_DEVICES"}},
		{"a full card", func() { fake.code[cuDevicePrimaryCtxRetain] = codeOutOfMemory }, []string{"CUDA_ERROR_OUT_OF_MEMORY", "memory is full", "CUDA_VISIBLE_DEVICES"}},
	} {
		healthy(t)
		c.broken()
		d, err := openDevice()
		if err == nil {
			d.close()
			t.Errorf("%s: opened", c.name)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %q is not one line with %q", c.name, err, want)
			}
		}
	}
	healthy(t)
	d, err := openDevice()
	if err != nil {
		t.Fatalf("a card in order: %v", err)
	}
	if d.name != "Fake H1" || d.arch != "sm_90a" {
		t.Errorf("a card in order is %s, %s", d.name, d.arch)
	}
	if err := d.close(); err != nil {
		t.Error(err)
	}
}

// TestMissingLibraries: Open names what is missing and the one command that brings it.
func TestMissingLibraries(t *testing.T) {
	healthy(t)
	before := loadCompiler
	defer func() { loadCompiler = before }()
	loadCompiler = func(int) (*compiler, error) { return nil, fmt.Errorf("libnvrtc.so.13 is not on the loader's path") }
	if _, err := Open(tensor.BF16); err == nil || !strings.Contains(err.Error(), "libnvrtc.so.13") || !strings.HasSuffix(err.Error(), installCommand) {
		t.Errorf("without NVRTC: %v", err)
	}
	loadCompiler = func(int) (*compiler, error) { return &compiler{major: 13, archs: []int{80, 90}}, nil }
	t.Setenv("NHA_CUDA_PATH", t.TempDir())
	if _, err := open(ordered("libcublasLt", 13000)...); err == nil {
		t.Skip("cuBLASLt is here")
	}
	if _, err := Open(tensor.BF16); err == nil || !strings.Contains(err.Error(), "libcublasLt.so") || !strings.HasSuffix(err.Error(), installCommand) {
		t.Errorf("without cuBLASLt: %v", err)
	}
}

// TestBrokenKernel: a kernel that does not compile ends Compile with its file's name, and nothing is launched.
func TestBrokenKernel(t *testing.T) {
	healthy(t)
	d, err := openDevice()
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	c, err := loadCompiler(0)
	if err != nil {
		t.Skipf("kernels are not compiled here: %v (scripts/cuda-compile brings NVRTC)", err)
	}
	d.modules = modules{compiler: c, kernels: map[uint64][]*kernel{}, loaded: map[moduleKey]uintptr{}}
	b := &Backend{d: d}
	told := 0
	err = b.Compile(func() {
		d.launch(d.kernel("reduce.cu", "sum_all", word("REAL", "float"), word("TOTAL", "complex"), number("VEC", 8)), grid{1, 1, 1}, 32, 0)
	}, func(done, total int) { told++ })
	if err == nil || !strings.Contains(err.Error(), "reduce.cu") || !strings.Contains(err.Error(), "TOTAL=complex") || told != 2 {
		t.Errorf("%v, told %d times", err, told)
	}
}

// fakeProducts are cuBLASLt's functions, which find an algorithm for everything and do nothing.
var fakeProducts = sync.OnceValue(func() *multiplier {
	m := &multiplier{}
	for f := range m.f {
		m.f[f] = purego.NewCallback(func(_, _, _, _, _, _, _, _, _, found uintptr) uintptr {
			if f == ltAlgoGetHeuristic {
				*(*int32)(at(found)) = 1
			}
			return 0
		})
	}
	return m
})

// TestFirstStepCompilesAll takes steps of training on a card that is not there: what the first asks for is compiled together, with
// its progress told, and no later step finds a kernel missing. It needs NVRTC and no card.
func TestFirstStepCompilesAll(t *testing.T) {
	healthy(t)
	c, err := loadCompiler(0)
	if err != nil {
		t.Skipf("kernels are not compiled here: %v (scripts/cuda-compile brings NVRTC)", err)
	}
	d, err := openDevice()
	if err != nil {
		t.Fatal(err)
	}
	d.modules = modules{compiler: c, kernels: map[uint64][]*kernel{}, loaded: map[moduleKey]uintptr{}}
	b := &Backend{d: d, dtype: tensor.BF16, real: realType(tensor.BF16), lt: &multiplier{f: fakeProducts().f, plans: map[productKey]*product{}, scales: [2]float32{0, 1}}}
	b.host = tensor.FromF64(b.results[:], 1)
	if err := b.lt.start(d); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}()
	for _, preset := range []string{"nha", "transformer"} {
		config := model.NewConfig(64, 128, 1)
		if err := config.ApplyPreset(preset, 32, 64); err != nil {
			t.Fatal(err)
		}
		m, err := model.New(config, b, model.Init{Seed: 1})
		if err != nil {
			t.Fatal(err)
		}
		s := train.DefaultSettings()
		s.Steps, s.Accumulation = 3, 2
		tr, err := train.NewTrainer(m, s, sameBatch{})
		if err != nil {
			t.Fatal(err)
		}
		calls, ready := 0, 0
		tr.SetObjective(func(tape *autograd.Tape, batch *model.Batch, scale float64) []*autograd.Value {
			if calls++; calls == s.Accumulation+1 { // the first that computes
				ready = len(d.modules.loaded)
			}
			losses, _ := m.Losses(tape, batch, scale)
			return []*autograd.Value{losses}
		})
		for range 3 {
			if _, err := tr.Step(); err != nil {
				t.Fatal(err)
			}
		}
		if n := len(d.modules.loaded); n != ready || n == 0 {
			t.Errorf("%s: %d kernel files before the first step computed, %d after three", preset, ready, n)
		}
		tr.Close()
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
}

// sameBatch is a Source of one batch.
type sameBatch struct{}

func (sameBatch) Next(b *model.Batch) error {
	b.Tokens, b.Targets, b.Lengths = make([]int32, 96), make([]int32, 96), []int{64, 32}
	return nil
}
func (sameBatch) State() (json.RawMessage, error) { return nil, nil }
func (sameBatch) Restore(json.RawMessage) error   { return nil }
