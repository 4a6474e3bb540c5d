package train_test

import (
	"encoding/json"
	"fmt"
	"log"
	"slices"

	"nha/backend"
	_ "nha/backend/cpu"
	"nha/model"
	"nha/train"
)

// counting is a Source of rows that count upwards from changing numbers, modulo 16.
type counting struct{ start int32 }

func (c *counting) Next(b *model.Batch) error {
	const rows, length = 8, 16
	b.Tokens, b.Targets = slices.Grow(b.Tokens[:0], rows*length)[:rows*length], slices.Grow(b.Targets[:0], rows*length)[:rows*length]
	b.Lengths = b.Lengths[:0]
	for r := range rows {
		c.start++
		for i := range length {
			b.Tokens[r*length+i], b.Targets[r*length+i] = (c.start+int32(i))%16, (c.start+int32(i)+1)%16
		}
		b.Lengths = append(b.Lengths, length)
	}
	return nil
}

func (c *counting) State() (json.RawMessage, error)     { return json.Marshal(c.start) }
func (c *counting) Restore(state json.RawMessage) error { return json.Unmarshal(state, &c.start) }

// A small NHA model learns to count from batches of the program's own making.
func ExampleTrainer() {
	b, err := backend.Open("cpu", 0)
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	c := model.NewConfig(16, 32, 1)
	c.NumHeads, c.NumSlots, c.LayerWindows = 2, 4, model.Windows{4}
	m, err := model.New(c, b, model.Init{Seed: 1})
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()

	s := train.DefaultSettings()
	s.Steps, s.LearningRate = 60, 1e-2
	t, err := train.NewTrainer(m, s, &counting{})
	if err != nil {
		log.Fatal(err)
	}
	defer t.Close()
	var last train.Stats
	for range s.Steps {
		if last, err = t.Step(); err != nil {
			log.Fatal(err)
		}
	}
	fmt.Println("learnt to count:", last.Loss < 0.1)
	// Output: learnt to count: true
}
