package tokenizer

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

// Training a byte-level BPE: count the pre-tokens of all documents (GPT-2's pattern), start from the 256 bytes, and
// again and again make the most frequent pair of neighbours a token. Merges never cross a pre-token, so after the first
// pass the text is not needed: memory and the time of the merges depend on the number of distinct pre-tokens.
//
// Ids are laid out as Hugging Face's BpeTrainer lays them out: special tokens, the bytes in the order of their
// byteRunes, then the merges; and of pairs equally frequent the one with the lower ids is merged, as there. So the same
// text gives the same tokenizer there and here (scripts/tokenizer-truth compares them), with two exceptions: pre-tokens
// longer than maxCountedPiece are counted in parts, and a merge that was made once is not listed a second time.

// TrainOptions says what Train makes.
type TrainOptions struct {
	VocabSize    int                 // ids in all: special tokens, 256 bytes, merges. Fewer if the text gives no more pairs
	MinFrequency int64               // a pair seen less often is not merged; 0 means 2
	Special      []string            // special tokens, the first of them EOS; nil means <|endoftext|>
	Threads      int                 // that count pre-tokens; 0 means GOMAXPROCS
	Progress     func(TrainProgress) // called now and then from the goroutine that called Train, may be nil
}

// TrainProgress says how far Train is: first Bytes grows, then Merges.
type TrainProgress struct {
	Bytes  int64 // of text counted
	Words  int   // distinct pre-tokens, 0 while counting
	Merges int   // made
	Want   int   // merges to make at most
}

const (
	progressEvery   = 100 * time.Millisecond
	batchBytes      = 1 << 18 // of documents handed to a counting goroutine at once
	maxCountedPiece = 1024    // bytes: a megabyte without a space would cost its length in every merge
)

// Train learns a byte-level BPE from documents. An error that documents yields, or the end of ctx, stops it.
// Special tokens spelled out in a document are not treated apart.
func Train(ctx context.Context, documents iter.Seq2[string, error], o TrainOptions) (*BPE, error) {
	if o.Special == nil {
		o.Special = []string{EndOfText}
	}
	if o.MinFrequency == 0 {
		o.MinFrequency = 2
	}
	if o.Threads <= 0 {
		o.Threads = runtime.GOMAXPROCS(0)
	}
	vocab, err := startVocab(o)
	if err != nil {
		return nil, err
	}
	counts, err := countPieces(ctx, documents, o)
	if err != nil {
		return nil, err
	}
	d := description{vocab: vocab}
	for i := range o.Special {
		d.special(i)
	}
	m := newMerger(&d, counts)
	if err := m.run(ctx, o); err != nil {
		return nil, err
	}
	eos := ""
	if len(o.Special) > 0 {
		eos = o.Special[0]
	}
	// The files are read back, so that what Train returns is what Load will give.
	return parse(fileName, d.byteLevel(), configName, configJSON(named{"eos_token", eos}))
}

// startVocab returns the special tokens and the bytes.
func startVocab(o TrainOptions) ([]string, error) {
	least := len(o.Special) + 256
	if o.VocabSize < least {
		return nil, fmt.Errorf("tokenizer: vocabulary size %d is too small: 256 bytes and %d special tokens need %d", o.VocabSize, len(o.Special), least)
	}
	if o.VocabSize >= 1<<31 {
		return nil, fmt.Errorf("tokenizer: vocabulary size %d is too large: ids are 32 bits", o.VocabSize)
	}
	if o.MinFrequency < 0 {
		return nil, fmt.Errorf("tokenizer: minimal frequency %d is negative", o.MinFrequency)
	}
	runes := slices.Clone(byteRunes[:])
	slices.Sort(runes)
	vocab := slices.Clone(o.Special)
	for _, r := range runes {
		vocab = append(vocab, string(r))
	}
	for i, token := range o.Special {
		if token == "" || !utf8.ValidString(token) || slices.Contains(vocab[i+1:], token) {
			return nil, fmt.Errorf("tokenizer: special token %q is empty, not UTF-8, a byte's own character or there twice", token)
		}
	}
	return vocab, nil
}

// countPieces counts the pre-tokens of all documents on o.Threads goroutines, each with a table of its own.
func countPieces(ctx context.Context, documents iter.Seq2[string, error], o TrainOptions) (map[string]int64, error) {
	batches := make(chan []string, o.Threads)
	tables := make([]map[string]*int64, o.Threads)
	var done atomic.Int64
	var group sync.WaitGroup
	for i := range tables {
		table := map[string]*int64{}
		tables[i] = table
		group.Go(func() {
			pre := preTokenizer{stages: []stage{{scan: scanGPT2}}}
			for batch := range batches {
				for _, document := range batch {
					if ctx.Err() != nil {
						break
					}
					pre.pieces(document, func(piece string) { countPiece(table, piece) })
					done.Add(int64(len(document)))
				}
			}
		})
	}
	err := feed(ctx, documents, batches, func() {
		if o.Progress != nil {
			o.Progress(TrainProgress{Bytes: done.Load(), Want: o.VocabSize - len(o.Special) - 256})
		}
	})
	close(batches)
	group.Wait()
	if err != nil {
		return nil, err
	}
	total := map[string]int64{}
	for _, table := range tables {
		for piece, n := range table {
			total[piece] += *n
		}
	}
	if len(total) == 0 {
		return nil, errors.New("tokenizer: no text to train on")
	}
	return total, nil
}

func countPiece(table map[string]*int64, piece string) {
	for len(piece) > maxCountedPiece {
		countPiece(table, piece[:maxCountedPiece])
		piece = piece[maxCountedPiece:]
	}
	if n := table[piece]; n != nil {
		*n++
		return
	}
	one := int64(1)
	table[strings.Clone(piece)] = &one // a clone, or the whole document would stay
}

// feed hands the documents out in batches, and reports progress between them.
func feed(ctx context.Context, documents iter.Seq2[string, error], batches chan<- []string, progress func()) error {
	var batch []string
	size := 0
	last := time.Now()
	send := func() error {
		select {
		case batches <- batch:
		case <-ctx.Done():
			return ctx.Err()
		}
		batch, size = nil, 0
		if time.Since(last) > progressEvery {
			last = time.Now()
			progress()
		}
		return nil
	}
	for document, err := range documents {
		if err != nil {
			return err
		}
		batch = append(batch, document)
		if size += len(document); size >= batchBytes {
			if err := send(); err != nil {
				return err
			}
		}
	}
	if err := send(); err != nil {
		return err
	}
	return ctx.Err()
}
