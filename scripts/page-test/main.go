// Command page-test opens pages in a headless Chromium and says what is wrong with them; run makes the pages.
//
// A page's policy (Content-Security-Policy) forbids to load anything, and the browser writes every attempt and every error of a script on its
// console, which must stay empty. What the page does with a pointer is tried by a script that is appended to a copy and sends its
// findings to the page around it. That all of this can fail is shown first by a page that is broken.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"html"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// widths are those of a phone and of a desk.
var widths = map[string]int{"phone": 390, "desk": 1280}

const height = 1600

// probe looks at the page as a browser lays it out: every chart, the line of figures at the pointer, the switch of the axes.
const probe = `<script>
{
const found = {width: innerWidth, overflow: document.documentElement.scrollWidth - innerWidth};
const charts = [...document.querySelectorAll(".logarithmic .chart")];
found.charts = charts.length;
found.seen = charts.filter(c => c.getBoundingClientRect().height > 100).length;
found.marks = document.querySelectorAll(".logarithmic .chart circle").length;
found.rows = document.querySelectorAll("tbody tr").length;
found.smallest = Math.min(...charts.flatMap(c => [...c.querySelectorAll("text")].map(t => parseFloat(getComputedStyle(t).fontSize) * c.getScreenCTM().a)));
const chart = charts[0], box = chart.getBoundingClientRect();
chart.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + box.width * .8, clientY: box.top + 40, bubbles: true}));
const tip = document.getElementById("tip"), edge = tip.getBoundingClientRect();
found.tip = getComputedStyle(tip).visibility === "visible" ? tip.innerText : "";
found.tipInside = edge.left >= 0 && edge.right <= document.documentElement.clientWidth;
chart.dispatchEvent(new PointerEvent("pointerleave"));
found.tipHides = getComputedStyle(tip).visibility === "hidden";
document.getElementById("linear").click();
found.linear = getComputedStyle(document.querySelector(".linear")).display === "block" && getComputedStyle(document.querySelector(".logarithmic")).display === "none";
document.querySelector("details").open = true;
found.table = document.querySelector("details table").getBoundingClientRect().height > 30;
parent.postMessage(JSON.stringify(found), "*");
}
</script>`

// frame holds a page at a width that a window of this browser would not go down to, and keeps what the probe sends.
const frame = `<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><body style="margin: 0"><output id="probe"></output>
<script>addEventListener("message", e => document.getElementById("probe").textContent = e.data)</script>
<iframe src="probe.html" style="border: 0; width: %dpx; height: %dpx"></iframe>`

// findings are what the probe leaves.
type findings struct {
	Width, Overflow, Charts, Seen, Marks, Rows int
	Smallest                                   float64
	Tip                                        string
	TipInside, TipHides, Linear, Table         bool
}

// browser is Chromium, with a profile of its own.
type browser struct {
	path, profile string
}

// run opens a page and returns what it writes on standard output and the messages of its console.
func (b *browser) run(page string, flags ...string) (out []byte, console []string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	flags = append([]string{"--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--user-data-dir=" + b.profile, "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr"}, flags...)
	c := exec.CommandContext(ctx, b.path, append(flags, "file://"+page)...)
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	if err := c.Run(); err != nil {
		return nil, nil, fmt.Errorf("%s: %w\n%s", b.path, err, stderr.Bytes())
	}
	for line := range strings.Lines(stderr.String()) {
		if strings.Contains(line, ":CONSOLE") {
			console = append(console, strings.TrimSpace(line))
		}
	}
	return stdout.Bytes(), console, nil
}

func main() {
	path := flag.String("browser", "chromium", "Chromium's program")
	out := flag.String("out", ".", "folder for pictures")
	flag.Parse()
	if err := check(*path, *out, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "page-test:", err)
		os.Exit(1)
	}
}

func check(path, out string, pages []string) error {
	profile, err := os.MkdirTemp("", "nha-page-test-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(profile)
	b := &browser{path, profile}
	if len(pages) == 0 {
		return errors.New("give the pages")
	}
	if err := b.broken(pages[0], profile); err != nil {
		return err
	}
	for _, page := range pages {
		for name, width := range widths {
			if err := b.look(page, profile, width); err != nil {
				return fmt.Errorf("%s at the width of a %s: %w", page, name, err)
			}
			for _, scheme := range []string{"light", "dark"} {
				base := strings.TrimSuffix(filepath.Base(page), ".html")
				picture := filepath.Join(out, fmt.Sprintf("%s-%s-%s.png", base, name, scheme))
				if err := b.picture(page, picture, scheme, width); err != nil {
					return fmt.Errorf("%s: %w", picture, err)
				}
				fmt.Println("ok", picture)
			}
		}
	}
	return nil
}

// broken opens a page with an error and a picture from outside: both must show, or the check sees nothing.
func (b *browser) broken(page, dir string) error {
	text, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	copy := filepath.Join(dir, "broken.html")
	bad := `<img src="http://example.invalid/a.png"><script>undefinedFunction()</script></body>`
	if err := os.WriteFile(copy, bytes.Replace(text, []byte("</body>"), []byte(bad), 1), 0o600); err != nil {
		return err
	}
	_, console, err := b.run(copy, "--dump-dom", "--virtual-time-budget=1000")
	if err != nil {
		return err
	}
	all := strings.Join(console, "\n")
	for _, want := range []string{"example.invalid", "undefinedFunction"} {
		if !strings.Contains(all, want) {
			return fmt.Errorf("a broken page passes: nothing of %s on the console: %s", want, all)
		}
	}
	return nil
}

var probed = regexp.MustCompile(`<output id="probe">(.*?)</output>`)

// look opens a page, and a copy with the probe.
func (b *browser) look(page, dir string, width int) error {
	text, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	copy := filepath.Join(dir, "probe.html")
	if err := os.WriteFile(copy, bytes.Replace(text, []byte("</body>"), []byte(probe+"</body>"), 1), 0o600); err != nil {
		return err
	}
	around := filepath.Join(dir, "frame.html")
	if err := os.WriteFile(around, fmt.Appendf(nil, frame, width, height), 0o600); err != nil {
		return err
	}
	dom, console, err := b.run(around, "--dump-dom", "--virtual-time-budget=2000", fmt.Sprintf("--window-size=%d,%d", max(width, 500), height))
	if err != nil {
		return err
	}
	if len(console) > 0 {
		return fmt.Errorf("the console says: %s", strings.Join(console, "\n"))
	}
	m := probed.FindSubmatch(dom)
	if m == nil || len(m[1]) == 0 {
		return errors.New("the probe did not run")
	}
	var f findings
	if err := json.Unmarshal([]byte(html.UnescapeString(string(m[1]))), &f); err != nil {
		return err
	}
	for what, ok := range map[string]bool{
		"the window has its width":         f.Width == width,
		"nothing is wider than the window": f.Overflow <= 0,
		"there are five charts or more":    f.Charts >= 5 && f.Seen == f.Charts,
		"there are marks":                  f.Marks >= 20,
		"there are tables":                 f.Rows >= 10,
		"letters can be read":              f.Smallest >= 9.5,
		"the pointer shows figures":        strings.Count(f.Tip, "\n") >= 2 && f.TipInside && f.TipHides,
		"axes switch":                      f.Linear,
		"the table opens":                  f.Table,
	} {
		if !ok {
			return fmt.Errorf("not so: %s: %+v", what, f)
		}
	}
	return nil
}

// picture takes a screenshot and looks at its dots: size, ground, many colours.
func (b *browser) picture(page, path, scheme string, width int) error {
	preferred := map[string]int{"dark": 0, "light": 1}[scheme]
	_, console, err := b.run(page, "--screenshot="+path, fmt.Sprintf("--window-size=%d,%d", width, height), fmt.Sprintf("--blink-settings=preferredColorScheme=%d", preferred))
	if err != nil {
		return err
	}
	if len(console) > 0 {
		return fmt.Errorf("the console says: %s", strings.Join(console, "\n"))
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := png.Decode(f)
	if err != nil {
		return err
	}
	size := m.Bounds().Size()
	if size.X != width || size.Y != height {
		return fmt.Errorf("size %v, want %d x %d", size, width, height)
	}
	counts := map[[3]uint32]int{}
	for y := range size.Y {
		for x := range size.X {
			r, g, b, _ := m.At(x, y).RGBA()
			counts[[3]uint32{r >> 8, g >> 8, b >> 8}]++
		}
	}
	most, ground := 0, [3]uint32{}
	for c, n := range counts {
		if n > most {
			most, ground = n, c
		}
	}
	if len(counts) < 100 || most > size.X*size.Y*95/100 {
		return fmt.Errorf("blank: %d colours, %d of %d dots alike", len(counts), most, size.X*size.Y)
	}
	if dark := ground[0] < 128; dark != (scheme == "dark") {
		return fmt.Errorf("ground %v of the scheme %s", ground, scheme)
	}
	return nil
}
