//go:build unix

package main

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A prompt ten times as long takes no more memory: the state of this model is 6,656 bytes however much it has read. The
// Transformer's cache of the long prompt would be 100 MB, the logits of all its tokens 200 MB.
func TestLongPromptMemory(t *testing.T) {
	model := tinyModel(t)
	prompt := make([]byte, 200_000)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range prompt {
		prompt[i] = "abcdefgh \n"[r.IntN(10)]
	}
	peak := func(n int) int64 {
		c := nha(t.TempDir(), "generate", model, "--max-new-tokens", "3")
		c.Stdin = bytes.NewReader(prompt[:n])
		out, err := c.Output()
		if err != nil || !bytes.HasPrefix(out, prompt[:n]) {
			t.Fatalf("%d tokens: %v\n%.100s", n, err, out)
		}
		rss := c.ProcessState.SysUsage().(*syscall.Rusage).Maxrss
		if runtime.GOOS == "darwin" {
			return int64(rss)
		}
		return int64(rss) << 10
	}
	short, long := peak(len(prompt)/10), peak(len(prompt))
	t.Logf("peak memory: %d kB for %d tokens, %d kB for %d", short>>10, len(prompt)/10, long>>10, len(prompt))
	if limit := int64(16 << 20); long > short+limit {
		t.Errorf("peak memory grows from %d to %d bytes, by more than %d", short, long, limit)
	}
}

// Ctrl-C saves and stops; a resumed run ends with the bits of one that was never stopped.
func TestInterrupt(t *testing.T) {
	dir := t.TempDir()
	if err := fixtures(dir); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) *exec.Cmd {
		return nha(dir, append([]string{"train", "--log-every", "1"}, args...)...)
	}
	c := run("--config", "tiny.toml", "--schedule", "constant", "--warmup", "2", "--steps", "100000", "--out", "run")
	var stderr bytes.Buffer
	c.Stderr = &stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if lines, err := os.ReadFile(filepath.Join(dir, "run", "metrics.jsonl")); err == nil && bytes.Count(lines, []byte("\n")) > 3 {
			break
		}
		if time.Now().After(deadline) {
			c.Process.Kill()
			t.Fatalf("no step in a minute:\n%s", stderr.String())
		}
	}
	if err := c.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if c.Wait(); c.ProcessState.ExitCode() != 1 {
		t.Fatalf("exit code %d", c.ProcessState.ExitCode())
	}
	lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
	if last := lines[len(lines)-1]; !strings.HasPrefix(last, "nha: interrupted after step ") || !strings.HasSuffix(last, "nha train --resume run") {
		t.Errorf("the last line does not say how to go on: %s", last)
	}
	saved, err := filepath.Glob(filepath.Join(dir, "run", "checkpoints", "step-*"))
	if err != nil || len(saved) == 0 {
		t.Fatalf("checkpoints: %v, %v", saved, err)
	}
	step, err := strconv.Atoi(saved[len(saved)-1][len(filepath.Dir(saved[0]))+len("/step-"):])
	if err != nil {
		t.Fatal(err)
	}
	steps := strconv.Itoa(step + 3)
	for _, c := range []*exec.Cmd{run("--resume", "run", "--steps", steps),
		run("--config", "tiny.toml", "--schedule", "constant", "--warmup", "2", "--steps", steps, "--out", "whole")} {
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", c.Args, err, out)
		}
	}
	var models [2][]byte
	for i, name := range []string{"run", "whole"} {
		if models[i], err = os.ReadFile(filepath.Join(dir, name, "model.safetensors")); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(models[0], models[1]) {
		t.Errorf("resumed after step %d, the model of step %s is another", step, steps)
	}
}
