package optest

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"testing"

	"nha/backend"
	_ "nha/backend/all"
	"nha/backend/cpu/kernel"
)

var (
	cases = Cases()
	part  = flag.String("part", "", "k/n: every n-th case from the k-th on, for processes side by side under a slow checker")
)

// chosen are the cases that -part leaves.
func chosen(t *testing.T) []*Case {
	if *part == "" {
		return cases
	}
	var k, n int
	if _, err := fmt.Sscanf(*part, "%d/%d", &k, &n); err != nil || k < 0 || k >= n || n > len(cases) {
		t.Fatalf("-part %s: want k/n with k from 0 to n-1, n at most %d", *part, len(cases))
	}
	var list []*Case
	for i := k; i < len(cases); i += n {
		list = append(list, cases[i])
	}
	return list
}

// under runs f for the backend that NHA_BACKEND names, or for all that open here; the cpu backend once for every instruction set.
func under(t testing.TB, f func(name string, b backend.Backend)) {
	names, only := backend.Names(), os.Getenv("NHA_BACKEND")
	if only != "" {
		names = []string{only}
	}
	for _, name := range names {
		b, err := backend.Open(name, 2)
		if err != nil {
			if only != "" {
				t.Fatal(err)
			}
			t.Logf("skip: backend %s does not open here: %v", name, err)
			continue
		}
		if name != "cpu" {
			f(name, b)
		} else {
			before := kernel.Active()
			for _, set := range kernel.Available() {
				if err := kernel.Use(set); err != nil {
					t.Fatal(err)
				}
				f(name+"/"+set, b)
			}
			if err := kernel.Use(before); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func check(t *testing.T, mode func(*Case, backend.Backend) []Result) {
	under(t, func(name string, b backend.Backend) {
		t.Run(name, func(t *testing.T) {
			n, worst := 0, map[string]Result{}
			for _, c := range chosen(t) {
				if name == "cpu-f32" && !c.quantised() {
					continue // the very loops of cpu
				}
				for _, r := range mode(c, b) {
					if n++; !r.OK() {
						t.Error(r)
					}
					key := fmt.Sprintf("%-14s %s", c.Op, r.Tensor)
					if w, ok := worst[key]; !ok || !(r.Error <= w.Error) {
						worst[key] = r
					}
				}
			}
			for _, key := range slices.Sorted(maps.Keys(worst)) {
				t.Logf("%-30s worst error %.2g of %.0e", key, worst[key].Error, worst[key].Limit)
			}
			t.Logf("%d comparisons", n)
		})
	})
}

func TestMatch(t *testing.T)    { check(t, (*Case).Match) }
func TestGradient(t *testing.T) { check(t, (*Case).Gradient) }

// TestTableIsCovered: every op of the table has a case. sum shares one with sum_squares.
func TestTableIsCovered(t *testing.T) {
	for _, s := range backend.Table {
		if !slices.ContainsFunc(Cases(), func(c *Case) bool { return c.Op == s.Name }) && s.Name != "sum" {
			t.Errorf("no case for op %s", s.Name)
		}
	}
}

func BenchmarkOps(b *testing.B) {
	under(b, func(name string, be backend.Backend) {
		for _, c := range Cases() {
			forward, backward := c.Perf(be)
			b.Run(name+"/"+c.Title()+"/forward", func(b *testing.B) {
				for b.Loop() {
					forward()
				}
			})
			if backward == nil {
				continue
			}
			forward()
			b.Run(name+"/"+c.Title()+"/backward", func(b *testing.B) {
				for b.Loop() {
					backward()
				}
			})
		}
	})
}
