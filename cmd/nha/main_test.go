package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"nha/backend"
	"nha/model"
	"nha/tokenizer"
)

// The scripts of testdata/script run the command as a user does: a process of its own, whose exit code and standard error
// are held to the rule that an error is one line which names what is wrong.

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"nha": func() { os.Exit(run(os.Args[1:])) }})
}

func TestScripts(t *testing.T) {
	root, err := filepath.Abs("../../testdata")
	if err != nil {
		t.Fatal(err)
	}
	small, base := tinyModel(t), tinyBase(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Vars = append(e.Vars, "MODEL="+small, "BASE="+base, "VECTORS="+filepath.Join(root, "vectors"), "GOLDEN="+filepath.Join(root, "golden", "nha-tiny"))
			e.Vars = append(e.Vars, home(e.WorkDir)...)
			return fixtures(e.WorkDir)
		},
		Condition: func(name string) (bool, error) {
			if name == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", name)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"fails": fails, "jsonl": jsonl, "truncate": truncate, "replace": replace, "corrupt": corrupt, "same-but": sameBut,
		},
	})
}

// home keeps the token caches inside dir, on every system.
func home(dir string) []string {
	return []string{"HOME=" + dir, "XDG_CACHE_HOME=" + filepath.Join(dir, ".cache"), "LocalAppData=" + dir}
}

// fixtures writes what every script has: text.txt and tiny.toml, a run of a tenth of a second.
func fixtures(dir string) error {
	var text strings.Builder
	for i := range 60 {
		fmt.Fprintf(&text, "The quick brown fox number %d jumps over the lazy dog, and says hello to world %d.\n", i, 7*i)
	}
	toml, err := os.ReadFile("testdata/tiny.toml")
	return errors.Join(err, os.WriteFile(filepath.Join(dir, "text.txt"), []byte(text.String()), 0o644),
		os.WriteFile(filepath.Join(dir, "tiny.toml"), toml, 0o644))
}

// nha is the command in dir, as a process.
func nha(dir string, args ...string) *exec.Cmd {
	c := exec.Command("nha", args...)
	c.Dir, c.Env = dir, append(os.Environ(), home(dir)...)
	return c
}

// tinyBase is a pretrained Llama of bytes, as far as anybody can tell.
func tinyBase(t *testing.T) string {
	t.Helper()
	c, err := model.ParseConfig([]byte(`{"model_type": "llama", "vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
		"num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48, "max_position_embeddings": 128, "tie_word_embeddings": true}`))
	if err != nil {
		t.Fatal(err)
	}
	b, err := backend.Open("cpu", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	m, err := model.New(c, b, model.Init{Seed: 1, Std: 0.2})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	dir := t.TempDir()
	if err := errors.Join(m.Save(dir), tokenizer.Bytes{EndOfText: true}.Save(dir)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// tinyModel trains a model that knows its text, in a second.
func tinyModel(t *testing.T) string {
	dir := t.TempDir()
	if err := fixtures(dir); err != nil {
		t.Fatal(err)
	}
	c := nha(dir, "train", "--config", "tiny.toml", "--steps", "200", "--batch", "8", "--learning-rate", "1e-2", "--log-every", "200",
		"--out", "model")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("train: %v\n%s", err, out)
	}
	return filepath.Join(dir, "model")
}

// fails CODE PATTERN ARG... runs nha with the arguments: it must end with the code and one line of standard error that has the
// pattern, before the hint of a usage error.
func fails(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: fails CODE PATTERN ARG...")
	}
	err := ts.Exec("nha", args[2:]...)
	code := 0
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	stderr := ts.ReadFile("stderr")
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
	line, rest, _ := strings.Cut(stderr, "\n")
	want := "^$"
	if code == 2 {
		want = `^Run 'nha( \w+)* --help'\.\n$`
	}
	if !strings.HasPrefix(line, "nha: ") || !regexp.MustCompile(want).MatchString(rest) {
		ts.Fatalf("standard error is more than one line or not from nha:\n%s", stderr)
	}
	if !regexp.MustCompile(args[1]).MatchString(line) {
		ts.Fatalf("%s\ndoes not have %s", line, args[1])
	}
}

// jsonl FILE FIELD... wants a JSON object with all the fields on every line, and a line at least.
func jsonl(ts *testscript.TestScript, neg bool, args []string) {
	text := strings.TrimSuffix(ts.ReadFile(args[0]), "\n")
	for _, line := range strings.Split(text, "\n") {
		var fields map[string]json.RawMessage
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			ts.Fatalf("%q: %v", line, err)
		}
		for _, want := range args[1:] {
			if _, ok := fields[want]; !ok {
				ts.Fatalf("no field %q in %s", want, line)
			}
		}
	}
}

// truncate FILE BYTES cuts a file.
func truncate(ts *testscript.TestScript, neg bool, args []string) {
	n, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	ts.Check(os.Truncate(ts.MkAbs(args[0]), n))
}

// replace FILE OLD NEW changes the one place where a file has OLD.
func replace(ts *testscript.TestScript, neg bool, args []string) {
	text := ts.ReadFile(args[0])
	if strings.Count(text, args[1]) != 1 {
		ts.Fatalf("%s has %q %d times", args[0], args[1], strings.Count(text, args[1]))
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(strings.Replace(text, args[1], args[2], 1)), 0o644))
}

// corrupt FILE TENSOR changes the first element of a tensor of a safetensors file: its lowest exponent bit.
func corrupt(ts *testscript.TestScript, neg bool, args []string) {
	path := ts.MkAbs(args[0])
	data, err := os.ReadFile(path)
	ts.Check(err)
	n := binary.LittleEndian.Uint64(data)
	var header map[string]struct {
		DType   string `json:"dtype"`
		Offsets [2]int `json:"data_offsets"`
	}
	ts.Check(json.Unmarshal(data[8:8+n], &header))
	h, ok := header[args[1]]
	if !ok {
		ts.Fatalf("no tensor %s in %v", args[1], slices.Sorted(maps.Keys(header)))
	}
	last := 8 + int(n) + h.Offsets[0] + map[string]int{"F64": 8, "F32": 4}[h.DType] - 1
	data[last-1] ^= map[string]byte{"F64": 0x10, "F32": 0x80}[h.DType]
	ts.Check(os.WriteFile(path, data, 0o644))
}

// same-but KEY FILE FILE compares two JSON files without the values of a key.
func sameBut(ts *testscript.TestScript, neg bool, args []string) {
	one, other := without(ts, args[1], args[0]), without(ts, args[2], args[0])
	if bytes.Equal(one, other) == neg {
		ts.Fatalf("%s\n%s", one, other)
	}
}

func without(ts *testscript.TestScript, file, key string) []byte {
	var v any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(file)), &v))
	var strip func(any)
	strip = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			delete(v, key)
			for _, x := range v {
				strip(x)
			}
		case []any:
			for _, x := range v {
				strip(x)
			}
		}
	}
	strip(v)
	text, err := json.Marshal(v)
	ts.Check(err)
	return text
}

// Every verb has help with an example of itself.
func TestExamples(t *testing.T) {
	var check func(*cobra.Command)
	check = func(c *cobra.Command) {
		if c.HasParent() && (c.Short == "" || !strings.Contains(c.Example, c.CommandPath())) {
			t.Errorf("%s: no example of it in its help: %q", c.CommandPath(), c.Example)
		}
		for _, line := range strings.Split(c.Example, "\n") {
			if strings.TrimRight(line, " ") != line {
				t.Errorf("%s: spaces at the end of an example: %q", c.CommandPath(), line)
			}
		}
		if c.Name() == "completion" {
			return // its verbs are cobra's, and explain themselves
		}
		for _, verb := range c.Commands() {
			check(verb)
		}
	}
	check(newRoot())
}
