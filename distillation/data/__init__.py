"""Where prompts, pictures, latents and embeddings come from: by number, so that a batch depends on step and seed alone."""
