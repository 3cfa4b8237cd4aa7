"""What other forms of a VAE cost: in bands of rows, and a small decoder in its place."""
