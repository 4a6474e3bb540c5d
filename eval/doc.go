// Package eval measures models on the tasks and by the protocols that the field uses, so that a number from here stands
// beside one from lm-evaluation-harness, from the recall tasks of prefix-linear-attention or from RULER.
//
//	Task       what is asked: files of a dataset or a generator, and the metrics (task.go has the one table)
//	document   one row: requests to the model, and what the answers are worth
//	engine     answers requests in packed batches: log p(continuation | context), or a greedy continuation
//	Report     metrics with standard errors, averages of groups, as lines, tables or lm-evaluation-harness' result file
//
// Run is the whole way for one model. What was answered before an interruption is kept and not asked again.
package eval
