package hybridize

import (
	"fmt"
	"math/rand/v2"
)

// GateStart is how the new gates of a hybrid begin.
type GateStart string

const (
	// GateSpread spreads time scales over the slots of a head: with mu the mean of the layer's normed input and K_i the key rows of slot i,
	//
	//	W_i = 0.1 (K_i - (K_i.mu / |mu|^2) mu) + c_i mu / |mu|^2,   c_i from GateLow to GateHigh
	//
	// so that a gate logit starts near c_i: memories from a few to some thousand tokens.
	GateSpread GateStart = "spread"
	// GateKeys takes the mean of a contiguous block of the head's key rows for every slot (SPEC 2).
	GateKeys GateStart = "keys"
	// GateRandom draws from N(0, 0.02).
	GateRandom GateStart = "random"
)

// The spread of gate logits over a head's slots, and how much of a key row a gate keeps: at tau = 8 memories of about 4 to 9000 tokens.
const (
	GateLow   = -2.0
	GateHigh  = 7.0
	keyInGate = 0.1
)

// ParseGateStart reads an option's value.
func ParseGateStart(s string) (GateStart, error) {
	switch g := GateStart(s); g {
	case GateSpread, GateKeys, GateRandom:
		return g, nil
	}
	return "", fmt.Errorf("gates %q: use spread, keys or random", s)
}

// keyRows is a row [hidden] for every slot of every kv head, from the key projection [H*K, hidden]: the mean of a block of the
// head's rows, or rows repeated where there are more slots than rows.
func keyRows(k []float32, heads, headDim, slots, hidden int) []float32 {
	rows := make([]float32, heads*slots*hidden)
	for h := range heads {
		for i := range slots {
			from, to := i*headDim/slots, max(i*headDim/slots+1, (i+1)*headDim/slots)
			dst := rows[(h*slots+i)*hidden : (h*slots+i+1)*hidden]
			for r := from; r < to; r++ {
				for j, v := range k[(h*headDim+r)*hidden : (h*headDim+r+1)*hidden] {
					dst[j] += v / float32(to-from)
				}
			}
		}
	}
	return rows
}

// spread turns key rows into gates with a spread of time scales, in place; mean is the layer's mean normed input [hidden].
func spread(rows, mean []float32, slots int) {
	norm := 0.0
	for _, m := range mean {
		norm += float64(m) * float64(m)
	}
	norm = max(norm, 1e-12)
	hidden := len(mean)
	for i := 0; i*hidden < len(rows); i++ {
		row := rows[i*hidden : (i+1)*hidden]
		along := 0.0
		for j, m := range mean {
			along += float64(row[j]) * float64(m)
		}
		c := GateLow + (GateHigh-GateLow)*float64(i%slots)/float64(max(1, slots-1))
		for j, m := range mean {
			row[j] = float32(keyInGate*(float64(row[j])-along/norm*float64(m)) + c/norm*float64(m))
		}
	}
}

// gates is the start of one layer's gate, [H*M, hidden] row-major.
func gates(start GateStart, k, mean []float32, heads, headDim, slots, hidden int, seed uint64, layer int) []float32 {
	if start == GateRandom {
		r := rand.New(rand.NewPCG(seed, uint64(layer)))
		rows := make([]float32, heads*slots*hidden)
		for i := range rows {
			rows[i] = float32(0.02 * r.NormFloat64())
		}
		return rows
	}
	rows := keyRows(k, heads, headDim, slots, hidden)
	if start == GateSpread {
		spread(rows, mean, slots)
	}
	return rows
}
