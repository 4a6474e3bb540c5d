// Package train teaches a model from batches of tokens (SPEC 2, training options).
//
//	Settings -> Trainer: one optimiser step over any Source of batches
//	Trainer  -> Loop:    a run directory around it: validation, metrics, checkpoints, exact resume
//	Options  -> Run:     the whole from text files to a model directory, what `nha train` does
//
// One step: the mean loss over all tokens that the step predicts (its accumulated batches together), its gradient g, clipped
// by its global norm, and AdamW on every parameter,
//
//	g <- g min(1, clip/|g|);  m <- b1 m + (1-b1) g;  v <- b2 v + (1-b2) g^2
//	p <- p - lr f (decay p + m' / (sqrt(v') + epsilon)),  m' = m / (1 - b1^t), v' = v / (1 - b2^t)
//
// with lr the schedule's rate, f the tensor's learning-rate factor, and decay on matrices alone. A step whose loss or gradient
// is not finite changes nothing and is counted; t counts the steps that did.
//
// A run that is stopped, however roughly, and resumed ends with the same bits as one never stopped, on the same backend with
// the same number of threads: a checkpoint holds everything that the steps after it depend on, and is there whole or not at
// all.
package train
