package data

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func TestObjects(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, data []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	write("a.jsonl", []byte("{\"a\": 1}\n\n{\"a\": 2}"))
	write("b.jsonl.zst", z.EncodeAll([]byte("{\"a\": 3}\n"), nil))
	var seen []string
	collect := func(file string, line int, raw []byte) error {
		seen = append(seen, fmt.Sprintf("%s:%d:%s", filepath.Base(file), line, raw))
		return nil
	}
	if err := Objects([]string{dir}, collect); err != nil || !slices.Equal(seen, []string{`a.jsonl:1:{"a": 1}`, `a.jsonl:3:{"a": 2}`, `b.jsonl.zst:1:{"a": 3}`}) {
		t.Errorf("%q, %v", seen, err)
	}
	stop := errors.New("no messages")
	if err := Objects([]string{dir}, func(string, int, []byte) error { return stop }); !errors.Is(err, stop) || !strings.Contains(err.Error(), "a.jsonl: line 1") {
		t.Errorf("an error of the caller: %v", err)
	}
	write("c.txt", []byte("text"))
	write("d.jsonl.zst", z.EncodeAll([]byte("{\"a\": 3}\n"), nil)[:12])
	for name, want := range map[string]string{"c.txt": "want lines of JSON", "d.jsonl.zst": "truncated", "e.jsonl": "no such file"} {
		if err := Objects([]string{filepath.Join(dir, name)}, collect); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
