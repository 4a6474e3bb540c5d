package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"nha/backend"
	"nha/generate"
	"nha/model"
)

// Curves measures what constant memory buys: the time of a decoding step and the memory against depth, the time to the first
// token against a prompt's length, tokens/s against the sessions of a step. Every model is measured as it is, with all windows
// full and with all windows at 64; what would be the same twice is measured once.
//
// A depth is reached with a synthetic state, as in Decode; prompts are read in full. A point that would not fit into memory, or would
// take longer than Limit by the points before it, is kept with the reason in place of figures.
type Curves struct {
	Models     []string
	Size       ModelSize // of presets
	Slots      int       // what a model without slots gets where its windows are 64, with gates that nobody trained; 0: none, a sliding window alone
	Depths     []int     // tokens before the step, and lengths of prompts
	Batches    []int
	BatchDepth int
	Memory     int     // bytes that may be used on top of those in use; 0: what the system says is free
	Limit      float64 // seconds that a single step or prompt may take
	Command    string  // repeats the measurement
	Machine    []Fact
	Notice     func(string) // told what is about to be measured; nil: nobody
	Timing

	paths []string
	free  func() int // bytes, 0: unknown; tests give their own
}

// Fact is a thing that is said about a measurement.
type Fact struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// narrow is the window that every model is measured with.
const narrow = 64

// The curves that a point can lie on.
const (
	CurveDecode  = "decode"  // against depth, one session
	CurveBatch   = "batch"   // decoding against sessions, at one depth
	CurvePrefill = "prefill" // against the length of a prompt
)

// CurvePoint is one figure. Depth counts the tokens before a decoding step, or those of a prompt. StateBytes is the state of one session,
// ResidentBytes the whole process on the host with the weights. Skipped says why there are none.
type CurvePoint struct {
	Curve           string  `json:"curve"`
	Model           string  `json:"model"`
	Windows         string  `json:"windows"`
	Slots           int     `json:"slots"`
	Depth           int     `json:"depth"`
	Batch           int     `json:"batch"`
	MS              float64 `json:"ms"` // a step's, or until the first token
	TokensPerSecond float64 `json:"tokens_per_s"`
	StateBytes      int     `json:"state_bytes"`
	ResidentBytes   int     `json:"resident_bytes"`
	Runs            int     `json:"runs"` // of which MS is the median
	Skipped         string  `json:"skipped,omitempty"`
}

// Variant is a model with windows.
type Variant struct {
	Model       string `json:"model"`
	Windows     string `json:"windows"`
	Slots       int    `json:"slots"`
	Added       bool   `json:"slots_added"` // the model has none of its own
	AsIs        bool   `json:"as_it_is"`
	Parameters  int    `json:"parameters"`
	DType       string `json:"dtype"`
	Context     int    `json:"context"` // that the model was trained for
	WeightBytes int    `json:"weight_bytes"`
}

// Name tells variants apart.
func (v Variant) Name() string {
	name := "windows " + v.Windows
	if v.Windows == "full" {
		name = "full attention"
	}
	if v.Slots > 0 {
		name += fmt.Sprintf(", %d slots", v.Slots)
	}
	return name
}

// owns reports whether a point is of this variant.
func (v Variant) owns(p CurvePoint) bool {
	return p.Model == v.Model && p.Windows == v.Windows && p.Slots == v.Slots
}

// CurveSet is what a measurement gave, as curves.json holds it.
type CurveSet struct {
	Format     string       `json:"format"` // CurvesFormat
	Created    time.Time    `json:"created"`
	Version    string       `json:"version"`
	Command    string       `json:"command"`
	Machine    []Fact       `json:"machine"`
	Backend    string       `json:"backend"`
	BatchDepth int          `json:"batch_depth"`
	Limit      float64      `json:"limit_s"`
	Variants   []Variant    `json:"variants"`
	Points     []CurvePoint `json:"points"`
}

// CurvesFormat marks a curves.json.
const CurvesFormat = "nha-curves-1"

// Check refuses models that are not there, and depths, batches and limits that are none.
func (o *Curves) Check() error {
	if len(o.Models) == 0 {
		return errors.New("give a MODEL: a directory, a .gguf file, org/name of the Hugging Face cache, or a preset")
	}
	o.paths = nil
	for i, name := range o.Models {
		path := ""
		switch {
		case slices.Contains(o.Models[:i], name):
			return fmt.Errorf("model %s is given twice", name)
		case IsPreset(name):
			if _, err := o.Size.config(name); err != nil {
				return err
			}
		default:
			var err error
			if path, err = model.Find(name); err != nil {
				return err
			}
		}
		o.paths = append(o.paths, path)
	}
	for _, err := range []error{positive("depths", o.Depths, 1), positive("batches", o.Batches, 1), positive("batch-depth", []int{o.BatchDepth}, 1), o.Timing.Check()} {
		if err != nil {
			return err
		}
	}
	switch {
	case o.Slots < 0 || o.Slots > 1<<16:
		return fmt.Errorf("slots %d: must be from 0 to 65536", o.Slots)
	case !(o.Limit > 0):
		return fmt.Errorf("limit %v: must be above 0 seconds", o.Limit)
	case o.Memory < 0:
		return fmt.Errorf("memory %d: must be from 0 bytes", o.Memory)
	}
	o.Depths, o.Batches = ascending(o.Depths), ascending(o.Batches)
	return nil
}

func ascending(list []int) []int { return slices.Compact(slices.Sorted(slices.Values(list))) }

// Run measures all models. What was measured before an error, or before ctx ended, is returned with it.
func (o *Curves) Run(ctx context.Context, b backend.Backend, emit func(CurvePoint) error) (*CurveSet, error) {
	set := &CurveSet{Format: CurvesFormat, Created: time.Now().UTC().Truncate(time.Second), Version: Version(), Command: o.Command, Machine: o.Machine,
		Backend: b.Name() + ": " + b.Describe(), BatchDepth: o.BatchDepth, Limit: o.Limit}
	for i := range o.Models {
		asIs, err := o.load(b, i, "", 0)
		if err != nil {
			return set, err
		}
		own := Variant{Windows: asIs.m.Config.LayerWindows.String(), Slots: asIs.m.Config.NumSlots}
		if err := o.variant(ctx, set, asIs, true, emit); err != nil {
			return set, err
		}
		for _, windows := range []string{"full", fmt.Sprint(narrow)} {
			add := 0
			if windows != "full" && own.Slots == 0 {
				add = o.Slots
			}
			if own.Windows == windows && add == 0 {
				continue // measured as it is
			}
			v, err := o.load(b, i, windows, add)
			if err != nil {
				return set, err
			}
			if err := o.variant(ctx, set, v, false, emit); err != nil {
				return set, err
			}
		}
	}
	return set, nil
}

// loaded is a model that is being measured.
type loaded struct {
	Variant
	m     *model.Model
	close func()
}

// load opens a model with all windows as told, or its own.
func (o *Curves) load(b backend.Backend, i int, windows string, slots int) (*loaded, error) {
	l := &loaded{Variant: Variant{Model: o.Models[i], Added: slots > 0}}
	if IsPreset(o.Models[i]) {
		d := Decode{Model: o.Models[i], Size: o.Size}
		if windows != "" {
			d.Size.Windows = windows
		}
		if slots > 0 {
			d.Model, d.Size.Slots = "nha", slots // the presets without slots are nha's, with none
		}
		var err error
		if l.m, l.close, err = d.load(b, ""); err != nil {
			return nil, err
		}
	} else {
		options := model.LoadOptions{Windows: windows}
		if slots > 0 {
			options.Hybrid = &model.Hybrid{Slots: slots}
		}
		m, err := model.Load(o.paths[i], b, options)
		if err != nil {
			return nil, err
		}
		l.m, l.close = m, func() { m.Close() }
	}
	c := &l.m.Config
	l.Windows, l.Slots, l.Context = c.LayerWindows.String(), c.NumSlots, c.MaxPositionEmbeddings
	l.Parameters, l.WeightBytes = c.Account(1).Parameters, 0
	counts := map[string]int{}
	for _, p := range l.m.Tensors() {
		n := p.Value.DType.Bytes(p.Value.Len())
		l.WeightBytes += n
		if counts[dtypeName(p.Value.DType)] += n; counts[dtypeName(p.Value.DType)] > counts[l.DType] {
			l.DType = dtypeName(p.Value.DType) // that most of the weights have
		}
	}
	return l, nil
}

// variant measures all curves of one model and closes it.
func (o *Curves) variant(ctx context.Context, set *CurveSet, l *loaded, asIs bool, emit func(CurvePoint) error) error {
	defer settle()
	defer l.close()
	l.AsIs = asIs
	set.Variants = append(set.Variants, l.Variant)
	for _, c := range []struct {
		curve   string
		list    []int
		power   float64 // of n with which the time grows at least
		measure func(context.Context, *loaded, *CurvePoint) error
	}{{CurveDecode, o.Depths, 0, o.decode}, {CurveBatch, o.Batches, 0, o.decode}, {CurvePrefill, o.Depths, 1, o.prefill}} {
		var known [][2]float64 // size and milliseconds of the points that were measured
		if c.curve == CurvePrefill && c.list[0] > 2*probe {
			p := CurvePoint{Depth: probe}
			if err := guarded(&p, func() error { return o.prefill(ctx, l, &p) }); err != nil {
				return err
			}
			known = append(known, [2]float64{probe, max(p.MS, 1e-6)})
		}
		for _, n := range c.list {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			p := CurvePoint{Curve: c.curve, Model: l.Model, Windows: l.Windows, Slots: l.Slots, Depth: n, Batch: 1}
			if c.curve == CurveBatch {
				p.Depth, p.Batch = o.BatchDepth, n
			}
			if o.Notice != nil {
				o.Notice(fmt.Sprintf("%s, %s: %s at %d tokens, batch %d", l.Model, l.Name(), c.curve, p.Depth, p.Batch))
			}
			settle()
			expected := predict(known, n, c.power) / 1e3
			switch p.Skipped = o.memoryFor(l, &p); {
			case p.Skipped != "":
			case expected > o.Limit:
				p.Skipped = fmt.Sprintf("would take about %s, the limit is %s", span(expected), span(o.Limit))
			default:
				if err := guarded(&p, func() error { return c.measure(ctx, l, &p) }); err != nil {
					return err
				}
			}
			if p.Skipped == "" {
				known = append(known, [2]float64{float64(n), p.MS})
			}
			set.Points = append(set.Points, p)
			if err := emit(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// probe is the length of a prompt that says how long the first of a curve will take, where that is long.
const probe = 128

// guarded turns a failure of a device, such as memory that does not suffice, into a point that is skipped.
func guarded(p *CurvePoint, measure func() error) (err error) {
	defer func() {
		if f := recover(); f != nil {
			fault, ok := f.(backend.Fault)
			if !ok {
				panic(f)
			}
			p.MS, p.TokensPerSecond, p.StateBytes, p.ResidentBytes, p.Skipped = 0, 0, 0, 0, "the device failed: "+fault.Error()
		}
	}()
	return measure()
}

// predict is the time at n from those at smaller sizes, by the power of n that the last three show, at least the one given and at most 2; 0
// where nothing is known.
func predict(known [][2]float64, n int, least float64) float64 {
	if len(known) == 0 {
		return 0
	}
	last, power := known[len(known)-1], least
	if len(known) > 1 {
		before := known[max(0, len(known)-3)]
		power = min(2, max(least, math.Log(last[1]/before[1])/math.Log(last[0]/before[0])))
	}
	return last[1] * math.Pow(float64(n)/last[0], power)
}

// span writes seconds for people.
func span(seconds float64) string {
	switch {
	case seconds >= 100:
		return fmt.Sprintf("%.0f min", math.Ceil(seconds/60))
	case seconds >= 1:
		return fmt.Sprintf("%.0f s", seconds)
	}
	return fmt.Sprintf("%.2g s", seconds)
}

// memoryFor says why a point's states do not fit: on top of what they hold a twentieth, and the logits.
func (o *Curves) memoryFor(l *loaded, p *CurvePoint) string {
	need := 0.0
	element := l.m.NewState().Layers[0].DType().Size()
	for i := range l.m.Config.NumHiddenLayers {
		c, err := l.m.Config.Attention(i, nil)
		if err != nil {
			panic("bench: a loaded model's configuration: " + err.Error())
		}
		need += float64(c.StateBytes(p.Depth+1, element))
	}
	need = need*float64(p.Batch)*1.05 + 4*float64(p.Batch)*float64(l.m.Config.VocabSize)
	free := o.Memory
	if free == 0 && o.free != nil {
		free = o.free()
	} else if free == 0 {
		free = freeMemory()
	}
	if need <= float64(free) {
		return ""
	}
	return fmt.Sprintf("needs %s of memory, %s may be used", FormatBytes(need), FormatBytes(float64(free)))
}

// FormatBytes writes bytes for people.
func FormatBytes(bytes float64) string {
	if bytes >= 1<<30 {
		return fmt.Sprintf("%.1f GiB", bytes/(1<<30))
	}
	return fmt.Sprintf("%.1f MiB", bytes/(1<<20))
}

// runsOf is the median of f in milliseconds and the number of runs. A call that is long is made once: it warms up by itself.
func (o *Curves) runsOf(ctx context.Context, f func()) (ms float64, runs int, err error) {
	if first := elapsed(f); first > max(2, o.Seconds) {
		return first * 1e3, 1, nil
	}
	list, err := o.runs(ctx, f)
	if err != nil {
		return 0, 0, err
	}
	return median(list) * 1e3, len(list), nil
}

func (o *Curves) decode(ctx context.Context, l *loaded, p *CurvePoint) (err error) {
	defer forget(l.m, p.Batch)
	d := newDecoder(l.m, p.Batch, p.Depth)
	defer d.close()
	settle()
	if p.MS, p.Runs, err = o.runsOf(ctx, d.step); err != nil {
		return err
	}
	p.TokensPerSecond, p.StateBytes = float64(p.Batch)/p.MS*1e3, d.states[0].Bytes()
	p.ResidentBytes, _, _ = resident()
	return nil
}

// forget makes a step of as many empty states: a backend's scratch points to the states of its last call, and thereby keeps them in memory.
func forget(m *model.Model, batch int) {
	d := newDecoder(m, batch, 0)
	defer d.close()
	d.step()
}

func (o *Curves) prefill(ctx context.Context, l *loaded, p *CurvePoint) (err error) {
	text := newPrompt(l.m, p.Depth, generate.DefaultChunk(l.m.Backend()))
	defer text.tape.Close()
	if p.MS, p.Runs, err = o.runsOf(ctx, text.read); err != nil {
		return err
	}
	p.TokensPerSecond, p.StateBytes = float64(p.Depth)/p.MS*1e3, text.state.Bytes()
	p.ResidentBytes, _, _ = resident()
	return nil
}

// Crossing is where a model with windows of 64 overtakes the same model with full attention.
type Crossing struct {
	Model string
	What  string  // "time" or "memory"
	Depth float64 // tokens, between measured depths on logarithmic scales; NaN where it does not within what was measured
	Least bool    // it is ahead from the first depth on
	At    int     // the greatest depth that both were measured at
	Ratio float64 // there: full attention's figure over the other's
}

// Crossings are those of every model for a step's time and a session's memory.
func (s *CurveSet) Crossings() (list []Crossing) {
	for _, pair := range s.pairs() {
		for _, what := range []string{"time", "memory"} {
			value := func(p CurvePoint) float64 { return p.MS }
			if what == "memory" {
				value = func(p CurvePoint) float64 { return float64(p.StateBytes) }
			}
			if c, ok := crossing(s.curve(pair[0], CurveDecode), s.curve(pair[1], CurveDecode), value); ok {
				c.Model, c.What = pair[1].Model, what
				list = append(list, c)
			}
		}
	}
	return list
}

// curve is the measured points of a variant.
func (s *CurveSet) curve(v Variant, name string) (list []CurvePoint) {
	for _, p := range s.Points {
		if p.Curve == name && v.owns(p) && p.Skipped == "" {
			list = append(list, p)
		}
	}
	return list
}

// crossing compares two curves at the depths that both have, from the deepest down to the last where other is not ahead.
func crossing(full, other []CurvePoint, value func(CurvePoint) float64) (Crossing, bool) {
	var depth, ratio []float64 // ratio: above 1 where other is ahead
	for _, f := range full {
		for _, p := range other {
			if p.Depth == f.Depth {
				depth, ratio = append(depth, float64(f.Depth)), append(ratio, value(f)/value(p))
			}
		}
	}
	n := len(depth) - 1
	if n < 0 {
		return Crossing{}, false
	}
	c := Crossing{Depth: math.NaN(), At: int(depth[n]), Ratio: ratio[n]}
	if ratio[n] <= 1 {
		return c, true
	}
	i := n
	for i > 0 && ratio[i-1] > 1 {
		i--
	}
	if c.Depth = depth[i]; i == 0 {
		c.Least = true
		return c, true
	}
	low, high := math.Log(ratio[i-1]), math.Log(ratio[i])
	c.Depth = depth[i-1] * math.Pow(depth[i]/depth[i-1], -low/(high-low))
	return c, true
}

// Tokens writes where the crossing is; where there is none, up to where that is known.
func (c Crossing) Tokens() string {
	switch {
	case math.IsNaN(c.Depth):
		return tokens(c.At)
	case c.Least:
		return tokens(int(c.Depth)) + " or less"
	}
	digits := math.Pow(10, math.Floor(math.Log10(c.Depth))-1)
	return tokens(int(math.Round(c.Depth/digits) * digits))
}

// ShortName is a model's name without its folders and the ending of a file.
func ShortName(model string) string {
	model = strings.TrimRight(strings.ReplaceAll(model, `\`, "/"), "/")
	return strings.TrimSuffix(model[strings.LastIndexByte(model, '/')+1:], ".gguf")
}

// ParseCounts reads a list of counts such as 128,512 or 2K..128K: K is 1024, M 1024 K, G 1024 M, and A..B doubles from A up to B.
func ParseCounts(text string) (list []int, err error) {
	for _, word := range strings.Split(text, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(word), "..")
		a, err := ParseCount(from)
		if err != nil {
			return nil, err
		}
		if !isRange {
			list = append(list, a)
			continue
		}
		b, err := ParseCount(to)
		if err != nil {
			return nil, err
		}
		if a < 1 || b < a {
			return nil, fmt.Errorf("range %q: must go from 1 or more up", word)
		}
		for ; a < b; a *= 2 {
			list = append(list, a)
		}
		list = append(list, b)
	}
	return list, nil
}

// ParseCount reads a count such as 100, 8K or 2M.
func ParseCount(word string) (int, error) {
	number, unit := word, 1
	if n := len(word) - 1; n > 0 {
		if power := strings.IndexByte("KMG", word[n]&^0x20); power >= 0 {
			number, unit = word[:n], 1<<(10*(power+1))
		}
	}
	n, err := strconv.Atoi(number)
	if err != nil || n > math.MaxInt/unit || n < math.MinInt/unit {
		return 0, fmt.Errorf("%q: want a number such as 512, 8K or 1M", word)
	}
	return n * unit, nil
}
