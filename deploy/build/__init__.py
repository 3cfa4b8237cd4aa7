"""Student to bundle."""
