package eval

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Task is one line of the table below: what is asked, of which data, measured how.
type Task struct {
	Name   string
	Group  string // commonsense, recall, ruler, or none
	What   string
	Source Source
	// Metrics are what Run reports. Where Lengths are set there is one of each a length, named METRIC@LENGTH (METRIC "": LENGTH).
	Metrics []Metric
	Average string // the metric that goes into the group's average; "": none does, "*": the one without a name
	Lengths []int  // tokens, by default
	Output  string // lm-evaluation-harness' word for the kind of request
	Version int

	documents func(ctx context.Context, s *setup) error
	measure   func(ctx context.Context, s *setup) error // in place of documents, for what is no list of requests
}

// Metric is a number that a task gives.
type Metric struct {
	Name  string
	Lower bool // is better
	Kind  Kind
}

// Kind is how the documents' values become one (report.go).
type Kind uint8

const (
	Mean        Kind = iota // sum x / n
	ExpNegMean              // exp(-sum x / n)
	ExpNegRatio             // exp(-sum x / sum weight)
	BitsRatio               // -sum x / sum weight / ln 2
	NegRatio                // -sum x / sum weight
)

// Source is where a task's rows come from.
type Source struct {
	Repository string // on the Hugging Face hub, for people
	Config     string // folder or file of the repository that holds the rows, part of its path
	Split      string // how the file's name, or its folder's, begins
	Names      string // another file name that holds the split, where the repository has one
	Fields     string // what a row must hold
}

var (
	acc       = Metric{Name: "acc"}
	choices   = []Metric{acc, {Name: "acc_norm"}}
	lambada   = []Metric{{Name: "perplexity", Lower: true, Kind: ExpNegMean}, acc}
	holds     = []Metric{{Name: "contains"}}
	perTokens = []Metric{{Name: "token_perplexity", Lower: true, Kind: ExpNegRatio}, {Name: "word_perplexity", Lower: true, Kind: ExpNegRatio},
		{Name: "bits_per_byte", Lower: true, Kind: BitsRatio}}
	recallLengths = []int{512, 1024, 2048}
	rulerLengths  = []int{4096}
)

// Tasks is every task, in the order of tables.
var Tasks = []Task{
	{Name: "arc_easy", Group: "commonsense", What: "grade-school science questions, the easy part", Metrics: choices, Average: "acc", Version: 1, Output: "multiple_choice",
		Source:    Source{Repository: "allenai/ai2_arc", Config: "ARC-Easy", Split: "test", Fields: "question, choices.text, choices.label, answerKey"},
		documents: rowsOf(arc)},
	{Name: "arc_challenge", Group: "commonsense", What: "grade-school science questions, the hard part", Metrics: choices, Average: "acc_norm", Version: 1, Output: "multiple_choice",
		Source:    Source{Repository: "allenai/ai2_arc", Config: "ARC-Challenge", Split: "test", Fields: "question, choices.text, choices.label, answerKey"},
		documents: rowsOf(arc)},
	{Name: "hellaswag", Group: "commonsense", What: "how an everyday scene goes on", Metrics: choices, Average: "acc_norm", Version: 1, Output: "multiple_choice",
		Source:    Source{Repository: "Rowan/hellaswag", Split: "validation", Names: "hellaswag_val.jsonl", Fields: "activity_label, ctx_a, ctx_b, endings, label"},
		documents: rowsOf(hellaswag)},
	{Name: "lambada_openai", Group: "commonsense", What: "the last word of a passage, OpenAI's text", Metrics: lambada, Average: "acc", Version: 1, Output: "loglikelihood",
		Source:    Source{Repository: "EleutherAI/lambada_openai", Config: "default", Split: "test", Names: "lambada_test.jsonl", Fields: "text"},
		documents: rowsOf(lastWord)},
	{Name: "lambada_standard", Group: "commonsense", What: "the last word of a passage, tokenised and lower-cased text", Metrics: lambada, Version: 1, Output: "loglikelihood",
		Source:    Source{Repository: "cimec/lambada", Config: "plain_text", Split: "test", Fields: "text"},
		documents: rowsOf(lastWord)},
	{Name: "piqa", Group: "commonsense", What: "which way of doing a thing works", Metrics: choices, Average: "acc", Version: 1, Output: "multiple_choice",
		Source:    Source{Repository: "baber/piqa", Split: "validation", Fields: "goal, sol1, sol2, label"},
		documents: rowsOf(piqa)},
	{Name: "winogrande", Group: "commonsense", What: "whom a pronoun means", Metrics: []Metric{acc}, Average: "acc", Version: 1, Output: "multiple_choice",
		Source:    Source{Repository: "allenai/winogrande", Config: "winogrande_xl", Split: "validation", Fields: "sentence, option1, option2, answer"},
		documents: rowsOf(winogrande)},
	{Name: "wikitext", Group: "commonsense", What: "perplexity of whole articles", Version: 2, Output: "loglikelihood_rolling",
		Metrics: []Metric{{Name: "word_perplexity", Lower: true, Kind: ExpNegRatio}, {Name: "byte_perplexity", Lower: true, Kind: ExpNegRatio}, {Name: "bits_per_byte", Lower: true, Kind: BitsRatio}},
		Source:  Source{Repository: "EleutherAI/wikitext_document_level", Config: "wikitext-2-raw-v1", Split: "test", Names: "wiki.test.jsonl", Fields: "page"},

		documents: rowsOf(wikitext)},

	{Name: "fda", Group: "recall", What: "a fact of a medical device's papers", Metrics: holds, Average: "contains", Lengths: recallLengths, Output: "generate_until",
		Source:    Source{Repository: "hazyresearch/based-fda", Split: "validation", Fields: "text, key, value"},
		documents: recall(fda)},
	{Name: "swde", Group: "recall", What: "a fact of a web page", Metrics: holds, Average: "contains", Lengths: recallLengths, Output: "generate_until",
		Source:    Source{Repository: "hazyresearch/based-swde-v2", Split: "validation", Fields: "text, key, value"},
		documents: recall(swde)},
	{Name: "squad", Group: "recall", What: "an answer in a passage, as a sentence to complete", Metrics: holds, Average: "contains", Lengths: recallLengths, Output: "generate_until",
		Source:    Source{Repository: "hazyresearch/based-squad", Split: "validation", Fields: "context, question, text, value"},
		documents: recall(squad)},
	{Name: "nq", Group: "recall", What: "an answer in a web page around it; the length is the page's", Metrics: holds, Average: "contains", Lengths: recallLengths, Output: "generate_until",
		Source:    Source{Repository: "hazyresearch/based_nq_LENGTH", Split: "validation", Fields: "context, question, answers"},
		documents: recall(nq)},
	{Name: "triviaqa", Group: "recall", What: "an answer in the evidence for a trivia question", Metrics: holds, Average: "contains", Lengths: recallLengths, Output: "generate_until",
		Source:    Source{Repository: "hazyresearch/based_triviaqa", Split: "validation", Fields: "context, question, answers"},
		documents: recall(triviaqa)},
	{Name: "drop", Group: "recall", What: "an answer that takes counting over a passage", Metrics: holds, Average: "contains", Lengths: recallLengths, Output: "generate_until",
		Source:    Source{Repository: "hazyresearch/based_drop", Split: "validation", Fields: "context, question, answers"},
		documents: recall(drop)},

	needle("niah_single_1", "a number in noise", niah{haystack: noise, keys: wordKeys, values: numbers, k: 1, v: 1, q: 1}),
	needle("niah_single_2", "a number in essays", niah{haystack: essay, keys: wordKeys, values: numbers, k: 1, v: 1, q: 1}),
	needle("niah_single_3", "a uuid in essays", niah{haystack: essay, keys: wordKeys, values: uuids, k: 1, v: 1, q: 1}),
	needle("niah_multikey_1", "one of four keys in essays", niah{haystack: essay, keys: wordKeys, values: numbers, k: 4, v: 1, q: 1}),
	needle("niah_multikey_2", "one key among needles", niah{haystack: needles, keys: wordKeys, values: numbers, k: 1, v: 1, q: 1}),
	needle("niah_multikey_3", "one uuid among needles of uuids", niah{haystack: needles, keys: uuids, values: uuids, k: 1, v: 1, q: 1}),
	needle("niah_multivalue", "four values of a key in essays", niah{haystack: essay, keys: wordKeys, values: numbers, k: 1, v: 4, q: 1}),
	needle("niah_multiquery", "four keys at once in essays", niah{haystack: essay, keys: wordKeys, values: numbers, k: 4, v: 1, q: 4}),
	{Name: "ruler_vt", Group: "ruler", What: "variables that carry one value along a chain", Metrics: []Metric{{}}, Average: "*", Lengths: rulerLengths, Version: 1, Output: "generate_until", documents: generated(variableTracking)},
	{Name: "ruler_cwe", Group: "ruler", What: "the ten words that a list repeats most", Metrics: []Metric{{}}, Average: "*", Lengths: rulerLengths, Version: 1, Output: "generate_until", documents: generated(commonWords)},
	{Name: "ruler_fwe", Group: "ruler", What: "the three most frequent coded words", Metrics: []Metric{{}}, Average: "*", Lengths: rulerLengths, Version: 1, Output: "generate_until", documents: generated(frequentWords)},

	{Name: "passkey", What: "a number of seven digits in a book, asked for at the end", Metrics: []Metric{{Name: "recall"}}, Lengths: []int{1000, 2000, 4000}, Output: "loglikelihood", documents: generated(passkey)},
	{Name: "text", What: "perplexity of any text, and by position", Metrics: perTokens, Output: "loglikelihood_rolling",
		Source: Source{Fields: "text"}, documents: text},
	{Name: "share", What: "how much of the attention reads slots, by layer, head and position", Metrics: []Metric{{Name: "slot_share"}},
		Source: Source{Fields: "text"}, measure: measureShares},
	{Name: "mqar", What: "multi-query associative recall, for models of its vocabulary", Metrics: []Metric{acc}, measure: measureMQAR},
}

func needle(name, what string, n niah) Task {
	return Task{Name: name, Group: "ruler", What: what, Metrics: []Metric{{}}, Average: "*", Lengths: rulerLengths, Version: 1, Output: "generate_until", documents: generated(n.sample)}
}

// Groups are the names that stand for several tasks.
var Groups = []string{"commonsense", "recall", "ruler"}

// Select is the tasks that names (of tasks and groups) stand for, each once, in the order of the names.
func Select(names []string) ([]*Task, error) {
	var list []*Task
	for _, name := range names {
		found := false
		for i := range Tasks {
			if t := &Tasks[i]; t.Name == name || t.Group != "" && t.Group == name {
				if found = true; !slices.Contains(list, t) {
					list = append(list, t)
				}
			}
		}
		if !found {
			return nil, fmt.Errorf("unknown task %q: choose from %s", name, strings.Join(Names(), ", "))
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("no task: choose from %s", strings.Join(Names(), ", "))
	}
	return list, nil
}

// Names are the groups and tasks.
func Names() []string {
	names := slices.Clone(Groups)
	for _, t := range Tasks {
		names = append(names, t.Name)
	}
	return names
}

// repository is the source's, for one length where there is one a length.
func (s *Source) repository(length int) string {
	return strings.ReplaceAll(s.Repository, "LENGTH", fmt.Sprint(length))
}

// Where says which files a task wants and where they are to be had.
func (t *Task) Where() string {
	s := &t.Source
	var b strings.Builder
	switch {
	case s.Fields == "" && (t.Group == "ruler" || t.Name == "passkey"):
		fmt.Fprintf(&b, "%s: no files; its samples are generated from --seed. --haystack FILE replaces the built-in text.\n", t.Name)
	case s.Fields == "":
		fmt.Fprintf(&b, "%s: no files; its examples are generated from --seed.\n", t.Name)
	case s.Repository == "":
		fmt.Fprintf(&b, "%s: --data FILE, any text: .txt, .jsonl or .parquet with a field %s.\n", t.Name, s.Fields)
	default:
		lengths := []int{0}
		if strings.Contains(s.Repository, "LENGTH") {
			lengths = t.Lengths
		}
		for _, l := range lengths {
			repository := s.repository(l)
			in := ""
			if s.Config != "" {
				in = ", its part " + s.Config
			}
			fmt.Fprintf(&b, "%s: split %s of the data set %s%s (https://huggingface.co/datasets/%s).\n", t.Name, s.Split, repository, in, repository)
			fmt.Fprintf(&b, "  Put its files below --data DIR as published: DIR/%s/", repository)
			if s.Config != "" {
				fmt.Fprintf(&b, "%s/", s.Config)
			}
			fmt.Fprintf(&b, "%s-00000-of-00001.parquet, or rows of your own as DIR/%s.jsonl (.gz, .zst) or DIR/%s.parquet.\n", s.Split, t.fileName(l), t.fileName(l))
			fmt.Fprintf(&b, "  A row holds: %s.\n", s.Fields)
		}
	}
	return b.String()
}

// fileName is what a single file with a task's rows is called.
func (t *Task) fileName(length int) string {
	if strings.Contains(t.Source.Repository, "LENGTH") {
		return fmt.Sprintf("%s_%d", t.Name, length)
	}
	return t.Name
}

var extensions = []string{".jsonl", ".json", ".parquet", ".jsonl.gz", ".jsonl.zst"}

// locate finds the files with the rows of a task below data, or data itself where it is a file.
func (t *Task) locate(data string, length int) ([]string, error) {
	if data == "" {
		return nil, t.needsData(length)
	}
	info, err := os.Stat(data)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{data}, nil
	}
	for _, ext := range extensions {
		if path := filepath.Join(data, t.fileName(length)+ext); exists(path) {
			return []string{path}, nil
		}
	}
	owner, name, _ := strings.Cut(t.Source.repository(length), "/")
	for _, folder := range []string{filepath.Join(owner, name), name, owner + "___" + name, "datasets--" + owner + "--" + name} {
		files, err := t.Source.files(filepath.Join(data, folder))
		if err != nil {
			return nil, err
		}
		if len(files) > 0 {
			return files, nil
		}
	}
	return nil, fmt.Errorf("%s: no file with its rows below --data %s: %s", t.Name, data, t.wants(length))
}

// needsData is the error of a task without --data.
func (t *Task) needsData(length int) error {
	return fmt.Errorf("%s needs --data: %s", t.Name, t.wants(length))
}

// wants says in a line what Where says at length.
func (t *Task) wants(length int) string {
	s := &t.Source
	if s.Repository == "" {
		return "any text: .txt, or .jsonl or .parquet with a field " + s.Fields
	}
	config := ""
	if s.Config != "" {
		config = ", part " + s.Config
	}
	return fmt.Sprintf("it wants split %s of https://huggingface.co/datasets/%s%s (nha eval --where %s says more)", s.Split, s.repository(length), config, t.Name)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// files are the files of the split in a copy of the repository, in the order of their names. Where some lie under the config's
// name, only those count.
func (s *Source) files(root string) ([]string, error) {
	var all, inConfig []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if os.IsNotExist(err) {
				return nil
			}
			return err
		}
		name := filepath.Base(path)
		if d.IsDir() || !slices.ContainsFunc(extensions, func(ext string) bool { return strings.HasSuffix(name, ext) }) {
			return nil
		}
		if name != s.Names && !strings.HasPrefix(name, s.Split) && filepath.Base(filepath.Dir(path)) != s.Split {
			return nil
		}
		all = append(all, path)
		if relative, _ := filepath.Rel(root, path); s.Config != "" && strings.Contains(relative, s.Config) {
			inConfig = append(inConfig, path)
		}
		return nil
	})
	if len(inConfig) > 0 {
		return inConfig, err
	}
	return all, err
}
