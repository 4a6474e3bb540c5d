package hybridize

import (
	"encoding/json"
	"fmt"

	"nha/model"
	"nha/train"
)

// mixture deals out the batches of several sources so that each gives its part of them: the next is of the source that is furthest
// behind its weight. That needs no random numbers and is the same after a restart.
type mixture struct {
	parts []mixturePart
}

type mixturePart struct {
	source train.Source
	weight float64
	dealt  int64
}

type mixtureState struct {
	Dealt  []int64           `json:"dealt"`
	States []json.RawMessage `json:"states"`
}

// Next implements train.Source.
func (m *mixture) Next(b *model.Batch) error {
	next := 0
	for i, p := range m.parts {
		if float64(p.dealt+1)/p.weight < float64(m.parts[next].dealt+1)/m.parts[next].weight {
			next = i
		}
	}
	m.parts[next].dealt++
	return m.parts[next].source.Next(b)
}

// State implements train.Source.
func (m *mixture) State() (json.RawMessage, error) {
	var s mixtureState
	for _, p := range m.parts {
		state, err := p.source.State()
		if err != nil {
			return nil, err
		}
		s.Dealt, s.States = append(s.Dealt, p.dealt), append(s.States, state)
	}
	return json.Marshal(s)
}

// Restore implements train.Source.
func (m *mixture) Restore(state json.RawMessage) error {
	var s mixtureState
	if err := json.Unmarshal(state, &s); err != nil {
		return fmt.Errorf("position in the data: %w", err)
	}
	if len(s.Dealt) != len(m.parts) || len(s.States) != len(m.parts) {
		return fmt.Errorf("position in the data: %d sources, the recipe has %d", len(s.States), len(m.parts))
	}
	for i := range m.parts {
		m.parts[i].dealt = s.Dealt[i]
		if err := m.parts[i].source.Restore(s.States[i]); err != nil {
			return err
		}
	}
	return nil
}
