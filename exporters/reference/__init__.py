"""The proof: every graph and the whole picture against diffusers."""
