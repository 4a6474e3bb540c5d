package bench

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"testing"
)

func ranking(t *testing.T, rows ...CurvePoint) *Ranking {
	t.Helper()
	k := &Ranking{}
	for _, r := range rows {
		if err := k.Row(r); err != nil {
			t.Fatal(err)
		}
	}
	return k
}

// Rows are sorted by what they share, then the fastest first; the best of a column is bold, a tie in none or all, what was not measured nowhere.
func TestRanking(t *testing.T) {
	rows := []CurvePoint{
		{Curve: CurveDecode, Model: "dir/slow.gguf", Windows: "full", Depth: 256, Batch: 1, MS: 20, TokensPerSecond: 50, StateBytes: 1 << 20, ResidentBytes: 3 << 20, Runs: 5},
		{Curve: CurveDecode, Model: "fast", Windows: "64", Slots: 8, Depth: 256, Batch: 1, MS: 10, TokensPerSecond: 100, StateBytes: 2 << 20, ResidentBytes: 3 << 20, Runs: 5},
		{Curve: CurveDecode, Model: "fast", Windows: "64", Slots: 8, Depth: 512, Batch: 1, Skipped: "a|b"},
		{Curve: CurveDecode, Model: "dir/slow.gguf", Windows: "full", Depth: 128, Batch: 1, MS: 5, TokensPerSecond: 200, StateBytes: 1 << 20, ResidentBytes: 3 << 20, Runs: 5},
	}
	var out bytes.Buffer
	if err := ranking(t, rows...).Write(&out, "markdown"); err != nil {
		t.Fatal(err)
	}
	want := "" +
		"| curve  | model | windows | slots | depth | batch | ms     | tokens_per_s | state_bytes | resident_bytes | runs | skipped |\n" +
		"|--------|-------|---------|-------|-------|-------|--------|--------------|-------------|----------------|------|---------|\n" +
		"| decode | slow  | full    | 0     | 128   | 1     | 5      | 200          | 1.0 MiB     | 3.0 MiB        | 5    |         |\n" +
		"| decode | fast  | 64      | 8     | 256   | 1     | **10** | **100**      | 2.0 MiB     | 3.0 MiB        | 5    |         |\n" +
		"| decode | slow  | full    | 0     | 256   | 1     | 20     | 50           | **1.0 MiB** | 3.0 MiB        | 5    |         |\n" +
		"| decode | fast  | 64      | 8     | 512   | 1     |        |              |             |                | 0    | a\\|b    |\n"
	if out.String() != want {
		t.Errorf("table\n%swant\n%s", out.String(), want)
	}
	out.Reset()
	if err := ranking(t, rows...).Write(&out, "json"); err != nil {
		t.Fatal(err)
	}
	var list []CurvePoint
	if err := json.Unmarshal(out.Bytes(), &list); err != nil || len(list) != 4 || list[0] != rows[3] || list[1] != rows[1] {
		t.Errorf("JSON %v, error %v", list, err)
	}
	out.Reset()
	if err := ranking(t, rows...).Write(&out, "csv"); err != nil {
		t.Fatal(err)
	}
	if lines, err := csv.NewReader(&out).ReadAll(); err != nil || len(lines) != 5 || lines[2][1] != "fast" || lines[2][8] != "2097152" {
		t.Errorf("CSV %v, error %v", lines, err)
	}
	out.Reset()
	if err := (&Ranking{}).Write(&out, "markdown"); err != nil || out.Len() > 0 {
		t.Errorf("a table of nothing: %q, error %v", out.String(), err)
	}
	same := ranking(t, CurvePoint{Model: "a/m", Depth: 1}, CurvePoint{Model: "b/m", Depth: 1}).shortNames()
	if same["a/m"] != "a/m" || same["b/m"] != "b/m" {
		t.Errorf("names that are no longer told apart: %v", same)
	}
}
