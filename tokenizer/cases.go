package tokenizer

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
)

// Difference is a case whose ids, or whose decoded text, are not those that another program gave.
type Difference struct {
	Text string `json:"text"`
	Want any    `json:"want"` // ids ([]int32), or a string where only decoding differs
	Got  any    `json:"got"`
}

// Report says how many cases differ, and shows the first ones.
type Report struct {
	Cases, Wrong int
	First        []Difference
}

// mostDifferences is how many differences a Report shows.
const mostDifferences = 5

// Check encodes and decodes the cases of a file, plain or gzip: lines {"text", "ids", "decoded"}, ids without BOS and EOS, and
// decoded, which keeps special tokens, is compared where it is there.
func Check(t Tokenizer, path string) (Report, error) {
	var r Report
	f, err := os.Open(path)
	if err != nil {
		return r, err
	}
	defer f.Close()
	in := bufio.NewReaderSize(f, 1<<16)
	if magic, _ := in.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(in)
		if err != nil {
			return r, fmt.Errorf("%s: %w", path, err)
		}
		in = bufio.NewReaderSize(z, 1<<16)
	}
	for n := 1; ; n++ {
		line, err := in.ReadBytes('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return r, fmt.Errorf("%s, line %d: %w", path, n, err)
		}
		if len(bytes.TrimSpace(line)) > 0 {
			if err := r.check(t, line); err != nil {
				return r, fmt.Errorf("%s, line %d: %w", path, n, err)
			}
		}
		if err != nil {
			break
		}
	}
	if r.Cases == 0 {
		return r, fmt.Errorf("%s: holds no cases", path)
	}
	return r, nil
}

// check adds the case of one line.
func (r *Report) check(t Tokenizer, line []byte) error {
	var c struct {
		Text    *string  `json:"text"`
		IDs     *[]int32 `json:"ids"`
		Decoded *string  `json:"decoded"`
	}
	if err := json.Unmarshal(line, &c); err != nil {
		return errors.New(reason(err, line))
	}
	if c.Text == nil || c.IDs == nil {
		return errors.New(`want {"text": ..., "ids": [...]}`)
	}
	r.Cases++
	d := Difference{Text: *c.Text}
	if got := t.Encode(*c.Text); !slices.Equal(got, *c.IDs) {
		d.Want, d.Got = *c.IDs, got
	} else if got := Lossy(t.Decode(*c.IDs)); c.Decoded != nil && got != *c.Decoded {
		d.Want, d.Got = *c.Decoded, got
	} else {
		return nil
	}
	if r.Wrong++; len(r.First) < mostDifferences {
		r.First = append(r.First, d)
	}
	return nil
}
