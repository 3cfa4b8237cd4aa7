"""Traced modules in torch whose weights are read as they are needed."""
