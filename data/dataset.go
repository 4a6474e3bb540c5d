package data

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
)

// Dataset is a tokenised text: a mapped cache file. Views of it are valid until Close.
type Dataset struct {
	key          key
	vocabulary   int
	narrow       []uint16 // the tokens, when the vocabulary fits 16 bits
	wide         []uint32 // the tokens otherwise
	pieces       []byte
	documents    []document
	unmap        func() error
	tokenizedNow bool
}

// document is the tokens [from, to), the bytes of its text and its first piece.
type document struct {
	from, to, bytes int64
	piece           int
}

// Close gives the memory back; views and loaders must not be used afterwards.
func (d *Dataset) Close() error {
	unmap := d.unmap
	d.narrow, d.wide, d.pieces, d.documents = nil, nil, nil, nil
	d.unmap = func() error { return nil }
	return unmap()
}

// VocabSize is the tokenizer's.
func (d *Dataset) VocabSize() int { return d.vocabulary }

// Reused reports whether the cache was there already, so that nothing had to be tokenised.
func (d *Dataset) Reused() bool { return !d.tokenizedNow }

// Key identifies the text and the tokenizer: equal keys, equal tokens.
func (d *Dataset) Key() string { return d.key.String() }

func (d *Dataset) pieceCount() int { return len(d.pieces) / 8 }

func (d *Dataset) piece(i int) piece {
	tokens := binary.LittleEndian.Uint32(d.pieces[8*i:])
	return piece{int(tokens &^ beginBit), int(binary.LittleEndian.Uint32(d.pieces[8*i+4:])), tokens&beginBit != 0}
}

// copyTokens fills dst with the tokens from position at on.
func (d *Dataset) copyTokens(dst []int32, at int64) {
	if d.narrow != nil {
		for i, t := range d.narrow[at : at+int64(len(dst))] {
			dst[i] = int32(t)
		}
		return
	}
	for i, t := range d.wide[at : at+int64(len(dst))] {
		dst[i] = int32(t)
	}
}

// View is a list of stretches of a dataset, each a document or a part of one: what a Loader walks.
type View struct {
	dataset *Dataset
	name    string  // which part of the dataset this is
	from    []int64 // stretch i begins at token from[i] of the dataset ...
	starts  []int64 // ... and is tokens [starts[i], starts[i+1]) of the view
	bytes   int64
}

func (v *View) add(from, to, bytes int64) {
	v.bytes += bytes
	if from == to { // text that the tokenizer drops
		return
	}
	v.from = append(v.from, from)
	v.starts = append(v.starts, v.starts[len(v.starts)-1]+to-from)
}

func (d *Dataset) view(name string) *View { return &View{dataset: d, name: name, starts: []int64{0}} }

// All is the view of every document.
func (d *Dataset) All() *View {
	v := d.view("all")
	for _, doc := range d.documents {
		v.add(doc.from, doc.to, doc.bytes)
	}
	return v
}

// Split holds a fraction of the documents out for validation, chosen by a hash of their index and seed. Where the fraction
// is less than one document, as in a single text file, the tail of the longest document is held out instead.
func (d *Dataset) Split(fraction float64, seed uint64) (train, held *View, err error) {
	if !(fraction > 0 && fraction < 1) {
		return nil, nil, fmt.Errorf("held-out fraction %v: want one between 0 and 1", fraction)
	}
	n := int(math.Round(fraction * float64(len(d.documents))))
	if fraction*float64(len(d.documents)) < 1 {
		return d.splitTail(fraction)
	}
	n = min(n, len(d.documents)-1)
	order := make([]int, len(d.documents))
	for i := range order {
		order[i] = i
	}
	rank := func(i int) uint64 { return mix(mix(seed) + uint64(i)) }
	slices.SortFunc(order, func(a, b int) int { return cmp.Or(cmp.Compare(rank(a), rank(b)), a-b) })
	out := make([]bool, len(order))
	for _, i := range order[:n] {
		out[i] = true
	}
	name := fmt.Sprintf("%v of seed %d", fraction, seed)
	train, held = d.view("all but "+name), d.view(name)
	for i, doc := range d.documents {
		v := train
		if out[i] {
			v = held
		}
		v.add(doc.from, doc.to, doc.bytes)
	}
	return train, held, nil
}

// splitTail cuts the longest document between two pieces, so that about the fraction of all tokens lies behind the cut.
func (d *Dataset) splitTail(fraction float64) (train, held *View, err error) {
	longest := 0
	total := int64(0)
	for i, doc := range d.documents {
		total += doc.to - doc.from
		if doc.to-doc.from > d.documents[longest].to-d.documents[longest].from {
			longest = i
		}
	}
	doc := d.documents[longest]
	end := d.pieceCount()
	if longest+1 < len(d.documents) {
		end = d.documents[longest+1].piece
	}
	if end-doc.piece < 2 {
		return nil, nil, fmt.Errorf("the text is too short to hold %v of it out: give more text, other validation data, or held_out = 0", fraction)
	}
	// Of the places between pieces, the nearest to the wanted one.
	want := min(int64(fraction*float64(total)), (doc.to-doc.from)/2)
	cut, cutBytes := doc.to, int64(0)
	at, bytes := doc.to, int64(0)
	for i := end - 1; i > doc.piece; i-- {
		p := d.piece(i)
		at -= int64(p.tokens)
		bytes += int64(p.bytes)
		if cut == doc.to || abs(doc.to-at-want) < abs(doc.to-cut-want) {
			cut, cutBytes = at, bytes
		}
	}
	name := fmt.Sprintf("tail %v", fraction)
	train, held = d.view("all but "+name), d.view(name)
	for i, doc := range d.documents {
		if i == longest {
			train.add(doc.from, cut, doc.bytes-cutBytes)
			held.add(cut, doc.to, cutBytes)
		} else {
			train.add(doc.from, doc.to, doc.bytes)
		}
	}
	return train, held, nil
}

func abs(x int64) int64 { return max(x, -x) }

// Documents is the number of documents and parts of documents.
func (v *View) Documents() int { return len(v.from) }

// Tokens is the number of tokens, those that end documents included.
func (v *View) Tokens() int64 { return v.starts[len(v.starts)-1] }

// Predicted is the number of tokens that an epoch predicts: all but the first of each document.
func (v *View) Predicted() int64 { return v.Tokens() - int64(len(v.from)) }

// TextBytes is the length of the text. With the summed loss of one epoch in nats, bits per byte = loss / ln 2 / TextBytes.
func (v *View) TextBytes() int64 { return v.bytes }

// Fingerprint identifies the tokens and their order: data, tokenizer and part.
func (v *View) Fingerprint() string { return v.dataset.Key() + " " + v.name }

// mix is the finaliser of SplitMix64: a fixed bijection that leaves no pattern. What it decides must not change from one
// version of Go to the next.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
