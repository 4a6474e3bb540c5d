// Package hybridize turns a pretrained Transformer into an NHA model (SPEC 2, hybridised LLMs) and finds the windows that suit
// it: a gate for every layer, stages of training against the base model, adapters, the search under a budget, and a report.
package hybridize
