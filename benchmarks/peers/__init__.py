"""What others would do with the same student: each a file, measured like a bundle, in fresh processes, picture for picture."""
