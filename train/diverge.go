package train

import (
	"errors"
	"fmt"
)

// course is how the loss has gone, for runs that stop when it diverges. With l the loss of a step,
//
//	smoothed <- smoothed + (l - smoothed) / 20, the first loss to begin with
//	above    <- above + 1 where smoothed > DivergeRatio max(lowest, .001), else 0
//
// and the run ends when above reaches DivergeSteps. It is kept in checkpoints, so a resumed run ends at the same step.
type course struct {
	Losses   int     `json:"losses"` // seen
	Smoothed float64 `json:"smoothed_loss"`
	Lowest   float64 `json:"lowest_loss"` // of the smoothed
	Above    int     `json:"above"`       // steps in a row
}

const (
	smoothing = 1. / 20
	smallLoss = 1e-3 // below it the ratio of two losses is noise
)

var errDiverged = errors.New("the loss diverges")

// see counts a finite loss.
func (c *course) see(loss float64, s *Settings) error {
	if c.Losses++; c.Losses == 1 {
		c.Smoothed, c.Lowest = loss, loss
	}
	c.Smoothed += smoothing * (loss - c.Smoothed)
	c.Lowest = min(c.Lowest, c.Smoothed)
	if s.DivergeRatio == 0 || c.Smoothed <= s.DivergeRatio*max(c.Lowest, smallLoss) {
		c.Above = 0
		return nil
	}
	if c.Above++; c.Above < s.DivergeSteps {
		return nil
	}
	return fmt.Errorf("%w: for %d steps it was above %v times its lowest (smoothed, %.4g now and %.4g then): lower learning_rate (%v) or clip (%v), or lengthen warmup (%d)",
		errDiverged, c.Above, s.DivergeRatio, c.Smoothed, c.Lowest, s.LearningRate, s.Clip, s.Warmup)
}
