package model

import "nha/attention"

// Account is what a model is made of and what it costs, from its configuration alone (SPEC 1.4).
type Account struct {
	Parameters          int   // all of them
	ActiveParameters    int   // those that one token meets: without the experts that it does not choose
	EmbeddingParameters int   // the embedding, and the head where it is not tied
	FLOPsPerToken       int   // forward, 2 per multiply-add, at the given context; backward costs twice that again
	MultiplyAdds        int   // of the operator in all layers, one token at the given depth
	OperatorBytes       int   // one token through the operators in training's forward: q, k, v, z read once, o written once, float32
	StateBytes          int   // decode state of one sequence at the given context, float32
	KVBytes             int   // keys and values a Transformer of the same heads would hold at the given context, float32
	LayerStateBytes     []int // StateBytes layer by layer
}

// Account counts for a sequence of so many tokens.
func (c *Config) Account(tokens int) Account {
	var a Account
	for _, s := range c.Specs() {
		a.Parameters += s.Shape.Len()
	}
	embedding := c.VocabSize * c.HiddenSize
	a.EmbeddingParameters = embedding
	if !c.TieWordEmbeddings {
		a.EmbeddingParameters = 2 * embedding
	}
	a.ActiveParameters = a.Parameters - c.idleExperts()
	a.FLOPsPerToken = 2 * (a.ActiveParameters - a.EmbeddingParameters + embedding) // the head multiplies, the embedding is a look-up
	for i := range c.NumHiddenLayers {
		op, err := c.Attention(i, nil)
		if err != nil {
			panic("model: account of an unresolved configuration: " + err.Error())
		}
		a.MultiplyAdds += operatorMultiplyAdds(op, tokens)
		a.OperatorBytes += 4 * (op.QueryHeads*(op.KeyDim+op.ValueDim) + op.KVHeads*(op.KeyDim+op.ValueDim+op.Slots))
		bytes := op.StateBytes(tokens, 4)
		a.LayerStateBytes = append(a.LayerStateBytes, bytes)
		a.StateBytes += bytes
		a.KVBytes += 4 * tokens * op.KVHeads * (op.KeyDim + op.ValueDim)
	}
	a.FLOPsPerToken += 2 * a.MultiplyAdds
	return a
}

// idleExperts is the parameters of the experts that a token does not choose, in all layers.
func (c *Config) idleExperts() (n int) {
	for i := range c.NumHiddenLayers {
		if c.Experts.In(i) {
			n += (c.Experts.Count - c.Experts.TopK) * 3 * c.HiddenSize * c.Experts.Size
		}
	}
	return n
}

// operatorMultiplyAdds is the ideal count for one token at the given depth: W (K+V) + M (K+V) per query head, M (K+V) per kv
// head for the update of the slots.
func operatorMultiplyAdds(c *attention.Config, tokens int) int {
	per := c.KeyDim + c.ValueDim
	return c.QueryHeads*(min(c.Window, tokens)+c.Slots)*per + c.KVHeads*c.Slots*per
}
