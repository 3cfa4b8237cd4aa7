"""A student's graphs as Core ML packages: lowered from the traced graph, weights streamed, checked by an evaluator."""
