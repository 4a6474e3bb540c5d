package data

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/parquet-go/parquet-go"
)

func write(t *testing.T, path string, contents string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(contents), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func gzipped(t *testing.T, s string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	io.WriteString(w, s)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func zstandard(t *testing.T, s string, window int) string {
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, zstd.WithWindowSize(window), zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, s)
	w.Flush() // a frame of unknown length, as a stream makes: its header names the window
	io.WriteString(w, "\n")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

type row struct {
	ID   int64   `parquet:"id"`
	Text *string `parquet:"text,optional,dict"`
	Body string  `parquet:"body,zstd"`
}

func parquetFile(t *testing.T, n int) string {
	var b bytes.Buffer
	w := parquet.NewGenericWriter[row](&b, parquet.MaxRowsPerRowGroup(100), parquet.PageBufferSize(512))
	for i := range n {
		r := row{ID: int64(i), Body: fmt.Sprintf("body %d é", i)}
		if i%3 != 1 {
			s := fmt.Sprintf("text %d", i%7)
			r.Text = &s
		}
		if _, err := w.Write([]row{r}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func collect(t *testing.T, spec Spec) []Document {
	t.Helper()
	var list []Document
	for d, err := range Documents(spec) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, d)
	}
	return list
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"b.txt", "a/2.txt", "a/1.txt", "a/deep/x.md", ".hidden", ".git/config", "c.jsonl"} {
		write(t, filepath.Join(dir, name), "x")
	}
	under := func(names ...string) (list []string) {
		for _, name := range names {
			list = append(list, filepath.Join(dir, name))
		}
		return list
	}
	for _, c := range []struct{ paths, want []string }{
		{[]string{dir}, under("a/1.txt", "a/2.txt", "a/deep/x.md", "b.txt", "c.jsonl")},
		{under("*.txt"), under("b.txt")},
		{under("?"), under("a/1.txt", "a/2.txt", "a/deep/x.md")},
		{under("c.jsonl", "b.txt"), under("c.jsonl", "b.txt")},
	} {
		got, err := Files(c.paths)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%v: %v (%v), want %v", c.paths, got, err, c.want)
		}
	}
	empty := filepath.Join(dir, "empty")
	os.Mkdir(empty, 0o755)
	for _, bad := range [][]string{nil, under("absent"), under("*.csv"), {empty}} {
		if got, err := Files(bad); err == nil || (bad != nil && !strings.Contains(err.Error(), bad[0])) {
			t.Errorf("%v: %v (%v)", bad, got, err)
		}
	}
}

func TestTextFile(t *testing.T) {
	dir := t.TempDir()
	path := write(t, filepath.Join(dir, "a.txt"), "\uFEFFone\r\ntwo\n\n--\nthree")
	want := []Document{{Text: "one\r\ntwo\n\n--\nthree", Source: path, Line: 1}}
	if diff := cmp.Diff(want, collect(t, Spec{Paths: []string{path}})); diff != "" {
		t.Fatal(diff)
	}
	want = []Document{{Text: "one\r\ntwo\n\n", Source: path, Line: 1}, {Text: "three", Source: path, Line: 5}}
	if diff := cmp.Diff(want, collect(t, Spec{Paths: []string{path}, Separator: "--"})); diff != "" {
		t.Fatal(diff)
	}
	path = write(t, filepath.Join(dir, "b.txt"), "--\r\n--\na\n-- \n--")
	want = []Document{{Text: "a\n-- \n", Source: path, Line: 3}}
	if diff := cmp.Diff(want, collect(t, Spec{Paths: []string{path}, Separator: "--"})); diff != "" {
		t.Fatal(diff)
	}
}

// Long texts come in pieces whose concatenation is the text; the last piece, and only that, ends the document.
func TestLongText(t *testing.T) {
	for name, text := range map[string]string{
		"prose":       strings.Repeat("It was the best of times, it was the worst of times.\n", 60_000),
		"no newline":  strings.Repeat("word ", 700_000),
		"no place":    strings.Repeat("é", 1_500_000),
		"exact":       strings.Repeat("a b ", pieceSize/4),
		"line breaks": strings.Repeat("電\n", 800_000),
	} {
		t.Run(name, func(t *testing.T) {
			path := write(t, filepath.Join(t.TempDir(), "a.txt"), text+"\n--\nsecond document")
			list := collect(t, Spec{Paths: []string{path}, Separator: "--"})
			var b strings.Builder
			line := 1
			for i, d := range list[:len(list)-1] {
				if d.Line != line || d.Continues != (i < len(list)-2) {
					t.Fatalf("piece %d of %d: line %d, want %d; continues %v", i, len(list), d.Line, line, d.Continues)
				}
				line += strings.Count(d.Text, "\n")
				b.WriteString(d.Text)
			}
			if b.String() != text+"\n" {
				t.Fatal("the pieces are not the text")
			}
			if last := list[len(list)-1]; last.Text != "second document" || last.Line != line+1 {
				t.Fatalf("last document %+v", last)
			}
			if pieces := len(list) - 1; name != "no place" && pieces < 2 {
				t.Fatalf("%d pieces", pieces)
			}
		})
	}
}

func TestForcedCut(t *testing.T) {
	text := strings.Repeat("é", forcedSize/2+10)
	path := write(t, filepath.Join(t.TempDir(), "a.txt"), text)
	list := collect(t, Spec{Paths: []string{path}})
	if len(list) != 2 || list[0].Text+list[1].Text != text || !list[0].Continues || list[1].Continues {
		t.Fatalf("%d pieces", len(list))
	}
}

func TestJSONL(t *testing.T) {
	dir := t.TempDir()
	long := strings.Repeat("long ", 50_000)
	lines := `{"id":1,"text":"first \"quoted\" \u00e9"}` + "\n\n" + `{"text":"` + long + `"}` + "\r\n" + `{"text":""}` + "\n" + `{"text":"last"}`
	for name, contents := range map[string]string{
		"a.jsonl": lines, "b.JSON": lines, "c.jsonl.gz": gzipped(t, lines), "d.ndjson.zst": zstandard(t, lines, 1<<20),
		"long-window.jsonl.zst": zstandard(t, lines, 1<<27), "mark.jsonl": "\uFEFF" + lines,
	} {
		path := write(t, filepath.Join(dir, name), contents)
		want := []Document{{Text: `first "quoted" é`, Source: path, Line: 1}, {Text: long, Source: path, Line: 3}, {Text: "last", Source: path, Line: 5}}
		if diff := cmp.Diff(want, collect(t, Spec{Paths: []string{path}})); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	path := write(t, filepath.Join(dir, "e.jsonl"), `{"body":"x","text":5}`)
	if got := collect(t, Spec{Paths: []string{path}, Field: "body"}); len(got) != 1 || got[0].Text != "x" {
		t.Fatalf("%+v", got)
	}
}

func TestCompressedText(t *testing.T) {
	path := write(t, filepath.Join(t.TempDir(), "a.txt.gz"), gzipped(t, "hello"))
	if got := collect(t, Spec{Paths: []string{path}}); len(got) != 1 || got[0].Text != "hello" {
		t.Fatalf("%+v", got)
	}
}

func TestParquet(t *testing.T) {
	const n = 750
	path := write(t, filepath.Join(t.TempDir(), "a.parquet"), parquetFile(t, n))
	var want []Document
	for i := range n {
		if i%3 != 1 {
			want = append(want, Document{Text: fmt.Sprintf("text %d", i%7), Source: path, Line: i + 1})
		}
	}
	if diff := cmp.Diff(want, collect(t, Spec{Paths: []string{path}})); diff != "" {
		t.Fatal(diff)
	}
	got := collect(t, Spec{Paths: []string{path}, Field: "body"})
	if len(got) != n || got[n-1].Text != "body 749 é" || got[n-1].Line != n {
		t.Fatalf("%d rows", len(got))
	}
}

// Damage anywhere in a parquet file may give an error or, where it hits a text, another text; never a panic.
func TestDamagedParquet(t *testing.T) {
	whole := parquetFile(t, 300)
	path := filepath.Join(t.TempDir(), "a.parquet")
	for _, damage := range []string{whole[:len(whole)/2], whole[:len(whole)-1], "PAR1" + whole[200:]} {
		write(t, path, damage)
		errs := 0
		for _, err := range Documents(Spec{Paths: []string{path}}) {
			if err != nil {
				errs++
				if !strings.Contains(err.Error(), path) {
					t.Errorf("error %v", err)
				}
			}
		}
		if errs != 1 {
			t.Errorf("%d errors", errs)
		}
	}
	for at := 0; at < len(whole); at += 101 {
		b := []byte(whole)
		b[at] ^= 0xff
		write(t, path, string(b))
		for range Documents(Spec{Paths: []string{path}}) {
		}
	}
}

func TestStopEarly(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.parquet"), parquetFile(t, 300))
	write(t, filepath.Join(dir, "b.jsonl"), `{"text":"x"}`)
	for range Documents(Spec{Paths: []string{dir}}) {
		break
	}
	defer func() {
		if recover() != "mine" {
			t.Fatal("the caller's panic was swallowed")
		}
	}()
	for range Documents(Spec{Paths: []string{dir}}) {
		panic("mine")
	}
}

func TestBadData(t *testing.T) {
	good := `{"text":"good"}` + "\n"
	for name, c := range map[string]struct {
		file, contents string
		spec           Spec
		want           string
	}{
		"empty":             {file: "a.txt", want: "a.txt: empty file"},
		"empty gz":          {file: "a.txt.gz", contents: gzipped(t, ""), want: "a.txt.gz: holds no text"},
		"blank lines":       {file: "a.jsonl", contents: "\n \n", want: "a.jsonl: holds no text"},
		"NUL":               {file: "a.txt", contents: "abc\ndef\x00ghi", want: "a.txt: byte 7 is not UTF-8 text"},
		"invalid UTF-8":     {file: "a.txt", contents: "abc\nd\xe9f", want: "a.txt: byte 5 is not UTF-8 text"},
		"late":              {file: "a.txt", contents: "\uFEFF" + strings.Repeat("some text\n", 300_000) + "\xff", want: "a.txt: byte 3000003 is not UTF-8 text"},
		"after a separator": {file: "a.txt", contents: "abc\n--\nd\xe9f", spec: Spec{Separator: "--"}, want: "a.txt: byte 8 is not UTF-8 text"},
		"cut character":     {file: "a.txt", contents: "abc é"[:5], want: "a.txt: byte 4 is not UTF-8 text"},
		"JSONL binary":      {file: "a.jsonl", contents: good + "{\"text\":\"\xff\"}", want: "a.jsonl: byte 25 is not UTF-8 text"},
		"JSONL cut":         {file: "a.jsonl", contents: good + `{"text":"the end is mis`, want: "a.jsonl: line 2 is cut in the middle"},
		"JSONL cut key":     {file: "a.jsonl", contents: good + `{"te`, want: "a.jsonl: line 2 is cut in the middle"},
		"JSONL broken":      {file: "a.jsonl", contents: good + "{\"text\":}\n" + good, want: "a.jsonl: line 2: not a JSON object"},
		"JSONL array":       {file: "a.json", contents: `[{"text":"x"}]`, want: "a.json: line 1: not a JSON object"},
		"JSONL null":        {file: "a.json", contents: `null`, want: "a.json: line 1: not a JSON object"},
		"JSONL field":       {file: "a.jsonl", contents: good + `{"id":1,"body":"x"}`, want: `a.jsonl: line 2: no field "text" (there is: body, id)`},
		"JSONL type":        {file: "a.jsonl", contents: `{"text":["x"]}`, want: `a.jsonl: line 1: field "text" is not a string`},
		"gz cut":            {file: "a.jsonl.gz", contents: gzipped(t, strings.Repeat(good, 1000))[:60], want: "a.jsonl.gz: the compressed data ends in the middle"},
		"zst cut":           {file: "a.jsonl.zst", contents: zstandard(t, strings.Repeat(good, 1000), 1<<20)[:30], want: "a.jsonl.zst: the compressed data ends in the middle"},
		"not gz":            {file: "a.txt.gz", contents: "plain text, not compressed", want: "a.txt.gz: not a .gz file"},
		"not zst":           {file: "a.txt.zst", contents: "plain text, not compressed", want: "a.txt.zst: "},
		"parquet column":    {file: "a.parquet", contents: parquetFile(t, 3), spec: Spec{Field: "content"}, want: `a.parquet: no column "content" (there is: id, text, body)`},
		"parquet type":      {file: "a.parquet", contents: parquetFile(t, 3), spec: Spec{Field: "id"}, want: `a.parquet: column "id" is INT`},
		"not parquet":       {file: "a.parquet", contents: "PAR2 no, it is not", want: "a.parquet: "},
		"parquet gz":        {file: "a.parquet.gz", contents: "x", want: "a.parquet.gz: parquet files are compressed inside"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, c.file), c.contents)
			c.spec.Paths = []string{dir}
			var errs []error
			for _, err := range Documents(c.spec) {
				if err != nil {
					errs = append(errs, err)
				}
			}
			if len(errs) != 1 || !strings.Contains(errs[0].Error(), c.want) || !strings.Contains(errs[0].Error(), dir) {
				t.Fatalf("errors %v, want %q", errs, c.want)
			}
			if _, err := Prepare(t.Context(), c.spec, letters{}, Options{CacheDir: t.TempDir()}); err == nil || err.Error() != errs[0].Error() {
				t.Fatalf("Prepare: %v, want %v", err, errs[0])
			}
		})
	}
}

// The books have a window of 128 MB and lines of up to some megabytes.
func TestBooks(t *testing.T) {
	path := "../../shared/data/books-train.jsonl.zst"
	if _, err := os.Stat(path); err != nil {
		t.Skip("skipped: needs " + path)
	}
	n := 0
	for d, err := range Documents(Spec{Paths: []string{path}}) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; len(d.Text) < 1000 {
			t.Fatalf("line %d: %d bytes", d.Line, len(d.Text))
		}
		if n == 3 {
			break
		}
	}
}
