package data

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// letters is an encoder whose tokens are the bytes, and 256 the end.
type letters struct {
	vocabulary int // 0 means 257
	noEOS      bool
	name       string
	calls      *atomic.Int64
	add        int32
}

func (l letters) EncodeAppend(dst []int32, text string) []int32 {
	if l.calls != nil {
		l.calls.Add(1)
	}
	for _, b := range []byte(text) {
		dst = append(dst, int32(b)+l.add)
	}
	return dst
}
func (l letters) EOS() (int32, bool) { return 256, !l.noEOS }
func (l letters) VocabSize() int {
	if l.vocabulary == 0 {
		return 257
	}
	return l.vocabulary
}
func (l letters) Hash() string { return l.name }

// tokens is all of a dataset.
func tokens(d *Dataset) []int32 {
	dst := make([]int32, d.All().Tokens())
	d.copyTokens(dst, 0)
	return dst
}

func mustPrepare(t *testing.T, spec Spec, e Encoder, o Options) *Dataset {
	t.Helper()
	d, err := Prepare(t.Context(), spec, e, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// corpus is a folder with every kind of file, made long enough ago for its hashes to be remembered.
func corpus(t *testing.T) (dir string, want []int32, text, documents int) {
	dir = t.TempDir()
	add := func(s string) {
		for _, b := range []byte(s) {
			want = append(want, int32(b))
		}
		want = append(want, 256)
		text += len(s)
		documents++
	}
	var lines strings.Builder
	for i := range 3000 {
		s := strings.Repeat(fmt.Sprintf("line %d has words ", i), i%40)
		fmt.Fprintf(&lines, "{\"text\":%q}\n", s)
		if s != "" {
			add(s)
		}
	}
	write(t, filepath.Join(dir, "a.jsonl.gz"), gzipped(t, lines.String()))
	write(t, filepath.Join(dir, "b.parquet"), parquetFile(t, 300))
	for i := range 300 {
		if i%3 != 1 {
			add(fmt.Sprintf("text %d", i%7))
		}
	}
	long := strings.Repeat("A long text that goes on and on,\nline after line.\n", 50_000)
	write(t, filepath.Join(dir, "c.txt"), long)
	add(long)
	for _, name := range []string{"a.jsonl.gz", "b.parquet", "c.txt"} {
		old := time.Now().Add(-time.Hour)
		if err := os.Chtimes(filepath.Join(dir, name), old, old); err != nil {
			t.Fatal(err)
		}
	}
	return dir, want, text, documents
}

func TestPrepare(t *testing.T) {
	dir, want, text, documents := corpus(t)
	spec := Spec{Paths: []string{dir}}
	var files [2][]byte
	for i, threads := range []int{1, 4} {
		cache := t.TempDir()
		var last Progress
		reports := 0
		d := mustPrepare(t, spec, letters{}, Options{CacheDir: cache, Threads: threads, Progress: func(p Progress) {
			if p.Read < last.Read || p.Text < last.Text || p.Tokens < last.Tokens || p.Read == 0 {
				t.Errorf("progress %+v after %+v", p, last)
			}
			last, reports = p, reports+1
		}})
		if !slices.Equal(tokens(d), want) {
			t.Fatalf("%d threads: tokens differ", threads)
		}
		all := d.All()
		if all.TextBytes() != int64(text) || all.Documents() != documents || all.Predicted() != int64(len(want)-documents) || d.Reused() || d.VocabSize() != 257 {
			t.Fatalf("%d bytes of %d, %d documents of %d, reused %v", all.TextBytes(), text, all.Documents(), documents, d.Reused())
		}
		if last.Tokens != int64(len(want)) || last.Text != int64(text) || reports < 5 {
			t.Fatalf("%d reports, last %+v", reports, last)
		}
		paths, _ := filepath.Glob(filepath.Join(cache, "*.tokens"))
		if len(paths) != 1 {
			t.Fatal(paths)
		}
		files[i], _ = os.ReadFile(paths[0])
	}
	if !bytes.Equal(files[0], files[1]) {
		t.Fatal("the cache depends on the number of threads")
	}
}

func TestWideTokens(t *testing.T) {
	path := write(t, filepath.Join(t.TempDir(), "a.txt"), "wide")
	e := letters{vocabulary: 1<<16 + 1000, add: 1 << 16, noEOS: true}
	d := mustPrepare(t, Spec{Paths: []string{path}}, e, Options{CacheDir: t.TempDir()})
	want := []int32{'w' + 1<<16, 'i' + 1<<16, 'd' + 1<<16, 'e' + 1<<16}
	if !slices.Equal(tokens(d), want) {
		t.Fatal(tokens(d))
	}
}

// A second Prepare does not tokenise, nor read the files whose hashes are remembered; other text or another tokenizer does.
func TestReuse(t *testing.T) {
	dir, want, _, _ := corpus(t)
	cache := t.TempDir()
	spec := Spec{Paths: []string{dir}}
	e := letters{calls: new(atomic.Int64)}
	prepare := func(spec Spec, e letters) *Dataset {
		t.Helper()
		e.calls.Store(0)
		return mustPrepare(t, spec, e, Options{CacheDir: cache, Notice: func(s string) { t.Errorf("notice %s", s) }})
	}
	first := prepare(spec, e)
	if e.calls.Load() == 0 || first.Reused() {
		t.Fatal("nothing was tokenised")
	}
	second := prepare(spec, e)
	if e.calls.Load() != 0 || !second.Reused() || second.Key() != first.Key() || !slices.Equal(tokens(second), want) {
		t.Fatalf("%d calls, reused %v", e.calls.Load(), second.Reused())
	}

	// The contents count, not the folder nor the time.
	moved := filepath.Join(t.TempDir(), "moved")
	if err := os.CopyFS(moved, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if d := prepare(Spec{Paths: []string{moved}}, e); !d.Reused() {
		t.Fatal("a moved folder was tokenised again")
	}
	for name, other := range map[string]func() *Dataset{
		"tokenizer": func() *Dataset { o := e; o.name = "other"; return prepare(spec, o) },
		"no EOS":    func() *Dataset { o := e; o.noEOS = true; return prepare(spec, o) },
		"separator": func() *Dataset { return prepare(Spec{Paths: []string{dir}, Separator: "line after line."}, e) },
		"text": func() *Dataset {
			write(t, filepath.Join(dir, "c.txt"), "another text")
			return prepare(spec, e)
		},
	} {
		if d := other(); d.Reused() || d.Key() == first.Key() {
			t.Errorf("%s: the old cache was used", name)
		}
	}
	// Changed again within the same tick of the clock, to a text of the same length.
	path := filepath.Join(dir, "c.txt")
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	write(t, path, "ANOTHER TEXT")
	if err := os.Chtimes(path, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	if d := prepare(spec, e); d.Reused() {
		t.Error("same length, same moment: the old cache was used")
	}
}

func TestHashesAreRemembered(t *testing.T) {
	dir, cache := t.TempDir(), t.TempDir()
	path := write(t, filepath.Join(dir, "a.txt"), "one")
	old := time.Now().Add(-time.Hour)
	os.Chtimes(path, old, old)
	first := mustPrepare(t, Spec{Paths: []string{path}}, letters{}, Options{CacheDir: cache})
	write(t, path, "two") // behind Prepare's back: same size, same time
	os.Chtimes(path, old, old)
	if d := mustPrepare(t, Spec{Paths: []string{path}}, letters{}, Options{CacheDir: cache}); d.Key() != first.Key() {
		t.Error("the file was hashed again")
	}
	write(t, filepath.Join(cache, "files.json"), "{damaged")
	if d := mustPrepare(t, Spec{Paths: []string{path}}, letters{}, Options{CacheDir: cache}); d.Key() == first.Key() {
		t.Error("the file was not hashed again")
	}
}

// Every damage to a cache file is noticed, told and repaired.
func TestDamagedCache(t *testing.T) {
	dir, cache := t.TempDir(), t.TempDir()
	path := write(t, filepath.Join(dir, "a.txt"), "some text to tokenise")
	spec := Spec{Paths: []string{path}}
	d := mustPrepare(t, spec, letters{}, Options{CacheDir: cache})
	want := tokens(d)
	file := filepath.Join(cache, d.Key()[:32]+".tokens")
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, damaged []byte) {
		t.Helper()
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		write(t, file, string(damaged))
		var notices []string
		d, err := Prepare(t.Context(), spec, letters{}, Options{CacheDir: cache, Notice: func(s string) { notices = append(notices, s) }})
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		defer d.Close()
		if len(notices) != 1 || !strings.Contains(notices[0], file) || d.Reused() || !slices.Equal(tokens(d), want) {
			t.Fatalf("%s: notices %q, reused %v", what, notices, d.Reused())
		}
		if now, _ := os.ReadFile(file); !bytes.Equal(now, whole) {
			t.Fatalf("%s: not repaired", what)
		}
	}
	for n := 0; n < len(whole); n += 13 {
		check(fmt.Sprintf("cut to %d bytes", n), whole[:n])
	}
	for i := 0; i < len(whole); i += 7 {
		b := bytes.Clone(whole)
		b[i] ^= 1
		check(fmt.Sprintf("byte %d flipped", i), b)
	}
	check("longer", append(bytes.Clone(whole), 0))
}

func TestPrepareErrors(t *testing.T) {
	dir := t.TempDir()
	path := write(t, filepath.Join(dir, "a.txt"), "text")
	spec := Spec{Paths: []string{path}}

	cache := t.TempDir()
	if _, err := Prepare(t.Context(), spec, letters{vocabulary: 100}, Options{CacheDir: cache}); err == nil || !strings.Contains(err.Error(), "token 116 with a vocabulary of 100") {
		t.Error(err)
	}
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Prepare(stopped, spec, letters{}, Options{CacheDir: cache}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(cache, "*tokens*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := Prepare(t.Context(), spec, letters{}, Options{CacheDir: path}); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a file as cache folder: %v", err)
	}
}

// A user's interrupt in the middle leaves no half cache.
func TestInterrupt(t *testing.T) {
	dir, want, _, _ := corpus(t)
	cache := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	_, err := Prepare(ctx, Spec{Paths: []string{dir}}, letters{}, Options{CacheDir: cache, Progress: func(Progress) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(cache, "*tokens*")); len(left) != 0 {
		t.Fatalf("left behind: %v", left)
	}
	if d := mustPrepare(t, Spec{Paths: []string{dir}}, letters{}, Options{CacheDir: cache}); !slices.Equal(tokens(d), want) {
		t.Fatal("tokens differ")
	}
}

func TestReadOnlyCache(t *testing.T) {
	cache := t.TempDir()
	if err := os.Chmod(cache, 0o555); err != nil {
		t.Fatal(err)
	}
	if probe, err := os.Create(filepath.Join(cache, "probe")); err == nil {
		probe.Close()
		t.Skip("this user may write into a read-only folder (root, or Windows)")
	}
	path := write(t, filepath.Join(t.TempDir(), "a.txt"), "text")
	if _, err := Prepare(t.Context(), Spec{Paths: []string{path}}, letters{}, Options{CacheDir: cache}); !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), cache) {
		t.Fatal(err)
	}
}

func BenchmarkPrepare(b *testing.B) {
	path := filepath.Join(b.TempDir(), "a.txt")
	text := strings.Repeat("It was the best of times, it was the worst of times.\n", 400_000)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		d, err := Prepare(b.Context(), Spec{Paths: []string{path}}, letters{}, Options{CacheDir: b.TempDir()})
		if err != nil {
			b.Fatal(err)
		}
		d.Close()
	}
}
