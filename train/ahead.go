package train

import (
	"encoding/json"

	"nha/model"
)

// Ahead is a Source that has another one prepare the next batch while the model computes on the last.
type Ahead struct {
	from  Source
	next  model.Batch // being filled while busy
	done  chan error
	busy  bool
	state json.RawMessage // of from before next
	err   error           // of state
}

// NewAhead prepares the batches of from, which must not be used by others until Close.
func NewAhead(from Source) *Ahead { return &Ahead{from: from, done: make(chan error, 1)} }

func (a *Ahead) begin() {
	a.busy = true
	a.state, a.err = a.from.State()
	go func() { a.done <- a.from.Next(&a.next) }()
}

// Next implements Source.
func (a *Ahead) Next(b *model.Batch) error {
	if !a.busy {
		a.begin()
	}
	a.busy = false
	if err := <-a.done; err != nil {
		return err
	}
	b.Tokens, a.next.Tokens = a.next.Tokens, b.Tokens
	b.Lengths, a.next.Lengths = a.next.Lengths, b.Lengths
	b.Targets, a.next.Targets = a.next.Targets, b.Targets
	a.begin()
	return nil
}

// State implements Source: the batch that waits counts as not given yet.
func (a *Ahead) State() (json.RawMessage, error) {
	if a.busy {
		return a.state, a.err
	}
	return a.from.State()
}

// Restore implements Source.
func (a *Ahead) Restore(state json.RawMessage) error {
	a.Close()
	return a.from.Restore(state)
}

// Close waits for the batch under way and drops it.
func (a *Ahead) Close() {
	if a.busy {
		<-a.done
		a.busy = false
	}
}
