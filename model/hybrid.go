package model

import (
	"encoding/json"
	"fmt"
	"slices"
)

// A hybrid is a pretrained model with slots (SPEC 2): its config.json has a block "nha", and every layer one matrix more, the gate.
// Without slots the block is the dial alone: other windows than the base's own.
const hybridKey = "nha"

// Hybrid is what turns a pretrained family into a hybrid. Zero fields are the defaults: mask, 8.
type Hybrid struct {
	Slots               int // M
	EmptySlots          string
	GateLogitNormalizer float64
	GateBias            bool
}

// hybridBlock is the block as it stands in config.json.
type hybridBlock struct {
	NumSlots            int     `json:"num_slots"`
	LayerWindows        Windows `json:"layer_windows"`
	EmptySlots          string  `json:"empty_slots"`
	GateLogitNormalizer float64 `json:"gate_logit_normalizer"`
	GateBias            bool    `json:"gate_bias,omitempty"`
}

// Hybridize gives a pretrained configuration slots; its windows stay as they are.
func (c *Config) Hybridize(h Hybrid) error {
	switch {
	case c.raw == nil:
		return fmt.Errorf("model_type %s: only a pretrained family becomes a hybrid", c.ModelType)
	case c.NumSlots > 0:
		return fmt.Errorf("this model has %d slots already", c.NumSlots)
	case h.Slots < 1:
		return fmt.Errorf("num_slots %d: a hybrid has at least 1", h.Slots)
	}
	c.NumSlots, c.GateBias, c.EmptySlots, c.GateLogitNormalizer = h.Slots, h.GateBias, "mask", 8
	if h.EmptySlots != "" {
		c.EmptySlots = h.EmptySlots
	}
	if h.GateLogitNormalizer != 0 {
		c.GateLogitNormalizer = h.GateLogitNormalizer
	}
	return c.Resolve()
}

// block is what config.json says beyond the base's keys; false: nothing.
func (c *Config) block() (hybridBlock, bool) {
	return hybridBlock{c.NumSlots, c.LayerWindows, c.EmptySlots, c.GateLogitNormalizer, c.GateBias}, c.NumSlots > 0 || !slices.Equal(c.LayerWindows, c.base)
}

func (c *Config) readHybrid(k *fields) {
	o := &fields{object: hybridKey}
	if !k.read(hybridKey, &o.raw) {
		return
	}
	o.need("num_slots", &c.NumSlots)
	o.read("empty_slots", &c.EmptySlots)
	o.read("gate_logit_normalizer", &c.GateLogitNormalizer)
	o.read("gate_bias", &c.GateBias)
	if raw, ok := o.ask("layer_windows"); ok {
		w, err := windowsFromJSON(json.RawMessage(raw), c.NumHiddenLayers)
		if err != nil {
			o.fail("%w", err)
		}
		c.LayerWindows = w
	}
	if err := o.finish(nil); err != nil && k.err == nil {
		k.err = err
	}
}
