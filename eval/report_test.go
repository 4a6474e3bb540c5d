package eval

import (
	"bytes"
	"context"
	"encoding/json"
	"math"
	"os"
	"strings"
	"testing"
	"time"
)

func TestAggregates(t *testing.T) {
	near := func(what string, got, want float64) {
		t.Helper()
		if math.Abs(got-want) > 1e-12*math.Max(1, math.Abs(want)) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	v := Mean.of([]float64{1, 0, 0, 1, 1}, nil)
	near("mean", v.Value, 0.6)
	near("its error", v.Stderr, math.Sqrt(0.3/5)) // sample variance 1.2/4
	v = ExpNegMean.of([]float64{-1, -2, -3}, nil)
	near("perplexity", v.Value, math.Exp(2))
	near("its error", v.Stderr, math.Exp(2)/math.Sqrt(3))
	v = BitsRatio.of([]float64{-6, -2}, []float64{3, 1})
	near("bits", v.Value, 2/math.Ln2)
	near("their error", v.Stderr, 0)
	if v = Mean.of([]float64{1}, nil); !math.IsNaN(v.Stderr) {
		t.Errorf("one value has the error %v", v.Stderr)
	}
}

// reportOf is a report with one value a task.
func reportOf(model string, values map[string]float64) *Report {
	r := &Report{Model: model, Started: time.Unix(0, 0)}
	for i := range Tasks {
		if v, ok := values[Tasks[i].Name]; ok {
			metric := strings.TrimPrefix(Tasks[i].Average, "*")
			if metric == "" {
				metric = "word_perplexity"
			}
			r.Tasks = append(r.Tasks, &TaskResult{Task: Tasks[i].Name, task: &Tasks[i], Documents: 2,
				Values: []Value{{Metric: metric, Value: v, Stderr: 0.01, N: 2, Lower: metric == "word_perplexity"}}})
		}
	}
	r.Groups = groups(r.Tasks)
	return r
}

// TestGroups: the average is over the metrics that the tables of papers take, and only where no task is missing.
func TestGroups(t *testing.T) {
	all := map[string]float64{"arc_easy": .1, "arc_challenge": .2, "hellaswag": .3, "lambada_openai": .4, "piqa": .5, "winogrande": .6, "lambada_standard": .9, "wikitext": 20}
	r := reportOf("a", all)
	if v, ok := r.Value("commonsense", "average"); !ok || math.Abs(v.Value-.35) > 1e-12 || math.Abs(v.Stderr-math.Sqrt(6)*.01/6) > 1e-12 {
		t.Errorf("average %+v", v)
	}
	delete(all, "piqa")
	if _, ok := reportOf("a", all).Value("commonsense", "average"); ok {
		t.Error("an average without one of its tasks")
	}
}

// TestTable: several models are sorted, the best of every column in bold.
func TestTable(t *testing.T) {
	a := reportOf("a", map[string]float64{"arc_easy": .5, "wikitext": 20})
	b := reportOf("b", map[string]float64{"arc_easy": .6, "wikitext": 30})
	var out strings.Builder
	if err := WriteTable(&out, "markdown", []*Report{a, b}); err != nil {
		t.Fatal(err)
	}
	want := "| model | arc_easy acc | wikitext word_perplexity |\n" +
		"|-------|--------------|--------------------------|\n" +
		"| b     | **0.6000**   | 30.0000                  |\n" +
		"| a     | 0.5000       | **20.0000**              |\n"
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", &out, want)
	}
	out.Reset()
	if err := WriteTable(&out, "csv", []*Report{a, b}); err != nil || !strings.HasPrefix(out.String(), "model,arc_easy acc,") || strings.Contains(out.String(), "*") {
		t.Errorf("%v\n%s", err, &out)
	}
	out.Reset()
	var lines []Line
	if err := WriteTable(&out, "json", []*Report{a}); err != nil || json.Unmarshal([]byte(out.String()), &lines) != nil || lines[0].Value != .5 || *lines[0].Stderr != .01 {
		t.Errorf("%v\n%s", err, &out)
	}
}

// TestResultFile: the keys that lm-evaluation-harness' table tools read, and the samples.
func TestResultFile(t *testing.T) {
	m := tiny(t, 4)
	dir := folder(t, map[string]string{"lambada_openai.jsonl": "{\"text\": \"one two three\"}\n{\"text\": \"four five\"}\n{\"text\": \"six seven eight\"}\n"})
	var samples []Sample
	r, err := Run(context.Background(), m, bytesTokenizer, "org/tiny", Options{Tasks: []string{"lambada_openai"}, Data: dir, Limit: 2,
		Sample: func(s Sample) error { samples = append(samples, s); return nil }})
	if err != nil {
		t.Fatal(err)
	}
	path, err := r.Write(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Results map[string]map[string]any  `json:"results"`
		Configs map[string]map[string]any  `json:"configs"`
		Version map[string]int             `json:"versions"`
		Shots   map[string]int             `json:"n-shot"`
		Better  map[string]map[string]bool `json:"higher_is_better"`
		Samples map[string]map[string]int  `json:"n-samples"`
	}
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	x := file.Results["lambada_openai"]
	if x["perplexity,none"].(float64) <= 1 || x["acc_stderr,none"] == nil || x["alias"] != "lambada_openai" || file.Version["lambada_openai"] != 1 ||
		file.Configs["lambada_openai"]["output_type"] != "loglikelihood" || file.Better["lambada_openai"]["perplexity"] || file.Samples["lambada_openai"]["effective"] != 2 {
		t.Errorf("%s", text)
	}
	if len(samples) != 2 || samples[0].Target != " three" || samples[0].Document["text"] != "one two three" || len(samples[1].Responses) != 1 {
		t.Errorf("%+v", samples)
	}
	var out bytes.Buffer
	err = Export(context.Background(), m, bytesTokenizer, &out, Options{Tasks: []string{"lambada_openai"}, Data: dir})
	if err != nil || strings.Count(out.String(), "\n") != 3 || !strings.Contains(out.String(), `"arguments":[["four"," five"]]`) {
		t.Errorf("export: %v\n%s", err, &out)
	}
}

// TestWhere: every task says where its data is to be had.
func TestWhere(t *testing.T) {
	for i := range Tasks {
		task := &Tasks[i]
		where := task.Where()
		if want := task.Source.Repository; want != "" && !strings.Contains(where, strings.ReplaceAll(want, "LENGTH", "512")) || !strings.HasPrefix(where, task.Name+":") {
			t.Errorf("%s: %s", task.Name, where)
		}
	}
}

// TestMQARTask: the sizes that the vocabulary allows are asked.
func TestMQARTask(t *testing.T) {
	m := tiny(t, 8)
	r, err := Run(context.Background(), m, bytesTokenizer, "tiny", Options{Tasks: []string{"mqar"}, Limit: 70, Lengths: []int{64}})
	if err != nil {
		t.Fatal(err)
	}
	if v, ok := r.Value("mqar", "acc@64-8"); !ok || v.N != 70 || v.Value > 0.1 {
		t.Errorf("%+v", r.Tasks[0])
	}
}
