"""Where a student's numbers lie: files, names, kinds, and which tensor is which."""
