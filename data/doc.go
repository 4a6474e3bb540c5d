// Package data turns text files into batches of tokens for training and evaluation.
//
//	files -> Documents -> Prepare (tokenised once, into a cache file) -> Dataset -> View (all, or a part held out) -> Loader -> Batch
//
// Text is streamed: memory does not grow with the data. A token cache is keyed by the contents of the files and by the
// tokenizer, checked by a checksum whenever it is opened, and mapped, not read.
//
// A Batch is B rows of T tokens. A row is cut into sequences, none of which holds tokens of two documents, so a model that
// starts every sequence afresh lets nothing leak from one document into the next (SPEC 1, Sequences). In an epoch every
// token of a View is the input once, and every token but the first of a document is the target once.
package data

// Encoder is what this package needs of a tokenizer. EncodeAppend is called from several goroutines at once.
type Encoder interface {
	// EncodeAppend appends the tokens of text, each in [0, VocabSize), to dst.
	EncodeAppend(dst []int32, text string) []int32
	// EOS is the token that ends a document, when the tokenizer has one.
	EOS() (int32, bool)
	VocabSize() int
	// Hash tells two tokenizers apart that encode differently.
	Hash() string
}
