package eval

import (
	"math"
	"strconv"
	"strings"
	"time"
)

// Value is one number of a task with its standard error, NaN where there is none.
type Value struct {
	Metric string
	Value  float64
	Stderr float64
	N      int // documents; of a loss by position: tokens
	Lower  bool
}

// TaskResult is what a task, or a group, gave.
type TaskResult struct {
	Task      string
	Values    []Value
	Documents int
	Truncated int           // requests that were longer than the context and lost their left end
	Skipped   int           // rows that the protocol leaves out
	Shares    *Shares       // of task share
	Elapsed   time.Duration // for the answers
	Tokens    int           // read and generated for them

	task *Task
}

// Report is what an evaluation of one model gave.
type Report struct {
	Model   string
	Hash    string
	Windows string
	Backend string
	Context int
	Limit   int
	Seed    uint64
	Tasks   []*TaskResult
	Groups  []*TaskResult
	Started time.Time
	Elapsed time.Duration
}

// Value finds a metric of a task or group.
func (r *Report) Value(task, metric string) (Value, bool) {
	for _, list := range [][]*TaskResult{r.Tasks, r.Groups} {
		for _, t := range list {
			if t.Task != task {
				continue
			}
			for _, v := range t.Values {
				if v.Metric == metric {
					return v, true
				}
			}
		}
	}
	return Value{}, false
}

// metricName is a metric's name in results: of a task with lengths METRIC@LENGTH, or LENGTH as RULER has it.
func metricName(metric string, length int) string {
	switch {
	case length == 0:
		return metric
	case metric == "":
		return strconv.Itoa(length)
	}
	return metric + "@" + strconv.Itoa(length)
}

// aggregate turns the measures of a task's documents into values, in the order in which they came up.
func aggregate(t *Task, documents []document, measures [][]measure) []Value {
	type series struct {
		metric         Metric
		values, weight []float64
	}
	found := map[string]*series{}
	var order []string
	for i, list := range measures {
		for _, m := range list {
			name := metricName(m.metric, documents[i].length)
			s := found[name]
			if s == nil {
				s = &series{metric: Metric{Name: m.metric, Lower: true, Kind: NegRatio}} // a loss by position
				for _, known := range t.Metrics {
					if known.Name == m.metric {
						s.metric = known
					}
				}
				found[name] = s
				order = append(order, name)
			}
			s.values, s.weight = append(s.values, m.value), append(s.weight, m.weight)
		}
	}
	var list []Value
	for _, name := range order {
		s := found[name]
		v := s.metric.Kind.of(s.values, s.weight)
		v.Metric, v.Lower = name, s.metric.Lower
		list = append(list, v)
	}
	return list
}

// of is the value and its standard error. A mean's is the sample's standard deviation over sqrt(n); what is made of a mean or a ratio has
// the error that it passes on (the delta method; a ratio's by its residuals).
func (k Kind) of(x, weight []float64) Value {
	n := float64(len(x))
	v := Value{N: len(x), Stderr: math.NaN()}
	total := n
	if k != Mean && k != ExpNegMean {
		total = 0
		for _, w := range weight {
			total += w
		}
	}
	sum := 0.0
	for _, a := range x {
		sum += a
	}
	ratio := sum / total
	squares := 0.0
	for i, a := range x {
		w := 1.0
		if k != Mean && k != ExpNegMean {
			w = weight[i]
		}
		d := a - ratio*w
		squares += d * d
	}
	spread := math.NaN()
	if n > 1 {
		spread = math.Sqrt(n/(n-1)*squares) / total
	}
	switch k {
	case Mean:
		v.Value, v.Stderr = ratio, spread
	case ExpNegMean, ExpNegRatio:
		v.Value = math.Exp(-ratio)
		v.Stderr = v.Value * spread
	case BitsRatio:
		v.Value, v.Stderr = -ratio/math.Ln2, spread/math.Ln2
	case NegRatio:
		v.Value, v.Stderr, v.N = -ratio, spread, int(total)
	}
	return v
}

// groups averages the groups of which every task was run, at every length that all of them have.
func groups(results []*TaskResult) []*TaskResult {
	var list []*TaskResult
	for _, group := range Groups {
		g := &TaskResult{Task: group}
		complete := true
		var members []*TaskResult
		for i := range Tasks {
			if Tasks[i].Group != group {
				continue
			}
			var found *TaskResult
			for _, r := range results {
				if r.task == &Tasks[i] {
					found = r
				}
			}
			if found == nil {
				complete = false
				break
			}
			if Tasks[i].Average != "" {
				members = append(members, found)
			}
			g.Documents += found.Documents
		}
		if !complete || len(members) == 0 {
			continue
		}
		for _, suffix := range suffixes(members[0]) {
			sum, squares, n := 0.0, 0.0, 0
			for _, m := range members {
				want := strings.TrimPrefix(m.task.Average, "*")
				if suffix != "" {
					want = strings.TrimPrefix(want+"@"+suffix, "@")
				}
				for _, v := range m.Values {
					if v.Metric == want {
						sum, squares, n = sum+v.Value, squares+v.Stderr*v.Stderr, n+1
					}
				}
			}
			if n == len(members) {
				name := "average"
				if suffix != "" {
					name += "@" + suffix
				}
				g.Values = append(g.Values, Value{Metric: name, Value: sum / float64(n), Stderr: math.Sqrt(squares) / float64(n), N: n})
			}
		}
		list = append(list, g)
	}
	return list
}

// suffixes are the lengths of a task's values, or "" where it has none.
func suffixes(t *TaskResult) (list []string) {
	for _, v := range t.Values {
		want := strings.TrimPrefix(t.task.Average, "*")
		switch name := v.Metric; {
		case name == want:
			list = append(list, "")
		case want == "":
			list = append(list, name)
		case strings.HasPrefix(name, want+"@"):
			list = append(list, name[len(want)+1:])
		}
	}
	return list
}
