"""The bundle as a folder: manifest, files, memory, and what is in it."""
