"""Student to graphs to files, and the proof that they compute the same."""
