// Command logits is nha's side of scripts/gguf-truth: what a GGUF file's model says about token ids.
//
//	logits [-backend B] [-chunk N] MODEL < ids > logits           every N ids a context of their own; float32 [ids, vocabulary].
//	                                                              -step M: read M at a time, as in decoding
//	logits [-backend B] [-chunk N] -greedy M MODEL < ids > rows    every N ids a prompt, read and continued token by token; M rows
//	                                                              of int32 id, float32 how far the second choice lies behind
//
// Numbers are little-endian; ids are int32.
package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"

	"nha/autograd"
	"nha/backend"
	_ "nha/backend/all"
	"nha/generate"
	"nha/model"
	"nha/tensor"
	"nha/tokenizer"
	"nha/weights"
)

func main() {
	name := flag.String("backend", "cpu-f32", "where to compute")
	chunk := flag.Int("chunk", 2048, "ids of a context or prompt")
	step := flag.Int("step", 0, "ids of a context to read at a time (0: all)")
	greedy := flag.Int("greedy", 0, "tokens to continue every prompt with")
	flag.Parse()
	out := bufio.NewWriterSize(os.Stdout, 1<<20)
	err := run(out, *name, flag.Arg(0), *chunk, *step, *greedy)
	if err = errors.Join(err, out.Flush()); err != nil {
		fmt.Fprintln(os.Stderr, "logits:", err)
		os.Exit(1)
	}
}

func run(out io.Writer, name, path string, chunk, step, greedy int) error {
	raw, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	ids := make([]int32, len(raw)/4)
	for i := range ids {
		ids[i] = int32(binary.LittleEndian.Uint32(raw[4*i:]))
	}
	b, err := backend.Open(name, 0)
	if err != nil {
		return err
	}
	defer b.Close()
	m, err := model.Load(path, b, model.LoadOptions{})
	if err != nil {
		return err
	}
	defer m.Close()
	tk, err := vocabulary(path)
	if err != nil {
		return err
	}
	for len(ids) > 0 {
		n := min(chunk, len(ids))
		if greedy > 0 {
			err = continued(out, m, tk, ids[:n], greedy)
		} else {
			err = logits(out, m, ids[:n], step)
		}
		if err != nil {
			return err
		}
		ids = ids[n:]
	}
	return nil
}

func vocabulary(path string) (tokenizer.Tokenizer, error) {
	g, err := weights.OpenGGUF(path)
	if err != nil {
		return nil, err
	}
	defer g.Close()
	return tokenizer.FromGGUF(g.Value)
}

// logits writes the logits of one context, read in pieces that go on from a state, or whole.
func logits(out io.Writer, m *model.Model, ids []int32, step int) error {
	tape := autograd.New(m.Backend())
	defer tape.Close()
	tape.Record(false)
	batch := model.Batch{Tokens: ids, Lengths: []int{len(ids)}}
	if err := m.Check(&batch); err != nil {
		return err
	}
	if step > 0 {
		batch.States = []*model.State{m.NewState()}
	} else {
		step = len(ids)
	}
	for len(ids) > 0 {
		n := min(step, len(ids))
		batch.Tokens, batch.Lengths[0] = ids[:n], n
		hidden := m.Hidden(tape, &batch)
		const rows = 256
		for from := 0; from < n; from += rows {
			l := m.Logits(tape, hidden, from, min(from+rows, n))
			host := tensor.New(tensor.F32, l.Shape)
			m.Backend().Read(host, l.Tensor)
			if _, err := out.Write(host.Bytes()); err != nil {
				return err
			}
		}
		tape.Reset()
		ids = ids[n:]
	}
	return nil
}

// continued reads a prompt token by token and writes the n most likely tokens after it.
func continued(out io.Writer, m *model.Model, tk tokenizer.Tokenizer, prompt []int32, n int) error {
	g := generate.New(m, tk)
	defer g.Close()
	s := g.NewSession()
	for i := range len(prompt) + n {
		var id int32
		if i < len(prompt) {
			id = prompt[i]
		} else {
			first, second := math.Inf(-1), math.Inf(-1)
			for j, x := range s.Logits() {
				switch {
				case x > first:
					id, first, second = int32(j), x, first
				case x > second:
					second = x
				}
			}
			row := binary.LittleEndian.AppendUint32(nil, uint32(id))
			row = binary.LittleEndian.AppendUint32(row, math.Float32bits(float32(first-second)))
			if _, err := out.Write(row); err != nil {
				return err
			}
		}
		if err := g.Step([]*generate.Session{s}, []int32{id}); err != nil {
			return err
		}
	}
	return nil
}
