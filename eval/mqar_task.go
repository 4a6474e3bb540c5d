package eval

import (
	"context"
	"fmt"
	"math"
	"slices"

	"nha/autograd"
)

// mqarSizes are (length, pairs) of Zoology's test sets.
var mqarSizes = [][2]int{{64, 4}, {64, 8}, {64, 16}, {128, 32}, {256, 64}, {512, 128}, {1024, 256}}

// measureMQAR asks every size that the model's vocabulary has keys and values for; --lengths takes those of some lengths. The
// examples use the whole vocabulary, so the numbers mean something for models that were trained on MQAR.
func measureMQAR(ctx context.Context, s *setup) error {
	n := 1000
	if s.o.Limit > 0 {
		n = s.o.Limit
	}
	tape := autograd.New(s.m.Backend())
	defer tape.Close()
	for _, size := range mqarSizes {
		task := MQAR{Vocabulary: s.m.Config.VocabSize, Length: size[0], Pairs: size[1], RandomFill: true}
		if len(s.o.Lengths) > 0 && !slices.Contains(s.o.Lengths, size[0]) || task.Check() != nil || task.Vocabulary <= task.Length {
			continue
		}
		right := 0.0
		for done := 0; done < n; done += 64 {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			count := min(64, n-done)
			r, err := task.Measure(tape, s.m, count, task.Length, s.o.Seed<<20+uint64(done))
			if err != nil {
				return err
			}
			right += r.All * float64(count)
			s.results.Tokens += count * task.Length
		}
		mean := right / float64(n)
		s.results.Values = append(s.results.Values, Value{Metric: fmt.Sprintf("acc@%d-%d", size[0], size[1]), Value: mean,
			Stderr: math.Sqrt(mean * (1 - mean) / float64(n*size[1])), N: n})
		s.results.Documents += n
	}
	if len(s.results.Values) == 0 {
		return fmt.Errorf("%s: no size fits a vocabulary of %d and the lengths asked for", s.task.Name, s.m.Config.VocabSize)
	}
	return nil
}
