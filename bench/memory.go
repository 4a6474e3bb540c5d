package bench

import (
	"bytes"
	"os"
	"runtime/debug"
	"strconv"
)

// unknownMemory is what may be used where the system does not say what is free.
const unknownMemory = 4 << 30

// freeMemory is the bytes that this process may still take: Linux's MemAvailable, less where a control group allows less.
func freeMemory() int {
	text, err := os.ReadFile("/proc/meminfo")
	free := statusBytes(text, "MemAvailable:")
	if err != nil || free == 0 {
		return unknownMemory
	}
	limit, used := numberIn("/sys/fs/cgroup/memory.max"), numberIn("/sys/fs/cgroup/memory.current")
	if limit > 0 && used > 0 {
		free = min(free, max(0, limit-used))
	}
	return free
}

// numberIn is the number that a file holds; 0 where it holds none.
func numberIn(path string) int {
	text, _ := os.ReadFile(path)
	n, _ := strconv.Atoi(string(bytes.TrimSpace(text)))
	return n
}

// Version is what was built: the module's version and the commit, with a + where files had been changed.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	version, commit, changed := info.Main.Version, "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			commit = s.Value[:min(9, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			changed = "+"
		}
	}
	if commit != "" {
		version = "commit " + commit + changed
	}
	return version
}
