package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

// TestBench: --json prints one object a line and nothing else.
func TestBench(t *testing.T) {
	for line, want := range map[string]int{
		"gemm --op nn,nt --shapes 4x5x6,7x8x9":                  4,
		"gemm --m 1,2 --n 3 --k 4":                              2,
		"operator --T 8,16 --Hq 2 --H 1 --K 4 --M 2 --W 4,full": 4,
		"decode --size small --layers 1 --hidden-size 32 --heads 2 --vocabulary 50 --dtype bfloat16 --depth 0,9": 2,
	} {
		var out bytes.Buffer
		root := newRoot()
		root.SetOut(&out)
		root.SetArgs(append([]string{"bench"}, append(strings.Fields(line), "--json", "--seconds", "0")...))
		if err := root.Execute(); err != nil {
			t.Fatalf("bench %s: %v", line, err)
		}
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		if len(lines) != want {
			t.Errorf("bench %s: %d lines, want %d", line, len(lines), want)
		}
		for _, l := range lines {
			if !json.Valid([]byte(l)) || l[0] != '{' {
				t.Errorf("bench %s: not an object: %q", line, l)
			}
		}
	}
}

// TestBenchUsage: mistakes are usage errors that say what is wrong.
func TestBenchUsage(t *testing.T) {
	for line, want := range map[string]string{
		"gemm --op xx":                           `--op: op "xx": use nn, nt or tn`,
		"gemm --m 5":                             "--m, --n, --k: give all three or none",
		"gemm --shapes 5x5":                      "--shapes: ",
		"operator --W near":                      `--W: window "near"`,
		"operator --H 3":                         "num_kv_heads 3",
		"train --size huge":                      `unknown size "huge"`,
		"train --model mamba":                    `unknown preset "mamba"`,
		"decode --model nowhere":                 "neither a preset nor a model directory",
		"decode --model nowhere --hidden-size 5": "--hidden-size: ",
		"bandwidth":                              `unknown verb "bandwidth"`,
	} {
		root := newRoot()
		root.SetArgs(append([]string{"bench"}, strings.Fields(line)...))
		err := root.Execute()
		if _, usage := err.(usageError); !usage || !strings.Contains(err.Error(), want) {
			t.Errorf("bench %s: %v, want a usage error with %q", line, err, want)
		}
	}
}
