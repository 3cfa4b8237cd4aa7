"""Making students: random ones of any size, the world that the built-in one learned from, and how a student is written."""
