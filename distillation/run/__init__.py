"""A run: its processes, what it keeps on disk, what it records, its stages in order."""
