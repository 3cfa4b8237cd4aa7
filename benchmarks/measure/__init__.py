"""Time, memory and energy of processes, measured."""
