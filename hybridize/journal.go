package hybridize

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"

	"nha/model"
)

// Journal remembers measurements in a file of JSON lines, so that a search that was stopped goes on where it was. The first line says what
// was measured: {"identity": ...}; every other is {"windows": [...], "loss": ..., "recall": ...}.
type Journal struct {
	path  string
	file  *os.File
	known map[string]Quality
}

type journalHead struct {
	Identity map[string]string `json:"identity"`
}

type journalLine struct {
	Windows model.Windows `json:"windows"`
	Quality
}

// OpenJournal opens the journal at path, or begins one. A journal of other measurements (another model, text or setting) is
// an error that names what differs. A line that a crash cut short is dropped.
func OpenJournal(path string, identity map[string]string) (*Journal, error) {
	j := &Journal{path: path, known: map[string]Quality{}}
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	whole := bytes.LastIndexByte(old, '\n') + 1
	if j.file, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644); err != nil {
		return nil, err
	}
	if err := j.begin(old[:whole], identity); err != nil {
		return nil, errors.Join(err, j.file.Close())
	}
	return j, nil
}

func (j *Journal) begin(old []byte, identity map[string]string) error {
	if err := j.file.Truncate(int64(len(old))); err != nil {
		return err
	}
	if _, err := j.file.Seek(0, io.SeekEnd); err != nil {
		return err
	}
	if len(old) == 0 {
		return j.append(journalHead{identity})
	}
	lines := bufio.NewScanner(bytes.NewReader(old))
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		if n == 1 {
			var head journalHead
			if err := json.Unmarshal(lines.Bytes(), &head); err != nil || head.Identity == nil {
				return fmt.Errorf("%s:1: not a journal of a search: remove it or name another", j.path)
			}
			for k, v := range identity {
				if head.Identity[k] != v {
					return fmt.Errorf("%s was measured with %s %q, this search has %q: remove it or name another", j.path, k, head.Identity[k], v)
				}
			}
			continue
		}
		var line struct {
			Windows json.RawMessage `json:"windows"`
			Quality
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil || len(line.Windows) == 0 {
			return fmt.Errorf("%s:%d: not a measurement: remove the line", j.path, n)
		}
		j.known[string(line.Windows)] = line.Quality
	}
	return lines.Err()
}

func (j *Journal) append(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if _, err := j.file.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("%s: %w", j.path, err)
	}
	return j.file.Sync()
}

// Remember is measure, but for windows that the journal knows.
func (j *Journal) Remember(measure func(model.Windows) (Quality, error)) func(model.Windows) (Quality, error) {
	return func(w model.Windows) (Quality, error) {
		key, err := json.Marshal(w)
		if err != nil {
			return Quality{}, err
		}
		if q, ok := j.known[string(key)]; ok {
			return q, nil
		}
		q, err := measure(w)
		if err != nil || math.IsNaN(q.Loss) || math.IsInf(q.Loss, 0) { // the search says it
			return q, err
		}
		j.known[string(key)] = q
		return q, j.append(journalLine{w, q})
	}
}

// Close closes the file.
func (j *Journal) Close() error { return j.file.Close() }
