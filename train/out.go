package train

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// lockFile is locked by the process that trains in a run directory.
const lockFile = ".lock"

// outDir is a run directory that this process alone may write into.
type outDir struct {
	path string
	made bool // by us, for a new run
	lock *os.File
}

// openOut makes the run directory, or checks that it may be used, before any text is read: that it holds the run to resume and
// no other, that it can be written into, and that nobody else is training there.
func (o *Options) openOut() (*outDir, error) {
	if o.Resume {
		if _, err := os.Stat(filepath.Join(o.Out, runFile)); err != nil {
			return nil, fmt.Errorf("nothing to resume in %s: %w", o.Out, err)
		}
	} else {
		for _, name := range []string{runFile, metricsFile, checkpointsDir, "config.json"} {
			if _, err := os.Lstat(filepath.Join(o.Out, name)); err == nil {
				return nil, fmt.Errorf("out: %s already holds a run or a model (%s): resume it with --resume %s, or name another directory", o.Out, name, o.Out)
			}
		}
	}
	d := &outDir{path: o.Out}
	if _, err := os.Stat(o.Out); errors.Is(err, fs.ErrNotExist) {
		d.made = true
	}
	if err := os.MkdirAll(o.Out, 0o777); err != nil {
		return nil, fmt.Errorf("out: %w", err)
	}
	var err error
	if d.lock, err = os.OpenFile(filepath.Join(o.Out, lockFile), os.O_RDWR|os.O_CREATE, 0o666); err != nil {
		return nil, fmt.Errorf("out: cannot write into %s: %w", o.Out, err)
	}
	free, err := tryLock(d.lock)
	if err == nil && !free {
		err = errors.New("another process is training there: wait for it or stop it")
	}
	if err == nil {
		err = cleanUp(o.Out)
	}
	if err != nil {
		d.close()
		return nil, fmt.Errorf("out: %s: %w", o.Out, err)
	}
	return d, nil
}

// close unlocks the directory.
func (d *outDir) close() { d.lock.Close() }

// discard removes a directory made for a run that could not begin, if nothing else is in it.
func (d *outDir) discard() {
	if d.made {
		os.Remove(filepath.Join(d.path, lockFile))
		os.Remove(d.path)
	}
}
