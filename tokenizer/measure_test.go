package tokenizer

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// TestMeasure trains on a file of {"text": ...} lines (plain or .zst) and encodes it, and prints the speed:
//
//	NHA_MEASURE=books.jsonl.zst NHA_VOCAB=4096,32000 NHA_MEGABYTES=100 go test -run TestMeasure -v ./tokenizer
func TestMeasure(t *testing.T) {
	path := os.Getenv("NHA_MEASURE")
	if path == "" {
		t.Skip("set NHA_MEASURE to a file of JSON lines to measure speed")
	}
	limit := 100
	if s := os.Getenv("NHA_MEGABYTES"); s != "" {
		limit, _ = strconv.Atoi(s)
	}
	var documents []string
	size := 0
	for text, err := range jsonLines(path) {
		if err != nil {
			t.Fatal(err)
		}
		documents = append(documents, text)
		if size += len(text); size >= limit*1e6 {
			break
		}
	}
	for _, vocab := range strings.Split(os.Getenv("NHA_VOCAB"), ",") {
		n, err := strconv.Atoi(vocab)
		if err != nil {
			t.Fatalf("NHA_VOCAB: %v", err)
		}
		var counted time.Duration
		var words int
		start := time.Now()
		b, err := Train(context.Background(), all(documents), TrainOptions{VocabSize: n, Progress: func(p TrainProgress) {
			if p.Words == 0 {
				counted = time.Since(start)
			}
			words = p.Words
		}})
		if err != nil {
			t.Fatal(err)
		}
		took := time.Since(start)
		var memory runtime.MemStats
		runtime.ReadMemStats(&memory)
		fmt.Printf("vocabulary %d: %.1f MB trained in %.1f s (about %.1f s counting, %d distinct pre-tokens), %d MiB from the system\n",
			n, float64(size)/1e6, took.Seconds(), counted.Seconds(), words, memory.Sys>>20)
		var ids []int32
		bytes, tokens := 0, 0
		start = time.Now()
		for _, text := range documents {
			ids = b.EncodeAppend(ids[:0], text)
			bytes += len(text)
			tokens += len(ids)
		}
		took = time.Since(start)
		fmt.Printf("  encoded on one core: %.1f MB/s, %.2f bytes a token\n", float64(bytes)/1e6/took.Seconds(), float64(bytes)/float64(tokens))
	}
}

func all(documents []string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for _, d := range documents {
			if !yield(d, nil) {
				return
			}
		}
	}
}

func jsonLines(path string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		f, err := os.Open(path)
		if err != nil {
			yield("", err)
			return
		}
		defer f.Close()
		var r io.Reader = f
		if strings.HasSuffix(path, ".zst") {
			z, err := zstd.NewReader(f, zstd.WithDecoderMaxWindow(1<<28))
			if err != nil {
				yield("", err)
				return
			}
			defer z.Close()
			r = z
		}
		for d := json.NewDecoder(r); ; {
			var line struct{ Text string }
			err := d.Decode(&line)
			if err == io.EOF || !yield(line.Text, err) || err != nil {
				return
			}
		}
	}
}
