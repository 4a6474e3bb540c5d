package bench

import "testing"

func TestPrefill(t *testing.T) {
	b := openBackend(t, "cpu")
	o := &Prefill{Model: "nha", Size: tiny, Tokens: []int{3, 20}, Chunk: 8, Timing: quick}
	list := rows(t, b, o)
	if len(list) != 2 || list[1]["tokens"] != 20.0 {
		t.Fatalf("rows %v", list)
	}
	for _, r := range list {
		fields(t, r, "backend, model, dtype, tokens, ms, tokens_per_s, state_bytes, resident_bytes")
	}
	for _, bad := range []*Prefill{{Model: "nowhere", Tokens: []int{1}}, {Model: "nha", Size: tiny, Tokens: []int{0}}, {Model: "nha", Size: tiny, Tokens: []int{1}, Chunk: -1}} {
		if bad.Check() == nil {
			t.Errorf("%+v passes", bad)
		}
	}
}
