package hybridize

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nha/autograd"
	"nha/backend"
	"nha/model"
	"nha/tensor"
)

// TestTopIsASort: the k likeliest by a full sort, ties by their number, with their log-probabilities.
func TestTopIsASort(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		n := 1 + r.IntN(200)
		k := 1 + r.IntN(n)
		row, order := make([]float32, n), make([]int32, n)
		for i := range row {
			row[i] = float32(r.IntN(20)) / 4 // many ties
		}
		sorted := make([]int32, n)
		sum := 0.0
		for i, v := range row {
			sorted[i] = int32(i)
			sum += math.Exp(float64(v))
		}
		slices.SortFunc(sorted, func(a, b int32) int { return cmp.Or(cmp.Compare(row[b], row[a]), cmp.Compare(a, b)) })
		ids, logq := make([]int32, k), make([]float32, k)
		if !top(row, order, ids, logq) || !slices.Equal(ids, sorted[:k]) {
			t.Fatalf("%d of %v: %v, a sort gives %v", k, row, ids, sorted[:k])
		}
		for i, id := range ids {
			if want := float64(row[id]) - math.Log(sum); math.Abs(float64(logq[i])-want) > 1e-5 {
				t.Fatalf("log-probability %v, want %v", logq[i], want)
			}
		}
	}
	for _, bad := range []float64{math.NaN(), math.Inf(1)} {
		if top([]float32{1, float32(bad), 2}, make([]int32, 3), make([]int32, 2), make([]float32, 2)) {
			t.Errorf("a logit of %v passes", bad)
		}
	}
	if ids, logq := make([]int32, 2), make([]float32, 2); !top([]float32{float32(math.Inf(-1)), 0, 0}, make([]int32, 3), ids, logq) || !slices.Equal(ids, []int32{1, 2}) {
		t.Errorf("a word that cannot be: %v", ids)
	}
}

// TestKeptTeacher: what is read back is what the base says, for every batch, and a file of another run or a torn one is refused.
func TestKeptTeacher(t *testing.T) {
	b, err := backend.Open("cpu", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	base, err := model.Load(tinyBase(t), b, model.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer base.Close()
	const k = 7
	head := keptHead{K: k, Batches: 3, Identity: map[string]string{"seed": "1"}}
	path := filepath.Join(t.TempDir(), "teacher.top")
	keep := func(h keptHead) error {
		return keepTeacher(context.Background(), path, h, base, numbered(5, 9, 300, 4).source(1, 20), func(int, int) {})
	}
	if err := keep(head); err != nil {
		t.Fatal(err)
	}
	kept, err := openKept(path)
	if err != nil {
		t.Fatal(err)
	}
	defer kept.close()
	tape := autograd.New(b)
	tape.Record(false)
	defer tape.Close()
	source := numbered(5, 9, 300, 4).source(1, 20)
	var batch model.Batch
	for range head.Batches {
		if err := source.Next(&batch); err != nil {
			t.Fatal(err)
		}
		tape.Reset()
		said := kept.teacher(tape, &batch)
		ids, logq := tensor.New(tensor.I32, said.IDs.Shape), tensor.New(tensor.F32, said.LogProbs.Shape)
		b.Read(ids, said.IDs)
		b.Read(logq, said.LogProbs)
		logits := tensor.New(tensor.F32, tensor.Of(len(batch.Tokens), base.Config.VocabSize))
		b.Read(logits, base.Logits(tape, base.Hidden(tape, &batch), 0, len(batch.Tokens)).Tensor)
		v := base.Config.VocabSize
		for i := range batch.Tokens {
			wantIDs, want := make([]int32, k), make([]float32, k)
			top(logits.F32()[i*v:(i+1)*v], make([]int32, v), wantIDs, want)
			if !slices.Equal(ids.I32()[i*k:(i+1)*k], wantIDs) || tensor.MaxError(tensor.FromF32(logq.F32()[i*k:(i+1)*k], k), tensor.FromF32(want, k)) > 1e-5 {
				t.Fatalf("token %d: %v, the base says %v", i, ids.I32()[i*k:(i+1)*k], wantIDs)
			}
		}
	}
	before, _ := os.ReadFile(path)
	if err := keep(head); err != nil {
		t.Errorf("a second time: %v", err)
	}
	if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
		t.Error("a second time the file is another one")
	}
	for want, h := range map[string]keptHead{`seed was "1", is "2"`: {k, 3, map[string]string{"seed": "2"}}, "other sizes": {k, 4, head.Identity}} {
		if err := keep(h); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	unknown := model.Batch{Tokens: []int32{1, 2, 3}, Targets: []int32{2, 3, -1}, Lengths: []int{3}}
	func() {
		defer func() {
			fault, ok := recover().(backend.Fault)
			if err, _ := fault.(error); !ok || err == nil || !strings.Contains(err.Error(), "does not hold this batch") {
				t.Errorf("a batch that is not in it: %v", fault)
			}
		}()
		kept.teacher(tape, &unknown)
	}()
	if err := os.WriteFile(path, before[:len(before)-1], 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := openKept(path); err == nil || !strings.Contains(err.Error(), "remove it to make it anew") {
		t.Errorf("a torn file: %v", err)
	}
	if _, err := openKept(path + "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}
