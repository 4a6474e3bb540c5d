package model

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"

	"nha/attention"
)

// RopeScaling changes the frequencies theta^(-2i/K) of the rotary embedding. The zero value leaves them.
//
//	linear  f / factor
//	llama3  f where the wavelength 2 pi/f is below C/high, f / factor where it is above C/low, between them a mixture:
//	        with s = (C/wavelength - low) / (high - low), (1-s) f/factor + s f
type RopeScaling struct {
	Type            string  `json:"rope_type"`
	Factor          float64 `json:"factor,omitempty"`
	LowFreqFactor   float64 `json:"low_freq_factor,omitempty"`
	HighFreqFactor  float64 `json:"high_freq_factor,omitempty"`
	OriginalContext int     `json:"original_max_position_embeddings,omitempty"` // C
}

var ropeTypes = []string{"default", "linear", "llama3"}

func (r *RopeScaling) check() error {
	switch {
	case r.Type == "":
		return nil
	case !slices.Contains(ropeTypes, r.Type):
		return fmt.Errorf("rope_type %q is not supported: use one of %s", r.Type, strings.Join(ropeTypes, ", "))
	case !(r.Factor > 0) || math.IsInf(r.Factor, 0):
		return fmt.Errorf("factor %v of rope_type %s: must be positive", r.Factor, r.Type)
	case r.Type != "llama3":
		return nil
	case !(r.LowFreqFactor > 0) || !(r.HighFreqFactor > r.LowFreqFactor) || math.IsInf(r.HighFreqFactor, 0):
		return fmt.Errorf("low_freq_factor %v and high_freq_factor %v of rope_type llama3: must be positive, the second larger", r.LowFreqFactor, r.HighFreqFactor)
	case r.OriginalContext < 1:
		return fmt.Errorf("original_max_position_embeddings %d of rope_type llama3: must be at least 1", r.OriginalContext)
	}
	return nil
}

// frequency is the scaled f.
func (r *RopeScaling) frequency(f float64) float64 {
	switch r.Type {
	case "linear":
		return f / r.Factor
	case "llama3":
		turns := float64(r.OriginalContext) * f / (2 * math.Pi) // C/wavelength
		switch {
		case turns > r.HighFreqFactor:
			return f
		case turns < r.LowFreqFactor:
			return f / r.Factor
		}
		s := (turns - r.LowFreqFactor) / (r.HighFreqFactor - r.LowFreqFactor)
		return (1-s)*f/r.Factor + s*f
	}
	return f
}

// Rope is the model's rotary embedding.
func (c *Config) Rope() *attention.Rope {
	f := make([]float64, c.HeadDim/2)
	for i := range f {
		f[i] = c.RopeScaling.frequency(math.Pow(c.RopeTheta, -2*float64(i)/float64(c.HeadDim)))
	}
	return attention.NewRopeFrequencies(f)
}

// readRope reads either spelling: rope_theta with rope_scaling, or rope_parameters, which holds both.
func (c *Config) readRope(k *fields) {
	k.read("rope_theta", &c.RopeTheta)
	original := c.MaxPositionEmbeddings
	outside := k.read("original_max_position_embeddings", &original) // in some files it stands outside, and then counts
	var objects []*fields
	for _, key := range []string{"rope_scaling", "rope_parameters"} {
		o := &fields{object: key}
		if k.read(key, &o.raw) && len(o.raw) > 0 {
			objects = append(objects, o)
		}
	}
	if len(objects) == 2 && !sameObject(objects[0].raw, objects[1].raw) {
		k.fail("rope_scaling and rope_parameters differ: give one of them")
	}
	if k.err != nil || len(objects) == 0 {
		return
	}
	o := objects[0]
	r := RopeScaling{Type: "default"}
	o.read("type", &r.Type)
	o.read("rope_type", &r.Type)
	if o.err == nil && !slices.Contains(ropeTypes, r.Type) {
		o.fail("rope_type %q is not supported: use one of %s", r.Type, strings.Join(ropeTypes, ", "))
	}
	o.read("rope_theta", &c.RopeTheta)
	o.only("partial_rotary_factor", 1.0)
	o.read("factor", &r.Factor)
	o.read("low_freq_factor", &r.LowFreqFactor)
	o.read("high_freq_factor", &r.HighFreqFactor)
	if !o.read("original_max_position_embeddings", &r.OriginalContext) || outside {
		r.OriginalContext = original
	}
	switch r.Type {
	case "default":
		r = RopeScaling{}
	case "linear":
		r = RopeScaling{Type: r.Type, Factor: r.Factor}
	}
	c.RopeScaling = r
	if k.err = o.finish(nil); k.err != nil {
		return
	}
	if err := r.check(); err != nil {
		k.fail("%s: %w", o.object, err)
	}
}

func sameObject(a, b map[string]json.RawMessage) bool {
	if len(a) != len(b) {
		return false
	}
	for key, v := range a {
		if string(v) != string(b[key]) {
			return false
		}
	}
	return true
}
