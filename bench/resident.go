package bench

import (
	"bytes"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
)

// resident is the bytes of this process in memory now, and at their most since resetPeak. Where there is no /proc/self/status
// it is what Go holds from the system, and ok is false.
func resident() (now, peak int, ok bool) {
	text, err := os.ReadFile("/proc/self/status")
	if err == nil {
		now, peak = statusBytes(text, "VmRSS:"), statusBytes(text, "VmHWM:")
	}
	if now > 0 && peak > 0 {
		return now, peak, true
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.Sys - m.HeapReleased), int(m.Sys - m.HeapReleased), false
}

// statusBytes reads a line such as "VmHWM:    5120 kB"; 0 where it is missing.
func statusBytes(status []byte, key string) int {
	_, after, _ := bytes.Cut(status, []byte(key))
	fields := bytes.Fields(after)
	if len(fields) == 0 {
		return 0
	}
	n, err := strconv.Atoi(string(fields[0]))
	if err != nil {
		return 0
	}
	return n << 10
}

// settle gives garbage back to the system and begins a new peak. Where Linux does not let it, the peak stays that of the whole
// process, and a growth read from it is an upper bound.
func settle() {
	debug.FreeOSMemory()
	if f, err := os.OpenFile("/proc/self/clear_refs", os.O_WRONLY, 0); err == nil {
		_, _ = f.WriteString("5")
		_ = f.Close()
	}
}
