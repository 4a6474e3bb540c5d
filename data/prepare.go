package data

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"nha/atomicfile"
)

// Options says how Prepare works; all but CacheDir may be left zero.
type Options struct {
	CacheDir string // folder of the token caches; made when absent
	Threads  int    // goroutines that tokenise; 0 means one per processor

	// Progress is called about once a megabyte of text, by one goroutine.
	Progress func(Progress)
	// Notice is told what a user may want to know and need not act on, such as a cache that had to be written again.
	Notice func(string)
}

// Progress is how far Prepare has come.
type Progress struct {
	Read, Size int64 // bytes of the files, as they lie on the disk
	Text       int64 // bytes of text tokenised
	Tokens     int64
}

// CacheDir is the folder of the token caches: the named one, or with no name the user's.
func CacheDir(named string) (string, error) {
	if named != "" {
		return named, nil
	}
	user, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("cache: name a folder for the token caches: %w", err)
	}
	return filepath.Join(user, "nha", "tokens"), nil
}

// Prepare tokenises the documents of spec and ends each with the encoder's EOS token, if it has one. The tokens go to a
// file in the cache folder that is keyed by the contents of the files, the encoder and spec's Field and Separator: a second
// Prepare of the same text opens it. A damaged cache is written again, with a notice.
func Prepare(ctx context.Context, spec Spec, encoder Encoder, o Options) (*Dataset, error) {
	if o.Threads <= 0 {
		o.Threads = runtime.GOMAXPROCS(0)
	}
	if o.Progress == nil {
		o.Progress = func(Progress) {}
	}
	if o.Notice == nil {
		o.Notice = func(string) {}
	}
	files, err := Files(spec.Paths)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.CacheDir, 0o755); err != nil {
		return nil, fmt.Errorf("token cache: %w", err)
	}
	contents, err := hashFiles(ctx, files, o.CacheDir)
	if err != nil {
		return nil, err
	}
	k := cacheKey(spec, encoder, files, contents)
	path := filepath.Join(o.CacheDir, k.String()[:32]+".tokens")
	d, err := openCache(path, k)
	if err == nil {
		return d, nil
	}
	if damaged := errDamaged(""); errors.As(err, &damaged) {
		o.Notice(fmt.Sprintf("token cache %s: %v: tokenising again", path, damaged))
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	err = atomicfile.WriteFile(path, 0o644, func(w io.Writer) error {
		c, err := newCacheWriter(w, k, encoder.VocabSize())
		if err != nil {
			return err
		}
		if err := tokenise(ctx, spec, files, contents, encoder, o, c); err != nil {
			return err
		}
		return c.finish()
	})
	if input := (*inputError)(nil); errors.As(err, &input) {
		return nil, input.error
	}
	if err != nil {
		return nil, err
	}
	if d, err = openCache(path, k); err != nil {
		return nil, fmt.Errorf("token cache %s, just written: %w", path, err)
	}
	d.tokenizedNow = true
	return d, nil
}

// inputError is an error of the data or the encoder: not one of the cache file, which is no use to name then.
type inputError struct{ error }

func cacheKey(spec Spec, encoder Encoder, files []string, contents []content) key {
	eos, hasEOS := encoder.EOS()
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%q %q\n%q %d %d %v\n", headMagic, spec.field(), spec.Separator, encoder.Hash(), encoder.VocabSize(), eos, hasEOS)
	for i, c := range contents {
		fmt.Fprintf(h, "%v %s\n", formatOf(files[i]), c.SHA256)
	}
	return key(h.Sum(nil))
}

// content is what is known of a file: a hash of all of it, and when and at which size that was so.
type content struct {
	Size   int64  `json:"size"`
	Time   int64  `json:"modified_ns"`
	SHA256 string `json:"sha256"`
}

func (c content) sameFile(info fs.FileInfo) bool {
	return c.Size == info.Size() && c.Time == info.ModTime().UnixNano()
}

// hashFiles hashes the files. Hashes are remembered in files.json of the cache folder by path, size and time, so that big
// files are not read again; the memory is only a convenience, and nothing fails when it cannot be read or written.
func hashFiles(ctx context.Context, files []string, cacheDir string) ([]content, error) {
	memory := filepath.Join(cacheDir, "files.json")
	known := map[string]content{}
	if text, err := os.ReadFile(memory); err == nil {
		if json.Unmarshal(text, &known) != nil || known == nil {
			known = map[string]content{}
		}
	}
	contents := make([]content, len(files))
	learnt := false
	for i, path := range files {
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		name, err := filepath.Abs(path)
		if err != nil {
			return nil, err
		}
		if c, ok := known[name]; ok && c.sameFile(info) {
			contents[i] = c
			continue
		}
		sum, err := hashFile(ctx, path)
		if err != nil {
			return nil, err
		}
		contents[i] = content{info.Size(), info.ModTime().UnixNano(), sum}
		// A file written a moment ago may be written again within the same tick of the clock: hash that one anew.
		if time.Since(info.ModTime()) > 2*time.Second {
			known[name], learnt = contents[i], true
		}
	}
	if learnt {
		text, err := json.MarshalIndent(known, "", " ")
		if err == nil {
			_ = atomicfile.Write(memory, 0o644, text)
		}
	}
	return contents, nil
}

func hashFile(ctx context.Context, path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	for {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		if _, err := io.CopyN(h, f, 1<<24); err == io.EOF {
			return fmt.Sprintf("%x", h.Sum(nil)), nil
		} else if err != nil {
			return "", fmt.Errorf("%s: %w", path, err)
		}
	}
}

// job is about a megabyte of text and, once done is closed, its tokens.
type job struct {
	texts  []text
	size   int
	pieces []piece
	tokens []int32
	err    error
	done   chan struct{}
}

// text is a piece of a document to tokenise.
type text struct {
	text         string
	begins, ends bool // the document
}

const (
	jobSize   = 1 << 19
	indexSize = 1 << 12 // a piece of the index is about this much text
)

// tokenise reads, tokenises and writes at the same time; the order of the tokens is that of the text.
func tokenise(ctx context.Context, spec Spec, files []string, contents []content, encoder Encoder, o Options, c *cacheWriter) error {
	group, ctx := errgroup.WithContext(ctx)
	work := make(chan *job)
	ordered := make(chan *job, 2*o.Threads)
	var read atomic.Int64
	group.Go(func() error {
		defer close(work)
		defer close(ordered)
		if err := produce(ctx, spec, files, contents, &read, work, ordered); err != nil {
			return &inputError{err}
		}
		return nil
	})
	for range o.Threads {
		group.Go(func() error {
			for j := range work {
				j.run(encoder)
				close(j.done)
			}
			return nil
		})
	}
	group.Go(func() error {
		p := Progress{}
		for _, c := range contents {
			p.Size += c.Size
		}
		for j := range ordered {
			select {
			case <-j.done:
			case <-ctx.Done():
				return &inputError{ctx.Err()}
			}
			if j.err != nil {
				return &inputError{j.err}
			}
			if err := c.add(j.pieces, j.tokens); err != nil {
				return err
			}
			p.Read, p.Text, p.Tokens = read.Load(), int64(c.text), int64(c.tokens)
			o.Progress(p)
		}
		return nil
	})
	return group.Wait()
}

// produce reads the files into jobs and hands each to the workers and, in order, to the writer.
func produce(ctx context.Context, spec Spec, files []string, contents []content, read *atomic.Int64, work, ordered chan<- *job) error {
	j := &job{done: make(chan struct{})}
	send := func() error {
		for _, to := range []chan<- *job{ordered, work} {
			select {
			case to <- j:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		j = &job{done: make(chan struct{})}
		return nil
	}
	begins := true
	for i, path := range files {
		err := readFile(path, spec, read, func(d Document) error {
			for rest := d.Text; rest != ""; {
				n := nextCut(rest, indexSize)
				j.texts = append(j.texts, text{rest[:n], begins, n == len(rest) && !d.Continues})
				j.size += n
				begins, rest = false, rest[n:]
				if j.size >= jobSize {
					if err := send(); err != nil {
						return err
					}
				}
			}
			begins = !d.Continues
			return nil
		})
		if err != nil {
			return err
		}
		if info, err := os.Stat(path); err != nil || !contents[i].sameFile(info) {
			return fmt.Errorf("%s: changed while it was read: start again", path)
		}
	}
	return send()
}

// run tokenises the job's text.
func (j *job) run(encoder Encoder) {
	eos, hasEOS := encoder.EOS()
	vocabulary := int32(encoder.VocabSize())
	j.tokens = make([]int32, 0, j.size/3)
	for _, t := range j.texts {
		before := len(j.tokens)
		j.tokens = encoder.EncodeAppend(j.tokens, t.text)
		if t.ends && hasEOS {
			j.tokens = append(j.tokens, eos)
		}
		for _, id := range j.tokens[before:] {
			if uint32(id) >= uint32(vocabulary) {
				j.err = fmt.Errorf("the tokenizer gave token %d with a vocabulary of %d", id, vocabulary)
				return
			}
		}
		j.pieces = append(j.pieces, piece{len(j.tokens) - before, len(t.text), t.begins})
	}
	j.texts = nil
}
