package hybridize

import (
	"fmt"
	"os"
	"strings"

	"github.com/BurntSushi/toml"

	"nha/model"
)

// windowsFile is the text of the windows file of a search: TOML that --windows @FILE reads.
func windowsFile(w model.Windows, comment string) string {
	var b strings.Builder
	for _, line := range strings.Split(comment, "\n") {
		fmt.Fprintf(&b, "# %s\n", line)
	}
	fmt.Fprintf(&b, "windows = %q\n", w.String())
	return b.String()
}

// ReadWindows is the pattern in a windows file, the FILE of --windows @FILE.
func ReadWindows(name string) (string, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return "", err
	}
	var file struct {
		Windows string `toml:"windows"`
	}
	m, err := toml.Decode(string(text), &file)
	switch {
	case err != nil:
		return "", fmt.Errorf("@%s: %w", name, err)
	case len(m.Undecoded()) > 0:
		return "", fmt.Errorf("@%s: unknown key %s: a windows file has one, windows", name, m.Undecoded()[0])
	case file.Windows == "":
		return "", fmt.Errorf("@%s: no key windows in it", name)
	}
	return file.Windows, nil
}
