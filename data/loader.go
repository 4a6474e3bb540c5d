package data

import (
	"fmt"
	"math"
	"math/bits"
	"slices"
)

// LoaderOptions says how a view is cut into batches.
type LoaderOptions struct {
	Context int    // T, tokens of a row
	Batch   int    // B, rows of a batch
	Seed    uint64 // of the shuffle
	// Shuffle: every epoch takes the rows in another order and cuts them at other places.
	Shuffle bool
	// Once: one epoch and no more, for evaluation.
	Once bool
}

// Batch is B rows of T tokens. Its slices are filled anew by every Next.
type Batch struct {
	Tokens []int32 // [B*T]
	// Targets is the next token of the same document, -1 (no loss there) at a document's last token and in filler. Where a
	// document is cut by the end of a row, its next token is still the target: the loss of every token is seen once.
	Targets []int32 // [B*T]
	// Lengths are the lengths of the sequences that Tokens consists of, in order. Their sum is B*T; none crosses a row or
	// the end of a document.
	Lengths []int
	// Predicted is the number of targets that are not -1.
	Predicted int
}

// Loader cuts a view into rows and deals them out in batches.
//
// The documents of the view, one behind the other and closed to a ring of N tokens, are cut into R = ceil(N/T) rows from a
// place on that the epoch decides. The R*T-N tokens by which the last row is too long are the ring's next ones: filler
// without targets, so that nothing is padded, dropped or trained twice. A batch takes the next B rows; with Once, rows
// after the last are filler too, otherwise they are the next epoch's.
type Loader struct {
	view        *View
	o           LoaderOptions
	rows        int
	order       []uint32 // row of the epoch at each place; nil: as they come
	shift       int64    // where on the ring the epoch's first row begins
	epoch, next int      // place of the next row
}

// LoaderState is the position of a loader: everything it needs to go on exactly.
type LoaderState struct {
	Epoch int    `json:"epoch"`
	Row   int    `json:"row"` // of the epoch, the next to be dealt out
	Data  string `json:"data"`
}

// NewLoader is a loader at the beginning of the first epoch, 0.
func NewLoader(v *View, o LoaderOptions) (*Loader, error) {
	switch {
	case o.Context < 1:
		return nil, fmt.Errorf("context of %d tokens: want at least 1", o.Context)
	case o.Batch < 1:
		return nil, fmt.Errorf("batch of %d rows: want at least 1", o.Batch)
	case o.Batch > math.MaxInt/o.Context/8:
		return nil, fmt.Errorf("batch of %d rows of %d tokens: too large", o.Batch, o.Context)
	case v.Tokens() == 0:
		return nil, fmt.Errorf("there are no tokens to train on or to evaluate")
	}
	rows := (v.Tokens()-1)/int64(o.Context) + 1
	if rows > math.MaxUint32 {
		return nil, fmt.Errorf("%d rows of %d tokens are too many: use a longer context", rows, o.Context)
	}
	l := &Loader{view: v, o: o, rows: int(rows)}
	l.begin(0)
	return l, nil
}

// Rows is the number of rows of an epoch.
func (l *Loader) Rows() int { return l.rows }

// begin sets the order of an epoch, which depends on nothing but seed and epoch.
func (l *Loader) begin(epoch int) {
	l.epoch, l.next = epoch, 0
	if !l.o.Shuffle {
		return
	}
	random := mix(mix(l.o.Seed) + uint64(epoch))
	below := func(n int) int { // uniform up to a bias of n/2^64
		random += 0x9e3779b97f4a7c15
		hi, _ := bits.Mul64(mix(random), uint64(n))
		return int(hi)
	}
	l.shift = int64(below(l.o.Context)) % l.view.Tokens()
	if l.order == nil {
		l.order = make([]uint32, l.rows)
	}
	for i := range l.order {
		l.order[i] = uint32(i)
	}
	for i := len(l.order) - 1; i > 0; i-- {
		j := below(i + 1)
		l.order[i], l.order[j] = l.order[j], l.order[i]
	}
}

// Next fills b with the next batch; false when there is none, which only happens with Once. After the first batches it
// allocates nothing.
func (l *Loader) Next(b *Batch) bool {
	if l.o.Once && l.next >= l.rows {
		return false
	}
	n := l.o.Batch * l.o.Context
	b.Tokens = slices.Grow(b.Tokens[:0], n)[:n]
	b.Targets = slices.Grow(b.Targets[:0], n)[:n]
	b.Lengths, b.Predicted = b.Lengths[:0], 0
	for i := range l.o.Batch {
		if !l.o.Once && l.next == l.rows {
			l.begin(l.epoch + 1)
		}
		row := l.next
		if l.order != nil && row < l.rows {
			row = int(l.order[row])
		}
		l.next++
		l.fill(b, i*l.o.Context, row)
	}
	return true
}

// fill writes a row of the epoch to b, from token offset at on.
func (l *Loader) fill(b *Batch, at, row int) {
	v := l.view
	total := v.Tokens()
	k := int64(row) * int64(l.o.Context) // how many tokens of the epoch come before this one
	p := (l.shift + k) % total           // where on the ring it lies
	stretch, found := slices.BinarySearch(v.starts, p)
	if !found {
		stretch--
	}
	for left := l.o.Context; left > 0; {
		rest := v.starts[stretch+1] - p // of the document
		filler := k >= total
		n := int(min(int64(left), rest))
		if !filler {
			n = int(min(int64(n), total-k))
		}
		from := v.from[stretch] + p - v.starts[stretch]
		tokens, targets := b.Tokens[at:at+n], b.Targets[at:at+n]
		v.dataset.copyTokens(tokens, from)
		if filler {
			for i := range targets {
				targets[i] = -1
			}
		} else {
			copy(targets, tokens[1:])
			if targets[n-1] = -1; int64(n) < rest {
				v.dataset.copyTokens(targets[n-1:], from+int64(n))
				b.Predicted++
			}
			b.Predicted += n - 1
		}
		b.Lengths = append(b.Lengths, n)
		at, left, k, p = at+n, left-n, k+int64(n), p+int64(n)
		if p == total {
			p, stretch = 0, 0
		} else if p == v.starts[stretch+1] {
			stretch++
		}
	}
}

// State is the loader's position.
func (l *Loader) State() LoaderState {
	return LoaderState{Epoch: l.epoch, Row: min(l.next, l.rows), Data: l.fingerprint()}
}

// Restore goes to a saved position: the batches that follow are those that would have followed then, also when the batch
// size is another now. Data, tokenizer, context, seed and shuffle must be the same.
func (l *Loader) Restore(s LoaderState) error {
	if want := l.fingerprint(); s.Data != want {
		return fmt.Errorf("the saved position belongs to other data, another tokenizer or another context, seed or shuffle: it was saved for %q, this is %q", s.Data, want)
	}
	if s.Epoch < 0 || s.Row < 0 || s.Row > l.rows {
		return fmt.Errorf("the saved position, row %d of epoch %d, does not exist: an epoch has %d rows", s.Row, s.Epoch, l.rows)
	}
	l.begin(s.Epoch)
	l.next = s.Row
	return nil
}

func (l *Loader) fingerprint() string {
	s := fmt.Sprintf("%s T=%d", l.view.Fingerprint(), l.o.Context)
	if l.o.Shuffle {
		s += fmt.Sprintf(" seed=%d", l.o.Seed)
	}
	return s
}
