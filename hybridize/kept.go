package hybridize

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"slices"

	"nha/atomicfile"
	"nha/autograd"
	"nha/model"
	"nha/tensor"
	"nha/train"
)

// A kept teacher is the base's k likeliest words for every token of the batches to come, on disk, so that the base need not run beside the student:
//
//	one line of JSON (keptHead), then for every batch
//	a hash of its tokens (uint64), their number n (uint64), n k ids (uint32), n k log-probabilities (float32), little-endian
//
// A batch is found by its tokens, so it does not matter in which order a training that was resumed comes to it.
type keptTeacher struct {
	file  *os.File
	k     int
	where map[uint64]int64 // of a batch's ids, by its hash
	raw   []byte
	ids   []int32
	logq  []float32
}

// tokensHash tells batches apart.
func tokensHash(tokens []int32) uint64 {
	h := fnv.New64a()
	_ = binary.Write(h, binary.LittleEndian, tokens) // a hash does not fail
	return h.Sum64()
}

type keptHead struct {
	K        int               `json:"k"`
	Batches  int               `json:"batches"`
	Identity map[string]string `json:"identity"`
}

// keepTeacher writes the file at path from the batches of source, unless it is there already.
func keepTeacher(ctx context.Context, path string, head keptHead, base *model.Model, source train.Source, progress func(done, total int)) error {
	if have, _, err := readKeptHead(path); err == nil {
		if d := differs(have.Identity, head.Identity); d != "" || have.K != head.K || have.Batches != head.Batches {
			return fmt.Errorf("%s was made for another run (%s): remove it", path, cmp.Or(d, "other sizes"))
		}
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	tape := autograd.New(base.Backend())
	tape.Record(false)
	defer tape.Close()
	return atomicfile.WriteFile(path, 0o644, func(w io.Writer) error {
		text, err := json.Marshal(head)
		if err != nil {
			return err
		}
		if _, err := w.Write(append(text, '\n')); err != nil {
			return err
		}
		var b model.Batch
		for i := range head.Batches {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := source.Next(&b); err != nil {
				return err
			}
			if err := base.Check(&b); err != nil {
				return err
			}
			tape.Reset()
			if err := writeTop(w, tape, base, &b, head.K); err != nil {
				return err
			}
			progress(i+1, head.Batches)
		}
		return nil
	})
}

// differs says which key of b has another value in a; "": none.
func differs(a, b map[string]string) string {
	for _, k := range slices.Sorted(maps.Keys(b)) {
		if v := b[k]; a[k] != v {
			return fmt.Sprintf("%s was %q, is %q", k, a[k], v)
		}
	}
	return ""
}

// rowsOfTop is how many tokens' logits are on the host at a time.
const rowsOfTop = 256

// writeTop writes the k likeliest words of every token of one batch.
func writeTop(w io.Writer, t *autograd.Tape, base *model.Model, b *model.Batch, k int) error {
	hidden := base.Hidden(t, b)
	n, vocabulary := len(b.Tokens), base.Config.VocabSize
	ids, logq := make([]int32, n*k), make([]float32, n*k)
	order := make([]int32, vocabulary)
	for from := 0; from < n; from += rowsOfTop {
		to := min(n, from+rowsOfTop)
		mark := t.Mark()
		logits := base.Logits(t, hidden, from, to)
		host := tensor.New(tensor.F32, logits.Shape)
		base.Backend().Read(host, logits.Tensor)
		t.Keep(mark, nil)
		for r := range to - from {
			row := host.F32()[r*vocabulary : (r+1)*vocabulary]
			if !top(row, order, ids[(from+r)*k:(from+r+1)*k], logq[(from+r)*k:(from+r+1)*k]) {
				return fmt.Errorf("the base's logits are not finite at token %d of a batch: is the model whole?", from+r)
			}
		}
	}
	for _, part := range []any{tokensHash(b.Tokens), uint64(n), ids, logq} {
		if err := binary.Write(w, binary.LittleEndian, part); err != nil {
			return err
		}
	}
	return nil
}

// top fills ids and logq with the likeliest words of a row of logits; false: there is none, since some logit is no number. order is scratch
// as long as the row.
func top(row []float32, order, ids []int32, logq []float32) bool {
	largest, sum := slices.Max(row), 0.0
	for _, v := range row {
		sum += math.Exp(float64(v - largest))
	}
	if math.IsNaN(sum) {
		return false
	}
	// Of many words few are near the top: they alone are sorted.
	k := len(ids)
	floor := nth(row, k)
	near := order[:0]
	for i, v := range row {
		if v >= floor {
			near = append(near, int32(i))
		}
	}
	slices.SortFunc(near, func(a, b int32) int { return cmp.Or(cmp.Compare(row[b], row[a]), cmp.Compare(a, b)) })
	for i := range k {
		ids[i] = near[i]
		logq[i] = float32(float64(row[near[i]]-largest) - math.Log(sum))
	}
	return true
}

// nth is the k-th largest of row.
func nth(row []float32, k int) float32 {
	heap := slices.Clone(row[:k]) // the k largest so far, the smallest first
	slices.Sort(heap)
	for _, v := range row[k:] {
		if v > heap[0] {
			at, _ := slices.BinarySearch(heap, v)
			copy(heap, heap[1:at])
			heap[at-1] = v
		}
	}
	return heap[0]
}

func readKeptHead(path string) (h keptHead, offset int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return h, 0, err
	}
	defer f.Close()
	line, err := bufio.NewReaderSize(f, 1<<16).ReadBytes('\n')
	if err != nil {
		return h, 0, fmt.Errorf("%s: no kept teacher: %w: remove it to make it anew", path, err)
	}
	if err := json.Unmarshal(line, &h); err != nil {
		return h, 0, fmt.Errorf("%s: no kept teacher: %w: remove it to make it anew", path, err)
	}
	return h, int64(len(line)), nil
}

// openKept reads where the batches of the file at path are.
func openKept(path string) (*keptTeacher, error) {
	h, at, err := readKeptHead(path)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	k := &keptTeacher{file: f, k: h.K, where: map[uint64]int64{}}
	for range h.Batches {
		var head [16]byte
		if _, err := f.ReadAt(head[:], at); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w: remove it to make it anew", path, err), f.Close())
		}
		at += int64(len(head))
		k.where[binary.LittleEndian.Uint64(head[:])] = at
		at += int64(binary.LittleEndian.Uint64(head[8:])) * int64(h.K) * 8
	}
	if info, err := f.Stat(); err != nil || info.Size() != at {
		return nil, errors.Join(fmt.Errorf("%s: %d batches should end at byte %d: remove it to make it anew", path, h.Batches, at), err, f.Close())
	}
	return k, nil
}

// teacher is that of a batch. A batch that is not in the file, or a disk that fails under a running training, is said by a panic
// that the program reports in one line.
func (k *keptTeacher) teacher(t *autograd.Tape, b *model.Batch) autograd.Teacher {
	n := len(b.Tokens) * k.k
	if len(k.ids) < n {
		k.raw, k.ids, k.logq = make([]byte, 8*n), make([]int32, n), make([]float32, n)
	}
	at, ok := k.where[tokensHash(b.Tokens)]
	if !ok {
		panic(diskFault{fmt.Errorf("%s does not hold this batch: remove it to make it anew", k.file.Name())})
	}
	raw := k.raw[:8*n]
	if _, err := k.file.ReadAt(raw, at); err != nil {
		panic(diskFault{fmt.Errorf("%s: %w", k.file.Name(), err)})
	}
	for i := range n {
		k.ids[i] = int32(binary.LittleEndian.Uint32(raw[4*i:]))
		k.logq[i] = math.Float32frombits(binary.LittleEndian.Uint32(raw[4*(n+i):]))
	}
	return autograd.Teacher{LogProbs: t.InputWide(tensor.FromF32(k.logq[:n], len(b.Tokens), k.k)).Tensor, IDs: t.Input(tensor.FromI32(k.ids[:n], len(b.Tokens), k.k)).Tensor}
}

func (k *keptTeacher) close() error { return k.file.Close() }

// diskFault is a backend.Fault.
type diskFault struct{ error }

// Fault implements backend.Fault.
func (diskFault) Fault() {}
