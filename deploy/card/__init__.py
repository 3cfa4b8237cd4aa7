"""A bundle as a page on a model hub."""
