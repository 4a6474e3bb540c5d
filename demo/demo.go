// Package demo is nha's main job on an embedded default, with nothing to download: which of four models of equal size can
// recall, and at what memory; and a small language model trained on a novel, its loss curve and what it writes.
package demo

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"time"

	"nha/atomicfile"
	"nha/backend"
	"nha/generate"
	"nha/model"
	"nha/tokenizer"
	"nha/train"
)

// TomSawyer is Mark Twain's novel of 1876, in the public domain, paragraphs between blank lines.
//
//go:embed tom-sawyer.txt
var TomSawyer string

// Options of the demo. The zero value of a number takes the default.
type Options struct {
	Out         string // folder for everything it makes; what an earlier demo made there is replaced
	Seed        uint64
	RecallSteps int // training steps of each recall model
	TextSteps   int // training steps of the language model
	Backend     string
	Threads     int
}

// Result is demo.json: what was measured in this run.
type Result struct {
	Recall        []Recall `json:"recall"`
	Text          Text     `json:"text"`
	Seconds       float64  `json:"seconds"`
	RecallExample int      `json:"recall_examples"`
	Seed          uint64   `json:"seed"`
	Machine       string   `json:"machine"`
}

// Text is the language model's part.
type Text struct {
	Parameters     int     `json:"parameters"`
	Steps          int     `json:"steps"`
	Tokens         int64   `json:"tokens"`
	ValidationLoss float64 `json:"validation_loss"` // nats per token
	BitsPerByte    float64 `json:"bits_per_byte"`
	Seconds        float64 `json:"seconds"`
	Sample         string  `json:"sample"`
}

const (
	marker     = "demo.json"
	textPrompt = "Tom said"
)

// Run does the whole demo, writing its tables to w and its progress to progress.
func Run(ctx context.Context, o Options, w, progress io.Writer, terminal bool) (Result, error) {
	if o.RecallSteps == 0 {
		o.RecallSteps = 700
	}
	if o.TextSteps == 0 {
		o.TextSteps = 300
	}
	if err := prepare(o.Out); err != nil {
		return Result{}, err
	}
	started := time.Now()
	b, err := backend.Open(o.Backend, o.Threads)
	if err != nil {
		return Result{}, err
	}
	defer b.Close()
	result := Result{RecallExample: recallExamples, Seed: o.Seed, Machine: b.Describe()}
	say := func(s string) {
		if terminal {
			fmt.Fprintf(progress, "\r%s\x1b[K", s)
		} else {
			fmt.Fprintln(progress, s)
		}
	}
	for _, p := range model.Presets {
		r, err := trainRecall(ctx, b, p.Name, o, say)
		if err != nil {
			return result, err
		}
		result.Recall = append(result.Recall, r)
	}
	if terminal {
		say("") // over the last line
	}
	printRecall(w, result.Recall)
	if err := plotRecall(o.Out, result.Recall); err != nil {
		return result, err
	}
	if result.Text, err = trainText(ctx, b, o, progress, terminal); err != nil {
		return result, err
	}
	t := result.Text
	fmt.Fprintf(w, "\nLanguage model: %d parameters, %d tokens of Tom Sawyer, %.2f bits a byte on pages it has not seen. It writes:\n\n%s\n", t.Parameters, t.Tokens, t.BitsPerByte, t.Sample)
	result.Seconds = time.Since(started).Seconds()
	fmt.Fprintf(w, "\n%.0f s on %s. Pictures, numbers and the model are in %s; go on with:\n  nha generate %s --prompt '%s' --temperature 0.8\n",
		result.Seconds, result.Machine, o.Out, filepath.Join(o.Out, "text"), textPrompt)
	return result, atomicfile.WriteFile(filepath.Join(o.Out, marker), 0o644, func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(result)
	})
}

// made is all that the demo writes into its folder.
var made = []string{"recall.svg", "recall.png", "recall-memory.svg", "recall-memory.png", "tom-sawyer.txt", "tokenizer", "cache", "text", marker}

// prepare makes the folder, or clears away what an earlier demo has made in it, and nothing else.
func prepare(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(entries) > 0 {
		if _, err := os.Stat(filepath.Join(dir, marker)); err != nil {
			return fmt.Errorf("%s is not empty and was not made by the demo: name another folder with --out", dir)
		}
		for _, name := range made {
			if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
				return err
			}
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// The marker comes first, so that a demo that was interrupted can be run again.
	return atomicfile.WriteFile(filepath.Join(dir, marker), 0o644, func(w io.Writer) error {
		_, err := io.WriteString(w, "{}\n")
		return err
	})
}

// trainText trains a tokenizer and a small NHA model on the novel, as `nha tokenizer train` and `nha train` do, and lets it write.
func trainText(ctx context.Context, b backend.Backend, o Options, progress io.Writer, terminal bool) (Text, error) {
	book := filepath.Join(o.Out, "tom-sawyer.txt")
	if err := os.WriteFile(book, []byte(TomSawyer), 0o644); err != nil {
		return Text{}, err
	}
	tk, err := tokenizer.Train(ctx, one(TomSawyer), tokenizer.TrainOptions{VocabSize: 512, Threads: o.Threads})
	if err != nil {
		return Text{}, err
	}
	words := filepath.Join(o.Out, "tokenizer")
	if err := os.Mkdir(words, 0o755); err != nil {
		return Text{}, err
	}
	if err := tk.Save(words); err != nil {
		return Text{}, err
	}
	run := train.DefaultOptions()
	run.Out, run.Data, run.Tokenizer, run.Cache = filepath.Join(o.Out, "text"), []string{book}, words, filepath.Join(o.Out, "cache")
	run.HiddenSize, run.Layers, run.Heads, run.IntermediateSize, run.Slots = 128, 4, 2, 352, 32
	run.GateBias, run.EmbeddingStd, run.LearningRateFactors = true, 0.1, map[string]float64{"f_proj": 10}
	run.HeldOut, run.Steps, run.LearningRate, run.MinimumRatio, run.Seed = 0.05, o.TextSteps, 4e-3, 0.05, o.Seed
	run.ValidateEvery, run.CheckpointEvery, run.Backend, run.Threads = max(1, o.TextSteps/10), 0, o.Backend, o.Threads
	result, err := train.Run(ctx, run, &train.Text{W: progress, Terminal: terminal})
	if err != nil {
		return Text{}, err
	}
	t := Text{Steps: result.Steps, Tokens: result.Tokens, Seconds: result.Elapsed.Seconds(), ValidationLoss: float64(result.Validation.Loss),
		BitsPerByte: float64(result.Validation.BitsPerByte)}
	m, err := model.Load(run.Out, b, model.LoadOptions{})
	if err != nil {
		return Text{}, err
	}
	defer m.Close()
	t.Parameters = m.Config.Account(1).Parameters
	g := generate.New(m, tk)
	defer g.Close()
	sampling := generate.DefaultSampling()
	sampling.Temperature, sampling.Seed, sampling.MaxNewTokens = 0.8, o.Seed, 160
	t.Sample = textPrompt
	_, err = g.Generate(ctx, g.NewSession(), g.Prompt(textPrompt), sampling, func(k generate.Token) error {
		t.Sample += k.Text
		return nil
	})
	return t, err
}

func one(text string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) { yield(text, nil) }
}
