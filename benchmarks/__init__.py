"""Students to measure on, and measurements."""
