package eval

import (
	"regexp"
	"strings"
	"testing"
)

// TestRuler: every task's samples fit their length and fill it, hold what they ask for, and are the same for the same seed.
func TestRuler(t *testing.T) {
	m := tiny(t, 4)
	for i := range Tasks {
		task := &Tasks[i]
		if task.Group != "ruler" {
			continue
		}
		o := Options{Tasks: []string{task.Name}, Lengths: []int{12000, 24000}, Limit: 3, Seed: 1} // bytes
		docs, err := built(t, m, o)
		if err != nil {
			t.Errorf("%s: %v", task.Name, err)
			continue
		}
		if len(docs) != 6 {
			t.Fatalf("%s: %d samples", task.Name, len(docs))
		}
		again, err := built(t, m, o)
		if err != nil {
			t.Fatal(err)
		}
		for k, d := range docs {
			prompt := d.requests[0].arguments[0]
			if again[k].requests[0].arguments[0] != prompt {
				t.Errorf("%s: sample %d differs with the same seed", task.Name, k)
			}
			if k > 0 && docs[k-1].requests[0].arguments[0] == prompt {
				t.Errorf("%s: samples %d and %d are one", task.Name, k-1, k)
			}
			n := len(prompt) + d.requests[0].maxNew
			step := 500 * 8 // the essays' step, words of about six letters
			if n > d.length || n < d.length-step {
				t.Errorf("%s: sample %d takes %d tokens of %d", task.Name, k, n, d.length)
			}
			outputs := d.fields["outputs"].([]string)
			for _, o := range outputs {
				if !strings.Contains(d.fields["input"].(string), o) {
					t.Errorf("%s: sample %d does not hold its answer %q", task.Name, k, o)
				}
			}
			if got := d.score([]answer{{Text: "X\x01 " + strings.ToUpper(strings.Join(outputs, ", "))}})[0].value; got != 1 {
				t.Errorf("%s: the right answer scores %v", task.Name, got)
			}
			if got := d.score([]answer{{Text: outputs[0]}})[0].value; got != 1/float64(len(outputs)) {
				t.Errorf("%s: one of %d answers scores %v", task.Name, len(outputs), got)
			}
		}
		o.Seed = 2
		if other, err := built(t, m, o); err != nil || other[0].requests[0].arguments[0] == docs[0].requests[0].arguments[0] {
			t.Errorf("%s: another seed gives the same sample (%v)", task.Name, err)
		}
	}
}

// TestShortWords: the list of common words does without its worked example where the shortest with it is too long, and says so where nothing fits.
func TestShortWords(t *testing.T) {
	m := tiny(t, 4)
	for length, examples := range map[int]int{2600: 1, 1700: 0} { // bytes
		docs, err := built(t, m, Options{Tasks: []string{"ruler_cwe"}, Lengths: []int{length}, Limit: 2, Seed: 1})
		if err != nil {
			t.Fatalf("%d: %v", length, err)
		}
		for _, d := range docs {
			prompt := d.requests[0].arguments[0]
			if n := strings.Count(prompt, "Below is a numbered list"); n != examples+1 || len(prompt)+d.requests[0].maxNew > length {
				t.Errorf("at %d: %d lists in %d bytes", length, n, len(prompt))
			}
		}
	}
	_, err := built(t, m, Options{Tasks: []string{"ruler_cwe"}, Lengths: []int{700}, Limit: 1, Seed: 1})
	wantError(t, err, "ruler_cwe at 700 tokens", "ask for a greater length")
}

// TestRulerWords: the wording of a sample, singular and plural.
func TestRulerWords(t *testing.T) {
	m := tiny(t, 4)
	for task, pattern := range map[string]string{
		"niah_single_1": `^A special magic number is hidden within the following text\. Make sure to memorize it\. I will quiz you about the number afterwards\.\n` +
			`(The grass is green\. The sky is blue\. The sun is yellow\. Here we go\. There and back again\.\n)+` +
			`One of the special magic numbers for \w+-\w+ is: \d{7}\.\n(The grass[^\n]*\n)+` +
			`What is the special magic number for \w+-\w+ mentioned in the provided text\? The special magic number for \w+-\w+ mentioned in the provided text is$`,
		"niah_single_3": `(?s)special magic uuids for \w+-\w+ is: [0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\. .*special magic uuid for`,
		"niah_multiquery": `(?s)^Some special magic numbers are hidden .* What are all the special magic numbers for \w+-\w+, \w+-\w+, \w+-\w+, and \w+-\w+ mentioned in the provided text\? ` +
			`The special magic numbers for \w+-\w+, \w+-\w+, \w+-\w+, and \w+-\w+ mentioned in the provided text are$`,
		"ruler_vt": `(?s)^Memorize and track .* they are:  [A-Z]{3} [A-Z]{3} [A-Z]{3} [A-Z]{3} [A-Z]{3}\n\n\n\nMemorize and track .*VAR [A-Z]{5} = \d{5}.*` +
			`Question: Find all variables that are assigned the value \d{5} in the text above\. Answer: According .* 5 variables are assgined the value \d{5}, they are:$`,
		"ruler_cwe": `(?s)^Below is a numbered list.*in the list are: 1\. \w+ 2\. .* 10\. \w+\nBelow is .*in the above list\?\n\nAnswer: The top 10 words that appear most often in the list are:$`,
		"ruler_fwe": `^Read the following coded text .* [a-z]{6} .*\nQuestion: Do not .* most frequently appeared words are:$`,
		"passkey":   `(?s)The pass key is (\d{7})\. Remember it\. \d{7} is the pass key\..*\n\nQuestion: What is the pass key mentioned in the text above\? Answer: The pass key is$`,
	} {
		docs, err := built(t, m, Options{Tasks: []string{task}, Lengths: []int{12000}, Limit: 4, Seed: 3})
		if err != nil {
			t.Errorf("%s: %v", task, err)
			continue
		}
		found := false
		for _, d := range docs { // where the needle is the first or last line the pattern asks too much
			found = found || regexp.MustCompile(strings.ReplaceAll(pattern, ".* What", ".*\nWhat")).MatchString(d.requests[0].arguments[0])
		}
		if !found {
			t.Errorf("%s: no sample like %s\n%s", task, pattern, docs[0].requests[0].arguments[0])
		}
	}
}

// TestPasskeyIsScored: the key's tokens are asked for after the prompt, and it is found where each of them is the likeliest.
func TestPasskeyIsScored(t *testing.T) {
	docs, err := built(t, tiny(t, 4), Options{Tasks: []string{"passkey"}, Lengths: []int{900}, Limit: 2})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range docs {
		r := d.requests[0]
		if r.generates() || decode(bytesTokenizer, r.continuation) != " "+d.target {
			t.Errorf("asks for %q, the key is %s", decode(bytesTokenizer, r.continuation), d.target)
		}
		for _, found := range []bool{true, false} {
			if m := d.score([]answer{{Greedy: found}}); len(m) != 1 || m[0].metric != "recall" || m[0].value != truth(found) {
				t.Errorf("found %v: %+v", found, m)
			}
		}
	}
}

// TestHaystack: a text of the user's, and lengths that cannot be.
func TestHaystack(t *testing.T) {
	m := tiny(t, 4)
	dir := folder(t, map[string]string{"book.txt": "Call me Ishmael. Some years ago. Never mind how long precisely."})
	docs, err := built(t, m, Options{Tasks: []string{"niah_single_2"}, Lengths: []int{6000}, Limit: 1, Haystack: dir + "/book.txt"})
	if err != nil || !strings.Contains(docs[0].requests[0].arguments[0], "Call me Ishmael.") {
		t.Errorf("the book is not in the haystack: %v", err)
	}
	_, err = built(t, m, Options{Tasks: []string{"niah_single_1"}, Lengths: []int{200}, Limit: 1})
	wantError(t, err, "niah_single_1 at 200 tokens", "greater length")
	_, err = built(t, m, Options{Tasks: []string{"niah_single_2"}, Haystack: dir + "/none.txt"})
	wantError(t, err, "--haystack", "none.txt")
}
