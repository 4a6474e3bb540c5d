//go:build linux || darwin

package train

import (
	"bytes"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// fullAt is the variable that lets a child write no file longer than so many bytes: a disk that is full in the middle of one.
const fullAt = "NHA_TRAIN_TEST_FULL_AT"

func init() {
	if n, err := strconv.ParseUint(os.Getenv(fullAt), 10, 64); err == nil {
		signal.Ignore(syscall.SIGXFSZ)
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: n, Max: n}); err != nil {
			panic(err)
		}
	}
}

// On a full disk a run stops with one line that names the file, leaves no half-written one, and goes on once there is room.
func TestFullDisk(t *testing.T) {
	peace, dir := reference(t), newDir(t)
	o := textOptions(dir)
	interrupted(t, o, 3) // the token cache and a checkpoint are there
	info, err := os.Stat(filepath.Join(o.Out, checkpointsDir, "step-00000003", optimizerFile))
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), child+"="+dir, fullAt+"="+strconv.FormatInt(info.Size()*9/10, 10))
	var stderr bytes.Buffer
	c.Stderr = &stderr
	if err := c.Run(); err == nil || c.ProcessState.ExitCode() != 1 {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	if s := stderr.String(); strings.Count(s, "\n") != 1 || !strings.Contains(s, filepath.Join("step-00000006", optimizerFile)+": file too large") ||
		!strings.Contains(s, "the last checkpoint is "+filepath.Join(o.Out, checkpointsDir, "step-00000003")) {
		t.Errorf("said %q", s)
	}
	entries, err := os.ReadDir(filepath.Join(o.Out, checkpointsDir))
	if err != nil || len(entries) != 1 || entries[0].Name() != "step-00000003" {
		t.Errorf("checkpoints: %v (%v)", entries, err)
	}
	o.Resume = true
	mustRun(t, o)
	sameEnd(t, peace, o.Out)
}
