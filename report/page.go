package report

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"nha/bench"
	"nha/plot"
	"nha/train"
)

// Page is the report as a page.
func (r *Report) Page() *bench.Page {
	p := &bench.Page{Title: "Report: " + bench.ShortName(absolute(r.Dir)), Lead: "What lies below this folder: " + r.String() + ".", Command: "nha report " + r.Dir,
		About: []bench.Fact{{Name: "folder", Value: absolute(r.Dir)}, {Name: "nha", Value: r.Version}, {Name: "date", Value: r.Created.Format("2 January 2006, 15:04 MST")}}}
	p.Sections = slices.Concat(r.training(), r.evaluations(), r.curves(), r.conversions(), r.memory())
	p.Findings = r.findings()
	if run := r.bestRun(); run != nil {
		p.Headline = append(p.Headline, bench.Headline{Value: bench.FormatNumber(float64(run.Best)), Label: "Best validation loss, nats per token", Note: run.Name})
	}
	for _, c := range r.Curves {
		for _, h := range c.Set.Headlines() {
			if h.Place {
				continue // that is on the curves' own page
			}
			if len(r.Curves) > 1 {
				h.Note = c.Name + ": " + h.Note
			}
			p.Headline = append(p.Headline, h)
		}
	}
	return p
}

// findings are what the numbers come to, in sentences.
func (r *Report) findings() (list []string) {
	if run := r.bestRun(); run != nil {
		list = append(list, fmt.Sprintf("%s has the lowest validation loss, %s nats per token, after %s million tokens in %s.", run.Name, bench.FormatNumber(float64(run.Best)),
			bench.FormatNumber(float64(run.Last.Tokens)/1e6), elapsed(run)))
	}
	if t := table(r.Evaluations); len(t.Rows) > 0 && len(t.Head) > 2 && t.Rows[0][2].Text != "" {
		list = append(list, fmt.Sprintf("%s %s: %s.", t.Rows[0][0].Text, map[bool]string{true: "is first in " + t.Head[2], false: "has a " + t.Head[2]}[len(t.Rows) > 1], t.Rows[0][2].Text))
	}
	for _, s := range r.Shares {
		most := 0
		for i, w := range s.Shares.Layers {
			if w > s.Shares.Layers[most] {
				most = i
			}
		}
		list = append(list, fmt.Sprintf("%s reads its slots most in layer %d: %.0f%% of the attention there.", s.Name, most, 100*s.Shares.Layers[most]))
	}
	for _, c := range r.Curves {
		for _, sentence := range c.Set.Findings() {
			if len(r.Curves) > 1 {
				sentence = c.Name + ": " + sentence
			}
			list = append(list, sentence)
		}
	}
	for _, c := range r.Conversions {
		if n := len(c.Report.Stages); n > 0 {
			last := c.Report.Stages[n-1]
			text := fmt.Sprintf("%s is %.4f nats from its base %s, with a perplexity of %s", c.Name, last.KL, bench.ShortName(c.Report.Base), bench.FormatNumber(last.Perplexity))
			if c.Report.BasePerplexity > 0 {
				text += " against " + bench.FormatNumber(c.Report.BasePerplexity)
			}
			list = append(list, text+".")
		}
	}
	return list
}

// elapsed is a run's time for people.
func elapsed(run *Run) string {
	return time.Duration(run.Last.Elapsed * float64(time.Second)).Round(time.Second).String()
}

// bestRun is the run with the lowest validation loss; nil where none has validated.
func (r *Report) bestRun() (best *Run) {
	for i := range r.Training {
		if run := &r.Training[i]; known(run.Best) && (best == nil || run.Best < best.Best) {
			best = run
		}
	}
	return best
}

func (r *Report) training() []bench.Section {
	if len(r.Training) == 0 {
		return nil
	}
	axes := plot.Axis{Label: "million tokens"}
	loss := bench.Figure{Chart: plot.Chart{Title: "Training loss", X: axes, Y: plot.Axis{Label: "nats per token"}}, XUnit: "million tokens", Caption: "Mean over the tokens between two lines of the log, smoothed."}
	validation := bench.Figure{Chart: plot.Chart{Title: "Validation loss", X: axes, Y: plot.Axis{Label: "nats per token"}}, XUnit: "million tokens", Caption: "On text that was held out. Lower is better."}
	t := bench.PageTable{Head: []string{"run", "steps", "million tokens", "loss", "validation", "best validation", "bits per byte", "tokens/s", "time"}}
	best := r.bestRun()
	for i := range r.Training {
		run := &r.Training[i]
		x, y := thinned(run.lines, func(l train.Line) train.Number { return l.Loss })
		loss.Series = append(loss.Series, plot.Series{Name: run.Name, X: x, Y: plot.Smooth(y, float64(len(y))/40), Points: len(x) <= 100, Color: i + 1})
		if vx, vy := thinned(run.lines, func(l train.Line) train.Number { return l.ValidationLoss }); len(vx) > 0 {
			validation.Series = append(validation.Series, plot.Series{Name: run.Name, X: vx, Y: vy, Points: true, Color: i + 1})
		}
		bits, final := nan, nan
		for _, l := range run.lines {
			if known(l.ValidationLoss) {
				final, bits = float64(l.ValidationLoss), float64(l.BitsPerByte)
			}
		}
		t.Rows = append(t.Rows, []bench.Cell{{Text: run.Name}, {Text: fmt.Sprint(run.Last.Step)}, {Text: bench.FormatNumber(float64(run.Last.Tokens) / 1e6)},
			{Text: bench.FormatNumber(float64(run.Last.Loss))}, {Text: bench.FormatNumber(final)}, {Text: bench.FormatNumber(float64(run.Best)), Best: run == best && len(r.Training) > 1},
			{Text: bench.FormatNumber(bits)}, {Text: bench.FormatNumber(run.TokensPerS)}, {Text: elapsed(run)}})
	}
	s := bench.Section{Title: "Training", Figures: []bench.Figure{loss}, Tables: []bench.PageTable{t}}
	if len(validation.Series) > 0 {
		s.Figures = append(s.Figures, validation)
	}
	return []bench.Section{s}
}

// most is how many points a line of a page has.
const most = 300

// thinned is a number of the log against million tokens, as means of stretches where there are many lines.
func thinned(lines []train.Line, of func(train.Line) train.Number) (x, y []float64) {
	var have []train.Line
	for _, l := range lines {
		if known(of(l)) {
			have = append(have, l)
		}
	}
	parts := min(most, len(have))
	for i := range parts {
		part := have[i*len(have)/parts : (i+1)*len(have)/parts]
		sum := 0.0
		for _, l := range part {
			sum += float64(of(l))
		}
		x, y = append(x, float64(part[len(part)-1].Tokens)/1e6), append(y, sum/float64(len(part)))
	}
	return x, y
}

func (r *Report) evaluations() (list []bench.Section) {
	if len(r.Evaluations) > 0 {
		s := bench.Section{Title: "Evaluations", Text: "Scores with their standard errors; of a model that was measured several times, the newest. The best is in bold."}
		if t := table(r.Evaluations); len(t.Head) > 2 {
			s.Tables = append(s.Tables, t)
		}
		if f := byPosition(r.Evaluations); len(f.Series) > 0 {
			s.Figures = append(s.Figures, f)
		}
		list = append(list, s)
	}
	if len(r.Shares) == 0 {
		return list
	}
	s := bench.Section{Title: "Slot share", Text: "How much of a token's attention reads long-term memory."}
	for _, x := range r.Shares {
		charts := x.Shares.Charts()
		for _, name := range []string{"slot_share_layers", "slot_share_positions"} {
			c := *charts[name]
			c.Title += ": " + x.Name
			f := bench.Figure{Chart: c, Caption: fmt.Sprintf("Means over %d tokens.", x.Shares.Tokens)}
			if c.X.Binary {
				f.XUnit = "tokens"
			}
			s.Figures = append(s.Figures, f)
		}
	}
	return append(list, s)
}

// byPosition is the loss of a text against position, of every model that has it.
func byPosition(list []Evaluation) bench.Figure {
	f := bench.Figure{Chart: plot.Chart{Title: "Loss by position", X: plot.Axis{Label: "position in the window, tokens", Log: true, Binary: true}, Y: plot.Axis{Label: "nats per token"}},
		Caption: "What more context is worth: the mean over the tokens of an octave, at its middle. Lower is better.", XUnit: "tokens", Wide: true}
	for _, e := range list {
		line := plot.Series{Name: bench.ShortName(e.Model), Points: true}
		points := map[float64]float64{}
		for _, s := range e.Scores {
			var from, to float64
			if n, _ := fmt.Sscanf(s.Metric, "loss@%f-%f", &from, &to); n == 2 {
				points[math.Round(math.Sqrt(max(1, from)*to))] = s.Value
			}
		}
		for _, x := range slices.Sorted(maps.Keys(points)) {
			line.X, line.Y = append(line.X, x), append(line.Y, points[x])
		}
		if len(line.X) > 0 {
			f.Series = append(f.Series, line)
		}
	}
	return f
}

func (r *Report) curves() (list []bench.Section) {
	for _, c := range r.Curves {
		title := "Curves"
		if len(r.Curves) > 1 {
			title += ": " + c.Name
		}
		list = append(list, bench.Section{Title: title, Text: fmt.Sprintf("Measured on %s with %s, %s.", c.Set.Created.Format("2 January 2006"), c.Set.Backend, c.Set.Version), Figures: c.Set.Figures()})
	}
	return list
}

func (r *Report) conversions() []bench.Section {
	if len(r.Conversions) == 0 {
		return nil
	}
	s := bench.Section{Title: "Conversions", Text: "Pretrained models turned into hybrids; KL and perplexity are of held-out text after a stage."}
	stages := bench.PageTable{Title: "Stages", Head: []string{"hybrid", "base", "windows", "stage", "steps", "million tokens", "KL to the base", "perplexity"}}
	tasks := bench.PageTable{Title: "Tasks", Head: []string{"hybrid", "task", "metric", "base value", "hybrid value"}}
	shares := bench.Figure{Chart: plot.Chart{Title: "Slot share by layer", X: plot.Axis{Label: "layer", Whole: true}, Y: plot.Axis{Label: "share of attention that reads slots"}},
		Caption: "How much of every layer's attention reads long-term memory."}
	errors := bench.Figure{Chart: plot.Chart{Title: "Error of every layer's attention", X: plot.Axis{Label: "layer", Whole: true}, Y: plot.Axis{Label: "|y − base|² / |base|²", Log: true}},
		Caption: "Against the base, after the last stage. Full layers have none."}
	for i, c := range r.Conversions {
		var x, share, last []float64
		for _, stage := range c.Report.Stages {
			stages.Rows = append(stages.Rows, []bench.Cell{{Text: c.Name}, {Text: bench.ShortName(c.Report.Base)}, {Text: c.Report.Windows}, {Text: stage.Kind}, {Text: fmt.Sprint(stage.Steps)},
				{Text: bench.FormatNumber(float64(stage.Tokens) / 1e6)}, {Text: fmt.Sprintf("%.4f", stage.KL)}, {Text: bench.FormatNumber(stage.Perplexity)}})
			last = stage.Errors
		}
		for _, t := range c.Report.Tasks {
			lower := t.Metric == "perplexity" || t.Metric == "word_perplexity" || t.Metric == "byte_perplexity" || t.Metric == "bits_per_byte"
			better := t.Hybrid > t.Base != lower && t.Hybrid != t.Base
			tasks.Rows = append(tasks.Rows, []bench.Cell{{Text: c.Name}, {Text: t.Task}, {Text: t.Metric}, {Text: fmt.Sprintf("%.4f", t.Base), Best: !better && t.Hybrid != t.Base},
				{Text: fmt.Sprintf("%.4f", t.Hybrid), Best: better}})
		}
		for n, l := range c.Report.Layers {
			x, share = append(x, float64(n)), append(share, l.SlotShare)
		}
		shares.Series = append(shares.Series, plot.Series{Name: c.Name, X: x, Y: share, Points: true, Color: i + 1})
		if len(last) == len(x) {
			errors.Series = append(errors.Series, plot.Series{Name: c.Name, X: x, Y: last, Points: true, Color: i + 1})
		}
	}
	s.Figures, s.Tables = []bench.Figure{shares, errors}, []bench.PageTable{stages}
	if len(tasks.Rows) > 0 {
		s.Tables = append(s.Tables, tasks)
	}
	return []bench.Section{s}
}

// memory is what sequences cost: of runs by their configurations, of conversions by their reports.
func (r *Report) memory() []bench.Section {
	f := bench.Figure{Chart: plot.Chart{Title: "Memory of a sequence", X: plot.Axis{Label: "tokens", Log: true, Binary: true}, Y: plot.Axis{Label: "MiB", Log: true}}, XUnit: "tokens", YUnit: "MiB",
		Caption: "Decode state in float32, from the configurations. Dashed: keys and values of full attention in its place."}
	t := bench.PageTable{Head: []string{"run", "windows", "slots", "parameters"}}
	for _, n := range depths {
		t.Head = append(t.Head, plot.Binary(float64(n))+" tokens")
	}
	t.Head = append(t.Head, "of full attention")
	add := func(name, windows string, slots int, parameters string, states []StateMemory) {
		state, kv := plot.Series{Name: name, Points: true, Color: len(t.Rows) + 1}, plot.Series{Dashed: true, Color: len(t.Rows) + 1}
		row := []bench.Cell{{Text: name}, {Text: windows}, {Text: fmt.Sprint(slots)}, {Text: parameters}}
		ratio := math.NaN()
		for _, s := range states {
			state.X, state.Y = append(state.X, float64(s.Tokens)), append(state.Y, float64(s.State)/(1<<20))
			kv.X, kv.Y = append(kv.X, float64(s.Tokens)), append(kv.Y, float64(s.KV)/(1<<20))
			row = append(row, bench.Cell{Text: bench.FormatBytes(float64(s.State))})
			ratio = float64(s.State) / float64(s.KV)
		}
		row = append(row, bench.Cell{Text: fmt.Sprintf("%.2f%%", 100*ratio)})
		t.Rows = append(t.Rows, row)
		f.Series = append(f.Series, state, kv)
	}
	for _, run := range r.Training {
		if m := run.Memory; m != nil {
			add(run.Name, m.Windows, m.Slots, fmt.Sprintf("%.1f M", float64(m.Parameters)/1e6), m.States)
		}
	}
	for _, c := range r.Conversions {
		var states []StateMemory
		for _, b := range c.Report.Bytes {
			states = append(states, StateMemory{b.Tokens, b.State, b.KV})
		}
		if len(states) == len(depths) {
			add(c.Name, c.Report.Windows, c.Report.Slots, "", states)
		}
	}
	if len(t.Rows) == 0 {
		return nil
	}
	return []bench.Section{{Title: "Memory", Figures: []bench.Figure{f}, Tables: []bench.PageTable{t}}}
}
