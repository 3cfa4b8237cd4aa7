"""Text to picture from a bundle: numpy, onnxruntime, tokenizers and Pillow."""
