package train

import (
	"bytes"
	"cmp"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nha/backend"
	"nha/model"
	"nha/weights"
)

// onCard opens the backend that NHA_BACKEND names, a card's, or skips the test.
func onCard(t *testing.T) backend.Backend {
	t.Helper()
	name := os.Getenv("NHA_BACKEND")
	if !strings.HasPrefix(name, "cuda") {
		t.Skip("not on a card: NHA_BACKEND=cuda runs this on one")
	}
	return open(t, name)
}

// TestMastersMoveBetweenMachines: a checkpoint of the processor goes to a card and back without losing a bit, and the other way round.
func TestMastersMoveBetweenMachines(t *testing.T) {
	card, cpu := onCard(t), open(t, "cpu")
	for _, way := range [][2]backend.Backend{{cpu, card}, {card, cpu}} {
		first := trainer(t, tiny(t, way[0]), short(20), &copyTask{rows: 4, half: 4, vocabulary: 8})
		for range 5 {
			if _, err := first.Step(); err != nil {
				t.Fatal(err)
			}
		}
		dirs := [2]string{t.TempDir(), t.TempDir()}
		save := func(tr *Trainer, dir string) {
			if err := tr.model.Save(dir); err != nil {
				t.Fatal(err)
			}
			if err := tr.saveTensors(filepath.Join(dir, optimizerFile)); err != nil {
				t.Fatal(err)
			}
		}
		save(first, dirs[0])
		m, err := model.Load(dirs[0], way[1], model.LoadOptions{Train: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close() })
		second := trainer(t, m, short(20), &copyTask{rows: 4, half: 4, vocabulary: 8})
		if err := second.loadTensors(filepath.Join(dirs[0], optimizerFile)); err != nil {
			t.Fatal(err)
		}
		save(second, dirs[1])
		for _, file := range []string{weights.FileName, optimizerFile} {
			a, errA := os.ReadFile(filepath.Join(dirs[0], file))
			b, errB := os.ReadFile(filepath.Join(dirs[1], file))
			if errA != nil || errB != nil || !bytes.Equal(a, b) {
				t.Errorf("%s from %s is another one on %s (%v, %v)", file, way[0].Name(), way[1].Name(), errA, errB)
			}
		}
	}
}

// TestMomentsInBFloat16 learns as well as with float32 moments, in less memory.
func TestMomentsInBFloat16(t *testing.T) {
	b := onCard(t)
	if b.DType().Size() != 2 {
		t.Skipf("%s computes in float32, whose moments are float32", b.Name())
	}
	var losses [2]float64
	var bytes [2]int
	for i, moments := range []string{Float32, BFloat16} {
		s := short(200)
		s.Moments = moments
		tr := trainer(t, tiny(t, b), s, &copyTask{rows: 16, half: 4, vocabulary: 8})
		for range 200 {
			stats, err := tr.Step()
			if err != nil {
				t.Fatal(err)
			}
			losses[i] = float64(stats.Loss)
		}
		bytes[i] = tr.optimizer.bytes()
	}
	if losses[1] > 1.2*losses[0]+0.05 || bytes[1] >= bytes[0] {
		t.Errorf("losses %.3f with float32 moments, %.3f with bfloat16; %d and %d bytes", losses[0], losses[1], bytes[0], bytes[1])
	}
}

// TestRecomputedStepsAreTheSame: blocks computed again give the same bits, on a card (NHA_BACKEND) or the processor.
func TestRecomputedStepsAreTheSame(t *testing.T) {
	b := open(t, cmp.Or(os.Getenv("NHA_BACKEND"), "cpu"))
	var want Stats
	for i, mode := range []string{"none", "activations", "blocks"} {
		s := short(10)
		s.Recompute = mode
		tr := trainer(t, tiny(t, b), s, &copyTask{rows: 4, half: 4, vocabulary: 8})
		var got Stats
		for range 10 {
			var err error
			if got, err = tr.Step(); err != nil {
				t.Fatal(err)
			}
		}
		if i == 0 {
			want = got
		} else if got != want {
			t.Errorf("%s: %+v, with nothing computed again %+v", mode, got, want)
		}
	}
}
