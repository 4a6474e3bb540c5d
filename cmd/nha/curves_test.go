package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// execute runs a command line and returns what it printed.
func execute(words ...string) (string, error) {
	var out bytes.Buffer
	root := newRoot()
	root.SetOut(&out)
	root.SetArgs(words)
	err := root.Execute()
	return out.String(), err
}

var tinyShape = strings.Fields("--size small --seconds 0")

// TestCurves: a table on standard output or one object a line, and the files in --out.
func TestCurves(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "curves")
	line := append([]string{"bench", "curves", "nha", "--depths", "4..16", "--batches", "1,2", "--batch-depth", "4", "--out", dir}, tinyShape...)
	out, err := execute(line...)
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Split(strings.TrimSpace(out), "\n"); len(lines) != 2+3*(3+2+3) || !strings.HasPrefix(lines[0], "| curve") || !strings.Contains(out, "**") {
		t.Errorf("table\n%s", out)
	}
	for _, name := range []string{"bench.html", "curves.csv", "curves.json", "curves_decode.svg", "curves_batch.png"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	if out, err = execute(append(line, "--json")...); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 3*(3+2+3) {
		t.Errorf("%d lines", len(lines))
	}
	for _, l := range lines {
		if !json.Valid([]byte(l)) {
			t.Errorf("not an object: %q", l)
		}
	}
	// nha report makes a page of them, beside what it is told
	pages := t.TempDir()
	if out, err = execute("report", filepath.Dir(dir), "--out", pages); err != nil || !strings.Contains(out, "1 set of curves") {
		t.Errorf("report: %q, error %v", out, err)
	}
	if _, err := os.Stat(filepath.Join(pages, "report.html")); err != nil {
		t.Error(err)
	}
}

// TestBenchModels: several models are one table, in the form that is asked for.
func TestBenchModels(t *testing.T) {
	for _, line := range []string{"decode nha transformer --depth 4,8", "prefill --model nha,transformer --tokens 4,8"} {
		words := append(append([]string{"bench"}, strings.Fields(line)...), tinyShape...)
		out, err := execute(words...)
		if err != nil {
			t.Fatal(err)
		}
		if lines := strings.Split(strings.TrimSpace(out), "\n"); len(lines) != 6 || !strings.HasPrefix(lines[0], "| backend") || !strings.Contains(out, "**") {
			t.Errorf("%s\n%s", line, out)
		}
		if out, err = execute(append(words, "--format", "csv")...); err != nil || strings.Count(out, "\n") != 5 || !strings.HasPrefix(out, "backend,model,") {
			t.Errorf("%s: error %v\n%s", line, err, out)
		}
		var list []map[string]any
		if out, err = execute(append(words, "--format", "json")...); err != nil || json.Unmarshal([]byte(out), &list) != nil || len(list) != 4 {
			t.Errorf("%s: error %v\n%s", line, err, out)
		}
	}
}

// TestCurvesUsage: mistakes are usage errors that say what is wrong; a folder that cannot be is an error before anything is measured.
func TestCurvesUsage(t *testing.T) {
	for line, want := range map[string]string{
		"bench curves":                      "give a MODEL",
		"bench curves nowhere":              "no model nowhere",
		"bench curves nha --depths 0":       "depths 0",
		"bench curves nha --depths -5":      "depths -5",
		"bench curves nha --depths 1..x":    `--depths: "x"`,
		"bench curves nha --batches ,":      "--batches: ",
		"bench curves nha --memory lots":    `--memory: "lots"`,
		"bench curves nha --format xml":     "--format xml: choose one of markdown, csv, json",
		"bench curves nha --limit 0":        "limit 0",
		"bench curves nha --size huge":      `unknown size "huge"`,
		"bench decode nha --model gsa":      "not both",
		"bench decode nha gsa --format xml": "--format xml",
		"bench prefill nha nowhere":         "neither a preset nor a model directory",
		"report":                            "takes DIR",
		"bench curves nha nha":              "given twice",
		"bench curves nha --slots -1":       "slots -1",
	} {
		_, err := execute(strings.Fields(line)...)
		if _, usage := err.(usageError); !usage || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want a usage error with %q", line, err, want)
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := execute("bench", "curves", "nha", "--out", filepath.Join(file, "below")); err == nil || !strings.Contains(err.Error(), "file") {
		t.Errorf("a folder below a file: %v", err)
	}
	if _, err := execute("report", filepath.Dir(file)); err == nil || !strings.Contains(err.Error(), "holds no runs") {
		t.Errorf("an empty folder: %v", err)
	}
}
