"""One step of each kind of stage: batches in, weights moved, metrics out."""
